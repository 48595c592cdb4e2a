"""flask_uow with ``@transactional`` on each view that uses the database."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from flask_uow import UnitOfWork, transactional
from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.get("/read")
    @transactional
    def read() -> str:
        return read_name(uow.session)

    @app.post("/write")
    @transactional
    def write() -> str:
        add_entry(uow.session, "write")
        return "written"

    @app.post("/transfer")
    @transactional
    def transfer() -> str:
        transfer_one(uow.session)
        return "moved"

    @app.post("/exception")
    @transactional
    def exception() -> str:
        fail(uow.session)
        return "not refused"

    @app.post("/savepoint")
    @transactional
    def savepoint() -> str:
        with uow.savepoint() as session:
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)


def make_read_only(url: URL) -> Made:
    """Return an app that has the one view that can be declared to read."""
    app, engine = make_app(), make_engine(url)
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.get("/read")
    @transactional(read_only=True)
    def read() -> str:
        return read_name(uow.session)

    return Made(app, engine)
