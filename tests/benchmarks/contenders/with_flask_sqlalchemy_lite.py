"""Flask-SQLAlchemy-Lite, with a ``commit()`` in each view that writes. It makes the engine itself, with our options."""

from __future__ import annotations

from inspect import iscoroutinefunction

from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import URL

from tests.benchmarks.models import Made, add_entry, engine_options, fail, make_app, read_name, set_up, transfer_one


def make(url: URL) -> Made:
    app = make_app()
    app.config["SQLALCHEMY_ENGINES"] = {"default": {"url": url, **engine_options(url)}}
    db = SQLAlchemy(app)
    with app.app_context():
        engine = db.engine
    set_up(engine)

    @app.get("/read")
    def read() -> str:
        return read_name(db.session)

    @app.post("/write")
    def write() -> str:
        add_entry(db.session, "write")
        db.session.commit()
        return "written"

    @app.post("/transfer")
    def transfer() -> str:
        transfer_one(db.session)
        db.session.commit()
        return "moved"

    @app.post("/exception")
    def exception() -> str:
        fail(db.session)
        db.session.commit()
        return "not refused"

    @app.post("/savepoint")
    def savepoint() -> str:
        with db.session.begin_nested():
            add_entry(db.session, "savepoint")
        db.session.commit()
        return "saved"

    return Made(app, engine)


def make_without_async(url: URL) -> Made:
    """Return the same app, as its author can have it who uses no AsyncSession.

    `init_app` registers two teardown functions, whatever is configured and installed, and one of them is a coroutine
    function: Flask starts an event loop for it at the end of every request. No option leaves it out, but Flask's own
    list of teardown functions is public, and it has nothing to do where nobody asks for ``db.async_session``.
    """
    made = make(url)
    functions = made.app.teardown_appcontext_funcs
    functions[:] = [function for function in functions if not iscoroutinefunction(function)]
    return made
