"""Flask-SQLAlchemy, with a ``commit()`` in each view that writes. It makes the engine itself, with our options."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL

from tests.benchmarks.models import (
    Base,
    Made,
    add_entry,
    engine_options,
    fail,
    make_app,
    read_name,
    set_up,
    transfer_one,
)


def make(url: URL) -> Made:
    app = make_app()
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = engine_options(url)
    db = SQLAlchemy(app, model_class=Base)
    with app.app_context():
        engine = db.engine
    set_up(engine)

    @app.get("/read")
    def read() -> str:
        return read_name(db.session())

    @app.post("/write")
    def write() -> str:
        add_entry(db.session(), "write")
        db.session.commit()
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        transfer_one(db.session())
        db.session.commit()
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        fail(db.session())
        db.session.commit()
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        with db.session.begin_nested():
            add_entry(db.session(), "savepoint")
        db.session.commit()
        return "saved"

    return Made(app, engine)
