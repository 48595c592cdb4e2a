"""Ways in which work was lost, or told wrongly, each found by a reader who meant no good."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask, abort, redirect
from sqlalchemy import Engine, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import (
    HookError,
    ManualTransactionControlError,
    NoScopeError,
    Propagation,
    UnexpectedRollbackError,
    UnitOfWork,
    signals,
)
from tests.conftest import Book, Log, titles


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
        pytest.raises(UnexpectedRollbackError, match="rolled back or invalidated past flask_uow"),
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

    assert "failed with LookupError. Let the error" in str(caught.value)
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
