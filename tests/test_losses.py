"""Ways in which work was lost, or told wrongly, each found by a reader who meant no good."""

from __future__ import annotations

import contextvars
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, abort, redirect
from flask import session as session_of_flask
from flask.sessions import SecureCookieSessionInterface
from sqlalchemy import Engine, create_engine, event, insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from flask_uow import (
    ConfigurationError,
    HookError,
    ManualTransactionControlError,
    NoScopeError,
    Propagation,
    TransactionRequiredError,
    UnexpectedRollbackError,
    UnitOfWork,
    current_session,
    flask_scoped_session,
    signals,
    transactional,
)
from tests.conftest import Book, Loan, Log, titles


@pytest.fixture
def strict(engine: Engine) -> UnitOfWork:
    """One whose hooks' errors raise, as in an app that is testing."""
    return UnitOfWork(sessionmaker(engine), hook_errors="raise")


def fail(*_args: object) -> None:
    raise ZeroDivisionError


def test_failing_hook_of_an_unfinished_savepoint(app: Flask, strict: UnitOfWork, engine: Engine) -> None:
    """It does not leave a transaction behind that swallows the next block's work."""
    strict.init_app(app)

    with app.app_context():
        with pytest.raises(UnexpectedRollbackError, match="inside it was never left"), strict.transaction() as session:
            session.add(Book(title="lost"))
            strict.savepoint().__enter__()
            strict.on_rollback(fail)
        assert strict.current_transaction is None
        with strict.transaction() as session:
            session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


def test_error_of_the_block_beats_a_failing_hook_of_an_unfinished_savepoint(strict: UnitOfWork) -> None:
    """What leaves the block goes on unchanged, whatever hooks raise."""
    with pytest.raises(LookupError), strict.transaction():
        strict.savepoint().__enter__()
        strict.on_rollback(fail)
        raise LookupError


def test_failing_hook_of_an_allowed_commit(strict: UnitOfWork, engine: Engine) -> None:
    """After it the block goes on in a transaction, and keeps what comes."""
    with strict.transaction(manual_commit="allow") as session:
        session.add(Book(title="first"))
        strict.on_commit(fail)
        with pytest.raises(HookError):
            session.commit()
        assert strict.current_transaction is not None
        session.add(Book(title="second"))

    assert titles(engine) == ["first", "second"]


@pytest.mark.parametrize("hook", [None, fail])
def test_failed_commit_that_is_rolled_back_by_hand(
    strict: UnitOfWork, engine: Engine, hook: Callable[..., None] | None
) -> None:
    """The legacy pattern of commit, except, rollback makes a new beginning where it is allowed."""
    with strict.transaction(manual_commit="allow") as session:
        session.execute(insert(Book).values(id=1, title="kept"))
        session.commit()
        session.add(Book(id=1, title="same key"))
        with pytest.raises(IntegrityError):
            session.commit()
        if hook is not None:
            session.connection()
            strict.on_rollback(hook)
        with suppress(HookError):
            session.rollback()
        session.add(Book(title="kept too"))

    assert titles(engine) == ["kept", "kept too"]


@pytest.mark.parametrize(
    "end",
    [lambda session: session.invalidate(), lambda session: session.get_transaction().rollback()],
    ids=["invalidate", "get_transaction().rollback"],
)
def test_transaction_that_was_ended_past_us(uow: UnitOfWork, engine: Engine, end: Callable[[Session], None]) -> None:
    """It is never reported as committed, and no on_commit hook runs for it."""
    ran: list[str] = []

    with (
        pytest.raises(UnexpectedRollbackError, match="ended past flask_uow, and what became of its work"),
        uow.transaction() as session,
    ):
        session.add(Book(title="lost"))
        session.flush()
        uow.on_commit(ran.append, "hook")
        end(session)

    assert ran == []
    assert titles(engine) == []


def test_manual_commit_of_a_joined_block(uow: UnitOfWork, engine: Engine) -> None:
    """The option of the innermost block counts, though it has joined."""
    with uow.transaction():
        with uow.transaction(manual_commit="flush") as session:
            session.add(Book(title="Emma"))
            session.commit()
            stored = titles(engine)
        with pytest.raises(ManualTransactionControlError):
            session.commit()

    assert (stored, titles(engine)) == ([], ["Emma"])


@pytest.mark.parametrize("end", ["return", "raise", "rollback"])
def test_session_begin_in_a_legacy_view(app: Flask, uow: UnitOfWork, engine: Engine, log: Log, end: str) -> None:
    """'with session.begin():' under the app-wide policy is a commit by hand: hooks and signals run at its end."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> tuple[str, int]:
        with suppress(LookupError), uow.session.begin() as begun:
            uow.session.add(Book(title="Emma"))
            uow.on_commit(log.append, "hook")
            if end == "raise":
                raise LookupError
            if end == "rollback":
                begun.rollback()
        log.append("end of the block")
        return "", 500

    app.test_client().post("/")

    committed = ["before_commit", "after_commit", "hook", "transaction_completed"]
    undone = ["after_rollback", "transaction_completed"]
    assert titles(engine) == (["Emma"] if end == "return" else [])
    assert log == [
        "transaction_started",
        *(committed if end == "return" else undone),
        "end of the block",
        "session_removed",
    ]


def test_forgiven_exception_goes_on_although_a_hook_fails(strict: UnitOfWork, engine: Engine) -> None:
    """An exception in no_rollback_for commits and goes on; a hook's error is logged, and does not replace it."""
    with pytest.raises(LookupError), strict.transaction(no_rollback_for=LookupError) as session:
        session.add(Book(title="Emma"))
        strict.on_commit(fail)
        raise LookupError

    assert titles(engine) == ["Emma"]


def test_forgiven_exception_that_doomed_the_transaction(uow: UnitOfWork, engine: Engine) -> None:
    """Work that a joined block's rules undo is not resurrected by the outer one's, and the message says no more."""
    with (
        pytest.raises(UnexpectedRollbackError) as caught,
        uow.transaction(no_rollback_for=LookupError),
        uow.transaction(name="payment") as session,
    ):
        session.add(Book(title="lost"))
        raise LookupError

    assert "failed with LookupError. Let errors go on" in str(caught.value)
    assert "was caught" not in str(caught.value)
    assert titles(engine) == []


def test_redirect_for_lost_work_is_no_redirect(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view that swallows a database error and redirects gets a 500: the client is not told of a success."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        uow.session.execute(insert(Book).values(id=1, title="lost"))
        with suppress(IntegrityError):
            uow.session.execute(insert(Book).values(id=1, title="same key"))
        abort(redirect("/done"))

    assert app.test_client().post("/").status_code == 500
    assert titles(engine) == []


def test_signals_come_in_pairs(app: Flask, uow: UnitOfWork, log: Log) -> None:
    """A held session that begins again by itself is told from beginning to end."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> tuple[str, int]:
        session = uow.session
        session.add(Book(title="kept"))
        session.commit()
        session.add(Book(title="lost"))
        return "", 500

    app.test_client().post("/")

    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "transaction_completed",
        "transaction_started",
        "after_rollback",
        "transaction_completed",
        "session_removed",
    ]


def test_copied_context_outlives_its_block(uow: UnitOfWork, engine: Engine) -> None:
    """A context that was copied inside a block does not bring the block's scope back to life."""
    with uow.transaction():
        copied = contextvars.copy_context()

    with pytest.raises(NoScopeError):
        copied.run(lambda: uow.session)
    copied.run(lambda: uow.on_commit(str, if_inactive="run"))

    def work() -> None:
        with uow.transaction() as session:
            session.add(Book(title="own"))

    copied.run(work)

    assert titles(engine) == ["own"]


def test_receiver_of_before_commit_that_commits(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A receiver that calls commit() is refused, in a block and where the commit is one by hand."""
    uow.init_app(app)

    def commit(_sender: object, session: Session, **_extra: object) -> None:
        session.commit()

    with signals.before_commit.connected_to(commit), app.app_context():
        with pytest.raises(ManualTransactionControlError), uow.transaction() as session:
            session.add(Book(title="in a block"))
        uow.session.add(Book(title="by hand"))
        with pytest.raises(ManualTransactionControlError):
            uow.session.commit()

    assert titles(engine) == []


def test_hooks_registered_while_a_savepoint_is_rolled_back(uow: UnitOfWork) -> None:
    """One for the rollback runs in the same drain; one for the commit belongs to the transaction outside."""
    ran: list[Any] = []

    with uow.transaction():
        with pytest.raises(LookupError), uow.savepoint():

            @uow.on_rollback
            def undone(_error: BaseException | None) -> None:
                uow.on_rollback(lambda _error: ran.append("rollback"))
                uow.on_commit(ran.append, "commit")

            raise LookupError
        assert ran == ["rollback"]

    assert ran == ["rollback", "commit"]


def test_hook_for_the_commit_registered_after_a_rollback(uow: UnitOfWork) -> None:
    """With if_inactive="run" it runs, for there is nothing to wait for."""
    ran: list[str] = []

    with pytest.raises(LookupError), uow.transaction():
        uow.on_rollback(lambda _error: uow.on_commit(ran.append, "at once", if_inactive="run"))
        raise LookupError

    assert ran == ["at once"]


def test_hook_that_commits_by_hand(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A hook is outside the view's transaction, and may settle what it does by hand."""
    uow.init_app(app)

    @app.post("/")
    @uow.transactional
    def view() -> str:
        uow.session.add(Book(title="view"))

        @uow.on_commit
        def note() -> None:
            uow.session.add(Book(title="hook"))
            uow.session.commit()

        return ""

    app.test_client().post("/")

    assert titles(engine) == ["hook", "view"]


def test_joined_block_that_is_never_left(uow: UnitOfWork, engine: Engine) -> None:
    """A block that a suspended generator holds open keeps the transaction from committing half of its work."""

    def rows() -> Any:
        with uow.transaction(name="export") as session:
            session.add(Book(title="half"))
            yield

    generator = rows()
    with (
        pytest.raises(UnexpectedRollbackError, match="the block 'export', which had joined it, was never left"),
        uow.transaction(),
    ):
        next(generator)
    generator.close()

    assert titles(engine) == []


def test_transaction_keeps_no_session(uow: UnitOfWork) -> None:
    """A transaction that somebody keeps after its end holds nothing of the database."""
    with uow.transaction() as session:
        session.connection()
        outer = uow.current_transaction
        with uow.transaction(propagation=Propagation.NESTED):
            inner = uow.current_transaction

    for transaction in (outer, inner):
        assert transaction is not None
        assert (transaction._root, transaction._savepoint) == (None, None)


# Work that others do beside us


@pytest.fixture
def books(app: Flask, engine: Engine) -> flask_scoped_session:
    """A registry under the app-wide policy."""
    app.config["UOW_AUTO_COMMIT"] = True
    registry = flask_scoped_session(sessionmaker(engine), app)
    UnitOfWork(registry, app)
    return registry


def test_work_through_the_registry_alone(app: Flask, books: flask_scoped_session, engine: Engine) -> None:
    """A view that knows current_session alone is under the policy all the same, also after a remove()."""

    @app.post("/<title>/<int:status>")
    def view(title: str, status: int) -> tuple[str, int]:
        if title == "again":
            current_session.add(Book(title="removed"))
            current_session.remove()
        current_session.add(Book(title=title))
        return "", status

    client = app.test_client()
    for path in ("/kept/200", "/lost/400", "/again/201"):
        client.post(path)

    assert titles(engine) == ["again", "kept"]


def test_registry_alone_dooms_and_is_guarded(app: Flask, books: flask_scoped_session, engine: Engine) -> None:
    """Its errors count, and in a decorated view its commit() is refused."""
    uow: UnitOfWork = app.extensions["uow"]["default"]

    @app.post("/swallow")
    def swallow() -> str:
        current_session.execute(insert(Book).values(id=1, title="half"))
        with suppress(IntegrityError):
            current_session.execute(insert(Book).values(id=1, title="same key"))
        return "stored"

    @app.post("/commit")
    @uow.transactional
    def commit() -> str:
        current_session.add(Book(title="kept"))
        with pytest.raises(ManualTransactionControlError):
            current_session.commit()
        return ""

    client = app.test_client()

    assert client.post("/swallow").status_code == 500
    assert client.post("/commit").status_code == 200
    assert titles(engine) == ["kept"]


def test_scoped_session_in_a_script(engine: Engine) -> None:
    """A plain registry is a part of the block around it, and its own outside any."""
    registry = scoped_session(sessionmaker(engine))
    uow = UnitOfWork(registry)

    with pytest.raises(LookupError), uow.transaction():
        registry.add(Book(title="lost"))
        raise LookupError
    with uow.transaction():
        registry.add(Book(title="kept"))
    registry.add(Book(title="by hand"))
    registry.commit()
    registry.remove()

    assert titles(engine) == ["by hand", "kept"]


def test_session_that_has_begun_before_we_got_it(engine: Engine) -> None:
    """A factory that uses its session first is watched as from the beginning: savepoints and errors count."""

    def factory() -> Session:
        session = Session(engine)
        session.execute(text("SELECT 1"))
        return session

    uow = UnitOfWork(factory)
    with pytest.raises(LookupError), uow.transaction():
        with uow.savepoint() as session:
            session.add(Book(title="lost with the block"))
        raise LookupError
    with pytest.raises(UnexpectedRollbackError), uow.transaction() as session:
        session.execute(insert(Book).values(id=1, title="half"))
        with suppress(IntegrityError):
            session.execute(insert(Book).values(id=1, title="same key"))

    assert titles(engine) == []


@pytest.mark.parametrize("fault", ["connect", "pool"])
def test_swallowed_connection_error(app: Flask, engine: Engine, tmp_path: Path, fault: str) -> None:
    """A statement that found no connection was not sent: swallowed, it is no success, and no hook runs for it."""
    ran: list[str] = []
    if fault == "connect":
        broken = create_engine(f"sqlite:///{tmp_path / 'missing' / 'books.db'}")
    else:
        broken = create_engine(engine.url, pool_size=1, max_overflow=0, pool_timeout=0, poolclass=QueuePool)
    uow = UnitOfWork(sessionmaker(broken), app, auto_commit=True)

    @app.post("/")
    def view() -> str:
        uow.on_commit(ran.append, "hook")
        with suppress(OperationalError, PoolTimeoutError):
            uow.session.execute(insert(Book).values(title="never sent"))
        return "stored"

    with broken.connect() if fault == "pool" else nullcontext():
        response = app.test_client().post("/")

    assert (response.status_code, ran) == (500, [])
    broken.dispose()


@pytest.mark.parametrize("end", ["released", "left open"])
def test_swallowed_error_in_a_savepoint_of_the_users_own(any_engine: Engine, end: str) -> None:
    """It raises where the savepoint is released, on every database, and the block around can go on or fail."""
    uow = UnitOfWork(sessionmaker(any_engine))

    def work() -> None:
        with uow.transaction() as session:
            session.execute(insert(Book).values(id=11, title="outer"))
            savepoint = session.begin_nested()
            with suppress(IntegrityError):
                session.execute(insert(Book).values(id=11, title="same key"))
            if end == "released":
                with pytest.raises(UnexpectedRollbackError, match="The work of a savepoint was rolled back"):
                    savepoint.commit()

    if end == "released":
        work()
    else:
        with pytest.raises(UnexpectedRollbackError):
            work()

    assert titles(any_engine) == (["outer"] if end == "released" else [])


def test_deadlock_in_a_savepoint_of_the_users_own(mariadb: Engine) -> None:
    """MariaDB undoes the whole transaction at a deadlock: the second half alone is never committed."""
    uow = UnitOfWork(sessionmaker(mariadb))
    with uow.transaction() as session:
        session.add_all([Book(id=1, title="one"), Book(id=2, title="two")])
    locked, release = threading.Event(), threading.Event()

    def rival() -> None:
        with mariadb.connect() as connection, connection.begin():
            # More rows, so that the other one is the victim.
            connection.execute(insert(Book), [{"id": n, "title": "ballast"} for n in range(100, 150)])
            connection.execute(update(Book).where(Book.id == 2).values(title="rival"))
            locked.set()
            release.wait(timeout=20)
            connection.execute(update(Book).where(Book.id == 1).values(title="rival"))

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(rival)
        locked.wait(timeout=20)
        with pytest.raises(UnexpectedRollbackError, match="has rolled it back"), uow.transaction() as s:
            s.execute(update(Book).where(Book.id == 1).values(title="mine"))
            release.set()
            with suppress(OperationalError), s.begin_nested():
                s.execute(update(Book).where(Book.id == 2).values(title="mine"))
            s.add(Book(id=50, title="second half"))
        done.result(timeout=20)

    assert "second half" not in titles(mariadb)


# Work that is stored, and told otherwise


def test_raising_listener_of_sqlalchemys_after_commit(app: Flask, engine: Engine, log: Log) -> None:
    """The work is stored when such a listener raises: its hooks run, and no rollback is told."""
    factory = sessionmaker(engine)
    uow = UnitOfWork(factory, app, auto_commit=True)

    @event.listens_for(factory, "after_commit")
    def _fail(_session: Session) -> None:
        raise ZeroDivisionError

    @app.post("/")
    def view() -> str:
        uow.session.add(Book(title="Emma"))
        uow.on_commit(log.append, "hook")
        uow.on_rollback(lambda _error: log.append("rollback hook"))
        return ""

    @app.errorhandler(ZeroDivisionError)
    def handle(_error: Exception) -> tuple[str, int]:
        return str(titles(engine)), 500

    response = app.test_client().post("/")

    assert response.text == "['Emma']"
    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "hook",
        "transaction_completed",
        "session_removed",
    ]


def test_block_in_a_listener_of_sqlalchemys_after_commit(engine: Engine) -> None:
    """Between COMMIT and the end of commit() there is nothing to join, and it is said."""
    factory = sessionmaker(engine)
    uow = UnitOfWork(factory)
    refused: list[Exception] = []

    @event.listens_for(factory, "after_commit")
    def _audit(_session: Session) -> None:
        try:
            with uow.transaction() as session:
                session.add(Book(title="audit"))
        except TransactionRequiredError as error:
            refused.append(error)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]
    assert len(refused) == 1


def test_session_class_that_settles_in_its_own_methods(app: Flask, engine: Engine) -> None:
    """A session whose commit() calls its own rollback() and close() does so, and its errors are its own."""

    class Careful(Session):
        def commit(self) -> None:
            try:
                super().commit()
            except Exception:
                self.rollback()
                raise
            self.close()

    uow = UnitOfWork(sessionmaker(engine, class_=Careful), app, auto_commit=True)

    @app.post("/<int:number>")
    def view(number: int) -> str:
        uow.session.add(Book(id=number, title="Emma"))
        return ""

    @app.errorhandler(IntegrityError)
    def handle(_error: Exception) -> tuple[str, int]:
        return "", 409

    client = app.test_client()

    assert [client.post("/1").status_code, client.post("/1").status_code] == [200, 409]
    assert titles(engine) == ["Emma"]


def test_view_that_is_tried_again(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A decorator above @transactional that calls the view again gets the same policy for the second attempt."""
    uow.init_app(app)

    def twice(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def wrapper(**kwargs: Any) -> Any:
            with suppress(LookupError):
                return function(attempt=1, **kwargs)
            return function(attempt=2, **kwargs)

        return wrapper

    @app.post("/<int:status>")
    @twice
    @uow.transactional
    def view(status: int, attempt: int) -> tuple[str, int]:
        uow.session.add(Book(title=f"{status}, attempt {attempt}"))
        if attempt == 1:
            raise LookupError
        return "", status

    client = app.test_client()
    client.post("/400")
    client.post("/201")

    assert titles(engine) == ["201, attempt 2"]


def test_held_session_after_its_close(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A legacy view that closes its session and goes on with it is still under the policy."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        session = uow.session
        session.add(Book(title="first"))
        session.commit()
        session.close()
        assert uow.session.scalar(text("SELECT 1")) == 1
        session.add(Book(title="second"))
        return ""

    app.test_client().post("/")

    assert titles(engine) == ["first", "second"]


def test_swallowed_error_after_a_commit_by_hand(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What a held session does after a commit by hand is a transaction of the request, and doomed like any."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        session = uow.session
        session.execute(insert(Book).values(id=1, title="committed"))
        session.commit()
        session.execute(insert(Book).values(id=2, title="half"))
        with suppress(IntegrityError):
            session.execute(insert(Book).values(id=1, title="same key"))
        return "stored"

    assert app.test_client().post("/").status_code == 500
    assert titles(engine) == ["committed"]


@pytest.mark.parametrize("name", ["after_rollback", "transaction_completed"])
def test_receiver_that_opens_a_transaction_of_its_own(app: Flask, uow: UnitOfWork, engine: Engine, name: str) -> None:
    """Its work is its own, also when the request is undone."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    told: list[object] = []

    def audit(_sender: object, **_extra: object) -> None:
        if not told:
            told.append(uow.current_transaction)
            with uow.transaction() as session:
                session.add(Book(title="audit"))

    @app.post("/")
    def view() -> tuple[str, int]:
        uow.session.add(Book(title="lost"))
        uow.session.flush()
        return "", 400

    with getattr(signals, name).connected_to(audit):
        app.test_client().post("/")

    assert told == [None]
    assert titles(engine) == ["audit"]


def test_partial_commit_is_about_stored_work(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An object that only ran hooks, or rolled back on purpose, has not committed anything."""
    app.config.update(UOW_AUTO_COMMIT=True, UOW_OTHER_AUTO_COMMIT=True)
    uow.init_app(app)
    other = UnitOfWork(sessionmaker(engine), app, name="other")

    @app.post("/<way>")
    def view(way: str) -> str:
        if way == "hooks":
            uow.on_commit(str)
        else:
            uow.session.scalar(text("SELECT 1"))
            uow.set_rollback_only()
        other.session.add(Loan(book_id=404))
        return ""

    @app.errorhandler(IntegrityError)
    def handle(_error: Exception) -> tuple[str, int]:
        return "", 409

    client = app.test_client()

    assert [client.post("/hooks").status_code, client.post("/rollback").status_code] == [409, 409]


def test_interrupted_receivers_and_hooks(uow: UnitOfWork, log: Log) -> None:
    """A KeyboardInterrupt after the COMMIT goes on when every hook has run and the end has been told."""
    ran: list[str] = []

    def interrupt(*_args: object, **_extra: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), uow.transaction() as session:
        session.add(Book(title="Emma"))
        uow.on_commit(interrupt)
        uow.on_commit(ran.append, "later")
    with (
        signals.after_commit.connected_to(interrupt),
        pytest.raises(KeyboardInterrupt),
        uow.transaction() as session,
    ):
        session.add(Book(title="Persuasion"))
        uow.on_commit(ran.append, "hook")

    assert ran == ["later", "hook"]
    assert log.count("transaction_completed") == 2


def test_receiver_of_session_removed_cannot_open_another(app: Flask, uow: UnitOfWork) -> None:
    """A session that nobody would close is not opened."""
    uow.init_app(app)
    errors: list[Exception] = []

    def again(_sender: object, **_extra: object) -> None:
        try:
            _ = uow.session
        except NoScopeError as error:
            errors.append(error)

    with signals.session_removed.connected_to(again), app.app_context():
        uow.session.connection()

    assert "its context has come to its end" in str(errors[0])


def test_extension_that_handles_errors_after_us(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """One that assigns handle_user_exception after init_app(), as some do, does not bring undone work back."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    theirs = app.handle_user_exception

    def handle(*args: Any) -> Any:
        with suppress(LookupError):
            return theirs(*args)
        return "handled"

    app.handle_user_exception = handle  # type: ignore[method-assign,assignment]

    @app.before_request
    def prepare() -> None:
        uow.session.add(Book(title="lost"))
        uow.session.flush()
        raise LookupError

    response = app.test_client().post("/")

    assert response.text == "handled"
    assert titles(engine) == []


def test_commit_if_sees_the_apps_own_response(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """The rule gets the app's response class, by return and by abort()."""

    class Marked(Response):
        mark = "ours"

    app.response_class = Marked
    app.config.update(UOW_AUTO_COMMIT=True, UOW_COMMIT_IF=lambda response: response.mark == "ours")
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        uow.session.add(Book(title="Emma"))
        abort(404)

    assert app.test_client().post("/").status_code == 404
    assert titles(engine) == ["Emma"]


def test_joined_block_that_ends_too_late(uow: UnitOfWork) -> None:
    """A block whose transaction was rolled back meanwhile does not end as if nothing had happened."""

    def rows() -> Any:
        with uow.transaction() as session:
            yield
            session.add(Book(title="late"))

    generator = rows()
    with pytest.raises(LookupError), uow.transaction():
        next(generator)
        raise LookupError

    with pytest.raises(UnexpectedRollbackError, match="the transaction that it had joined is over"):
        next(generator)


# What is refused, before it can do harm


async def coroutine(_response: object = None) -> bool:
    return False


class AsyncCall:
    async def __call__(self) -> None: ...


class GeneratorCall:
    def __call__(self) -> Any:
        yield


def test_coroutine_as_a_rule(engine: Engine) -> None:
    """A commit_if that is a coroutine function would always be true."""
    rule: Any = coroutine

    for give in (lambda: transactional(commit_if=rule), lambda: UnitOfWork(engine, commit_if=rule)):
        with pytest.raises(ConfigurationError, match="it must be a plain function"):
            give()


def test_objects_whose_call_runs_later() -> None:
    """An object with an asynchronous or generating __call__ is refused like such a function."""
    with pytest.raises(ConfigurationError, match="whose __call__ is a coroutine function"):
        transactional(AsyncCall())
    with pytest.raises(ConfigurationError, match="cannot decorate the generator function"):
        transactional(GeneratorCall())


def test_plain_function_that_returns_a_coroutine(uow: UnitOfWork, engine: Engine) -> None:
    """Its body would run after the transaction has ended, so nothing is kept, and it is said."""

    @uow.transactional
    def view() -> Any:
        uow.session.add(Book(title="lost"))
        return coroutine()

    with pytest.raises(ConfigurationError, match="a plain function that returned a coroutine"):
        view()

    assert titles(engine) == []


def test_sessions_without_autobegin(engine: Engine) -> None:
    """A session that does not begin by itself cannot follow a policy."""
    uow = UnitOfWork(sessionmaker(engine, autobegin=False))

    with pytest.raises(ConfigurationError, match="leave autobegin out"), uow.transaction():
        pass


def test_misused_blocks(uow: UnitOfWork) -> None:
    """A block that was not entered cannot be left, nor left twice."""
    block = uow.transaction()

    with pytest.raises(ConfigurationError, match="was left without being entered"):
        block.__exit__(None, None, None)
    with block:
        pass
    with pytest.raises(ConfigurationError, match="was left without being entered"):
        block.__exit__(None, None, None)


@pytest.mark.parametrize("target", [Flask("bookshop").test_client, len])
def test_what_cannot_be_exempt(uow: UnitOfWork, target: Any) -> None:
    """What cannot carry the mark is refused, with what can."""
    with pytest.raises(ConfigurationError, match=r"exempt\(\) was given"):
        uow.exempt(target)


def test_arguments_without_a_hook(uow: UnitOfWork) -> None:
    """on_commit(None, 1) is no decorator."""
    with uow.transaction(), pytest.raises(ConfigurationError, match=r"on_commit\(\) was given None"):
        uow.on_commit(None, 1)  # type: ignore[call-overload]


def test_commit_past_us_outside_any_policy(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """Where nobody asked for a policy, the session's own transaction can be ended directly; it is just not told."""
    uow.init_app(app)

    with app.app_context():
        uow.session.add(Book(title="Emma"))
        root = uow.session.get_transaction()
        assert root is not None
        root.commit()

    assert titles(engine) == ["Emma"]
    assert log == ["session_removed"]


# What a maintainer found


def test_registry_that_had_a_session_open(app: Flask, engine: Engine) -> None:
    """Work in a session that the thread's registry had open before the request is settled like any other."""
    registry = scoped_session(sessionmaker(engine))
    registry.execute(text("SELECT 1"))
    UnitOfWork(registry, app, auto_commit=True)

    @app.post("/<int:status>")
    def view(status: int) -> tuple[str, int]:
        registry.add(Book(title=str(status)))
        return "", status

    client = app.test_client()
    client.post("/200")
    registry.execute(text("SELECT 1"))
    client.post("/400")

    assert titles(engine) == ["200"]


def test_registry_that_is_given_options(app: Flask, books: flask_scoped_session, engine: Engine) -> None:
    """A session made with options of its own, and one made after configure(), are under the policy too."""
    with app.app_context():
        books.configure(expire_on_commit=False)

    @app.post("/")
    def view() -> str:
        session = books(autoflush=False)
        assert (session.autoflush, session.expire_on_commit) == (False, False)
        session.add(Book(title="Emma"))
        return ""

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_second_session_of_a_registry(app: Flask, books: flask_scoped_session, engine: Engine) -> None:
    """One that is opened while the first has work to settle cannot be kept with it, and nothing is."""

    @app.post("/")
    def view() -> str:
        held = current_session()
        books.remove()
        held.add(Book(title="held"))
        current_session.add(Book(title="second"))
        return "stored"

    assert app.test_client().post("/").status_code == 500
    assert titles(engine) == []


@pytest.mark.parametrize("target", ["class", "subclass", "factory"])
def test_raising_listener_wherever_it_listens(engine: Engine, target: str) -> None:
    """Stored work is told as stored, whatever the user's listener is on and however sessions are made."""

    class Mine(Session):
        pass

    factory = sessionmaker(engine, class_=Mine)
    heard: Any = {"class": Session, "subclass": Mine, "factory": factory}[target]
    uow = UnitOfWork(factory.__call__)
    ran: list[str] = []

    def broken(_session: Session) -> None:
        raise ZeroDivisionError

    event.listen(heard, "after_commit", broken)
    try:
        with pytest.raises(ZeroDivisionError), uow.transaction() as session:
            session.add(Book(title="Emma"))
            uow.on_commit(ran.append, "hook")
    finally:
        event.remove(heard, "after_commit", broken)

    assert (titles(engine), ran) == (["Emma"], ["hook"])


def test_session_begin_after_a_failed_flush(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A 'with session.begin():' that a failed flush has ended is over, and the next one is kept."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/")
    def view() -> str:
        session = uow.session
        with session.begin():
            session.add(Book(id=1, title="first"))
        session.expunge_all()
        with suppress(IntegrityError), session.begin():
            session.add(Book(id=1, title="same key"))
            session.flush()
        with session.begin():
            session.add(Book(title="second"))
        session.begin().close()
        return ""

    assert app.test_client().post("/").status_code == 200
    assert titles(engine) == ["first", "second"]


def test_hook_at_the_end_of_session_begin(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A hook that runs at the end of 'with session.begin():' can use the session."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    seen: list[Any] = []

    @app.post("/")
    def view() -> str:
        with uow.session.begin():
            uow.session.add(Book(title="Emma"))

            @uow.on_commit
            def look() -> None:
                with uow.transaction() as session:
                    seen.append(list(session.scalars(select(Book.title))))

        return ""

    app.test_client().post("/")

    assert seen == [["Emma"]]


def test_savepoint_that_failed_is_let_go(uow: UnitOfWork) -> None:
    """The mark on a savepoint of the user's own keeps nothing alive."""
    with uow.transaction() as session:
        session.execute(insert(Book).values(id=1, title="outer"))
        savepoint = session.begin_nested()
        with suppress(IntegrityError):
            session.execute(insert(Book).values(id=1, title="same key"))
        savepoint.rollback()
        gone = weakref.ref(savepoint)
        gc.disable()
        try:
            del savepoint
            assert gone() is None
        finally:
            gc.enable()


def test_work_of_the_500_handler_when_the_context_failed(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """When the cookie session cannot be opened, the 500 handler's work is still settled by its response."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    class Broken(SecureCookieSessionInterface):
        def open_session(self, *_args: Any) -> Any:
            raise LookupError

    app.session_interface = Broken()
    app.add_url_rule("/", "index", lambda: str(session_of_flask.get("user")))

    @app.errorhandler(500)
    def handle(_error: Exception) -> str:
        uow.session.add(Book(title="noted"))
        return "noted"

    with suppress(LookupError):
        assert app.test_client().get("/").text == "noted"
        assert titles(engine) == ["noted"]
        return
    pytest.fail("the error was not handled")


def test_second_session_without_a_policy(app: Flask, engine: Engine) -> None:
    """Where nobody asked for a policy, both sessions are the user's own to settle."""
    registry = flask_scoped_session(sessionmaker(engine), app)
    UnitOfWork(registry, app)

    with app.app_context():
        held = registry()
        registry.remove()
        held.add(Book(title="held"))
        registry.add(Book(title="second"))
        held.commit()
        registry.commit()

    assert titles(engine) == ["held", "second"]
