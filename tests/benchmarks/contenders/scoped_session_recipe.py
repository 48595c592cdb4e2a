"""The recipe: a ``scoped_session`` that is removed at teardown, and a ``commit()`` in each view that writes."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.orm import scoped_session, sessionmaker

from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    session = scoped_session(sessionmaker(engine))

    @app.teardown_appcontext
    def remove(_error: BaseException | None) -> None:
        session.remove()

    @app.get("/read")
    def read() -> str:
        return read_name(session())

    @app.post("/write")
    def write() -> str:
        add_entry(session(), "write")
        session.commit()
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        transfer_one(session())
        session.commit()
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        fail(session())
        session.commit()
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        with session.begin_nested():
            add_entry(session(), "savepoint")
        session.commit()
        return "saved"

    return Made(app, engine)
