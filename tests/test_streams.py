"""``@uow.stream``: bodies that are made after the response, in a session and a transaction of their own."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import pytest
from flask import Flask, g, stream_with_context
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow import (
    ConfigurationError,
    Propagation,
    UnitOfWork,
    current_transaction,
    flask_scoped_session,
    on_commit,
)
from tests.conftest import Book, titles


@pytest.fixture
def app(app: Flask, uow: UnitOfWork) -> Flask:
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    return app


@pytest.mark.parametrize("in_context", [True, False])
def test_streamed_body(app: Flask, uow: UnitOfWork, engine: Engine, in_context: bool) -> None:
    """A streamed body has a session of its own after the request's is closed, in the request's context or without."""
    sessions: list[Session] = []
    stored: list[list[str]] = []

    @uow.stream
    def body() -> Iterator[str]:
        for title in ("Emma", "Persuasion"):
            sessions.append(uow.session)
            stored.append(titles(engine))
            uow.session.add(Book(title=title))
            uow.on_commit(stored.append, ["the hook"])
            yield title

    @app.get("/")
    def view() -> Iterator[str]:
        sessions.append(uow.session)
        uow.session.add(Book(title="by the view"))
        return stream_with_context(body()) if in_context else body()

    response = app.test_client().get("/")

    assert response.text == "EmmaPersuasion"
    # The view's work was stored before the first chunk.
    assert stored == [["by the view"], ["by the view"], ["the hook"], ["the hook"]]
    assert sessions[1] is sessions[2] is not sessions[0]
    assert titles(engine) == ["Emma", "Persuasion", "by the view"]


def test_a_view_that_streams(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view can be such a generator function itself, and the decorators keep its arguments."""

    @app.get("/<int:number>")
    @uow.stream
    def view(number: int) -> Iterator[str]:
        for each in range(number):
            uow.session.add(Book(title=str(each)))
            yield f"{each};"

    assert app.test_client().get("/3").text == "0;1;2;"
    assert titles(engine) == ["0", "1", "2"]


def test_the_client_goes_away(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A body that the server closes early is rolled back, and its connection is returned."""

    @app.get("/")
    @uow.stream
    def view() -> Iterator[str]:
        for each in range(1000):
            uow.session.add(Book(title=str(each)))
            uow.session.flush()
            yield "x"

    response = app.test_client().get("/", buffered=False)
    assert next(iter(response.response)) == b"x"
    assert engine.pool.checkedout() == 1  # type: ignore[attr-defined] # a QueuePool counts

    response.close()

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # as above
    assert titles(engine) == []


def test_it_does_not_leak_into_a_request(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Between two chunks another request of the same thread has its own session and transaction."""

    @app.get("/stream")
    @uow.stream
    def view() -> Iterator[str]:
        for each in range(2):
            uow.session.add(Book(title=f"streamed {each}"))
            yield "x"

    @app.post("/")
    def other() -> str:
        uow.session.add(Book(title="other"))
        return current_transaction.name

    client = app.test_client()
    response = client.get("/stream", buffered=False)
    chunks = iter(response.response)
    next(chunks)
    name = client.post("/").text
    stored = titles(engine)
    rest = list(chunks)
    response.close()

    assert name == "the request to 'other'"
    assert stored == ["other"]
    assert rest == [b"x"]
    assert titles(engine) == ["other", "streamed 0", "streamed 1"]


def test_read_in_the_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A stream that a view reads by itself is kept although the view fails; the view's session is current again."""

    @uow.stream
    def rows() -> Iterator[int]:
        uow.session.add(Book(title="streamed"))
        on_commit(lambda: None)
        yield 1

    @app.get("/")
    def view() -> tuple[str, int]:
        held = uow.session
        assert list(rows()) == [1]
        assert uow.session is held
        held.add(Book(title="lost"))
        return "no", 422

    app.test_client().get("/")

    assert titles(engine) == ["streamed"]


def test_error_in_the_middle(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What a body raises is rolled back, and the server is told."""

    @app.get("/")
    @uow.stream
    def view() -> Iterator[str]:
        uow.session.add(Book(title="lost"))
        yield "x"
        raise LookupError("half way")

    with pytest.raises(LookupError, match="half way"):
        app.test_client().get("/").get_data()

    assert titles(engine) == []


def test_without_an_app(uow: UnitOfWork, engine: Engine) -> None:
    """Scripts can read streams as well, with options."""

    @uow.stream(read_only=True, isolation_level="SERIALIZABLE", name="export")
    def rows() -> Iterator[str]:
        transaction = uow.current_transaction
        assert transaction is not None
        yield from (transaction.name, str(transaction.read_only), str(transaction.isolation_level))
        yield from uow.session.scalars(select(Book.title))

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert list(rows()) == ["export", "True", "SERIALIZABLE", "Emma"]


def test_no_second_connection(app: Flask) -> None:
    """A stream inside a transaction is refused where it would have the transaction's own connection."""
    engine = create_engine("sqlite://")
    Book.metadata.create_all(engine)
    memory = UnitOfWork(sessionmaker(engine), name="memory")

    @memory.stream
    def rows() -> Iterator[int]:
        yield 1

    with memory.transaction(), pytest.raises(ConfigurationError, match=r"the stream .*rows\(\) would suspend"):
        list(rows())
    assert list(rows()) == [1]
    engine.dispose()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: [1], r"^stream was given .*<lambda>; it decorates generator functions"),
        (3, r"^stream was given 3; it decorates generator functions"),
    ],
)
def test_what_can_be_decorated(uow: UnitOfWork, function: Callable[[], Generator[int]], message: str) -> None:
    """What is no generator function is refused."""
    with pytest.raises(ConfigurationError, match=message):
        uow.stream(function)


def test_propagation_is_no_option(uow: UnitOfWork) -> None:
    """A stream cannot join, and says so."""
    with pytest.raises(ConfigurationError, match=r"^propagation is not an option of uow\.stream\(\)"):
        uow.stream(propagation=None)  # type: ignore[call-overload]


def test_advice_for_generator_functions(uow: UnitOfWork) -> None:
    """@transactional on a generator function is refused, and says what to use."""
    with pytest.raises(ConfigurationError, match=r"Use @uow\.stream, which gives it a transaction of its own"):

        @uow.transactional
        def rows() -> Iterator[int]:
            yield 1


# Registries: what others get from them is the session of the block that runs


@pytest.mark.parametrize("kind", ["scoped_session", "flask_scoped_session"])
def test_registries_follow(kind: str, engine: Engine) -> None:
    """In REQUIRES_NEW and in a stream a registry hands out the inner session, and the outer one after it."""
    app = Flask("registries")
    app.config["UOW_AUTO_COMMIT"] = True
    factory = sessionmaker(engine)
    registry = scoped_session(factory) if kind == "scoped_session" else flask_scoped_session(factory)
    uow = UnitOfWork(registry, app)

    @uow.transactional(propagation=Propagation.REQUIRES_NEW)
    def audit() -> None:
        assert registry() is uow.session
        registry.add(Book(title="audit"))

    @uow.stream
    def body() -> Iterator[str]:
        g.setdefault("sessions", []).append(registry())
        assert registry() is uow.session
        registry.add(Book(title="first"))
        yield "x"
        assert registry() is g.sessions[0]
        registry.add(Book(title="second"))
        yield "x"

    @app.post("/")
    def view() -> Iterator[str]:
        held = registry()
        audit()
        assert registry() is held is uow.session
        registry.add(Book(title="by the view"))
        return stream_with_context(body())

    @app.post("/failing")
    def failing() -> tuple[str, int]:
        audit()
        registry.add(Book(title="lost"))
        return "no", 422

    client = app.test_client()

    assert client.post("/").text == "xx"
    assert client.post("/failing").status_code == 422
    assert titles(engine) == ["audit", "audit", "by the view", "first", "second"]
