"""flask_uow with ``UOW_AUTO_COMMIT``: each request is a transaction, and no view says so."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from flask_uow import UnitOfWork
from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    app.config["UOW_AUTO_COMMIT"] = True
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.get("/read")
    def read() -> str:
        return read_name(uow.session)

    @app.post("/write")
    def write() -> str:
        add_entry(uow.session, "write")
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        transfer_one(uow.session)
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        fail(uow.session)
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        with uow.savepoint() as session:
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)
