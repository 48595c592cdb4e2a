"""flask_uow with the policy, a hook in each transaction, and receivers that read what has changed."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from flask_uow import ChangeSet, UnitOfWork, signals
from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    app.config["UOW_AUTO_COMMIT"] = True
    uow = UnitOfWork(sessionmaker(engine), app)
    told = app.extensions["told"] = Counter[str]()

    def read_changes(_sender: object, changes: ChangeSet, **_extra: object) -> None:
        told["changes"] += len([change.operation for change in changes])

    def count(_sender: object, outcome: object, **_extra: object) -> None:
        told[str(outcome)] += 1

    def hook() -> None:
        told["hooks"] += 1

    # The functions live as long as this one's app, which a weak reference of blinker's would not know.
    signals.before_commit.connect(read_changes, sender=app, weak=False)
    signals.after_commit.connect(read_changes, sender=app, weak=False)
    signals.after_rollback.connect(read_changes, sender=app, weak=False)
    signals.transaction_completed.connect(count, sender=app, weak=False)

    @app.get("/read")
    def read() -> str:
        uow.on_commit(hook)
        return read_name(uow.session)

    @app.post("/write")
    def write() -> str:
        uow.on_commit(hook)
        add_entry(uow.session, "write")
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        uow.on_commit(hook)
        transfer_one(uow.session)
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        uow.on_commit(hook)
        fail(uow.session)
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        uow.on_commit(hook)
        with uow.savepoint() as session:
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)
