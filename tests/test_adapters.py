from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from flask import Flask, current_app
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow import ConfigurationError, UnitOfWork, flask_scoped_session
from tests.conftest import Base, Book, Loan, titles


class OwnSession(Session):
    pass


class Registry(scoped_session[Session]):
    """Counts how often a session is removed."""

    removed = 0

    def remove(self) -> None:
        self.removed += 1
        super().remove()


class FlaskRegistry(flask_scoped_session):
    """Counts how often a session is removed."""

    removed = 0

    def remove(self) -> None:
        self.removed += 1
        super().remove()


class WithArguments:
    """A factory as a callable object."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, *args: Any, expire: bool = True, **kwargs: Any) -> Session:
        return Session(self._engine, expire_on_commit=expire)


async def open_later() -> AsyncSession:
    raise NotImplementedError


def open_for(tenant: str) -> Session:
    raise NotImplementedError(tenant)


def open_with(*, tenant: str) -> Session:
    raise NotImplementedError(tenant)


@pytest.fixture
def registry(engine: Engine) -> Iterator[Registry]:
    registry = Registry(sessionmaker(engine))
    yield registry
    scoped_session.remove(registry)


@pytest.mark.parametrize(
    "make",
    [
        sessionmaker,
        lambda engine: sessionmaker(engine, class_=OwnSession),
        lambda engine: scoped_session(sessionmaker(engine)),
        lambda engine: engine,
        lambda engine: lambda: Session(engine),
        lambda engine: partial(Session, engine),
        WithArguments,
        lambda engine: sessionmaker(engine).__call__,
    ],
    ids=["sessionmaker", "class", "scoped_session", "engine", "function", "partial", "object", "method"],
)
def test_sources(engine: Engine, make: Callable[[Engine], Any]) -> None:
    """Whatever opens sessions can be the source of them, and none stays open."""
    uow = UnitOfWork(make(engine))

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert isinstance(session, Session)
    assert not session.in_transaction()
    assert titles(engine) == ["Emma"]


def test_the_sessions_are_the_users_own(engine: Engine) -> None:
    """A session is what the user's factory makes, with the user's settings."""
    uow = UnitOfWork(sessionmaker(engine, class_=OwnSession, autoflush=False))

    with uow.transaction() as session:
        pass

    assert isinstance(session, OwnSession)
    assert not session.autoflush
    assert session.expire_on_commit


def test_sessions_of_an_engine_keep_what_they_read(engine: Engine) -> None:
    """What a session made for an engine has loaded can be read after the commit, and after the end."""
    uow = UnitOfWork(engine)
    book = Book(title="Emma")

    with uow.transaction() as session:
        session.add(book)

    assert not session.expire_on_commit
    assert book.title == "Emma"


def test_sessions_of_an_engine_end_for_good(engine: Engine) -> None:
    """A session made for an engine refuses use after its end, instead of holding another connection."""
    uow = UnitOfWork(engine)
    with uow.transaction() as session:
        session.connection()

    with pytest.raises(InvalidRequestError, match="permanently closed"):
        session.connection()


@pytest.mark.parametrize(
    ("sessions", "message"),
    [
        (None, r"^sessions is None: give it a sessionmaker, a scoped_session, an Engine, Flask-SQLAlchemy's db, or a"),
        ("sqlite://", r"^sessions is 'sqlite://': give it a sessionmaker"),
        (open_for, r"^sessions is <function open_for.*>, which cannot be called without arguments: give it a session"),
        (open_with, r"^sessions is <function open_with.*>, which cannot be called without arguments"),
        (open_later, r"^sessions is <function open_later.*>; asynchronous sessions are not available in this version"),
        (async_sessionmaker(), r"^sessions is .*; asynchronous sessions are not available in this version"),
        (
            async_scoped_session(async_sessionmaker(), scopefunc=object),
            r"^sessions is .*; asynchronous sessions are not available",
        ),
        (
            create_async_engine("postgresql+psycopg://nobody@127.0.0.1:1/none"),
            r"^sessions is .*; asynchronous sessions are not available",
        ),
        (Session(), r"^sessions is one session, which all requests would share: .*, such as sessionmaker\(engine\)"),
    ],
    ids=["None", "URL", "argument", "keyword", "coroutine", "async maker", "async scoped", "async engine", "session"],
)
def test_what_is_no_source(sessions: Any, message: str) -> None:
    """What cannot open a session is refused where it is given, with what can."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        UnitOfWork(sessions)

    assert caught.value.name == "sessions"


@pytest.mark.parametrize("sessions", [dict, lambda: None, AsyncSession], ids=["builtin", "function", "async session"])
def test_what_opens_no_session(sessions: Any) -> None:
    """What opens something else is refused at its first use, with what it opened."""
    uow = UnitOfWork(sessions)

    with pytest.raises(ConfigurationError, match=r"^sessions returned .* instead of a sqlalchemy"), uow.transaction():
        pytest.fail("the body ran")

    assert uow.current_transaction is None


# scoped_session


def test_scoped_session_is_shared(engine: Engine, registry: Registry) -> None:
    """Inside a block the registry gives the same session, for code that knows the registry only."""
    uow = UnitOfWork(registry)

    with uow.transaction() as session:
        same = registry() is session
        registry.add(Book(title="Emma"))

    assert same
    assert titles(engine) == ["Emma"]


def test_scoped_session_is_removed(registry: Registry) -> None:
    """At the end the registry forgets the session, once."""
    uow = UnitOfWork(registry)

    with uow.transaction() as session:
        session.connection()

    assert registry.removed == 1
    assert not registry.registry.has()


def test_scoped_session_removed_after_a_close_by_hand(app: Flask, registry: Registry) -> None:
    """A session that the user has removed already is closed, and the registry is left alone."""
    uow = UnitOfWork(registry, app)

    with app.app_context():
        session = uow.session
        session.connection()
        registry.remove()
        session.connection()

    assert registry.removed == 1
    assert not session.in_transaction()


def test_scoped_session_in_nested_contexts(app: Flask, registry: Registry) -> None:
    """A registry by thread cannot serve two contexts at once, which is told and not suffered."""
    uow = UnitOfWork(registry, app)

    with app.app_context():
        outer = uow.session
        with (
            app.app_context(),
            pytest.raises(ConfigurationError, match=r"session that is in use by another scope.*flask_scoped_session"),
        ):
            uow.session  # noqa: B018 - opened by looking at it
        still = uow.session

    assert still is outer


def test_scoped_session_of_somebody_else(app: Flask, engine: Engine, registry: Registry) -> None:
    """An app's flask_scoped_session does not keep another registry from being emptied."""
    flask_scoped_session(sessionmaker(engine), app)
    uow = UnitOfWork(registry, app)

    with app.app_context():
        uow.session.connection()

    assert registry.removed == 1


# flask_scoped_session


def initialise_registry_first(registry: FlaskRegistry, app: Flask) -> UnitOfWork:
    registry.init_app(app)
    return UnitOfWork(registry, app, auto_commit=True)


def initialise_unit_first(registry: FlaskRegistry, app: Flask) -> UnitOfWork:
    uow = UnitOfWork(registry, app, auto_commit=True)
    registry.init_app(app)
    return uow


Initialise = Callable[[FlaskRegistry, Flask], UnitOfWork]

both_orders = pytest.mark.parametrize("initialise", [initialise_registry_first, initialise_unit_first])


@both_orders
def test_flask_scoped_session_removed_once_a_context(app: Flask, engine: Engine, initialise: Initialise) -> None:
    """However it was initialised, the session is removed exactly once when its context ends."""
    registry = FlaskRegistry(sessionmaker(engine))
    uow = initialise(registry, app)
    counts = []

    for _ in range(2):
        with app.app_context():
            session = uow.session
            session.connection()
        counts.append(registry.removed)

    assert counts == [1, 2]
    assert not session.in_transaction()


@both_orders
def test_flask_scoped_session_removed_once_a_request(app: Flask, engine: Engine, initialise: Initialise) -> None:
    """However it was initialised, a request's work is stored by the policy and its session removed once."""
    registry = FlaskRegistry(sessionmaker(engine))
    uow = initialise(registry, app)
    sessions = []

    @app.post("/")
    def add() -> str:
        registry.add(Book(title="Emma"))
        sessions.extend([registry(), uow.session])
        return ""

    response = app.test_client().post("/")

    assert response.status_code == 200
    assert registry.removed == 1
    assert sessions[0] is sessions[1]
    assert not sessions[0].in_transaction()
    assert titles(engine) == ["Emma"]


@both_orders
def test_flask_scoped_session_removed_by_hand(app: Flask, engine: Engine, initialise: Initialise) -> None:
    """A session that the user removes meanwhile is followed by another, and both are given back."""
    registry = FlaskRegistry(sessionmaker(engine))
    uow = initialise(registry, app)

    with app.app_context():
        first = uow.session
        first.connection()
        registry.remove()
        second = uow.session
        second.connection()
        by_hand = registry.removed

    assert first is not second
    assert (by_hand, registry.removed) == (1, 2)
    assert not first.in_transaction()
    assert not second.in_transaction()


def test_flask_scoped_session_without_its_own_init_app(app: Flask, engine: Engine) -> None:
    """A registry that only the UnitOfWork knows is emptied by it, once."""
    registry = FlaskRegistry(sessionmaker(engine))
    uow = UnitOfWork(registry, app)

    with app.app_context():
        uow.session.connection()

    assert registry.removed == 1


# What sessions are bound to


def with_binds(engine: Engine, other: Engine) -> dict[str, Any]:
    """The settings of sessions with two engines, of which one is there twice."""
    return {"bind": engine, "binds": {Book: other, Base: engine, Loan.__table__: other}}


@pytest.mark.parametrize(
    "make",
    [
        lambda settings: sessionmaker(**settings),
        lambda settings: scoped_session(sessionmaker(**settings)),
        lambda settings: flask_scoped_session(sessionmaker(**settings)),
        lambda settings: scoped_session(lambda: Session(**settings)),  # type: ignore[arg-type]
        lambda settings: lambda: Session(**settings),
        lambda settings: partial(Session, **settings),
    ],
    ids=["sessionmaker", "scoped_session", "flask_scoped_session", "scoped function", "function", "partial"],
)
def test_binds(engine: Engine, make: Callable[[dict[str, Any]], Any]) -> None:
    """A source says what its sessions are bound to, the default first and each once, and opens none for good."""
    other = create_engine("sqlite://")
    sessions = make(with_binds(engine, other))

    found = [UnitOfWork(sessions)._source.binds() for _ in range(2)]

    assert found == [[engine, other]] * 2
    assert not (type(sessions) is scoped_session and sessions.registry.has())


def test_binds_of_an_engine(engine: Engine) -> None:
    """An engine is what its sessions are bound to."""
    assert UnitOfWork(engine)._source.binds() == [engine]


def test_binds_of_a_connection(engine: Engine) -> None:
    """A connection is a bind as it is, and not its engine."""
    with engine.connect() as connection:
        assert UnitOfWork(sessionmaker(connection))._source.binds() == [connection]


def test_binds_that_are_configured_later(engine: Engine) -> None:
    """What a sessionmaker is told after the UnitOfWork was made counts as well."""
    maker = sessionmaker()
    source = UnitOfWork(maker)._source

    before = source.binds()
    maker.configure(bind=engine)

    assert (before, source.binds()) == ([], [engine])


def test_binds_of_a_function_that_needs_an_app(app: Flask, engine: Engine) -> None:
    """A function that looks for its engine in the app knows its binds where there is one."""
    app.extensions["engine"] = engine
    source = UnitOfWork(lambda: Session(current_app.extensions["engine"]))._source

    outside = source.binds()
    with app.app_context():
        inside = source.binds()

    assert (outside, inside) == ([], [engine])


def test_binds_of_a_session_in_use(engine: Engine) -> None:
    """A function that returns a session that is in use is asked all the same, and the session stays open."""
    shared = Session(engine)
    uow = UnitOfWork(lambda: shared)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        found = uow._source.binds()
        still = session.in_transaction()

    assert found == [engine]
    assert still
    assert titles(engine) == ["Emma"]


def test_binds_of_what_opens_no_session() -> None:
    """What opens something else is bound to nothing."""
    assert UnitOfWork(dict)._source.binds() == []  # type: ignore[arg-type]


class Shop:
    """Has a registry, as Flask-SQLAlchemy's db has, and no engines."""

    def __init__(self, engine: Engine) -> None:
        self.session = scoped_session(sessionmaker(engine))


def test_binds_of_an_object_with_a_registry(engine: Engine) -> None:
    """The binds of an object that has a registry are those of the registry."""
    assert UnitOfWork(Shop(engine))._source.binds() == [engine]
