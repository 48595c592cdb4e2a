"""Which context a session belongs to: each its own, all closed, none inherited."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask, Response, copy_current_request_context, g, stream_with_context
from flask.globals import _cv_app
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from flask_uow import NoScopeError, UnitOfWork, transactional
from flask_uow.context import MERGED
from tests.conftest import Book, Log, titles


@pytest.fixture(autouse=True)
def _initialised(app: Flask, uow: UnitOfWork) -> None:
    uow.init_app(app)


def use(uow: UnitOfWork) -> Session:
    """Take the session, and a connection with it."""
    session = uow.session
    session.scalars(select(Book)).all()
    return session


def removed(log: Log) -> list[object]:
    return [
        arguments["session"] for name, arguments in zip(log, log.arguments, strict=True) if name == "session_removed"
    ]


def test_context_has_one_session(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """Within a context the session is one and the same real Session; it is closed with the context."""
    with app.app_context():
        session = use(uow)
        assert type(session) is not Session
        assert isinstance(session, Session)
        assert uow.session is session

    assert removed(log) == [session]


def test_nested_app_context_has_its_own(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """Leaving a nested app_context() closes its session, and leaves the outer one and its pending objects alone."""
    with app.app_context():
        outer = use(uow)
        outer.add(Book(title="pending"))
        with app.app_context():
            inner = use(uow)
            assert inner is not outer
        assert uow.session is outer
        assert len(outer.new) == 1
        closed_first = removed(log)

    assert closed_first == [inner]
    assert removed(log) == [inner, outer]


def test_request_inside_an_app_context_has_its_own(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """A request made inside an app_context() shares g with it on Flask 3.1, and never the session."""
    sessions = []

    @app.get("/")
    def view() -> str:
        g.visited = True
        sessions.append(use(uow))
        return ""

    with app.app_context():
        outer = use(uow)
        for _ in range(2):
            app.test_client().get("/")
        closed_inside = removed(log)
        assert uow.session is outer

    assert len({outer, *sessions}) == 3
    assert closed_inside == sessions
    assert removed(log) == [*sessions, outer]


def test_request_made_inside_a_view_has_its_own(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """A request made inside a request settles alone: the inner one is kept, the outer one undone."""
    sessions = []

    @app.post("/outer")
    @transactional
    def outer() -> tuple[str, int]:
        session = uow.session
        sessions.append(session)
        assert app.test_client().post("/inner").status_code == 200
        assert uow.session is session
        session.add(Book(title="outer"))
        return "", 400

    @app.post("/inner")
    @transactional
    def inner() -> str:
        sessions.append(uow.session)
        uow.session.add(Book(title="inner"))
        return ""

    app.test_client().post("/outer")

    assert sessions[0] is not sessions[1]
    assert titles(engine) == ["inner"]
    assert removed(log) == [sessions[1], sessions[0]]


def test_app_context_inside_a_view_is_not_the_requests(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """An app_context() pushed in a view has a session of its own, which the request's policy does not settle."""

    @app.post("/")
    @transactional
    def view() -> str:
        outer = use(uow)
        with app.app_context():
            assert uow.session is not outer
            assert uow.current_transaction is None
            uow.session.add(Book(title="nested, forgotten"))
            uow.session.flush()
        outer.add(Book(title="kept"))
        return ""

    app.test_client().post("/")

    assert titles(engine) == ["kept"]
    assert len(removed(log)) == 2


def test_request_keeps_its_session_although_an_app_context_was_inside(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """After an app_context() in a view, every teardown function of the request still sees the request's session."""
    sessions = []

    @app.get("/")
    def view() -> str:
        sessions.append(use(uow))
        with app.app_context():
            use(uow)
        return ""

    @app.teardown_appcontext
    def look(_error: BaseException | None) -> None:
        sessions.append(uow.session)

    app.test_client().get("/")

    inner = removed(log)[0]
    assert sessions[:2] == [sessions[0], inner]
    assert sessions[2] is sessions[0]
    assert removed(log) == [inner, sessions[0]]


@pytest.mark.parametrize("where", ["thread", "here"])
def test_copied_request_context_has_its_own(app: Flask, uow: UnitOfWork, log: Log, where: str) -> None:
    """copy_current_request_context() gives its function a session of its own, in a thread and without one."""
    sessions = []

    @app.get("/")
    def view() -> str:
        sessions.append(use(uow))

        @copy_current_request_context
        def work() -> None:
            sessions.append(use(uow))

        if where == "thread":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(work).result()
        else:
            work()
        assert uow.session is sessions[0]
        return ""

    app.test_client().get("/")

    assert sessions[0] is not sessions[1]
    assert removed(log) == [sessions[1], sessions[0]]


def test_preserved_context_can_open_again(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """In 'with client:' the context is torn down and pushed again; the session can be opened again, and is closed."""
    sessions = []

    @app.get("/")
    def view() -> str:
        sessions.append(use(uow))
        return ""

    with app.test_client() as client:
        client.get("/")
        sessions.append(use(uow))
        client.get("/")
        sessions.append(use(uow))

    assert len(set(sessions)) == 4
    assert removed(log) == sessions


def test_context_pushed_again_has_a_new_session(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """A context object that is pushed a second time starts afresh."""
    sessions = []
    context = app.test_request_context("/")

    for _ in range(2):
        with context:
            sessions.append(use(uow))

    assert sessions[0] is not sessions[1]
    assert removed(log) == sessions


def test_context_pushed_twice_is_closed_once(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """A context that is pushed while it is pushed is still one context."""
    context = app.app_context()

    with context:
        session = use(uow)
        with context:
            assert uow.session is session
        assert removed(log) == []

    assert removed(log) == [session]


def test_streamed_body_reads_and_is_closed(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """A body under stream_with_context() may use the session; whatever it opened is closed with it."""
    torn_down = []

    @app.get("/")
    def view() -> Response:
        use(uow)

        def body() -> Any:
            use(uow)
            yield "a"
            use(uow)
            yield "b"

        return Response(stream_with_context(body()))

    @app.teardown_appcontext
    def look(_error: BaseException | None) -> None:
        torn_down.append(use(uow))

    response = app.test_client().get("/")

    assert response.text == "ab"
    assert removed(log)[-1] is torn_down[-1]
    assert set(removed(log)) >= set(torn_down)
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_no_context_is_an_error_with_advice(uow: UnitOfWork) -> None:
    """Outside any scope the session is not there, and the error says what to do."""
    with pytest.raises(NoScopeError, match=r"no Flask context is active\. Push one with 'with app.app_context\(\):'"):
        _ = uow.session


def test_app_that_was_not_initialised_is_an_error_with_advice(uow: UnitOfWork) -> None:
    """In the context of an app that init_app() was not called for, the error names the app."""
    stranger = Flask("stranger")

    with stranger.app_context(), pytest.raises(NoScopeError, match=r"init_app\(\) was not called for .* 'stranger'"):
        _ = uow.session


def test_popped_context_is_an_error(app: Flask, uow: UnitOfWork) -> None:
    """A thread that works in a copy of a context after the request has ended gets an error, and no orphaned session."""
    copies = []

    @app.get("/")
    def view() -> str:
        use(uow)
        copies.append(contextvars.copy_context())
        return ""

    app.test_client().get("/")

    with ThreadPoolExecutor(1) as pool, pytest.raises(NoScopeError, match="the context has been popped"):
        pool.submit(copies[0].run, lambda: uow.session).result()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(copies[0].run, lambda: uow.current_transaction).result() is None


def test_apps_do_not_share(uow: UnitOfWork, app: Flask, log: Log) -> None:
    """One object serves many apps, and each context has its own session; the sender of a signal is its app."""
    second = Flask("second")
    uow.init_app(second)

    with app.app_context():
        first_session = use(uow)
        with second.app_context():
            assert uow.session is not first_session
            with uow.transaction():
                use(uow)
        assert uow.session is first_session

    assert {sender for name, sender in zip(log, log.senders, strict=True) if name == "transaction_started"} == {second}


def test_threads_do_not_share_a_standalone_scope(uow: UnitOfWork) -> None:
    """A thread never works in the block of another, not even in a copy of its context."""
    with uow.transaction() as session, ThreadPoolExecutor(2) as pool:
        with pytest.raises(NoScopeError):
            pool.submit(lambda: uow.session).result()
        with pytest.raises(NoScopeError):
            pool.submit(contextvars.copy_context().run, lambda: uow.session).result()
        assert uow.session is session


def test_tasks_of_an_async_view_share_its_scope(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """An async view, and the tasks it gathers, work in the request's scope, though in another thread."""
    threads = set()

    @app.post("/")
    @transactional
    async def view() -> str:
        async def work(title: str) -> None:
            await asyncio.sleep(0)
            threads.add(threading.get_ident())
            uow.session.add(Book(title=title))

        await asyncio.gather(work("a"), work("b"))
        return ""

    response = app.test_client().post("/")

    assert response.status_code == 200
    assert titles(engine) == ["a", "b"]
    assert log.count("session_removed") == 1


def test_context_keeps_nothing_of_ours(app: Flask, uow: UnitOfWork) -> None:
    """After its teardown a context is free of our state, so that nothing outlives it."""
    with app.app_context():
        use(uow)
        context = _cv_app.get()

    assert not [name for name in vars(context) if "uow" in name]


@pytest.mark.parametrize("where", ["app", "request"])
@pytest.mark.parametrize("has_failed", [False, True])
def test_teardown_by_hand(app: Flask, uow: UnitOfWork, log: Log, where: str, has_failed: bool) -> None:
    """Teardown functions that are run by hand, without an error, are given the one that is being handled."""
    seen: list[BaseException | None] = []
    app.teardown_request(seen.append)
    app.teardown_appcontext(seen.append)

    def tear_down() -> None:
        context: list[Any] = [_cv_app.get()] if MERGED else []
        if where == "request":
            app.do_teardown_request(*context)
        else:
            app.do_teardown_appcontext(*context)

    with app.test_request_context():
        session = use(uow)
        if has_failed:
            try:
                raise LookupError
            except LookupError:
                tear_down()
        else:
            tear_down()
        [first] = seen
        is_another = uow.session is not session

    assert isinstance(first, LookupError) is has_failed
    # The session belongs to the app context that the request has pushed.
    assert is_another is (where == "app")
    assert len(removed(log)) == (2 if is_another else 1)


def test_teardown_closer_that_raises_does_not_keep_the_others(
    app: Flask, uow: UnitOfWork, log: Log, caplog: pytest.LogCaptureFixture
) -> None:
    """A removal that fails is logged, and the session of the UnitOfWork beside it is closed."""
    from flask_uow import flask_scoped_session

    class Stubborn(flask_scoped_session):
        def remove(self) -> None:
            raise LookupError("stuck")

    Stubborn(Session, app)

    with app.app_context():
        session = use(uow)

    assert removed(log) == [session]
    assert "stuck" in caplog.text
