"""``with sessions.begin():`` in each view, the short form that SQLAlchemy has for the views by hand."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    sessions = sessionmaker(engine)

    @app.get("/read")
    def read() -> str:
        with sessions.begin() as session:
            return read_name(session)

    @app.post("/write")
    def write() -> str:
        with sessions.begin() as session:
            add_entry(session, "write")
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        with sessions.begin() as session:
            transfer_one(session)
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        with sessions.begin() as session:
            fail(session)
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        with sessions.begin() as session, session.begin_nested():
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)
