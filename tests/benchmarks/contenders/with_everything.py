"""flask_uow with the policy, a hook in each transaction, and receivers that read what has changed."""

from __future__ import annotations

from collections import Counter

from flask import Flask
from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from flask_uow import ChangeSet, Outcome, UnitOfWork, signals
from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


class Listener:
    """Receives the signals of one app, and counts what it is told."""

    def __init__(self, app: Flask) -> None:
        self.told: Counter[str] = Counter()
        for signal in (signals.before_commit, signals.after_commit, signals.after_rollback):
            signal.connect(self.read_changes, sender=app)
        signals.transaction_completed.connect(self.count, sender=app)

    def read_changes(self, _sender: object, changes: ChangeSet, **_extra: object) -> None:
        """Read all that has changed."""
        self.told["changes"] += len([change.operation for change in changes])

    def count(self, _sender: object, outcome: Outcome, **_extra: object) -> None:
        """Note how a transaction has ended."""
        self.told[outcome.name] += 1

    def hook(self) -> None:
        """Run after a COMMIT."""
        self.told["hooks"] += 1

    def disconnect(self) -> None:
        """Receive nothing any more."""
        for signal in (signals.before_commit, signals.after_commit, signals.after_rollback):
            signal.disconnect(self.read_changes)
        signals.transaction_completed.disconnect(self.count)


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    app.config["UOW_AUTO_COMMIT"] = True
    uow = UnitOfWork(sessionmaker(engine), app)
    # It lives as long as the app does: signals hold their receivers weakly.
    listener = app.extensions["listener"] = Listener(app)

    @app.get("/read")
    def read() -> str:
        uow.on_commit(listener.hook)
        return read_name(uow.session)

    @app.post("/write")
    def write() -> str:
        uow.on_commit(listener.hook)
        add_entry(uow.session, "write")
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        uow.on_commit(listener.hook)
        transfer_one(uow.session)
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        uow.on_commit(listener.hook)
        fail(uow.session)
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        uow.on_commit(listener.hook)
        with uow.savepoint() as session:
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)
