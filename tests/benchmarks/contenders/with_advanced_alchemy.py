"""Advanced Alchemy's extension for Flask, which commits below 300 (``commit_mode="autocommit"``)."""

from __future__ import annotations

from advanced_alchemy.extensions.flask import AdvancedAlchemy, SQLAlchemySyncConfig
from sqlalchemy import URL

from tests.benchmarks.models import Made, add_entry, fail, make_app, make_engine, read_name, transfer_one


def make(url: URL) -> Made:
    app, engine = make_app(), make_engine(url)
    alchemy = AdvancedAlchemy(SQLAlchemySyncConfig(engine_instance=engine, commit_mode="autocommit"), app)

    @app.get("/read")
    def read() -> str:
        return read_name(alchemy.get_sync_session())

    @app.post("/write")
    def write() -> str:
        add_entry(alchemy.get_sync_session(), "write")
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        transfer_one(alchemy.get_sync_session())
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        fail(alchemy.get_sync_session())
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        session = alchemy.get_sync_session()
        with session.begin_nested():
            add_entry(session, "savepoint")
        return "saved"

    return Made(app, engine)
