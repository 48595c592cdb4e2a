"""The drop-in for Flask-SQLAlchemy-Session: the behaviours of its own suite, and those that it lacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool

from flask_uow import ConfigurationError, NoScopeError, UnitOfWork, current_session, flask_scoped_session
from flask_uow import transactional as decorate
from tests.conftest import Book, titles


class Counting(flask_scoped_session):
    """Counts the calls of remove()."""

    removals = 0

    def remove(self) -> None:
        self.removals += 1
        super().remove()


@pytest.fixture
def memory() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    yield engine
    engine.dispose()


@pytest.fixture
def registry(app: Flask, memory: Engine) -> Counting:
    return Counting(sessionmaker(memory), app)


def test_constructor_calls_init_app(memory: Engine, app: Flask) -> None:
    """The constructor passes the app to init_app(), and nothing else."""
    calls = []

    class Recording(flask_scoped_session):
        def init_app(self, *args: Any, **kwargs: Any) -> None:
            calls.append((args, kwargs))

    Recording(sessionmaker(memory), app)
    Recording(sessionmaker(memory))

    assert calls == [((app,), {})]


def test_current_session_of_an_uninitialised_app(app: Flask) -> None:
    """On an app without a flask_scoped_session, current_session says that the attribute is missing."""
    with app.test_request_context(), pytest.raises(AttributeError, match="no attribute 'scoped_session'"):
        current_session()


def test_same_request_has_the_same_session(app: Flask, registry: Counting) -> None:
    """Within a request the session is the same, and it is removed once at its end."""
    with app.test_request_context():
        assert callable(registry.query)
        assert isinstance(registry(), Session)
        assert registry() is registry()

    assert registry.removals == 1


def test_different_requests_have_different_sessions(app: Flask, registry: Counting) -> None:
    """Two requests never have the same session, and each removes its own."""
    with app.test_request_context():
        first = registry()
    with app.test_request_context():
        assert registry() is not first

    assert registry.removals == 2


def test_current_session_is_the_registry(app: Flask, registry: Counting) -> None:
    """current_session stands for the app's registry, and through it for the session."""
    with app.test_request_context():
        assert callable(current_session.query)
        assert isinstance(current_session._get_current_object()(), Session)  # type: ignore[attr-defined]
        assert current_session() is registry()
        assert app.scoped_session is registry  # type: ignore[attr-defined]


def test_current_session_differs_by_request(app: Flask, registry: Counting) -> None:
    """Through current_session, too, each request has its own."""
    with app.test_request_context():
        first = current_session()
    with app.test_request_context():
        assert current_session() is not first


def test_current_session_outside_a_context() -> None:
    """Outside an app context current_session is a RuntimeError, and false."""
    with pytest.raises(RuntimeError, match="outside an app context"):
        current_session()
    assert not bool(current_session)


def test_registry_outside_a_context(registry: Counting) -> None:
    """The registry itself needs a context as well: a session that nobody removes is not made."""
    with pytest.raises(NoScopeError, match="no Flask context is active"):
        registry()


def test_nested_context_does_not_remove_the_outer_session(app: Flask, registry: Counting) -> None:
    """Popping a nested app context leaves the outer session and its pending objects alone."""
    with app.app_context():
        registry.add(Book(title="pending"))
        with app.app_context():
            assert len(registry.new) == 0
        assert len(registry.new) == 1

    assert registry.removals == 2


@pytest.mark.parametrize("outer", [True, False])
def test_remove_is_called_once_a_context(app: Flask, registry: Counting, outer: bool) -> None:
    """A request inside an app_context() removes its own session, and the app_context() another."""

    @app.get("/")
    def view() -> str:
        registry()
        return ""

    if outer:
        with app.app_context():
            registry()
            app.test_client().get("/")
            assert registry.removals == 1
    else:
        app.test_client().get("/")

    assert registry.removals == (2 if outer else 1)


def test_remove_is_found_by_attribute(app: Flask, memory: Engine) -> None:
    """A remove() put on the instance, as the old suite does with a mock, is the one that is called."""
    registry = flask_scoped_session(sessionmaker(memory))
    calls = []
    registry.remove = lambda: calls.append("removed")  # type: ignore[method-assign]
    registry.init_app(app)

    with app.test_request_context():
        registry()

    assert calls == ["removed"]


def test_scopefunc_can_be_replaced(app: Flask, memory: Engine) -> None:
    """Another notion of scope is a function away."""
    registry = flask_scoped_session(sessionmaker(memory), app, scopefunc=lambda: "everywhere")

    outside = registry()

    with app.app_context():
        assert registry() is outside
    registry.remove()


def test_it_is_a_scoped_session(registry: Counting) -> None:
    """It is a scoped_session to everything that asks."""
    assert isinstance(registry, scoped_session)


@pytest.mark.parametrize(
    ("factory", "app_argument", "message"),
    [
        (None, None, "session_factory is None; it must be a sessionmaker"),
        (Session, "shop", "app is 'shop'; it must be a Flask application"),
    ],
)
def test_wrong_arguments(factory: Any, app_argument: Any, message: str) -> None:
    """What is no factory and what is no app is refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        flask_scoped_session(factory, app_argument)


def test_second_registry_of_an_app(app: Flask, registry: Counting, memory: Engine) -> None:
    """A second one on an app is refused, for the first would be lost."""
    with pytest.raises(ConfigurationError, match=r"init_app\(\) was called for 'bookshop' before"):
        flask_scoped_session(sessionmaker(memory), app)
    assert app.scoped_session is registry  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["registry", "uow"])
def test_policy_can_be_added(app: Flask, engine: Engine, first: str) -> None:
    """UnitOfWork(flask_scoped_session(...)) adds the policy: one session for both, removed once a context."""
    registry = Counting(sessionmaker(engine))
    uow = UnitOfWork(registry)
    for extension in (registry, uow) if first == "registry" else (uow, registry):
        extension.init_app(app)

    @app.post("/<int:status>")
    @decorate
    def view(status: int) -> tuple[str, int]:
        assert uow.session is registry() is current_session()
        current_session.add(Book(title=str(status)))
        return "", status

    client = app.test_client()
    client.post("/200")
    client.post("/400")

    assert titles(engine) == ["200"]
    assert registry.removals == 2


def test_policy_on_a_registry_without_an_app_removes_for_it(app: Flask, engine: Engine) -> None:
    """A registry that was not initialised itself is removed by the UnitOfWork that drives it."""
    registry = Counting(sessionmaker(engine))
    uow = UnitOfWork(registry, app)

    with app.app_context():
        uow.session.connection()

    assert registry.removals == 1
