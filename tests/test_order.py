"""Decorators above ``@app.route`` are noticed at the first request, and those that are meant to be as they are not."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial, wraps
from threading import Barrier, Thread
from typing import Any
from weakref import ref

import pytest
from flask import Blueprint, Flask
from flask.views import MethodView, View
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import ConfigurationError, Propagation, UnitOfWork, transactional
from flask_uow.order import Misplaced, find_misplaced


@pytest.fixture
def app(app: Flask, uow: UnitOfWork) -> Flask:
    uow.init_app(app)
    return app


def passes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator of somebody else's."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def found(app: Flask) -> list[tuple[str, str, str | None]]:
    return [(each.endpoint, each.decorator, each.unit_of_work) for each in find_misplaced(app)]


def misplace(app: Flask) -> str:
    """Write a decorator in the wrong place, and return the place."""

    @transactional
    @app.get("/")
    def index() -> str:
        return "index"

    code = index.__wrapped__.__code__  # type: ignore[attr-defined]
    return f"{code.co_filename}:{code.co_firstlineno}"


# At the first request


def test_production(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """In production the first request warns, once, and all are served."""
    place = misplace(app)
    client = app.test_client()

    answers = [client.get("/").text for _ in range(3)]

    [record] = caplog.records
    assert answers == ["index"] * 3
    assert (record.name, record.levelno) == ("flask_uow.requests", logging.WARNING)
    assert record.getMessage() == (
        "@transactional is above @app.route, which had registered the bare function by then, so that requests run "
        f"without: misplace.<locals>.index(), the endpoint 'index', in {place}. Write it below @app.route, next to the "
        "function."
    )


@pytest.mark.parametrize("mode", ["testing", "debug"])
def test_development(app: Flask, caplog: pytest.LogCaptureFixture, mode: str) -> None:
    """While testing and in debug mode each request fails, whichever it is, so that no test passes by luck."""
    setattr(app, mode, True)
    misplace(app)
    client = app.test_client()

    for path in ("/", "/not-there", "/"):
        with pytest.raises(
            ConfigurationError, match=r"^@transactional is above @app\.route.*'index'.*Write it below @app\.route"
        ):
            client.get(path)

    assert not [record for record in caplog.records if record.name == "flask_uow.requests"]


def test_development_without_propagation(app: Flask) -> None:
    """Where exceptions are not to reach the test, the answer is a 500."""
    app.testing = True
    app.config["PROPAGATE_EXCEPTIONS"] = False
    misplace(app)

    assert app.test_client().get("/").status_code == 500


def test_several(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """One warning has all of them."""
    misplace(app)

    @uow.stream
    @app.get("/numbers")
    def numbers() -> Iterator[str]:
        yield "1"

    answer = app.test_client().get("/numbers").text

    [record] = caplog.records
    assert answer == "1"
    assert record.getMessage().startswith("@transactional and @uow.stream are above @app.route")
    assert "'index'" in record.getMessage()
    assert "numbers(), the endpoint 'numbers'" in record.getMessage()


def test_once_for_all_threads(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """Of several first requests at the same time, one looks."""
    misplace(app)
    barrier = Barrier(8)

    def ask() -> None:
        barrier.wait()
        app.test_client().get("/")

    threads = [Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(caplog.records) == 1


def test_right_order(app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """An app in order is served without a word."""
    app.testing = True

    @app.get("/")
    @transactional
    def index() -> str:
        return "index"

    assert app.test_client().get("/").text == "index"
    assert caplog.records == []


def test_app_without_a_unit_of_work(caplog: pytest.LogCaptureFixture) -> None:
    """Another app is left alone."""
    app = Flask("another")
    app.testing = True
    misplace(app)

    assert app.test_client().get("/").text == "index"


# What is in the wrong order


def test_what_is_found(app: Flask) -> None:
    """It is known what is misplaced on what, and where that is."""
    place = misplace(app)

    [misplaced] = find_misplaced(app)

    assert misplaced == Misplaced("index", "@transactional", "misplace.<locals>.index", place, "default")


def test_decorator_in_between(app: Flask) -> None:
    """Other decorators hide nothing: not above @app.route, nor below it, nor both."""

    @transactional
    @passes
    @app.get("/above")
    def above() -> str: ...  # type: ignore[empty-body]

    @passes
    @transactional
    @app.get("/top")
    def top() -> str: ...  # type: ignore[empty-body]

    @transactional
    @app.get("/below")
    @passes
    def below() -> str: ...  # type: ignore[empty-body]

    @transactional
    @passes
    @app.get("/both")
    @passes
    def both() -> str: ...  # type: ignore[empty-body]

    assert [endpoint for endpoint, *_ in found(app)] == ["above", "top", "below", "both"]


def test_wrapper_in_the_same_app(app: Flask) -> None:
    """A view is bare although the decorated function is in use by others."""

    @app.cli.command("index")
    @transactional
    @app.get("/")
    def index() -> str: ...  # type: ignore[empty-body]

    assert found(app) == [("index", "@transactional", "default")]


def test_wrapper_that_is_gone(app: Flask) -> None:
    """In a factory nobody keeps the decorated function, and it is noticed all the same."""
    misplace(app)

    gc.collect()

    assert len(found(app)) == 1


@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.MANDATORY])
def test_every_propagation(app: Flask, propagation: Propagation) -> None:
    """The order matters whatever the decorator is to do."""

    @transactional(propagation=propagation)
    @app.get("/")
    async def index() -> str: ...  # type: ignore[empty-body]

    assert len(found(app)) == 1


def test_decorator_made_of_ours(app: Flask, uow: UnitOfWork) -> None:
    """A decorator of the user's own that uses ours is like it."""

    def serializable(function: Callable[..., Any]) -> Callable[..., Any]:
        return uow.transactional(isolation_level="SERIALIZABLE")(function)

    @serializable
    @app.get("/")
    def index() -> str: ...  # type: ignore[empty-body]

    assert found(app) == [("index", "@transactional", "default")]


def test_blueprint(app: Flask) -> None:
    """A view of a blueprint is found under its endpoint."""
    shop = Blueprint("shop", __name__)

    @transactional
    @shop.get("/")
    def index() -> str: ...  # type: ignore[empty-body]

    app.register_blueprint(shop, url_prefix="/shop")

    assert found(app) == [("shop.index", "@transactional", "default")]


def test_one_of_two_objects(app: Flask, engine: Engine) -> None:
    """The decorator of one UnitOfWork does not stand in for that of another, whether or not that is of this app."""
    other = UnitOfWork(sessionmaker(engine), app, name="other")
    stranger = UnitOfWork(sessionmaker(engine))

    @transactional(using="other")
    @app.get("/")
    @transactional
    def index() -> str: ...  # type: ignore[empty-body]

    @stranger.transactional
    @app.get("/stranger")
    @other.transactional
    def strange() -> str: ...  # type: ignore[empty-body]

    assert found(app) == [("index", "@transactional", "other"), ("strange", "@transactional", None)]


class Silent:
    """A view that says nothing about itself."""

    def __call__(self) -> None: ...


class Wrapping(Silent):
    """A view that says what it wraps."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.__wrapped__ = function


class Unknown(Wrapping):
    """A view that nobody can refer to."""

    __hash__ = None  # type: ignore[assignment]


def test_objects_as_views(app: Flask) -> None:
    """What nobody can refer to is passed over; other objects, and partial, are like functions."""

    def function() -> None: ...

    views: list[Any] = [Unknown(function), partial(function), Wrapping(function)]
    for number, each in enumerate(views):
        app.add_url_rule(f"/{number}", str(number), each)
        transactional(each)

    assert [endpoint for endpoint, *_ in found(app)] == ["1", "2"]


def test_object_without_a_place(app: Flask) -> None:
    """A view that does not say where it is written is named without that."""
    silent: Any = Silent()

    def function() -> None: ...

    function.__wrapped__ = silent  # type: ignore[attr-defined]
    app.add_url_rule("/", "silent", silent)
    transactional(function)

    [misplaced] = find_misplaced(app)

    assert str(misplaced) == f"{silent!r}(), the endpoint 'silent'"


# What is meant as it is


def test_methods_of_a_view(app: Flask) -> None:
    """A decorated method, and 'decorators' of a View, are right."""

    class Methods(MethodView):
        @transactional
        def get(self) -> str: ...  # type: ignore[empty-body]

        def post(self) -> str: ...  # type: ignore[empty-body]

    class Decorated(View):
        decorators = [transactional]

        def dispatch_request(self) -> str: ...  # type: ignore[empty-body]

    app.add_url_rule("/methods", view_func=Methods.as_view("methods"))
    app.add_url_rule("/decorated", view_func=Decorated.as_view("decorated"))

    assert found(app) == []


def test_right_with_others(app: Flask, uow: UnitOfWork) -> None:
    """Between other decorators, and one of ours above another, it is right as long as @app.route is above them all."""

    @app.get("/")
    @passes
    @transactional
    @uow.transactional(isolation_level="SERIALIZABLE")
    @passes
    def index() -> str: ...  # type: ignore[empty-body]

    @app.get("/numbers")
    @uow.stream
    def numbers() -> Iterator[str]:
        yield ""

    assert found(app) == []


def test_registered_both_ways(app: Flask) -> None:
    """A function that is registered with the decorator and without is meant to be there both ways."""

    @app.get("/bare")
    def index() -> str: ...  # type: ignore[empty-body]

    app.add_url_rule("/decorated", "decorated", passes(transactional(index)))

    assert found(app) == []


def test_decorated_twice(app: Flask, uow: UnitOfWork) -> None:
    """A view with a policy can be decorated once more for other callers."""

    @transactional
    def index() -> str: ...  # type: ignore[empty-body]

    app.add_url_rule("/", "index", index)
    task = uow.transactional(isolation_level="SERIALIZABLE")(index.__wrapped__)  # type: ignore[attr-defined]

    assert found(app) == []
    assert callable(task)


def test_decorated_far_from_where_it_is_defined(app: Flask) -> None:
    """What another thread decorates is not what is written in the wrong order."""
    app.add_url_rule("/", "view", view)
    thread = Thread(target=transactional, args=(view,))

    thread.start()
    thread.join()

    assert found(app) == []


def view() -> str:
    """A view that apps register as they like."""
    return ""


def test_decorated_in_another_app(app: Flask, uow: UnitOfWork) -> None:
    """What one app decorates, another can register bare."""
    other = Flask("other")
    uow.init_app(other)
    other.add_url_rule("/", "view", transactional(view))
    app.add_url_rule("/", "view", view)

    assert found(app) == []


# What is remembered


def test_nobody_is_kept(app: Flask) -> None:
    """A decorated function goes when nobody uses it, and so does its wrapper."""

    def make() -> tuple[Any, Any]:
        @transactional
        def index() -> None: ...

        return ref(index), ref(index.__wrapped__)  # type: ignore[attr-defined]

    wrapper, function = make()
    gc.collect()

    assert (wrapper(), function()) == (None, None)


def test_nobody_is_kept_in_a_circle(engine: Engine) -> None:
    """Not even where the UnitOfWork and the options know the function."""

    def make() -> tuple[Any, Any]:
        uow = UnitOfWork(lambda: Session(engine, info={"index": index}))

        @uow.transactional(commit_if=lambda _response: bool(index))
        def index() -> None: ...

        return ref(uow), ref(index)

    unit, wrapper = make()
    gc.collect()

    assert (unit(), wrapper()) == (None, None)


def test_decorating_without_end(app: Flask) -> None:
    """A function that is decorated again and again leaves the last use behind."""

    @app.get("/")
    def index() -> str: ...  # type: ignore[empty-body]

    for _ in range(100):
        transactional(index)
        gc.collect(0)

    from flask_uow.order import _uses

    assert len(_uses[index]) <= 2
    assert len(found(app)) == 1
