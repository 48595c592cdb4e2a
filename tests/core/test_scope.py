from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError, StatementError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow._core.events import Removed
from flask_uow._core.options import ManualCommit, Options
from flask_uow._core.propagation import Propagation
from flask_uow._core.runtime import Plan
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource
from flask_uow._core.transaction import Outcome
from flask_uow.errors import (
    HookError,
    ManualTransactionControlError,
    NoScopeError,
    UnexpectedRollbackError,
)
from tests.core.conftest import (
    COMMIT,
    NESTED,
    REQUEST,
    ROLLBACK,
    VIEW,
    Book,
    Events,
    block,
    fail,
    give_back,
    make_runtime,
    on_commit,
    on_rollback,
    titles,
)

Settle = Callable[[Session], object]


# The session


def test_session_on_first_use(engine: Engine) -> None:
    """The session is opened when it is asked for, and stays the same."""
    opened: list[Session] = []

    def open_session() -> Session:
        opened.append(Session(engine))
        return opened[-1]

    scope = Scope(make_runtime(SessionSource(open_session, give_back)), REQUEST)
    transaction = scope.current()
    before = list(opened)

    session = scope.session

    assert transaction is not None
    assert before == []
    assert opened == [session]
    assert scope.session is session
    scope.close()


def test_runtime(scope: Scope) -> None:
    """A scope says what it was made with, for the blocks in it."""
    assert block(scope)._home() == (scope.runtime, scope)


def test_close(scope: Scope, events: Events) -> None:
    """Closing gives the session back, and nobody can open another there."""
    session = scope.session
    session.add(Book(title="Emma"))

    scope.close()

    assert not session.in_transaction()
    assert events == [Removed(session)]
    with pytest.raises(NoScopeError, match="its context has come to its end"):
        _ = scope.session


def test_close_twice(scope: Scope, events: Events) -> None:
    """Closing what is closed does nothing."""
    scope.session.connection()
    scope.close()

    scope.close()

    assert events.names == ["Removed"]


def test_close_without_listeners(engine: Engine) -> None:
    """Nothing is told to somebody who does not want it."""
    scope = Scope(make_runtime(engine))
    with block(scope) as session:
        session.add(Book(title="Emma"))
    with suppress(ValueError), block(scope):
        session.add(Book(title="Persuasion"))
        raise ValueError

    scope.close()

    assert titles(engine) == ["Emma"]


def test_close_with_open_transactions(scope: Scope, engine: Engine, events: Events) -> None:
    """What nobody settled is rolled back when the scope is closed, the innermost first."""
    error = ValueError()
    undone: list[object] = []
    block(scope).enter()
    on_rollback(scope, lambda error: undone.append(("outer", error)))
    block(scope, propagation=NESTED).enter()
    on_rollback(scope, lambda error: undone.append(("inner", error)))
    scope.session.add(Book(title="Emma"))

    scope.close(error)

    assert undone == [("inner", None), ("outer", error)]
    assert events.names == ["Started", "AfterRollback", "Completed", "Removed"]
    assert titles(engine) == []


def test_close_when_a_hook_fails(scope: Scope) -> None:
    """The session is given back even if a hook raises meanwhile."""
    block(scope).enter()
    session = scope.session
    session.connection()
    on_rollback(scope, lambda _: fail())

    with pytest.raises(HookError):
        scope.close()

    assert not session.in_transaction()


# By hand, inside a block

Mode = Literal["error", "flush", "allow"]


@pytest.mark.parametrize(
    ("mode", "method"),
    [
        *(("error", method) for method in ("commit", "rollback", "close", "reset", "begin")),
        *(("flush", method) for method in ("rollback", "close", "reset", "begin")),
        *(("allow", method) for method in ("close", "reset", "begin")),
    ],
)
@pytest.mark.parametrize("by_option", [True, False], ids=["option", "setting"])
def test_refused_by_hand(engine: Engine, mode: Mode, method: str, by_option: bool) -> None:
    """What would break a block in two is refused, and the transaction goes on as it was."""
    scope = Scope(make_runtime(engine, manual_commit="error" if by_option else mode))
    chosen: ManualCommit | None = mode if by_option else None

    with block(scope, "transfer()", manual_commit=chosen) as session:
        session.add(Book(title="Emma"))
        with pytest.raises(
            ManualTransactionControlError,
            match=rf"^session\.{method}\(\) was called inside transfer\(\), and would break its transaction in two",
        ) as caught:
            getattr(session, method)()
        session.add(Book(title="Persuasion"))

    assert (caught.value.method, caught.value.block) == (method, "transfer()")
    assert titles(engine) == ["Emma", "Persuasion"]
    scope.close()


def test_refused_in_a_joined_block(scope: Scope) -> None:
    """The innermost block is the one that is named."""
    with (
        block(scope, "transfer()"),
        block(scope, "audit()") as session,
        pytest.raises(ManualTransactionControlError, match=r"inside audit\(\)"),
    ):
        session.commit()


def test_refused_in_a_view(scope: Scope) -> None:
    """A decorated view owns its transaction like a block, before its first statement too."""
    session = scope.session
    scope.replan(VIEW)

    with pytest.raises(ManualTransactionControlError, match=r"inside index\(\)"):
        session.commit()

    scope.settle(ROLLBACK, None, None)


def test_refused_in_a_block_under_a_policy(scope: Scope, engine: Engine) -> None:
    """A block in a request that only the policy of the app covers is a block."""
    scope.replan(REQUEST)

    with block(scope, "transfer()") as session:
        session.add(Book(title="Emma"))
        with pytest.raises(ManualTransactionControlError, match=r"inside transfer\(\)"):
            session.commit()

    scope.settle(COMMIT, None, None)
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("propagation", list(Propagation)[:2])
def test_setting_is_overridden_by_the_option(engine: Engine, propagation: Propagation) -> None:
    """The option of the block that began counts before the setting."""
    scope = Scope(make_runtime(engine, manual_commit="allow"))

    with (
        block(scope, propagation=propagation, manual_commit="error") as session,
        pytest.raises(ManualTransactionControlError),
    ):
        session.commit()

    scope.close()


def test_flush(scope: Scope, engine: Engine) -> None:
    """Under "flush" a commit by hand sends the work, and the block stores it, or not, at its end."""
    with suppress(ValueError), block(scope, manual_commit="flush") as session:
        book = Book(title="Emma")
        session.add(book)
        session.commit()
        during = (book.id, titles(engine))
        raise ValueError

    assert during == (1, [])
    assert titles(engine) == []


def test_flush_in_a_savepoint(scope: Scope, engine: Engine) -> None:
    """Under "flush" a commit by hand in a savepoint does not end it."""
    with block(scope):
        with suppress(ValueError), block(scope, propagation=NESTED, manual_commit="flush") as session:
            session.add(Book(title="Emma"))
            session.commit()
            raise ValueError
        session.add(Book(title="Persuasion"))

    assert titles(engine) == ["Persuasion"]


def test_allowed_commit(scope: Scope, engine: Engine, events: Events) -> None:
    """Under "allow" a commit by hand stores the work, runs its hooks, and the block goes on in a new transaction."""
    calls: list[str] = []

    with suppress(ValueError), block(scope, "transfer()", manual_commit="allow") as session:
        session.add(Book(title="Emma"))
        first = scope.active("the test")
        on_commit(scope, calls.append, "first")
        session.commit()
        during = (list(calls), titles(engine))
        second = scope.active("the test")
        session.add(Book(title="Persuasion"))
        on_commit(scope, calls.append, "second")
        raise ValueError

    assert during == (["first"], ["Emma"])
    assert titles(engine) == ["Emma"]
    assert calls == ["first"]
    assert (first.outcome, second.outcome) == (Outcome.COMMITTED, Outcome.ROLLED_BACK)
    assert (second.name, second.id == first.id) == ("transfer()", False)
    assert events.names[:4] == ["Started", "BeforeCommit", "AfterCommit", "Completed"]


def test_allowed_commits_and_the_end(scope: Scope, engine: Engine) -> None:
    """After any number of commits by hand the block stores the rest."""
    with block(scope, manual_commit="allow") as session:
        for title in ("Emma", "Persuasion"):
            session.add(Book(title=title))
            session.commit()
        session.add(Book(title="Sanditon"))
        before = titles(engine)

    assert before == ["Emma", "Persuasion"]
    assert titles(engine) == ["Emma", "Persuasion", "Sanditon"]


def test_allowed_rollback(scope: Scope, engine: Engine) -> None:
    """Under "allow" a rollback by hand undoes the work so far, and the block goes on in a new transaction."""
    undone: list[object] = []

    with block(scope, manual_commit="allow") as session:
        session.add(Book(title="Emma"))
        on_rollback(scope, undone.append)
        session.rollback()
        session.add(Book(title="Persuasion"))

    assert undone == [None]
    assert titles(engine) == ["Persuasion"]


def test_allowed_rollback_ends_the_doom(scope: Scope, engine: Engine) -> None:
    """A rollback by hand after a swallowed error makes a new beginning."""
    with block(scope, manual_commit="allow") as session:
        session.add(Book(title="Emma"))
        with suppress(IntegrityError):
            session.execute(text("INSERT INTO book (id) VALUES (7)"))
        session.rollback()
        session.add(Book(title="Persuasion"))

    assert titles(engine) == ["Persuasion"]


def test_allowed_in_a_joined_block(scope: Scope, engine: Engine) -> None:
    """A commit by hand in a block that joined is one of the whole, and both blocks go on."""
    with block(scope, manual_commit="allow") as session:
        session.add(Book(title="Emma"))
        with block(scope):
            session.commit()
            session.add(Book(title="Persuasion"))
        session.add(Book(title="Sanditon"))

    assert titles(engine) == ["Emma", "Persuasion", "Sanditon"]


def test_failure_after_an_allowed_commit_in_a_joined_block(scope: Scope, engine: Engine) -> None:
    """A joined block that fails after a commit by hand dooms what has come since."""

    def work() -> None:
        with block(scope, manual_commit="allow") as session, suppress(ValueError), block(scope, "audit()"):
            session.add(Book(title="Emma"))
            session.commit()
            session.add(Book(title="Persuasion"))
            raise ValueError

    with pytest.raises(UnexpectedRollbackError, match=r"because audit\(\)"):
        work()

    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("method", ["commit", "rollback"])
def test_not_allowed_in_a_savepoint(scope: Scope, engine: Engine, method: str) -> None:
    """A savepoint cannot be settled by hand, for it would go with what is around it."""
    with (
        block(scope, "transfer()", manual_commit="allow"),
        block(scope, "reserve()", propagation=NESTED, manual_commit="allow") as session,
    ):
        session.add(Book(title="Emma"))
        with pytest.raises(ManualTransactionControlError, match=r"inside reserve\(\)"):
            getattr(session, method)()

    assert titles(engine) == ["Emma"]


def test_allowed_in_a_view(scope: Scope, engine: Engine) -> None:
    """A view that may commit by hand is settled by its response afterwards."""
    scope.replan(Plan(Options(manual_commit="allow"), "index()", by_block=True))
    session = scope.session
    session.add(Book(title="Emma"))
    session.commit()
    session.add(Book(title="Persuasion"))

    scope.settle(ROLLBACK, None, None)

    assert titles(engine) == ["Emma"]


def test_a_transaction_of_ones_own_inside(scope: Scope, engine: Engine) -> None:
    """begin_nested() is nobody's business but the user's."""
    with block(scope) as session:
        with suppress(ValueError), session.begin_nested():
            session.add(Book(title="Emma"))
            raise ValueError
        with session.begin_nested():
            session.add(Book(title="Persuasion"))

    assert titles(engine) == ["Persuasion"]


# By hand, outside any block


def test_commit_by_hand(scope: Scope, engine: Engine, events: Events) -> None:
    """Outside any block a commit by hand is a transaction that is told like others."""
    scope.session.add(Book(title="Emma"))

    scope.session.commit()

    assert titles(engine) == ["Emma"]
    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed"]
    assert scope.current() is None


@pytest.mark.parametrize(
    ("settle", "kept"),
    [
        (lambda session: session.commit(), ["Emma"]),
        (lambda session: session.rollback(), []),
        (lambda session: session.close(), []),
        (lambda session: session.reset(), []),
    ],
    ids=["commit", "rollback", "close", "reset"],
)
@pytest.mark.parametrize("plan", [None, REQUEST], ids=["no plan", "policy of the app"])
def test_by_hand(scope: Scope, engine: Engine, settle: Settle, kept: list[str], plan: Plan | None) -> None:
    """Where no block owns it a session is settled by hand as ever, and can be used again."""
    scope.replan(plan)
    scope.session.add(Book(title="Emma"))

    settle(scope.session)

    assert titles(engine) == kept
    scope.session.add(Book(title="Persuasion"))
    scope.session.commit()
    assert titles(engine) == [*kept, "Persuasion"]


@pytest.mark.parametrize("method", ["commit", "rollback", "close", "reset"])
def test_by_hand_with_nothing_to_do(scope: Scope, events: Events, method: str) -> None:
    """Settling an unused session does nothing, and tells nobody."""
    session = scope.session

    getattr(session, method)()

    assert events == []


def test_hooks_of_a_commit_by_hand(scope: Scope) -> None:
    """Under the policy of the app hooks run at the commit by hand, those of later work at the end."""
    calls: list[str] = []
    scope.replan(REQUEST)
    scope.session.add(Book(title="Emma"))
    on_commit(scope, calls.append, "first")
    scope.session.commit()
    during = list(calls)
    on_commit(scope, calls.append, "second")

    scope.settle(COMMIT, None, None)

    assert during == ["first"]
    assert calls == ["first", "second"]


@pytest.mark.parametrize("method", ["rollback", "close", "reset"])
def test_hooks_of_a_rollback_by_hand(scope: Scope, method: str) -> None:
    """Under the policy of the app rollback hooks run at the rollback by hand."""
    calls: list[object] = []
    scope.replan(REQUEST)
    scope.session.add(Book(title="Emma"))
    on_commit(scope, calls.append, "committed")
    on_rollback(scope, calls.append)

    getattr(scope.session, method)()

    assert calls == [None]


def test_begin_by_hand(scope: Scope, engine: Engine) -> None:
    """Outside any block a session can be begun by hand."""
    with scope.session.begin():
        scope.session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]


def test_commit_by_hand_of_a_doomed_transaction(scope: Scope, engine: Engine) -> None:
    """A commit by hand cannot store one half of the work either."""
    scope.replan(REQUEST)
    scope.session.add(Book(title="Emma"))
    with suppress(IntegrityError):
        scope.session.execute(text("INSERT INTO book (id) VALUES (7)"))

    with pytest.raises(UnexpectedRollbackError, match="because the database refused a statement"):
        scope.session.commit()

    assert titles(engine) == []


def test_error_outside_any_transaction(scope: Scope, engine: Engine) -> None:
    """Where there is no transaction of ours an error of the database dooms nothing."""
    session = scope.session
    session.add(Book(title="Emma"))
    with suppress(IntegrityError):
        session.execute(text("INSERT INTO book (id) VALUES (7)"))

    session.commit()

    assert titles(engine) == ["Emma"]


def test_flush_error_by_hand(scope: Scope, engine: Engine) -> None:
    """A swallowed flush error is told at the commit by hand, with what SQLAlchemy says as cause."""
    session = scope.session
    session.add(Book(title="Emma", printed="yesterday"))
    with suppress(StatementError):
        session.flush()

    with pytest.raises(UnexpectedRollbackError, match="because a flush failed inside it") as caught:
        session.commit()

    assert isinstance(caught.value.__cause__, PendingRollbackError)
    assert titles(engine) == []


def test_closed_by_hand(scope: Scope, engine: Engine) -> None:
    """After a close by hand the session is still the scope's, as it is still the user's."""
    session = scope.session
    session.close()

    assert scope.session is session
    session.add(Book(title="Emma"))
    session.commit()
    assert titles(engine) == ["Emma"]


def test_closed_by_hand_for_good(engine: Engine) -> None:
    """One that cannot be used after its close() is followed by another."""
    factory = sessionmaker(engine, close_resets_only=False)
    scope = Scope(make_runtime(SessionSource(factory, give_back)))
    session = scope.session
    session.close()

    assert scope.session is not session
    scope.close()


def test_closed_by_hand_and_used_again(scope: Scope, engine: Engine) -> None:
    """A session that was closed by hand and is in use again is still the scope's."""
    session = scope.session
    session.close()
    session.add(Book(title="Emma"))

    again = scope.session

    assert again is session
    again.commit()
    assert titles(engine) == ["Emma"]


def test_closed_by_hand_and_by_the_scope(scope: Scope, events: Events) -> None:
    """A session that was closed by hand is given back like any other."""
    session = scope.session
    session.close()

    scope.close()

    assert events == [Removed(session)]


def test_methods_with_arguments_of_their_own(engine: Engine) -> None:
    """A session's class may give its methods arguments, and use them where it settles."""
    reasons: list[str] = []

    class Explained(Session):
        def close(self, reason: str = "") -> None:
            reasons.append(reason)
            super().close()

        def commit(self) -> None:
            super().commit()
            self.close(reason="done")

    scope = Scope(make_runtime(SessionSource(sessionmaker(engine, class_=Explained), give_back)))
    with block(scope) as session:
        session.add(Book(id=1, title="Emma"))
    scope.close()

    assert reasons == ["done", ""]


def test_failing_commit_without_a_session(engine: Engine) -> None:
    """A connection whose session could not be watched may fail to commit, and there is nothing to remember."""
    scope = Scope(make_runtime(engine))
    with engine.connect() as connection:
        scope.commit_failed(LookupError(), connection)

    assert not scope.is_open()
