"""Flask-SQLAlchemy and Flask-SQLAlchemy-Lite as a source of sessions: one session for both, settled by us."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import Engine

from flask_uow import NoScopeError, Propagation, UnitOfWork, transactional
from tests.conftest import Base, Book, Log, assert_nothing_checked_out, titles

Database = SQLAlchemy | SQLAlchemyLite


@pytest.fixture(params=["Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite"])
def db(request: pytest.FixtureRequest, app: Flask, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    db: Database
    if request.param == "Flask-SQLAlchemy":
        app.config["SQLALCHEMY_DATABASE_URI"] = url
        db = SQLAlchemy(model_class=Base)
    else:
        app.config["SQLALCHEMY_ENGINES"] = {"default": url}
        db = SQLAlchemyLite()
    db.init_app(app)
    with app.app_context():
        engine = db.engine
        Base.metadata.create_all(engine)
    yield db
    assert_nothing_checked_out(engine)
    engine.dispose()


@pytest.fixture
def uow(db: Database, app: Flask) -> UnitOfWork:
    return UnitOfWork(db, app)


def engine_of(app: Flask, db: Database) -> Engine:
    with app.app_context():
        return db.engine


def session_of(db: Database) -> Any:
    """The real session behind db.session."""
    return db.session() if isinstance(db, SQLAlchemy) else db.session


def test_session_is_the_same(app: Flask, db: Database, uow: UnitOfWork) -> None:
    """db.session and uow.session are one session, whoever asks first."""
    with app.app_context():
        assert uow.session is session_of(db)
    with app.app_context():
        session = session_of(db)
        assert uow.session is session


def test_binds(app: Flask, db: Database, uow: UnitOfWork) -> None:
    """The engines of the current app are what sessions are bound to; there are none where the extension knows none."""
    outside = uow._source.binds()
    with Flask("another").app_context():
        elsewhere = uow._source.binds()
    with app.app_context():
        inside = uow._source.binds()

    assert (outside, elsewhere, inside) == ([], [], [engine_of(app, db)])


def test_requests_are_settled(app: Flask, db: Database, uow: UnitOfWork, log: Log) -> None:
    """A view that works with db.session is committed and rolled back by the policy, and torn down once."""

    @app.post("/<int:status>")
    @transactional
    def view(status: int) -> tuple[str, int]:
        assert uow.session is session_of(db)
        db.session.add(Book(title=str(status)))
        db.session.flush()
        return "", status

    client = app.test_client()
    client.post("/201")
    client.post("/422")

    assert titles(engine_of(app, db)) == ["201"]
    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "transaction_completed",
        "session_removed",
        "transaction_started",
        "after_rollback",
        "transaction_completed",
        "session_removed",
    ]


def test_work_through_db_alone_is_settled(app: Flask, db: Database) -> None:
    """Under the app-wide policy a view needs to know db alone."""
    app.config["UOW_AUTO_COMMIT"] = True
    UnitOfWork(db, app)

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        db.session.add(Book(title=str(status)))
        return "", status

    client = app.test_client()
    client.post("/200")
    client.post("/400")

    assert titles(engine_of(app, db)) == ["200"]


def test_request_inside_an_app_context(app: Flask, db: Database, uow: UnitOfWork) -> None:
    """The usual fixture, an app_context() around the client, does not mix the sessions up."""

    @app.post("/")
    @transactional
    def view() -> str:
        uow.session.add(Book(title="request"))
        return ""

    with app.app_context():
        session_of(db).add(Book(title="fixture"))
        session_of(db).commit()
        status = app.test_client().post("/").status_code

    assert status == 200
    assert titles(engine_of(app, db)) == ["fixture", "request"]


def test_outside_a_context(uow: UnitOfWork) -> None:
    """Without an app context there is no session, as it is with db.session."""
    with pytest.raises(RuntimeError):
        _ = uow.session
    with pytest.raises(RuntimeError), uow.transaction():
        pass


def test_scope_function_of_the_users_own(app: Flask) -> None:
    """One that was given to Flask-SQLAlchemy is left in its place; its own is replaced."""
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"

    def everywhere() -> str:
        return "everywhere"

    custom = SQLAlchemy(app, session_options={"scopefunc": everywhere})
    UnitOfWork(custom, app)

    assert custom.session.registry.scopefunc is everywhere
    usual = SQLAlchemy()
    UnitOfWork(usual, app, name="usual")
    with pytest.raises(NoScopeError):
        usual.session()


def test_other_sessions_of_lite_are_left_alone(tmp_path: Path) -> None:
    """Sessions with a name of their own, and those of an app without a UnitOfWork, are the extension's business."""
    app = Flask("lite")
    app.config["SQLALCHEMY_ENGINES"] = {"default": f"sqlite:///{tmp_path / 'lite.db'}"}
    db = SQLAlchemyLite(app=app)
    uow = UnitOfWork(db)

    with app.app_context():
        session = db.session
        assert db.session is session
        assert db.get_session("second") is not session
        assert uow.current_transaction is None
        assert "commit" not in vars(session)
        db.engine.dispose()


def test_registry_is_changed_once(app: Flask, db: Database) -> None:
    """However many UnitOfWork objects there were, the registry's own way to a session is wrapped once."""
    for _ in range(3):
        UnitOfWork(db)
    uow = UnitOfWork(db, app)
    gc.collect()

    if isinstance(db, SQLAlchemy):
        announcing: Any = db.session.registry.createfunc
        inner = announcing._create
    else:
        announcing = db.get_session
        inner = announcing._get_session

    assert type(inner) is not type(announcing)
    assert list(announcing.sources) == [uow._source]


def test_block_that_was_never_left(app: Flask, db: Database, uow: UnitOfWork, log: Log) -> None:
    """Their teardown may close the session before ours, with a block still open in it: rolled back, and no error."""
    with app.app_context():
        uow.transaction().__enter__().add(Book(title="abandoned"))
        session_of(db).flush()

    assert titles(engine_of(app, db)) == []
    assert log.count("after_rollback") == 1


def test_app_without_the_policy(tmp_path: Path) -> None:
    """Another app of the same db, which no UnitOfWork was initialised with, is served as if there were none."""
    app = Flask("plain")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'plain.db'}"
    db = SQLAlchemy(app)
    UnitOfWork(db)

    @app.get("/")
    def view() -> str:
        return str(db.session.scalar(db.select(1)))

    with app.app_context():
        engine = db.engine
        assert app.test_client().get("/").text == "1"

    assert_nothing_checked_out(engine)
    assert db.session.registry.registry == {}
    engine.dispose()


def test_blocks_and_streams_with_a_session_of_their_own(app: Flask, db: Database, uow: UnitOfWork) -> None:
    """In REQUIRES_NEW and in a stream db.session is the inner session, and the outer one after it."""
    sessions: list[Any] = []

    @transactional(propagation=Propagation.REQUIRES_NEW)
    def audit() -> None:
        assert session_of(db) is uow.session
        db.session.add(Book(title="audit"))

    @uow.stream
    def body() -> Iterator[str]:
        for title in ("first", "second"):
            sessions.append(session_of(db))
            assert session_of(db) is uow.session
            db.session.add(Book(title=title))
            yield title

    @app.post("/<int:status>")
    @transactional
    def view(status: int) -> Any:
        held = session_of(db)
        audit()
        assert session_of(db) is held
        assert uow.session is held
        db.session.add(Book(title="by the view"))
        return app.response_class(stream_with_context(body()), status)

    client = app.test_client()
    client.post("/200").get_data()
    client.post("/422").close()

    assert sessions[0] is sessions[1]
    assert titles(engine_of(app, db)) == ["audit", "audit", "by the view", "first", "second"]


def test_streams_without_a_context(db: Database, uow: UnitOfWork) -> None:
    """Their sessions go by the context, and a stream that is read outside any says so."""

    @uow.stream
    def body() -> Iterator[str]:
        db.session.add(Book(title="lost"))
        yield "x"

    with pytest.raises(RuntimeError, match=r"context"):
        list(body())
