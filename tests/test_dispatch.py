"""Requests: when their work is kept, when it is undone, and in which order everything happens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, abort, redirect, request, session, stream_with_context
from flask.ctx import AppContext
from flask.globals import _cv_app
from flask.views import MethodView
from sqlalchemy import Engine, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import sessionmaker
from werkzeug.exceptions import HTTPException, NotFound

from flask_uow import HookError, PartialCommitError, UnexpectedRollbackError, UnitOfWork, current_transaction, signals
from flask_uow.context import MERGED
from tests.conftest import Base, Book, Loan, Log, sqlite_engine, titles


@pytest.fixture
def managed(app: Flask, uow: UnitOfWork) -> Flask:
    """An app under the app-wide policy."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    return app


def add(uow: UnitOfWork, title: str = "Emma") -> None:
    uow.session.add(Book(title=title))


KEPT = [200, 201, 204, 301, 302, 303, 304, 399]
UNDONE = [400, 401, 404, 409, 418, 422, 499, 500, 502, 503, 599]


@pytest.mark.parametrize(("status", "kept"), [(s, True) for s in KEPT] + [(s, False) for s in UNDONE])
def test_status_decides(managed: Flask, uow: UnitOfWork, engine: Engine, status: int, kept: bool) -> None:
    """A request's work is kept unless the response is an error."""

    @managed.post("/")
    def view() -> tuple[str, int]:
        add(uow)
        return "", status

    response = managed.test_client().post("/")

    assert response.status_code == status
    assert titles(engine) == (["Emma"] if kept else [])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422, 500, 503])
def test_abort_undoes(managed: Flask, uow: UnitOfWork, engine: Engine, status: int) -> None:
    """A view that aborts with an error keeps nothing."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        abort(status)

    response = managed.test_client().post("/")

    assert response.status_code == status
    assert titles(engine) == []


@pytest.mark.parametrize("status", [301, 302, 303, 307])
def test_abort_with_a_redirect_keeps(managed: Flask, uow: UnitOfWork, engine: Engine, status: int) -> None:
    """An HTTPException is judged by its own response: a redirect is no failure."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        abort(redirect("/elsewhere", status))

    response = managed.test_client().post("/")

    assert response.status_code == status
    assert titles(engine) == ["Emma"]


def test_exception_undoes_before_the_handler_runs(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An error handler can query at once, and its 200 does not bring the work back."""

    @managed.post("/")
    def view() -> str:
        uow.session.execute(insert(Book).values(id=1, title="first"))
        uow.session.execute(insert(Book).values(id=1, title="same key"))
        return ""

    @managed.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> list[str]:
        return list(uow.session.scalars(select(Book.title)))

    response = managed.test_client().post("/")

    assert (response.status_code, response.json) == (200, [])
    assert titles(engine) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("place", ["view", "before_request"])
def test_every_exception_undoes(
    managed: Flask, uow: UnitOfWork, engine: Engine, error: type[BaseException], place: str
) -> None:
    """Exceptions that Flask does not catch roll back as well, and go on unchanged."""
    told: list[object] = []

    def fail() -> Any:
        add(uow)
        uow.session.flush()
        uow.on_rollback(told.append)
        raise error

    if place == "before_request":
        managed.before_request(fail)
    managed.add_url_rule("/", view_func=fail, methods=["POST"])

    with pytest.raises(error):
        managed.test_client().post("/")

    assert titles(engine) == []
    assert [type(told_error) for told_error in told] == [error]


def test_failing_before_request_is_undone_before_its_handler(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What a before_request function wrote before it raised is not committed by its handler's 200."""

    @managed.before_request
    def prepare() -> None:
        add(uow)
        uow.session.flush()
        raise LookupError

    @managed.errorhandler(LookupError)
    def handle(_error: LookupError) -> list[str]:
        return list(uow.session.scalars(select(Book.title)))

    response = managed.test_client().post("/")

    assert (response.status_code, response.json) == (200, [])
    assert titles(engine) == []


def test_aborting_before_request_with_a_redirect_keeps(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A before_request function that aborts with a redirect keeps its work, like a view."""

    @managed.before_request
    def prepare() -> None:
        add(uow)
        abort(redirect("/login", 302))

    response = managed.test_client().post("/")

    assert response.status_code == 302
    assert titles(engine) == ["Emma"]


def test_failing_commit_of_a_before_request_redirect_is_handled(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """A COMMIT that fails there reaches the error handler of what failed, and not that of the redirect."""

    @managed.before_request
    def prepare() -> None:
        uow.session.add(Loan(book_id=404))
        abort(redirect("/login", 302))

    @managed.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> tuple[str, int]:
        return "conflict", 409

    response = managed.test_client().post("/")

    assert (response.status_code, response.text) == (409, "conflict")


def test_failing_commit_without_a_handler_is_a_500(managed: Flask, uow: UnitOfWork) -> None:
    """Without a handler for it, the failing COMMIT of a before_request redirect is a 500, never a redirect."""

    @managed.before_request
    def prepare() -> None:
        uow.session.add(Loan(book_id=404))
        abort(redirect("/login", 302))

    response = managed.test_client().post("/")

    assert response.status_code == 500


def test_before_request_that_answers_is_settled_by_its_response(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """A before_request function that answers itself belongs to an auto-commit request."""

    @managed.before_request
    def answer() -> tuple[str, int]:
        add(uow, request.args["title"])
        return "", int(request.args["status"])

    client = managed.test_client()
    client.post("/?title=kept&status=200")
    client.post("/?title=lost&status=403")

    assert titles(engine) == ["kept"]


@pytest.mark.parametrize("where", ["app", "blueprint"])
def test_failing_commit_reaches_the_handler(managed: Flask, uow: UnitOfWork, engine: Engine, where: str) -> None:
    """A constraint that fails at COMMIT is a 409 of the app's or the blueprint's own, and after_request runs once."""
    scaffold = managed if where == "app" else Blueprint("shop", __name__)
    seen = []

    @scaffold.post("/")
    def view() -> str:
        uow.session.add(Loan(book_id=404))
        return "lent"

    @scaffold.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> tuple[str, int]:
        return f"conflict, {len(list(uow.session.scalars(select(Loan))))} loans", 409

    @managed.after_request
    def note(response: Response) -> Response:
        seen.append(response.status_code)
        return response

    if isinstance(scaffold, Blueprint):
        managed.register_blueprint(scaffold)

    response = managed.test_client().post("/")

    assert (response.status_code, response.text) == (409, "conflict, 0 loans")
    assert seen == [409]


def test_failing_commit_is_a_500_and_closes_the_response(managed: Flask, uow: UnitOfWork) -> None:
    """Without a handler the client gets a 500, and the response that was made is closed."""
    closed = []

    @managed.post("/")
    def view() -> Response:
        uow.session.add(Loan(book_id=404))
        response = Response("lent")
        response.call_on_close(lambda: closed.append(True))
        return response

    response = managed.test_client().post("/")

    assert response.status_code == 500
    assert closed == [True]


def test_commit_comes_before_after_request_and_the_first_byte(
    managed: Flask, uow: UnitOfWork, engine: Engine, log: Log
) -> None:
    """Work is stored when after_request functions run, and hooks have run by then."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        uow.on_commit(log.append, "hook")
        log.append("view")
        return ""

    @managed.after_request
    def note(response: Response) -> Response:
        log.append(f"after_request sees {titles(engine)}")
        return response

    @managed.teardown_request
    def tear_down(_error: BaseException | None) -> None:
        log.append("teardown")

    managed.test_client().post("/")

    assert log == [
        "transaction_started",
        "view",
        "before_commit",
        "after_commit",
        "hook",
        "transaction_completed",
        "after_request sees ['Emma']",
        "teardown",
        "session_removed",
    ]


def test_work_of_after_request_is_settled_at_the_end(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What an after_request function writes is committed with the final response."""

    @managed.post("/")
    def view() -> str:
        add(uow, "view")
        return ""

    @managed.after_request
    def note(response: Response) -> Response:
        add(uow, "after")
        return response

    managed.test_client().post("/")

    assert titles(engine) == ["after", "view"]


def test_failing_commit_of_after_request_is_a_500(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A failure at the last commit is a 500, and not a silent loss; what the view did is stored already."""
    closed = []

    @managed.post("/")
    def view() -> Response:
        add(uow)
        response = Response("fine")
        response.call_on_close(lambda: closed.append(True))
        return response

    @managed.after_request
    def note(response: Response) -> Response:
        if response.status_code == 200:
            uow.session.add(Loan(book_id=404))
        return response

    response = managed.test_client().post("/")

    assert response.status_code == 500
    assert closed == [True]
    assert titles(engine) == ["Emma"]


def test_failing_after_request_leaves_a_clean_session_to_the_500_handler(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """What an after_request function wrote before it raised is undone; the handler of the 500 can query and write."""

    @managed.post("/")
    def view() -> str:
        add(uow, "view")
        return ""

    @managed.after_request
    def fail(response: Response) -> Response:
        if response.status_code == 200:
            add(uow, "after")
            uow.session.flush()
            raise LookupError
        return response

    @managed.errorhandler(500)
    def handle(_error: Exception) -> tuple[list[str], int]:
        found = list(uow.session.scalars(select(Book.title)))
        add(uow, "handler")
        return found, 299

    response = managed.test_client().post("/")

    assert (response.status_code, response.json) == (299, ["view"])
    assert titles(engine) == ["handler", "view"]


def test_handler_of_a_500_whose_work_cannot_be_stored(
    managed: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture
) -> None:
    """A 500 handler that answers 200 for work whose COMMIT fails becomes a plain 500 after all."""

    @managed.get("/")
    def view() -> str:
        raise LookupError

    @managed.errorhandler(500)
    def handle(_error: Exception) -> str:
        uow.session.add(Loan(book_id=404))
        return "all is well"

    response = managed.test_client().get("/")

    assert response.status_code == 500
    assert "could not be stored" in caplog.text


def test_failing_hook_of_the_500_handler_is_logged(
    managed: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Work that a 500 handler stored stands, and its response goes out, when a hook of it raises."""
    managed.config["PROPAGATE_EXCEPTIONS"] = False
    managed.testing = True

    @managed.get("/")
    def view() -> str:
        raise LookupError

    @managed.errorhandler(500)
    def handle(_error: Exception) -> tuple[str, int]:
        add(uow)
        uow.on_commit(lambda: 1 / 0)
        return "noted", 202

    response = managed.test_client().get("/")

    assert (response.status_code, titles(engine)) == (202, ["Emma"])
    assert "ZeroDivisionError" in caplog.text


def test_raising_500_handler_goes_on(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An error of the 500 handler itself reaches the server, as it does without us, and its work is undone."""

    @managed.get("/")
    def view() -> str:
        raise LookupError

    @managed.errorhandler(500)
    def handle(_error: Exception) -> str:
        add(uow)
        uow.session.flush()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        managed.test_client().get("/")

    assert titles(engine) == []


@pytest.mark.parametrize("setting", ["TESTING", "DEBUG", "PROPAGATE_EXCEPTIONS"])
def test_propagated_exceptions_undo(managed: Flask, uow: UnitOfWork, engine: Engine, setting: str) -> None:
    """Where Flask lets exceptions through, the work is undone and the exception is the view's own."""
    managed.config[setting] = True

    @managed.get("/")
    def view() -> str:
        add(uow)
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        managed.test_client().get("/")

    assert titles(engine) == []


def test_nothing_happens_without_the_database(managed: Flask, statements: list[str], log: Log) -> None:
    """A request that does not use the session makes none, takes no connection and sends no signal."""

    @managed.get("/")
    def view() -> str:
        return "pong"

    response = managed.test_client().get("/")

    assert response.text == "pong"
    assert (statements, log) == ([], [])


def test_transaction_exists_before_the_session(managed: Flask, uow: UnitOfWork, statements: list[str]) -> None:
    """Hooks can be registered from before_request on, and run without any database."""
    ran: list[str] = []

    @managed.before_request
    def register() -> None:
        assert bool(current_transaction)
        uow.on_commit(ran.append, "before")

    @managed.get("/")
    def view() -> str:
        uow.on_commit(ran.append, "view")
        return ""

    managed.test_client().get("/")

    assert (ran, statements) == (["before", "view"], [])


def test_before_request_and_view_are_one_transaction(managed: Flask, uow: UnitOfWork, statements: list[str]) -> None:
    """A request is one transaction: one BEGIN, one COMMIT."""

    @managed.before_request
    def prepare() -> None:
        add(uow, "before")
        uow.session.flush()

    @managed.post("/")
    def view() -> str:
        add(uow, "view")
        return ""

    managed.test_client().post("/")

    assert statements == ["BEGIN", "INSERT", "INSERT", "COMMIT"]


def test_session_kept_from_before_the_commit_still_belongs_to_the_request(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """A session that somebody holds on to begins again by itself, and is settled with the final response."""

    @managed.post("/")
    def view() -> str:
        held = uow.session
        add(uow, "view")

        @uow.on_commit
        def write_later() -> None:
            held.add(Book(title="held"))

        return ""

    managed.test_client().post("/")

    assert titles(engine) == ["held", "view"]


@pytest.mark.parametrize(
    ("methods", "kept"), [({"POST"}, []), ({"get"}, ["Emma", "Emma"]), (["GET", "PUT"], ["Emma", "Emma"])]
)
def test_methods_decide(app: Flask, uow: UnitOfWork, engine: Engine, methods: Any, kept: list[str]) -> None:
    """Only the methods in UOW_AUTO_COMMIT are covered, and HEAD is where GET is."""
    app.config["UOW_AUTO_COMMIT"] = methods
    uow.init_app(app)

    @app.get("/")
    def view() -> str:
        add(uow)
        return ""

    client = app.test_client()
    client.get("/")
    client.head("/")

    assert titles(engine) == kept


def test_without_a_policy_nothing_is_committed(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Where nobody asked for a policy, the view settles for itself."""
    uow.init_app(app)

    @app.post("/<title>")
    def view(title: str) -> str:
        add(uow, title)
        assert not bool(current_transaction)
        if title == "committed":
            uow.session.commit()
        return ""

    client = app.test_client()
    client.post("/committed")
    client.post("/forgotten")

    assert titles(engine) == ["committed"]


@pytest.mark.parametrize("path", ["/options", "/missing", "/static/none.css", "/book"])
def test_flasks_own_answers_are_left_alone(managed: Flask, uow: UnitOfWork, engine: Engine, path: str) -> None:
    """Automatic OPTIONS, 404, 405, static files and HEAD work, with a session that is in use."""

    @managed.before_request
    def use() -> None:
        uow.session.scalars(select(Book)).all()

    @managed.route("/options", methods=["PUT"])
    @managed.route("/book")
    def view() -> str:
        return "book"

    client = managed.test_client()
    expected = {"/options": 405, "/missing": 404, "/static/none.css": 404, "/book": 200}

    assert client.get(path).status_code == expected[path]
    assert client.head(path).status_code == expected[path]
    assert client.options("/options").status_code == 200


def test_unknown_methods_leave_no_trace(managed: Flask, uow: UnitOfWork) -> None:
    """A client that invents methods gets its 405, and fills no memory."""
    managed.before_request(lambda: add(uow))
    client = managed.test_client()
    plans = managed.extensions["uow"].dispatch.managed[uow]._plans

    for number in range(20):
        client.open("/", method=f"INVENTED{number}")

    assert plans == {}


def test_method_views_are_covered(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Class-based views are views."""

    class Books(MethodView):
        def post(self) -> str:
            add(uow)
            return ""

    managed.add_url_rule("/", view_func=Books.as_view("books"))

    managed.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_view_without_a_response_is_an_error(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view that returns None keeps nothing: its value cannot become a response."""

    @managed.post("/")
    def view() -> Any:
        add(uow)

    response = managed.test_client().post("/")

    assert response.status_code == 500
    assert titles(engine) == []


def test_commit_if_replaces_the_rule(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """UOW_COMMIT_IF sees the response and decides, by return and by abort."""
    app.config["UOW_AUTO_COMMIT"] = True
    app.config["UOW_COMMIT_IF"] = lambda response: response.status_code in (202, 404)
    uow.init_app(app)

    @app.post("/<title>/<int:status>")
    def view(title: str, status: int) -> tuple[str, int]:
        add(uow, title)
        if title.startswith("abort"):
            abort(status)
        return "", status

    client = app.test_client()
    for path in ("/a/200", "/b/202", "/c/404", "/abort-d/404", "/abort-e/400"):
        client.post(path)

    assert titles(engine) == ["abort-d", "b", "c"]


def test_raising_commit_if_is_an_error_of_the_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A commit_if that raises keeps nothing, and is handled like an exception of the view."""
    app.config["UOW_AUTO_COMMIT"] = True
    app.config["UOW_COMMIT_IF"] = lambda response: response.nonsense
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        add(uow)
        return ""

    @app.errorhandler(AttributeError)
    def handle(_error: AttributeError) -> tuple[str, int]:
        return "no", 418

    response = app.test_client().post("/")

    assert response.status_code == 418
    assert titles(engine) == []


def test_error_status_is_quiet_about_a_doomed_transaction(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A 400 whose work would have rolled back anyway never turns into UnexpectedRollbackError."""

    @managed.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        add(uow)
        try:
            with uow.transaction():
                raise LookupError
        except LookupError:
            return "told", status

    client = managed.test_client()

    assert (client.post("/422").status_code, client.post("/422").text) == (422, "told")
    assert client.post("/200").status_code == 500
    assert titles(engine) == []


def test_swallowed_failure_of_a_joined_block_is_told(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view that swallows the failure of a block that joined it gets UnexpectedRollbackError, with the cause."""
    errors = []

    @managed.post("/")
    def view() -> str:
        add(uow)
        try:
            with uow.transaction(name="payment"):
                raise LookupError("no funds")
        except LookupError:
            pass
        return "paid"

    @managed.errorhandler(UnexpectedRollbackError)
    def handle(error: UnexpectedRollbackError) -> tuple[str, int]:
        errors.append(error)
        return str(error), 500

    response = managed.test_client().post("/")

    assert "'payment', which had joined it, failed with LookupError" in response.text
    assert isinstance(errors[0].__cause__, LookupError)
    assert titles(engine) == []


def test_abort_through_a_joined_block_is_judged_by_the_response(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """A redirect that leaves a joined block does not doom the request."""

    @managed.post("/")
    def view() -> str:
        with uow.transaction():
            add(uow)
            abort(redirect("/", 302))

    response = managed.test_client().post("/")

    assert response.status_code == 302
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize(("status", "kept"), [(302, ["Emma"]), (404, [])])
def test_abort_outside_a_request_is_judged_alike(
    app: Flask, uow: UnitOfWork, engine: Engine, status: int, kept: list[str]
) -> None:
    """In a block outside dispatch, too, an HTTPException is judged by the status of its response."""
    uow.init_app(app)

    with app.app_context(), pytest.raises(HTTPException), uow.transaction():
        add(uow)
        abort(redirect("/", status) if status == 302 else status)

    assert titles(engine) == kept


def test_set_rollback_only_keeps_the_response(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view can undo its work quietly and answer what it likes: a dry run."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        uow.set_rollback_only()
        return "dry run"

    response = managed.test_client().post("/")

    assert (response.status_code, response.text) == (200, "dry run")
    assert titles(engine) == []


def test_explicit_commits_stay_allowed_under_the_app_wide_policy(
    managed: Flask, uow: UnitOfWork, engine: Engine, log: Log
) -> None:
    """A legacy view may commit and roll back by itself; hooks and signals of what it settled run then."""

    @managed.post("/")
    def view() -> str:
        add(uow, "kept")
        uow.on_commit(log.append, "hook")
        uow.session.commit()
        log.append("committed by hand")
        add(uow, "undone")
        uow.session.rollback()
        log.append("rolled back by hand")
        add(uow, "kept too")
        return ""

    managed.test_client().post("/")

    assert titles(engine) == ["kept", "kept too"]
    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "hook",
        "transaction_completed",
        "committed by hand",
        "transaction_started",
        "after_rollback",
        "transaction_completed",
        "rolled back by hand",
        "transaction_started",
        "before_commit",
        "after_commit",
        "transaction_completed",
        "session_removed",
    ]


def test_explicit_rollback_ends_a_doomed_transaction(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """After a database error, session.rollback() lets a legacy view go on."""

    @managed.post("/")
    def view() -> str:
        uow.session.add(Book(id=1, title="first"))
        uow.session.commit()
        uow.session.expunge_all()
        uow.session.add(Book(id=1, title="second"))
        with pytest.raises(IntegrityError):
            uow.session.flush()
        uow.session.rollback()
        add(uow, "third")
        return ""

    response = managed.test_client().post("/")

    assert response.status_code == 200
    assert titles(engine) == ["first", "third"]


def test_hooks_are_logged_in_production_and_raise_in_tests(
    managed: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """A failing hook leaves the others and the response alone; in a testing app it raises, with the work stored."""
    ran: list[str] = []

    @managed.post("/")
    def view() -> str:
        add(uow)
        uow.on_commit(ran.append, "first")
        uow.on_commit(lambda: 1 / 0)
        uow.on_commit(ran.append, "last")
        return "stored"

    response = managed.test_client().post("/")
    managed.testing = True
    with pytest.raises(HookError) as caught:
        managed.test_client().post("/")

    assert (response.status_code, response.text) == (200, "stored")
    assert ran == ["first", "last"] * 2
    assert "The on_commit hook" in caplog.text
    assert caught.value.committed
    assert titles(engine) == ["Emma", "Emma"]


def test_hook_sees_the_rows_from_another_connection_and_opens_its_own_transaction(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """A hook runs after COMMIT, outside the transaction, and may open one of its own."""
    seen: list[object] = []

    @managed.post("/")
    def view() -> str:
        add(uow, "view")

        @uow.on_commit
        def write() -> None:
            seen.append(titles(engine))
            assert uow.current_transaction is None
            with uow.transaction() as session:
                session.add(Book(title="hook"))
                uow.on_commit(lambda: seen.append(titles(engine)))
            seen.append("end of the hook")

        return ""

    managed.test_client().post("/")

    assert seen == [["view"], ["hook", "view"], "end of the hook"]


@pytest.mark.parametrize("answer", ["text", "stream"])
def test_streamed_bodies_come_after_the_commit(managed: Flask, uow: UnitOfWork, engine: Engine, answer: str) -> None:
    """A streamed body sees the stored work, may read through the session, and leaves no connection behind."""

    @managed.post("/")
    def view() -> Response:
        add(uow)

        def body() -> Iterator[str]:
            yield from titles(engine)
            if answer == "stream":
                yield from uow.session.scalars(select(Book.title))

        return Response(stream_with_context(body()) if answer == "stream" else body())

    response = managed.test_client().post("/")

    assert response.text == ("Emma" if answer == "text" else "EmmaEmma")


# Other extensions, and classes of the user's own


def test_extension_that_assigns_dispatch_later_does_not_switch_the_policy_off(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """Whichever extension is initialised last, ours is outermost, and the other one is not disturbed."""
    calls = []
    theirs = managed.dispatch_request

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append("wrapped")
        return theirs(*args, **kwargs)

    managed.dispatch_request = wrapped  # type: ignore[method-assign]

    @managed.post("/")
    def view() -> str:
        uow.session.add(Loan(book_id=404))
        return ""

    @managed.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> tuple[str, int]:
        return "", 409

    client = managed.test_client()

    assert [client.post("/").status_code for _ in range(3)] == [409] * 3
    assert calls == ["wrapped"] * 3


def test_extension_that_replaces_dispatch_does_not_switch_the_policy_off(
    managed: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """One that forgets what was there before cannot lose the commit either."""
    managed.dispatch_request = lambda *args: Flask.dispatch_request(managed, *args)  # type: ignore[method-assign]

    @managed.post("/")
    def view() -> str:
        add(uow)
        return ""

    managed.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_dispatch_replaced_before_us_is_kept(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What another extension has put on the app before init_app() is called by us."""
    calls = []
    original = app.dispatch_request

    def theirs(*args: Any) -> Any:
        calls.append("theirs")
        return original(*args)

    app.dispatch_request = theirs  # type: ignore[method-assign]
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        add(uow)
        return ""

    app.test_client().post("/")

    assert (calls, titles(engine)) == (["theirs"], ["Emma"])


@pytest.mark.filterwarnings("ignore:The 'dispatch_request' method now takes:DeprecationWarning")
@pytest.mark.parametrize("signature", ["3.1", "3.2"])
def test_subclass_that_overrides_dispatch(uow: UnitOfWork, engine: Engine, signature: str) -> None:
    """An application class with a dispatch_request() of its own is covered, with either Flask's signature."""
    if signature == "3.2" and not MERGED:
        pytest.skip("this Flask passes no context")

    class Old(Flask):
        def dispatch_request(self) -> Any:  # type: ignore[override,unused-ignore]
            return Flask.dispatch_request(self)  # type: ignore[call-arg,unused-ignore]

    class New(Flask):
        def dispatch_request(self, ctx: AppContext) -> Any:  # type: ignore[override,unused-ignore]
            return Flask.dispatch_request(self, ctx)  # type: ignore[call-arg,unused-ignore]

    app = (Old if signature == "3.1" else New)("shop")
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        add(uow)
        return ""

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_patched_class_is_honoured(uow: UnitOfWork, engine: Engine, when: str) -> None:
    """Agents replace methods of the class before there is an app; Flask 3.2 itself replaces them later as well."""
    if when == "after" and not MERGED:
        pytest.skip("this Flask leaves its classes alone")

    class Shop(Flask):
        pass

    calls = []

    def patched(self: Flask, *args: Any) -> Any:
        calls.append("patched")
        return Flask.dispatch_request(self, *args)

    if when == "before":
        Shop.dispatch_request = patched  # type: ignore[method-assign]
    app = Shop("shop")
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    if when == "after":
        Shop.dispatch_request = patched  # type: ignore[method-assign]

    @app.post("/")
    def view() -> str:
        add(uow)
        return ""

    app.test_client().post("/")

    assert (calls, titles(engine)) == (["patched"], ["Emma"])


def call_dispatch(app: Flask, method: str) -> Any:
    """Call a dispatch method by hand, as Flask's own line does."""
    return getattr(app, method)(*((_cv_app.get(),) if MERGED else ()))


@pytest.mark.parametrize("method", ["dispatch_request", "full_dispatch_request"])
def test_dispatch_called_by_hand_is_settled(managed: Flask, uow: UnitOfWork, engine: Engine, method: str) -> None:
    """Calling dispatch in a test_request_context() commits like a request."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        return "by hand"

    with managed.test_request_context("/", method="POST"):
        add(uow, "before")
        call_dispatch(managed, method)
        assert not uow.current_transaction
        stored = titles(engine)

    assert stored == ["Emma", "before"]


def test_dispatch_called_by_hand_without_a_session(managed: Flask, uow: UnitOfWork) -> None:
    """Nor does calling dispatch by hand open a session that nobody asks for."""

    @managed.get("/")
    def view() -> str:
        return "by hand"

    told: list[object] = []

    def removed(_app: Flask, **extra: object) -> None:
        told.append(extra)

    with managed.test_request_context("/"), signals.session_removed.connected_to(removed):
        answer = call_dispatch(managed, "dispatch_request")
        assert not uow.current_transaction

    assert (answer, told) == ("by hand", [])


def test_dispatch_again_is_settled(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An error handler that dispatches the request again has the work of its second view kept, before it goes on."""
    stored: list[list[str]] = []

    @managed.post("/")
    def view() -> str:
        if request.args.get("broken") and not stored:
            add(uow, "lost")
            raise LookupError
        add(uow)
        return ""

    @managed.errorhandler(LookupError)
    def again(_error: LookupError) -> str:
        stored.append(titles(engine))
        call_dispatch(managed, "dispatch_request")
        stored.append(titles(engine))
        return ""

    managed.test_client().post("/?broken=1")

    assert stored == [[], ["Emma"]]


def test_block_around_a_dispatch_by_hand_is_not_ended_by_it(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A block that was there before dispatch owns the transaction; dispatch does not end what it did not begin."""

    @managed.post("/")
    def view() -> str:
        add(uow)
        return ""

    with managed.test_request_context("/", method="POST"), uow.transaction():
        call_dispatch(managed, "dispatch_request")
        stored = titles(engine)

    assert stored == []
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("method", ["do_teardown_appcontext", *([] if MERGED else ["do_teardown_request"])])
def test_teardown_by_keyword(managed: Flask, method: str) -> None:
    """The methods that run the teardown functions take the error by position and by name, as Flask's own do."""
    errors: list[BaseException | None] = []
    managed.teardown_appcontext(errors.append)
    managed.teardown_request(errors.append)
    error = LookupError()

    with managed.test_request_context():
        context = {"ctx": _cv_app.get()} if MERGED else {}
        getattr(managed, method)(**context, exc=error)
        getattr(managed, method)(*context.values(), error)
        seen = list(errors)

    assert seen == [error, error]


# Several UnitOfWork objects


@pytest.fixture
def other(tmp_path: Any) -> Iterator[Engine]:
    engine = sqlite_engine(tmp_path / "other.db")
    Base.metadata.create_all(engine)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


@pytest.fixture
def reports(app: Flask, uow: UnitOfWork, other: Engine) -> UnitOfWork:
    """A second object in the same app, initialised after the first."""
    app.config.update(UOW_AUTO_COMMIT=True, UOW_REPORTS_AUTO_COMMIT=True)
    uow.init_app(app)
    return UnitOfWork(sessionmaker(other), app, name="reports")


@pytest.mark.parametrize("how", ["hook", "receiver"])
def test_second_one_is_first_used_after_the_commit(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, engine: Engine, other: Engine, *, how: str
) -> None:
    """A hook or a receiver can use another object that the request has not used before."""

    def report(*_sender: object, **_extra: object) -> None:
        if not titles(other):
            with reports.transaction():
                add(reports, "reported")

    @app.post("/")
    @uow.transactional
    def view() -> str:
        add(uow)
        if how == "hook":
            uow.on_commit(report)
        return ""

    with signals.after_commit.connected_to(report) if how == "receiver" else nullcontext():
        response = app.test_client().post("/")

    assert response.status_code == 200
    assert (titles(engine), titles(other)) == (["Emma"], ["reported"])


def test_all_commit_or_roll_back_together(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, engine: Engine, other: Engine
) -> None:
    """Several objects settle by the same response."""

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        add(reports, str(status))
        add(uow, str(status))
        return "", status

    client = app.test_client()
    client.post("/200")
    client.post("/400")

    assert (titles(engine), titles(other)) == (["200"], ["200"])


def test_first_that_fails_rolls_the_later_back(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, engine: Engine, other: Engine
) -> None:
    """If the one initialised first cannot commit, nothing is stored anywhere, and the error is its own."""

    @app.post("/")
    def view() -> str:
        add(reports)
        uow.session.add(Loan(book_id=404))
        return ""

    @app.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> tuple[str, int]:
        return "", 409

    assert app.test_client().post("/").status_code == 409
    assert (titles(engine), titles(other)) == ([], [])


def test_later_that_fails_is_a_partial_commit(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, engine: Engine, other: Engine
) -> None:
    """If a later one fails, the error names both, and its cause is what failed."""
    errors = []

    @app.post("/")
    def view() -> str:
        add(uow)
        reports.session.add(Loan(book_id=404))
        return ""

    @app.errorhandler(PartialCommitError)
    def handle(error: PartialCommitError) -> tuple[str, int]:
        errors.append(error)
        return str(error), 500

    response = app.test_client().post("/")

    assert "'reports' failed to commit after 'default' had committed" in response.text
    assert (errors[0].committed, errors[0].failed) == (("default",), "reports")
    assert isinstance(errors[0].__cause__, IntegrityError)
    assert (titles(engine), titles(other)) == (["Emma"], [])


def test_hook_error_of_the_first_does_not_keep_the_second_from_committing(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, engine: Engine, other: Engine
) -> None:
    """In a testing app a failing hook raises when all have committed."""
    app.testing = True

    @app.post("/")
    def view() -> str:
        add(uow)
        uow.on_commit(lambda: 1 / 0)
        add(reports)
        return ""

    with pytest.raises(HookError):
        app.test_client().post("/")

    assert (titles(engine), titles(other)) == (["Emma"], ["Emma"])


# Teardown


@pytest.mark.parametrize("kind", ["teardown_request", "teardown_appcontext"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_session_is_closed_although_a_teardown_function_raises(
    managed: Flask, uow: UnitOfWork, engine: Engine, kind: str, log: Log
) -> None:
    """The connection is returned after every other teardown function has run, even when one raises."""

    @managed.get("/")
    def view() -> str:
        uow.session.scalars(select(Book)).all()
        return ""

    @managed.after_request
    def use_again(response: Response) -> Response:
        managed.config["UOW"] = uow.session.scalars(select(Book)).all()
        return response

    def fail(_error: BaseException | None) -> None:
        log.append("teardown")
        raise LookupError

    getattr(managed, kind)(fail)

    with pytest.raises((LookupError, ExceptionGroup)):
        managed.test_client().get("/")

    assert log[-2:] == ["teardown", "session_removed"]
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_teardown_functions_see_the_requests_session(managed: Flask, uow: UnitOfWork) -> None:
    """Every teardown function of a request still sees its session, those of the app context included."""
    sessions = []

    @managed.get("/")
    def view() -> str:
        sessions.append(uow.session)
        return ""

    @managed.teardown_request
    @managed.teardown_appcontext
    def look(_error: BaseException | None) -> None:
        sessions.append(uow.session)

    managed.test_client().get("/")

    assert sessions == [sessions[0]] * 3


def test_teardown_never_raises(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A session whose close() fails is logged, and the request ends as it was."""
    from sqlalchemy.orm import Session

    class Stubborn(Session):
        def close(self) -> None:
            super().close()
            raise LookupError("stuck")

    caplog.set_level(logging.DEBUG, "flask_uow")
    uow = UnitOfWork(sessionmaker(engine, class_=Stubborn), app)

    @app.get("/")
    def view() -> str:
        uow.session.scalars(select(Book)).all()
        return "fine"

    response = app.test_client().get("/")

    assert response.text == "fine"
    assert "stuck" in caplog.text


def test_cookie_session_and_flask_session_work(managed: Flask, uow: UnitOfWork) -> None:
    """Flask's own session is saved beside ours."""
    managed.secret_key = "test"

    @managed.post("/")
    def view() -> str:
        session["cart"] = "Emma"
        add(uow)
        return ""

    @managed.get("/")
    def cart() -> str:
        return str(session["cart"])

    client = managed.test_client()
    client.post("/")

    assert client.get("/").text == "Emma"


def test_connection_is_given_back_at_the_commit(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A connection is held from the first statement to the commit, and not until teardown."""
    held = []

    @managed.post("/")
    def view() -> str:
        add(uow)
        uow.session.flush()
        held.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        return ""

    @managed.after_request
    def look(response: Response) -> Response:
        held.append(engine.pool.checkedout())  # type: ignore[attr-defined]
        return response

    managed.test_client().post("/")

    assert held == [1, 0]


def test_unroutable_request_has_a_plan(managed: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A 404 handler that answers 200 commits its own work, and what was done before is undone."""

    @managed.before_request
    def prepare() -> None:
        add(uow, "before")

    @managed.errorhandler(NotFound)
    def handle(_error: NotFound) -> str:
        add(uow, "handler")
        return "found"

    response = managed.test_client().get("/missing")

    assert response.status_code == 200
    assert titles(engine) == ["handler"]


def test_failed_request_context_is_left_to_flask(app: Flask, uow: UnitOfWork) -> None:
    """An error from before there is a context is Flask's to handle."""
    uow.init_app(app)

    with pytest.raises(RuntimeError, match="context"):
        app.handle_exception(*(() if not MERGED else (app.app_context(),)), LookupError())  # type: ignore[call-arg,unused-ignore]


Handler = Callable[[Exception], str]


def test_locked_database_is_an_ordinary_failure(managed: Flask, uow: UnitOfWork, tmp_path: Any) -> None:
    """A table that is not there is an error of the view, and the session is usable afterwards."""
    from sqlalchemy import text

    @managed.get("/")
    def view() -> str:
        uow.session.execute(text("SELECT * FROM missing"))
        return ""

    @managed.errorhandler(OperationalError)
    def handle(_error: OperationalError) -> str:
        return str(uow.session.scalar(text("SELECT 42")))

    assert managed.test_client().get("/").text == "42"


def test_wrapping_dispatch_again_wraps_it_once(managed: Flask) -> None:
    """Of threads whose first requests find dispatch wrapped by somebody else, one wraps it again."""
    ours = managed.dispatch_request

    managed.extensions["uow"].dispatch._wrap()

    assert managed.dispatch_request is ours


def test_failing_rollback_hook_at_teardown_is_logged(
    app: Flask, uow: UnitOfWork, reports: UnitOfWork, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A block that nobody left is rolled back at teardown; a hook of it that raises keeps no session from closing."""
    app.testing = True

    with app.app_context():
        use = reports.session
        uow.transaction().__enter__().add(Book(title="abandoned"))
        uow.on_rollback(lambda _error: 1 / 0)

    assert "ZeroDivisionError" in caplog.text
    assert log.count("session_removed") == 2
    assert not use.in_transaction()
