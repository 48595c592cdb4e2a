"""The fastest correct views that one can write by hand, with a session of their own each."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.orm import sessionmaker

from flask_uow import UnitOfWork
from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    sessions = sessionmaker(engine)

    @app.get("/read")
    def read() -> str:
        session = sessions()
        try:
            return read_name(session)
        finally:
            session.close()

    @app.post("/write")
    def write() -> str:
        session = sessions()
        try:
            add_entry(session, "write")
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        session = sessions()
        try:
            transfer_one(session)
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        session = sessions()
        try:
            fail(session)
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        session = sessions()
        try:
            with session.begin_nested():
                add_entry(session, "savepoint")
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()
        return "saved"

    return Made(app, engine)


def make_beside_flask_uow(url: URL) -> Made:
    """Return the same app, in a process in which flask_uow has begun to listen to all sessions.

    What it takes longer is what flask_uow costs those that do not use it. The others have a process without it.
    """
    made = make(url)
    with UnitOfWork(sessionmaker(made.engine)).transaction() as session:
        read_name(session)
    return made
