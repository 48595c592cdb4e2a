"""Y4: a view is run again as if for the first time, or not at all."""

# ruff: noqa: PLW0108 - request is a proxy, and its attributes are there in a request alone

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import wraps
from io import BytesIO
from typing import Any

import pytest
from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    after_this_request,
    flash,
    g,
    get_flashed_messages,
    request,
    session,
    stream_with_context,
)
from flask.sessions import SessionInterface, SessionMixin
from flask.typing import ResponseReturnValue
from flask.views import MethodView
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import Backoff, PartialCommitError, Propagation, UnitOfWork, current_transaction, signals, transactional
from tests.conftest import Book, Log, conflict, count, titles

AT_ONCE = Backoff(base=0)


class Shop:
    """An app whose view meets a conflict as often as it is told to."""

    def __init__(self, app: Flask, engine: Engine) -> None:
        app.secret_key = "secret"
        self.app = app
        self.uow = UnitOfWork(sessionmaker(engine), app)
        self.calls = 0
        self.failing = 1
        self.told: list[Any] = []
        self.client = app.test_client()

    def view(self, body: Callable[[], ResponseReturnValue], **options: Any) -> None:
        """Serve *body* at "/", which meets a conflict at its end as long as it is to."""

        @self.app.route("/", methods=["GET", "POST"])
        @self.uow.transactional(**{"attempts": 3, "backoff": AT_ONCE, **options})
        def index() -> ResponseReturnValue:
            self.calls += 1
            answer = body()
            self.uow.session.add(Book(title=f"attempt {self.calls}"))
            self.uow.session.flush()
            if self.calls <= self.failing:
                conflict(self.uow.session)
            return answer

    def post(self, **arguments: Any) -> tuple[int, str]:
        response = self.client.post("/", **arguments)
        return response.status_code, response.text


@pytest.fixture
def shop(app: Flask, postgresql: Engine) -> Shop:
    return Shop(app, postgresql)


def test_view_is_run_again(shop: Shop, postgresql: Engine, log: Log) -> None:
    """The response, the rows and the hooks are those of the attempt that succeeded."""

    def body() -> str:
        shop.uow.on_commit(shop.told.append, shop.calls)
        return f"attempt {current_transaction.attempt}"

    shop.failing = 2
    shop.view(body)

    assert shop.post() == (200, "attempt 3")
    assert (shop.told, titles(postgresql)) == ([3], ["attempt 3"])
    assert log.count("transaction_started") == log.count("transaction_completed") == 3
    assert log.count("transaction_retried") == 2
    assert log.count("session_removed") == 1
    # The next request begins anew.
    assert shop.post() == (200, "attempt 1")


def test_exhausted(shop: Shop, postgresql: Engine) -> None:
    """The error handler sees the database's own error, with a note, in a session that can be used."""
    shop.failing = 9
    shop.view(lambda: "never")

    @shop.app.errorhandler(OperationalError)
    def failed(error: OperationalError) -> tuple[str, int]:
        return f"{error.__notes__[0]} {shop.uow.session.scalar(text('SELECT count(*) FROM book'))}", 503

    status, told = shop.post()

    assert status == 503
    assert "attempt 3 of 3" in told
    assert told.endswith(" 0")
    assert (shop.calls, count(postgresql)) == (3, 0)


def test_cookie_session_and_flashes(shop: Shop) -> None:
    """What a failed attempt has put into the session, or taken out of it, leaves no trace, deep inside as well."""

    @shop.app.get("/before")
    def before() -> str:
        session["cart"] = {"items": ["old"]}
        session["gone"] = "back"
        flash("from before")
        return ""

    @shop.app.get("/after")
    def after() -> dict[str, Any]:
        return dict(session)

    def body() -> str:
        session["cart"]["items"].append(shop.calls)
        session.pop("gone")
        session[f"attempt {shop.calls}"] = True
        session.permanent = True
        messages = get_flashed_messages()
        flash(f"attempt {shop.calls}")
        return str(messages)

    shop.failing = 2
    shop.view(body)
    shop.client.get("/before")

    assert shop.post() == (200, "['from before']")
    left = shop.client.get("/after").json
    assert left is not None
    assert left.pop("_flashes") == [["message", "attempt 3"]]
    assert left == {"_permanent": True, "attempt 3": True, "cart": {"items": ["old", 3]}}


def test_session_that_only_a_failed_attempt_has_touched(shop: Shop) -> None:
    """No cookie is set, and the response does not vary by it."""

    def body() -> str:
        if shop.calls == 1:
            session["attempt"] = 1
        return "done"

    shop.view(body)
    response = shop.client.post("/")

    assert (response.status_code, shop.calls) == (200, 2)
    assert "Set-Cookie" not in response.headers
    assert "Cookie" not in response.headers.get("Vary", "")


def test_app_without_sessions(app: Flask, postgresql: Engine) -> None:
    """Without a secret key there is nothing to put back."""
    shop = Shop(app, postgresql)
    app.secret_key = None
    shop.view(lambda: "done")

    assert shop.post() == (200, "done")


class PlainSession(dict[str, Any], SessionMixin):
    """A session of somebody's own, that knows what it has to save."""


class OtherSession(SessionMixin):
    """One that is no dict, and has no attributes of its own beside its data."""

    __slots__ = ("data",)

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.parametrize("kind", [PlainSession, OtherSession])
def test_other_sessions(shop: Shop, kind: Callable[[dict[str, Any]], SessionMixin]) -> None:
    """A server-side session is put back as well."""
    saved: list[dict[str, Any]] = []

    class Interface(SessionInterface):
        def open_session(self, _app: Flask, _request: object) -> SessionMixin:
            return kind({"list": []})

        def save_session(self, _app: Flask, session: SessionMixin, _response: Response) -> None:
            saved.append(dict(session))

    shop.app.session_interface = Interface()

    def body() -> str:
        session["list"].append(shop.calls)
        session[str(shop.calls)] = True
        return "done"

    shop.view(body)

    assert shop.post() == (200, "done")
    assert saved == [{"list": [2], "2": True}]


def test_session_that_cannot_be_copied(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Then there is one attempt, and the log says why."""

    class Interface(SessionInterface):
        def open_session(self, _app: Flask, _request: object) -> SessionMixin:
            return PlainSession(lock=threading.Lock())

        def save_session(self, *_: object) -> None:
            """Nothing."""

    shop.app.session_interface = Interface()
    shop.view(lambda: "done")

    assert shop.post()[0] == 500
    assert shop.calls == 1
    assert "could not be copied (TypeError)" in caplog.text


def test_functions_after_this_request(shop: Shop) -> None:
    """Those of failed attempts are forgotten, those of before_request functions are not."""

    def add(header: str) -> None:
        @after_this_request
        def change(response: Response) -> Response:
            response.headers.add("X-Told", header)
            return response

    shop.app.before_request(lambda: add("before"))

    def body() -> str:
        add(str(shop.calls))
        return "done"

    shop.view(body)

    assert shop.client.post("/").headers.getlist("X-Told") == ["before", "2"]


def test_rows_on_g(shop: Shop, postgresql: Engine) -> None:
    """Rows that an attempt has cached belong to no session any more, and are looked up again; the rest of g stays."""
    with sessionmaker(postgresql).begin() as before:
        before.add_all([Book(id=1000, title="Emma"), Book(id=1001, title="Persuasion")])

    class Resource:
        """Something that a teardown function closes."""

    def book() -> Book:
        if "book" not in g:
            g.book = shop.uow.session.get_one(Book, 1000)
            g.books = {"all": [(g.book,)]}
            request.book = g.book  # type: ignore[attr-defined] # as some do
            g.resource = Resource()
            shop.told.append(g.resource)
        return g.book  # type: ignore[no-any-return]

    @shop.app.before_request
    def load() -> None:
        g.early = shop.uow.session.get_one(Book, 1001)
        g.replaced = "early"

    def body() -> str:
        assert g.early in shop.uow.session
        if shop.calls == 2:
            assert "books" not in g
            assert not hasattr(request, "book")
            assert g.resource is shop.told[0]
        assert g.replaced == "early"
        answer: str = book().title + g.early.title
        if shop.calls == 1:
            g.replaced = Book(title="never added")
        return answer

    shop.view(body)

    assert shop.post() == (200, "EmmaPersuasion")
    assert len(shop.told) == 2


# The body of the request


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ({"data": b"body"}, lambda: request.get_data()),
        ({"json": {"a": 1}}, lambda: request.get_json()),
        ({"json": {"a": 1}}, lambda: (request.form, request.get_json())),
        ({"data": {"a": "1"}}, lambda: request.form["a"]),
        ({"data": b"body"}, lambda: request.stream),
        ({"data": b""}, lambda: request.stream.read()),
        ({}, lambda: request.stream.read()),
    ],
)
def test_body_that_can_be_read_again(shop: Shop, arguments: dict[str, Any], read: Callable[[], Any]) -> None:
    """What werkzeug keeps is there for the next attempt."""

    def body() -> str:
        shop.told.append(str(read()))
        return "done"

    shop.view(body)

    assert shop.post(**arguments) == (200, "done")
    assert len(shop.told) == 2
    assert shop.told[0] == shop.told[1]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ({"data": b"body"}, lambda: request.stream.read()),
        ({"data": b"body"}, lambda: request.stream.read(1)),
        ({"data": b"body"}, lambda: request.get_data(cache=False)),
        ({"data": b"body"}, lambda: request.environ["wsgi.input"].read()),
        (
            {
                "input_stream": BytesIO(b"body"),
                "headers": {"Transfer-Encoding": "chunked"},
                "environ_overrides": {"wsgi.input_terminated": True},
            },
            lambda: request.stream.read(),
        ),
        ({"data": {"file": (BytesIO(b"file"), "a.txt")}}, lambda: request.files["file"].close()),
    ],
)
def test_body_that_is_gone(
    shop: Shop, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], read: Callable[[], Any]
) -> None:
    """A body that was read as a raw stream prevents another attempt, and the log says why."""

    def body() -> str:
        read()
        return "done"

    shop.view(body)

    assert shop.post(**arguments)[0] == 500
    assert shop.calls == 1
    assert "cannot be read twice" in caplog.text
    assert "index() is not run again" in caplog.text


def test_body_that_was_read_before_the_view(shop: Shop) -> None:
    """That is no obstacle: the view has found it so the first time."""
    shop.app.before_request(lambda: shop.told.append(request.stream.read()))
    shop.view(lambda: "done")

    assert shop.post(data=b"body") == (200, "done")
    assert shop.told == [b"body"]


@pytest.mark.parametrize("early", [False, True])
def test_uploaded_file(shop: Shop, early: bool) -> None:
    """It is read from where it was."""
    if early:
        shop.app.before_request(lambda: shop.told.append(request.files["file"].stream.read(2)))

    def body() -> str:
        return request.files["file"].stream.read().decode()

    shop.view(body)

    assert shop.post(data={"file": (BytesIO(b"content"), "a.txt")}) == (200, "ntent" if early else "content")
    assert shop.calls == 2


# What happens around the view


@pytest.mark.parametrize("how", ["add", "flush", "execute", "function"])
def test_changes_of_before_request(shop: Shop, postgresql: Engine, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """They would be undone and missing, so that the view is not run again."""
    with postgresql.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION write() RETURNS int LANGUAGE sql AS "
                "$$ INSERT INTO book (title) VALUES ('seen') RETURNING 1 $$"
            )
        )

    @shop.app.before_request
    def seen() -> None:
        session = shop.uow.session
        if how == "execute":
            session.execute(text("INSERT INTO book (title) VALUES ('seen')"))
        elif how == "function":
            session.execute(text("SELECT write()"))
        else:
            session.add(Book(title="seen"))
            if how == "flush":
                session.flush()

    shop.view(lambda: "done")

    assert shop.post()[0] == 500
    assert (shop.calls, count(postgresql)) == (1, 0)
    assert "before_request" in caplog.text

    shop.failing = 0
    assert shop.post() == (200, "done")
    assert titles(postgresql) == ["attempt 2", "seen"]


def test_committed_by_hand_in_the_view(shop: Shop, postgresql: Engine) -> None:
    """Under the app-wide policy a view may commit by itself; then nothing is done twice."""
    shop.app.config["UOW_AUTO_COMMIT"] = True
    app = Flask("other")
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @app.post("/<int:early>")
    def view(early: int) -> str:
        calls.append(early)
        uow.session.add(Book(title="by hand"))
        if early:
            uow.session.commit()
        if len(calls) == 1:
            conflict(uow.session)
        uow.session.commit()
        return "done"

    assert app.test_client().post("/1").status_code == 500
    assert (calls, titles(postgresql)) == ([1], ["by hand"])
    calls.clear()
    assert app.test_client().post("/0").status_code == 200
    assert (calls, titles(postgresql)) == ([0, 0], ["by hand", "by hand"])


def test_commit_by_hand_that_meets_the_conflict(app: Flask, postgresql: Engine) -> None:
    """session.commit() that fails has stored nothing, so the view is run again."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ATTEMPTS": 2}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @app.post("/")
    def view() -> str:
        calls.append(1)
        uow.session.add(Book(title="Emma"))
        if len(calls) == 1:
            uow.session.info["fail"] = True
            with suppress(DBAPIError):
                conflict(uow.session)
        uow.session.commit()
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert (len(calls), titles(postgresql)) == (2, ["Emma"])


def retrying(view: Callable[[], str]) -> Callable[[], str]:
    """What some have written for themselves."""

    @wraps(view)
    def wrapper() -> str:
        try:
            return view()
        except DBAPIError:
            return view()

    return wrapper


def swallowing(view: Callable[[], str]) -> Callable[[], Any]:
    @wraps(view)
    def wrapper() -> Any:
        try:
            return view()
        except DBAPIError:
            return "swallowed", 200

    return wrapper


@pytest.mark.parametrize(("outside", "calls"), [(retrying, 2), (swallowing, 2)])
def test_decorators_outside(app: Flask, postgresql: Engine, outside: Callable[..., Any], calls: int) -> None:
    """One that calls the view again has its own way; one that swallows the conflict does not keep us from ours."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    called: list[int] = []

    @app.post("/")
    @outside
    @transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        called.append(1)
        uow.session.add(Book(title="Emma"))
        if len(called) == 1:
            conflict(uow.session)
        return "done"

    response = app.test_client().post("/")

    assert (response.status_code, response.text) == (200, "done")
    assert (len(called), titles(postgresql)) == (calls, ["Emma"])


def test_response_of_a_failed_attempt_is_closed(shop: Shop, postgresql: Engine) -> None:
    """A view that swallows the conflict and answers is run again, and its answer closed."""
    responses: list[Response] = []

    @shop.app.post("/")
    @transactional(attempts=2, backoff=AT_ONCE)
    def view() -> Response:
        response = Response("try again", 503)
        response.call_on_close(lambda: shop.told.append("closed"))
        responses.append(response)
        shop.uow.session.add(Book(title="Emma"))
        if len(responses) == 1:
            with suppress(DBAPIError):
                conflict(shop.uow.session)
            return response
        assert shop.told == ["closed"]
        return Response("done")

    assert shop.post() == (200, "done")
    assert titles(postgresql) == ["Emma"]


def test_aborts_and_redirects_are_not_retried(shop: Shop) -> None:
    """Other outcomes are what they are."""
    shop.failing = 0

    def body() -> str:
        abort(409)

    shop.view(body)

    assert shop.post()[0] == 409
    assert shop.calls == 1


def test_view_that_uses_no_session(shop: Shop) -> None:
    """A view that may run again, and asks for no session, is run once, and nothing is told of it."""
    ran: list[str] = []

    @shop.app.get("/ping")
    @shop.uow.transactional(attempts=3, backoff=AT_ONCE)
    def ping() -> str:
        ran.append("ping")
        return "pong"

    assert shop.client.get("/ping").text == "pong"
    assert ran == ["ping"]


def test_view_that_fails_before_it_uses_the_session(app: Flask, postgresql: Engine) -> None:
    """retry_on is about the view, whether or not it came to its session."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @app.post("/")
    @transactional(attempts=3, retry_on=ConnectionError, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError
        uow.session.add(Book(title="Emma"))
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert (len(calls), titles(postgresql)) == (3, ["Emma"])


def test_setting_and_kinds_of_views(app: Flask, postgresql: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """UOW_ATTEMPTS is for every managed view; a decorator or a blueprint says otherwise; what is exempt is run once."""
    caplog.set_level(logging.CRITICAL)
    app.config |= {"UOW_AUTO_COMMIT": {"POST"}, "UOW_ATTEMPTS": 2}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[str] = []

    def fail() -> str:
        calls.append(request.path)
        conflict(uow.session)
        return "never"

    class Both(MethodView):
        @transactional(attempts=3, backoff=AT_ONCE)
        def put(self) -> str:
            return fail()

        def post(self) -> str:
            return fail()

    blueprint = uow.transactional(attempts=4, backoff=AT_ONCE)(Blueprint("four", __name__))
    blueprint.add_url_rule("/blueprint", view_func=fail, methods=["POST"])
    app.register_blueprint(blueprint)
    app.add_url_rule("/setting", "setting", fail, methods=["POST"])
    app.add_url_rule("/once", "once", uow.transactional(attempts=1)(fail), methods=["POST"])
    app.add_url_rule("/exempt", "exempt", uow.exempt(lambda: fail()), methods=["POST"])
    app.add_url_rule("/get", "get", fail)
    app.add_url_rule("/both", view_func=Both.as_view("both"))

    async def asynchronous() -> str:
        return fail()

    app.add_url_rule("/async", "async", asynchronous, methods=["POST"])
    client = app.test_client()

    for method, path, times in [
        ("POST", "/blueprint", 4),
        ("POST", "/setting", 2),
        ("POST", "/once", 1),
        ("POST", "/exempt", 1),
        ("GET", "/get", 1),
        ("PUT", "/both", 3),
        ("POST", "/both", 2),
        ("POST", "/async", 2),
        ("POST", "/nowhere", 0),
    ]:
        calls.clear()
        client.open(path, method=method)
        assert len(calls) == times, path


def test_function_called_by_a_view_without_policy(app: Flask, postgresql: Engine) -> None:
    """It is run again by itself: the session is the request's, and the view sees one result."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @uow.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> str:
        calls.append(1)
        uow.session.add(Book(title="Emma"))
        if len(calls) == 1:
            conflict(uow.session)
        return "done"

    app.add_url_rule("/", "view", work, methods=["POST"])

    assert app.test_client().post("/").text == "done"
    assert (len(calls), titles(postgresql)) == (2, ["Emma"])


def test_several_units_of_work(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """What another one has committed is not done again; what it has not is undone with the attempt."""
    first = UnitOfWork(sessionmaker(engine), app, name="first")
    second = UnitOfWork(sessionmaker(postgresql), app, name="second")
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        first.session.add(Book(title="first"))
        second.session.add(Book(title="second"))

    @app.post("/rolled_back")
    @first.transactional(attempts=3, retry_on=LookupError, backoff=AT_ONCE)
    def rolled_back() -> str:
        work()
        if len(calls) == 1:
            raise LookupError
        second.session.commit()
        return "done"

    @app.post("/committed")
    @first.transactional(attempts=3, retry_on=LookupError, backoff=AT_ONCE)
    def committed() -> str:
        work()
        second.session.commit()
        raise LookupError

    client = app.test_client()
    assert client.post("/rolled_back").status_code == 200
    assert (len(calls), titles(engine), titles(postgresql)) == (2, ["first"], ["second"])
    calls.clear()
    assert client.post("/committed").status_code == 500
    assert (len(calls), titles(engine), titles(postgresql)) == (1, ["first"], ["second"] * 2)


def test_unit_of_work_without_policy(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """What a failed attempt has left in a session that nobody settles is undone as well."""
    first = UnitOfWork(sessionmaker(postgresql), app)
    other = UnitOfWork(sessionmaker(engine), app, name="other")
    calls: list[int] = []

    @app.post("/<int:early>")
    @first.transactional(attempts=2, backoff=AT_ONCE)
    def view(early: int) -> str:
        calls.append(early)
        if early == 2 and len(calls) == 1:
            # Nobody leaves it.
            other.transaction().__enter__()
        other.session.add(Book(title=f"attempt {len(calls)}"))
        other.session.flush()
        if len(calls) == 1:
            conflict(first.session)
        other.session.commit()
        return "done"

    @app.before_request
    def before() -> None:
        if request.path == "/1":
            other.session.add(Book(title="before"))

    client = app.test_client()
    assert client.post("/0").status_code == 200
    assert (calls, titles(engine)) == ([0, 0], ["attempt 2"])
    calls.clear()
    assert client.post("/1").status_code == 500
    assert (calls, titles(engine)) == ([1], ["attempt 2"])
    calls.clear()
    assert client.post("/2").status_code == 200
    assert (calls, titles(engine)) == ([2, 2], ["attempt 2", "attempt 2"])


def test_session_used_again_outside_the_decorator(app: Flask, postgresql: Engine) -> None:
    """What a decorator outside does after the conflict is a part of the attempt, and undone with it."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    def noting(view: Callable[[], str]) -> Callable[[], str]:
        @wraps(view)
        def wrapper() -> str:
            try:
                return view()
            except DBAPIError:
                uow.session.add(Book(title="noted"))
                raise

        return wrapper

    @app.post("/")
    @noting
    @transactional(attempts=2, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        if len(calls) == 1:
            conflict(uow.session)
        uow.session.add(Book(title="Emma"))
        return "done"

    assert app.test_client().post("/").text == "done"
    assert (len(calls), titles(postgresql)) == (2, ["Emma"])


def test_streamed_answer(app: Flask, postgresql: Engine) -> None:
    """The body is made after the commit, once; that of a failed attempt is closed before it began."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    made: list[int] = []
    calls: list[int] = []

    def body(number: int) -> Iterator[str]:
        made.append(number)
        yield str(number)

    @app.post("/")
    @transactional(attempts=2, backoff=AT_ONCE)
    def view() -> Response:
        calls.append(1)
        uow.session.add(Book(title=f"attempt {len(calls)}"))
        if len(calls) == 1:
            with suppress(DBAPIError):
                conflict(uow.session)
        return Response(stream_with_context(body(len(calls))))

    assert app.test_client().post("/").text == "2"
    assert (made, titles(postgresql)) == ([2], ["attempt 2"])


def test_request_without_attempts_costs_nothing(app: Flask, postgresql: Engine) -> None:
    """R1: where nothing can be run again, a request that does not use the session leaves nothing on its context."""
    UnitOfWork(sessionmaker(postgresql), app)
    seen: list[set[str]] = []

    @app.get("/")
    @transactional
    def view() -> str:
        from flask.globals import _cv_app

        seen.append(
            {name for name in vars(_cv_app.get()) if name.startswith("_flask_uow")}
            - {"_flask_uow_phase", "_flask_uow_in_use"}
        )
        return ""

    assert app.test_client().get("/").status_code == 200
    assert seen == [set()]


# What a review found


class Pair:
    """An app with two UnitOfWork objects on two databases."""

    def __init__(self, app: Flask, one: Engine, other: Engine, **settings: Any) -> None:
        self.app = app
        self.a = UnitOfWork(sessionmaker(one), app, name="a", **{"auto_commit": True, **settings})
        self.b = UnitOfWork(sessionmaker(other), app, name="b", auto_commit=True)
        self.calls: list[int] = []

    def post(self) -> tuple[int, str]:
        response = self.app.test_client().post("/")
        return response.status_code, response.text


def answering(view: Callable[[], Any]) -> Callable[[], Any]:
    @wraps(view)
    def wrapper() -> Any:
        try:
            return view()
        except DBAPIError:
            return "swallowed"

    return wrapper


@pytest.mark.parametrize("how", ["swallowed inside", "swallowed outside"])
@pytest.mark.parametrize("first", ["a", "b"])
def test_the_other_unit_of_work_is_undone_with_the_attempt(
    app: Flask, postgresql: Engine, engine: Engine, how: str, first: str
) -> None:
    """Once another attempt is decided, nothing of this one is kept, also where the view answers quietly."""
    pair = Pair(app, postgresql, engine)
    if first == "b":
        # Those of an app settle in the order in which they were initialised.
        managed = app.extensions["uow"].dispatch.managed
        managed[pair.a] = managed.pop(pair.a)

    @app.post("/")
    @answering
    @pair.a.transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        pair.calls.append(1)
        pair.b.session.add(Book(title="b"))
        pair.a.session.add(Book(title="a"))
        if len(pair.calls) == 1 and how == "swallowed outside":
            conflict(pair.a.session)
        elif len(pair.calls) == 1:
            with suppress(DBAPIError):
                conflict(pair.a.session)
            pair.a.set_rollback_only()
        return "done"

    assert pair.post() == (200, "done")
    assert (len(pair.calls), titles(engine), titles(postgresql)) == (2, ["b"], ["a"])


def test_hooks_without_a_database_run_once(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """H5: what a hook has done is done, whether or not its transaction came to the database."""
    pair = Pair(app, engine, postgresql)
    mails: list[str] = []

    @app.post("/")
    @pair.b.transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        pair.calls.append(1)
        pair.a.on_commit(mails.append, "mail")
        pair.b.session.add(Book(title="b"))
        return "done"

    def refuse(_sender: object, session: Session, **_: object) -> None:
        conflict(session)

    with signals.before_commit.connected_to(refuse, app):
        assert pair.post()[0] == 500
    assert (len(pair.calls), mails, count(postgresql)) == (1, ["mail"], 0)


def test_conflict_at_the_second_commit(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """The first one has committed: its work would be done twice, and the error says what is stored."""
    pair = Pair(app, engine, postgresql, attempts=3)

    @app.post("/")
    def view() -> str:
        pair.calls.append(1)
        pair.a.session.add(Book(title="a"))
        pair.b.session.add(Book(title="b"))
        return "done"

    @app.errorhandler(PartialCommitError)
    def partly(error: PartialCommitError) -> str:
        return f"{error.committed} {error.failed}"

    def refuse(_sender: object, session: Session, **_: object) -> None:
        if session.get_bind() is postgresql:
            conflict(session)

    with signals.before_commit.connected_to(refuse, app):
        assert pair.post() == (200, "('a',) b")
    assert (len(pair.calls), titles(engine), count(postgresql)) == (1, ["a"], 0)


def test_read_only_work_is_no_obstacle(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """What could not write has stored nothing that could be stored twice."""
    a = UnitOfWork(sessionmaker(engine), app, name="a")
    b = UnitOfWork(sessionmaker(postgresql), app, name="b")
    calls: list[int] = []

    @app.post("/")
    @b.transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        with a.transaction(read_only=True) as session:
            session.scalars(select(Book)).all()
        b.session.add(Book(title="b"))
        if len(calls) == 1:
            conflict(b.session)
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert (len(calls), titles(postgresql)) == (2, ["b"])


def test_timeouts_of_several(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """T9: each UnitOfWork has its own deadline, with attempts as without."""
    app.config |= {"UOW_A_TIMEOUT": 60, "UOW_B_TIMEOUT": 0.05}
    pair = Pair(app, engine, postgresql, attempts=3)

    @app.post("/")
    def view() -> str:
        pair.calls.append(1)
        pair.a.session.execute(text("SELECT 1"))
        pair.b.session.execute(text("SELECT 1"))
        while True:
            pair.b.session.execute(text("SELECT 1"))

    assert pair.post()[0] == 500
    assert len(pair.calls) == 1


def test_timeout_of_a_view_that_commits_by_hand(app: Flask, postgresql: Engine) -> None:
    """Each of its transactions has the time that it has without attempts."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_TIMEOUT": 60, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    deadlines: list[float] = []

    @app.post("/")
    def view() -> str:
        for _ in range(3):
            uow.session.add(Book(title="by hand"))
            transaction = uow.current_transaction
            assert transaction is not None
            assert transaction._deadline is not None
            deadlines.append(transaction._deadline.at)
            uow.session.commit()
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert deadlines[0] < deadlines[1] < deadlines[2]


def test_hooks_from_before_request_and_a_commit_by_hand(app: Flask, postgresql: Engine) -> None:
    """They belong to the first transaction of each attempt, and run once."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    mails: list[str] = []
    calls: list[int] = []

    @app.before_request
    def before() -> None:
        uow.on_commit(mails.append, "mail")
        transaction = uow.current_transaction
        assert transaction is not None
        transaction.info["events"] = []

    @app.post("/")
    def view() -> str:
        calls.append(1)
        transaction = uow.current_transaction
        assert transaction is not None
        transaction.info["events"].append(len(calls))
        uow.on_commit(lambda: mails.extend(map(str, transaction.info["events"])))
        uow.session.add(Book(title="Emma"))
        if len(calls) == 1:
            conflict(uow.session)
        uow.session.commit()
        uow.session.add(Book(title="Persuasion"))
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert mails == ["mail", "2"]


def test_lists_that_g_and_the_session_share(app: Flask, postgresql: Engine) -> None:
    """Containers are put back in place, so that whoever holds them holds the right ones."""
    app.secret_key = "secret"
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @app.before_request
    def before() -> None:
        g.cart = session.setdefault("cart", [])
        g.deep = ({"list": [1]},)

    @app.post("/")
    @uow.transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        g.cart.append("book")
        g.deep[0]["list"].append(2)
        session.modified = True
        if len(calls) == 1:
            conflict(uow.session)
        return f"{session['cart']} {g.deep}"

    assert app.test_client().post("/").text == "['book'] ({'list': [1, 2]},)"


def test_data_and_resources_on_g(shop: Shop) -> None:
    """What was read in a failed attempt is read anew; what may have to be closed is the one that is there."""

    class Resource:
        """Something that a teardown function closes."""

    shop.app.before_request(lambda: setattr(g, "client", Resource()))

    def body() -> str:
        if "stock" not in g:
            g.stock = (shop.calls, [None, {"a": 1}], Decimal(1))
            g.opened = Resource()
            g.client = Resource()
            shop.told.append((g.opened, g.client))
        assert (g.opened, g.client) in shop.told
        return str(g.stock[0])

    shop.view(body)

    assert shop.post() == (200, "2")


def test_one_number_of_attempts_for_a_view(app: Flask, postgresql: Engine, engine: Engine) -> None:
    """The view's own decorator says how often it is run, and everybody is told the same."""
    app.config |= {"UOW_B_ATTEMPTS": 5, "UOW_A_ATTEMPTS": 4}
    pair = Pair(app, postgresql, engine)
    told: list[tuple[int, bool]] = []

    def body() -> str:
        transaction = pair.a.current_transaction
        assert transaction is not None
        pair.a.on_rollback(lambda _error: told.append((transaction.attempt, transaction.will_retry)))
        pair.b.session.add(Book(title="b"))
        conflict(pair.a.session)
        return "never"

    app.add_url_rule("/1", "once", pair.a.transactional(attempts=1)(lambda: body()))
    app.add_url_rule("/2", "twice", pair.a.transactional(attempts=2, backoff=AT_ONCE)(lambda: body()))
    app.add_url_rule("/4", "setting", lambda: body())
    client = app.test_client()

    for times in (1, 2, 4):
        told.clear()
        assert client.get(f"/{times}").status_code == 500
        assert told == [(number, number < times) for number in range(1, times + 1)]


def test_rollback_only_from_before_request(app: Flask, postgresql: Engine) -> None:
    """A dry run is one in every attempt."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    app.before_request(uow.set_rollback_only)
    calls: list[int] = []

    @app.post("/")
    def view() -> str:
        calls.append(1)
        uow.session.add(Book(title="Emma"))
        if len(calls) == 1:
            conflict(uow.session)
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert (len(calls), count(postgresql)) == (2, 0)


@pytest.mark.parametrize("uses", [True, False])
def test_hooks_and_info_from_before_request(app: Flask, postgresql: Engine, uses: bool) -> None:
    """They are asked of the request's transaction, and hold in the attempt that commits, once."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(postgresql), app)
    told: list[str] = []
    calls: list[object] = []

    @app.before_request
    def before() -> None:
        uow.on_commit(told.append, "stored")
        uow.on_rollback(lambda _error: told.append("undone"))
        transaction = uow.current_transaction
        assert transaction is not None
        transaction.info["actor"] = "eva"

    @app.post("/")
    def view() -> str:
        transaction = uow.current_transaction
        assert transaction is not None
        calls.append(transaction.info["actor"])
        if len(calls) == 1:
            conflict(uow.session)
        if uses:
            uow.session.add(Book(title="Emma"))
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert (calls, told) == (["eva", "eva"], ["undone", "stored"])


@pytest.mark.parametrize("query", ["set_config('app.tenant', 'acme', true)", "pg_advisory_xact_lock(1)"])
def test_what_holds_for_the_transaction_alone(shop: Shop, caplog: pytest.LogCaptureFixture, query: str) -> None:
    """A tenant that was set for the transaction, or a lock, would be missing in the next one."""

    @shop.app.before_request
    def before() -> None:
        shop.uow.session.execute(text(f"SELECT {query}"))

    shop.view(lambda: "done")

    assert shop.post()[0] == 500
    assert shop.calls == 1
    assert "before_request" in caplog.text


def test_timeout_and_a_read_in_before_request(app: Flask, any_engine: Engine) -> None:
    """What is sent for the timeout is no change of anybody's."""
    if any_engine.dialect.name == "sqlite":
        pytest.skip("its rival would wait for the read")
    app.config |= {"UOW_TIMEOUT": 30, "UOW_ATTEMPTS": 3}
    uow = UnitOfWork(sessionmaker(any_engine), app)
    calls: list[int] = []

    @app.before_request
    def before() -> None:
        uow.session.execute(text("SELECT 1"))

    @app.post("/")
    @uow.transactional(backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        if len(calls) == 1:
            conflict(uow.session)
        return "done"

    assert app.test_client().post("/").status_code == 200
    assert len(calls) == 2


def with_books(engine: Engine) -> None:
    with sessionmaker(engine).begin() as session:
        session.add(Book(id=1000, title="old"))


@pytest.mark.parametrize("where", ["dict", "list", "set", "popped", "cycle", "hidden"])
def test_rows_kept_from_a_failed_attempt(shop: Shop, postgresql: Engine, where: str) -> None:
    """They are looked up again; one that is kept where nobody sees it is an error, and never a lost change."""
    with_books(postgresql)
    shop.app.config["PROPAGATE_EXCEPTIONS"] = False

    class Repository:
        row: Book | None = None

    @shop.app.before_request
    def before() -> None:
        g.dict, g.list, g.set, g.popped, g.repository = {}, [], set(), "payload", Repository()

    def body() -> str:
        session = shop.uow.session
        if where == "popped":
            return str(g.pop("popped"))
        if where == "cycle":
            g.cycle = []
            g.cycle.append((g.cycle, session.get(Book, 1000)))
            g.cycle[0][1].title = "new"
            return "done"
        if where == "hidden":
            g.repository.row = g.repository.row or session.get(Book, 1000)
            g.repository.row.title = "new"
            return "done"
        kept = getattr(g, where)
        if not kept:
            book = session.get_one(Book, 1000)
            {"dict": lambda: kept.update(book=book), "list": lambda: kept.append(book), "set": lambda: kept.add(book)}[
                where
            ]()
        for row in kept.values() if where == "dict" else kept:
            row.title = "new"
        return "done"

    shop.view(body)
    status, answer = shop.post()

    if where == "hidden":
        assert (status, titles(postgresql)) == (500, ["old"])
    elif where == "popped":
        assert (status, answer) == (200, "payload")
    else:
        assert (status, titles(postgresql)) == (200, ["attempt 2", "new"])


def test_hidden_row_that_was_added_again(shop: Shop, postgresql: Engine) -> None:
    """Who adds a kept row again means it."""
    with_books(postgresql)
    kept: list[Book] = []

    def body() -> str:
        session = shop.uow.session
        if not kept:
            kept.append(session.get_one(Book, 1000))
        elif kept[0] not in session:
            session.add(kept[0])
        kept[0].title = "new"
        return "done"

    shop.view(body)

    assert shop.post() == (200, "done")
    assert titles(postgresql) == ["attempt 2", "new"]


def test_function_in_a_request(app: Flask, postgresql: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A function that is run again by itself leaves no trace on its request, either."""
    app.secret_key = "secret"
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @uow.transactional(attempts=3, backoff=AT_ONCE)
    def service() -> None:
        calls.append(1)
        title = request.stream.read().decode() if request.path == "/raw" else request.get_data(as_text=True)
        session["n"] = session.get("n", 0) + 1
        flash("saved")
        uow.session.add(Book(title=title))
        uow.session.flush()
        if len(calls) == 1:
            conflict(uow.session)

    @app.post("/<path:_path>")
    def view(_path: str) -> str:
        service()
        return f"{session['n']} {get_flashed_messages()}"

    client = app.test_client()
    assert client.post("/raw", data=b"Emma").status_code == 500
    assert "raw stream" in caplog.text
    calls.clear()
    assert app.test_client().post("/kept", data=b"Emma").text == "1 ['saved']"
    assert titles(postgresql) == ["Emma"]


@pytest.mark.parametrize("where", ["hook", "receiver"])
def test_session_used_between_attempts(app: Flask, postgresql: Engine, where: str) -> None:
    """What hooks and receivers leave in the session is not a part of the next attempt, and no connection is held."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    begun: list[bool] = []
    checked_out: list[int] = []

    def use(*_: object, **__: object) -> None:
        uow.session.add(Book(title="left"))
        uow.session.flush()

    @uow.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        begun.append(uow.session.in_transaction())
        checked_out.append(postgresql.pool.checkedout())  # type: ignore[attr-defined] # it is a QueuePool
        if where == "hook":
            uow.on_rollback(use)
        if len(begun) == 1:
            conflict(uow.session)
        uow.session.add(Book(title="Emma"))

    with app.app_context(), signals.transaction_retried.connected_to(use if where == "receiver" else len, app):
        work()
    assert (begun, checked_out, titles(postgresql)) == ([False, False], [0, 0], ["Emma"])


def test_conflict_while_a_spent_error_is_handled(postgresql: Engine) -> None:
    """An inner block has given up, and the outer one has a conflict of its own."""
    uow = UnitOfWork(sessionmaker(postgresql))
    calls: list[int] = []

    @uow.transactional(attempts=2, propagation=Propagation.REQUIRES_NEW, backoff=AT_ONCE)
    def inner() -> None:
        conflict(uow.session)

    @uow.transactional(attempts=3, backoff=AT_ONCE)
    def outer() -> None:
        calls.append(1)
        try:
            inner()
        except DBAPIError:
            if len(calls) == 1:
                conflict(uow.session)

    outer()
    assert len(calls) == 2


def test_function_that_another_unit_of_work_has_committed_in(postgresql: Engine, engine: Engine) -> None:
    """What is stored elsewhere would be done twice; in a transaction that is meant to be kept alone it may be."""
    a, b = UnitOfWork(sessionmaker(postgresql)), UnitOfWork(sessionmaker(engine))
    calls: list[int] = []

    @a.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        calls.append(1)
        with b.transaction() as session:
            session.add(Book(title="b"))
        conflict(a.session)

    with pytest.raises(OperationalError) as caught:
        work()
    assert (len(calls), titles(engine)) == (1, ["b"])
    assert caught.value.__notes__[0].endswith("was committed on the way, and would be done twice.")


class Thing:
    """What somebody's frames hold."""


def test_nothing_is_kept_alive(app: Flask, postgresql: Engine) -> None:
    """No cycles of ours after the last attempt, and a Transaction that is kept keeps nothing of its request."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    things: list[weakref.ref[Thing]] = []
    kept: list[object] = []

    @uow.transactional(attempts=2, retry_on=LookupError, backoff=AT_ONCE)
    def work() -> None:
        thing = Thing()
        things.append(weakref.ref(thing))
        kept.append(uow.current_transaction)
        raise LookupError

    @app.get("/")
    @uow.transactional(attempts=2, retry_on=LookupError, backoff=AT_ONCE)
    def view() -> str:
        g.thing = Thing()
        things.append(weakref.ref(g.thing))
        kept.append(uow.current_transaction)
        if len(kept) % 2:
            raise LookupError
        return "done"

    gc.collect()
    gc.disable()
    try:
        with suppress(LookupError):
            work()
        assert [thing() for thing in things] == [None, None]
        assert app.test_client().get("/").text == "done"
    finally:
        gc.enable()
    gc.collect()
    assert [thing() for thing in things] == [None] * 4


@pytest.mark.parametrize("kind", ["response", "tuple", "generator"])
def test_answers_in_vain_are_closed(app: Flask, postgresql: Engine, kind: str) -> None:
    """Whatever form they have."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    closed: list[str] = []
    calls: list[int] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"body"])

        def close(self) -> None:
            closed.append("closed")

    def outer(view: Callable[[], Any]) -> Callable[[], Any]:
        @wraps(view)
        def wrapper() -> Any:
            try:
                return view()
            except DBAPIError:
                body: Any = Body()
                return {"response": Response(body), "tuple": (Response(body), 503), "generator": body}[kind]

        return wrapper

    @app.post("/")
    @outer
    @transactional(attempts=2, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        if len(calls) == 1:
            conflict(uow.session)
        return "done"

    assert app.test_client().post("/").text == "done"
    assert closed == ["closed"]


def test_commit_after_it_was_decided(app: Flask, postgresql: Engine, engine: Engine, caplog: Any) -> None:
    """A decorator outside that stores something by hand, after the conflict, keeps the view from being run again."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    other = UnitOfWork(sessionmaker(engine), app, name="other")
    calls: list[int] = []

    def noting(view: Callable[[], str]) -> Callable[[], str]:
        @wraps(view)
        def wrapper() -> str:
            try:
                return view()
            except DBAPIError:
                other.session.add(Book(title="noted"))
                other.session.commit()
                return "noted"

        return wrapper

    @app.post("/")
    @noting
    @transactional(attempts=3, backoff=AT_ONCE)
    def view() -> str:
        calls.append(1)
        conflict(uow.session)
        return "never"

    assert app.test_client().post("/").text == "noted"
    assert (len(calls), titles(engine)) == (1, ["noted"])
    assert "committed on the way" in caplog.text
