"""A planned transaction that nobody has asked more of than its session: it is there, and there is no object for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow._core.backoff import Backoff
from flask_uow._core.events import AfterCommit, Completed
from flask_uow._core.options import ManualCommit, Options
from flask_uow._core.policy import Decision
from flask_uow._core.retry import NOTHING_BEFORE, Attempts, Retry
from flask_uow._core.runtime import Plan
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource, is_watched
from flask_uow._core.transaction import Outcome, Transaction
from flask_uow.errors import ManualTransactionControlError, TransactionDoomedError, UnexpectedRollbackError
from tests.core.conftest import (
    COMMIT,
    REQUEST,
    ROLLBACK,
    VIEW,
    Book,
    Deaf,
    Events,
    fail,
    give_back,
    make_runtime,
    on_commit,
    on_rollback,
    titles,
)


@pytest.fixture
def scope(engine: Engine) -> Iterator[Scope]:
    scope = Scope(make_runtime(engine), VIEW)
    yield scope
    scope.close()


class Late(Events):
    """Listens from some moment on."""

    listens = False

    def has_listeners(self) -> bool:
        return self.listens

    def wants_changes(self) -> bool:
        return self.listens


def add(scope: Scope, title: str = "Emma") -> Session:
    session = scope.session
    session.add(Book(title=title))
    session.flush()
    return session


# What is there


@pytest.mark.parametrize(("decision", "kept"), [(COMMIT, ["Emma"]), (ROLLBACK, [])])
def test_nothing_is_made(
    scope: Scope, engine: Engine, monkeypatch: pytest.MonkeyPatch, decision: Decision, kept: list[str]
) -> None:
    """From its first statement to its end it needs no object, whichever end that is."""
    made: list[object] = []
    make = Transaction.__init__

    def note(transaction: Transaction, *args: Any, **kwargs: Any) -> None:
        made.append(transaction)
        make(transaction, *args, **kwargs)

    monkeypatch.setattr(Transaction, "__init__", note)
    add(scope)
    scope.settle(decision, None, None)

    assert made == []
    assert titles(engine) == kept
    assert not scope.is_open()


@pytest.mark.parametrize(
    "plan",
    [
        Plan(Options(read_only=True), "", by_block=True),
        Plan(Options(isolation_level="SERIALIZABLE"), "", by_block=True),
        Plan(Options(timeout=5.0), "", by_block=True),
        Plan(Options(resolve_commit=True), "", by_block=True),
        Plan(Options(verify=lambda _session: True), "", by_block=True),
        Plan(Options(), "", by_block=True, retry=Retry(2, (), Backoff())),
    ],
    ids=["read_only", "isolation_level", "timeout", "resolve_commit", "verify", "retry"],
)
def test_plan_that_asks_for_more(engine: Engine, plan: Plan) -> None:
    """What is to be more than a COMMIT is an object from the beginning."""
    scope = Scope(make_runtime(engine), plan)
    scope.session.connection()

    assert not plan.is_plain
    assert scope._stack
    scope.settle(COMMIT, None, None)
    scope.close()


def test_it_comes_forward(scope: Scope, engine: Engine) -> None:
    """Who asks for it meanwhile is given it, and it ends like any other."""
    add(scope)
    transaction = scope.current()
    scope.settle(COMMIT, None, None)

    assert transaction is not None
    assert (transaction.name, transaction.outcome) == ("index()", Outcome.COMMITTED)
    assert titles(engine) == ["Emma"]


def test_hooks(scope: Scope) -> None:
    """A hook that is registered after the work runs at its end."""
    ran: list[str] = []
    add(scope)
    on_commit(scope, ran.append, "first")
    scope.settle(COMMIT, None, REQUEST)
    add(scope, "Persuasion")
    on_rollback(scope, ran.append)
    scope.settle(ROLLBACK, None, None)

    assert ran == ["first", None]


def test_next_one(scope: Scope, engine: Engine) -> None:
    """One that comes after another is as new as the first."""
    session = add(scope)
    scope.settle(COMMIT, None, REQUEST)
    session.add(Book(title="Persuasion"))
    session.flush()
    transaction = scope.current()

    assert transaction is not None
    assert not transaction._stored
    scope.settle(ROLLBACK, None, None)
    assert (transaction.outcome, titles(engine)) == (Outcome.ROLLED_BACK, ["Emma"])


@pytest.mark.parametrize("decision", [COMMIT, ROLLBACK])
def test_listener_that_comes_late(engine: Engine, decision: Decision) -> None:
    """Who has begun to listen since it began is told of its end, and of how long it took."""
    events = Late()
    scope = Scope(make_runtime(engine, events), VIEW)
    add(scope)
    looked = perf_counter()
    assert events == []

    events.listens = True
    since = perf_counter() - looked
    scope.settle(decision, None, None)
    scope.close()

    end = ["BeforeCommit", "AfterCommit"] if decision is COMMIT else ["AfterRollback"]
    assert events.names == [*end, "Completed", "Removed"]
    [completed] = [each for each in events if isinstance(each, Completed)]
    assert completed.duration > since


# Listeners of the session's, who are between us and the database


@pytest.mark.parametrize(
    ("name", "decision"), [("before_commit", COMMIT), ("after_commit", COMMIT), ("after_rollback", ROLLBACK)]
)
def test_asked_for_while_it_ends(scope: Scope, engine: Engine, name: str, decision: Decision) -> None:
    """A listener of the session's that asks for it is given it, and what it registers runs."""
    ran: list[object] = []
    seen: list[Transaction | None] = []
    session = add(scope)

    def listen(_session: Session) -> None:
        seen.append(scope.current())
        on_commit(scope, ran.append, "committed")
        on_rollback(scope, ran.append)

    event.listen(session, name, listen, once=True)
    scope.settle(decision, None, None)

    [transaction] = seen
    assert transaction is not None
    assert transaction.outcome is (Outcome.COMMITTED if decision is COMMIT else Outcome.ROLLED_BACK)
    assert ran == (["committed"] if decision is COMMIT else [None])
    assert titles(engine) == (["Emma"] if decision is COMMIT else [])
    assert scope._stack == []


def test_listener_that_fails_after_the_commit(scope: Scope, engine: Engine) -> None:
    """What is stored is stored, whatever a listener of the session's raises then."""
    session = add(scope)
    event.listen(session, "after_commit", lambda _: fail(), once=True)

    with pytest.raises(ConnectionError):
        scope.settle(COMMIT, None, REQUEST)

    assert titles(engine) == ["Emma"]
    add(scope, "Persuasion")
    transaction = scope.current()
    assert transaction is not None
    assert not transaction._stored
    scope.settle(COMMIT, None, None)
    assert titles(engine) == ["Emma", "Persuasion"]


def test_listener_that_fails_before_the_commit(scope: Scope, engine: Engine) -> None:
    """What is not stored is rolled back."""
    session = add(scope)
    event.listen(session, "before_commit", lambda _: fail(), once=True)

    with pytest.raises(ConnectionError):
        scope.settle(COMMIT, None, None)

    assert titles(engine) == []
    assert not scope.is_open()


def test_listener_that_swallows_an_error(scope: Scope, engine: Engine) -> None:
    """A statement that fails on the way to COMMIT, and whose error nobody sees, keeps the work from being stored."""
    session = add(scope)

    def swallow(session: Session) -> None:
        with suppress(OperationalError):
            session.execute(text("SELECT * FROM nothing"))

    event.listen(session, "before_commit", swallow, once=True)
    with pytest.raises(UnexpectedRollbackError, match="the database refused a statement"):
        scope.settle(COMMIT, None, None)

    assert titles(engine) == []


SETTLE: list[Callable[[Session], object]] = [
    lambda session: session.commit(),
    lambda session: session.rollback(),
    lambda session: session.close(),
    lambda session: session.begin(),
]


@pytest.mark.parametrize("name", ["before_commit", "before_flush", "after_flush", "after_commit"])
@pytest.mark.parametrize("end", SETTLE, ids=["commit", "rollback", "close", "begin"])
@pytest.mark.parametrize("manual_commit", ["error", "allow"])
@pytest.mark.parametrize("plan", [VIEW, REQUEST])
def test_settled_by_hand_in_a_listener(
    engine: Engine, plan: Plan, manual_commit: ManualCommit, end: Callable[[Session], object], name: str
) -> None:
    """What settles is refused while it commits, where SQLAlchemy would lose the work; and the work is stored."""
    scope = Scope(make_runtime(engine, manual_commit=manual_commit), plan)
    seen: list[type[Exception]] = []
    session = scope.session
    session.add(Book(title="Emma"))

    def settle(session: Session, *_: object) -> None:
        try:
            end(session)
        except Exception as error:  # noqa: BLE001 - as listeners do
            seen.append(type(error))

    event.listen(session, name, settle, once=True)
    scope.settle(COMMIT, None, None)
    scope.close()

    assert seen == [ManualTransactionControlError]
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize(("name", "known"), [("before_commit", 1), ("after_commit", 0)])
def test_signal_that_is_connected_while_it_commits(engine: Engine, name: str, known: int) -> None:
    """Who begins to listen in the middle of the COMMIT is told of the rest, and of what was written since."""
    events = Late()
    scope = Scope(make_runtime(engine, events), VIEW)
    session = scope.session
    session.add(Book(title="Emma"))

    def connect(_session: Session) -> None:
        events.listens = True

    event.listen(session, name, connect, once=True)
    scope.settle(COMMIT, None, None)
    scope.close()

    assert events.names == ["AfterCommit", "Completed", "Removed"]
    [changes] = [each.changes for each in events if isinstance(each, AfterCommit)]
    assert len(changes) == known


def test_listener_that_works_after_the_rollback(scope: Scope, engine: Engine) -> None:
    """A listener that queries when all is rolled back begins another transaction, which is no part of this one."""
    calls: list[int] = []
    session = add(scope)

    def query(session: Session, _transaction: object) -> None:
        calls.append(1)
        if session.is_active and len(calls) == 1:
            session.execute(text("SELECT 1"))

    event.listen(session, "after_soft_rollback", query)
    scope.settle(ROLLBACK, None, None)
    before = list(calls)
    scope.close()

    assert before == [1]
    assert titles(engine) == []


# What goes wrong


def test_caught_error(scope: Scope, engine: Engine) -> None:
    """An error of the database that was caught dooms it."""
    session = add(scope)
    with pytest.raises(OperationalError):
        session.execute(text("SELECT * FROM nothing"))

    with pytest.raises(TransactionDoomedError):
        session.execute(text("SELECT 1"))
    with pytest.raises(UnexpectedRollbackError):
        scope.settle(COMMIT, None, None)
    assert titles(engine) == []


def test_failed_flush_at_the_end(scope: Scope, engine: Engine) -> None:
    """What cannot be written when it is to be committed is raised, and all is rolled back."""
    add(scope)
    scope.session.add(Book(title="Emma"))

    with pytest.raises(IntegrityError):
        scope.settle(COMMIT, None, None)

    assert titles(engine) == []


def test_lost_savepoint(scope: Scope, engine: Engine) -> None:
    """A savepoint of the connection that cannot be rolled back dooms what is around it."""
    connection = add(scope).connection()
    savepoint = connection.begin_nested()
    connection.connection.driver_connection.execute(f"RELEASE {savepoint._savepoint}")  # type: ignore[union-attr] # it is there

    with suppress(DBAPIError):
        savepoint.rollback()
    with pytest.raises(UnexpectedRollbackError, match="rolled back more than a savepoint"):
        scope.settle(COMMIT, None, None)
    assert titles(engine) == []


def test_no_connection() -> None:
    """What could not have a connection is not committed."""
    scope = Scope(make_runtime(create_engine("sqlite:////nowhere/at/all.db")), VIEW)
    with pytest.raises(OperationalError):
        scope.session.connection()

    with pytest.raises(UnexpectedRollbackError, match="there was no connection for it"):
        scope.settle(COMMIT, None, None)
    scope.close()


PAST_US: list[Callable[[Session], object]] = [
    Session.rollback,
    Session.commit,
    Session.close,
    lambda session: session.invalidate(),
]


@pytest.mark.parametrize("listener", [Deaf, Events])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("end", PAST_US, ids=["rollback", "commit", "close", "invalidate"])
def test_ended_past_us(
    engine: Engine, end: Callable[[Session], object], goes_on: bool, listener: type[Deaf | Events]
) -> None:
    """One that somebody ends past the session's own methods is not reported as committed, whatever comes after."""
    scope = Scope(make_runtime(engine, listener()), VIEW)
    session = add(scope)
    end(session)
    if goes_on:
        session.add(Book(title="Persuasion"))
        session.flush()

    assert scope.is_open()
    with pytest.raises(UnexpectedRollbackError, match="ended past flask_uow"):
        scope.settle(COMMIT, None, None)
    assert not scope.is_open()
    assert "Persuasion" not in titles(engine)
    scope.close()


@pytest.mark.parametrize("asked", [False, True])
def test_rolled_back_by_hand_after_that(engine: Engine, asked: bool) -> None:
    """A rollback by hand makes a new beginning, also of what was ended past us."""
    scope = Scope(make_runtime(engine), REQUEST)
    session = add(scope)
    session.invalidate()
    if asked:
        scope.current()
    session.rollback()
    add(scope, "Persuasion")
    scope.settle(COMMIT, None, None)
    scope.close()

    assert titles(engine) == ["Persuasion"]


class Twice(Session):
    """Commits in two steps, as the class of some app may."""

    def commit(self) -> None:
        super().commit()
        self.add(Book(title="sent"))
        super().commit()


def test_class_that_commits_twice(engine: Engine) -> None:
    """What a method of the user's class does is one end, however many there are in it."""
    source = SessionSource(sessionmaker(engine, class_=Twice), give_back)
    scope = Scope(make_runtime(source), VIEW)
    add(scope)
    scope.settle(COMMIT, None, REQUEST)
    add(scope, "Persuasion")
    scope.settle(ROLLBACK, None, None)
    scope.close()

    assert titles(engine) == ["Emma", "sent"]


def test_shadow_that_is_gone(scope: Scope, engine: Engine) -> None:
    """A session whose method somebody has taken away from it is closed like any other."""
    session = add(scope)
    del session.commit
    scope.settle(COMMIT, None, None)
    scope.close()

    assert not is_watched(session)
    assert titles(engine) == ["Emma"]


def test_lost_and_asked_for(scope: Scope) -> None:
    """One that has ended past us is what is current, and knows it at its end."""
    session = add(scope)
    Session.rollback(session)
    scope.current()

    with pytest.raises(UnexpectedRollbackError, match="ended past flask_uow"):
        scope.settle(COMMIT, None, None)


# Other plans, and attempts


@pytest.mark.parametrize("plan", [None, REQUEST, VIEW])
def test_other_plan(scope: Scope, engine: Engine, plan: Plan | None) -> None:
    """What has begun is ended by the plan that it has begun by."""
    add(scope)
    scope.replan(plan)

    assert scope.has_planned()
    assert scope.active("the test").name == "index()"
    scope.settle(COMMIT, None, None)
    assert titles(engine) == ["Emma"]


def test_opened_and_not_used(scope: Scope) -> None:
    """What is only opened has begun, and ends without a COMMIT."""
    _ = scope.session

    assert scope.has_planned()
    assert scope.is_open()
    scope.settle(COMMIT, None, None)
    assert not scope.is_open()


def test_opened_under_another_plan(scope: Scope) -> None:
    """What is only opened keeps its plan, too."""
    _ = scope.session
    scope.replan(REQUEST)
    scope.session.connection()

    assert scope.active("the test").name == "index()"
    scope.settle(COMMIT, None, None)


def attempts() -> Attempts:
    return Attempts(Retry(2, (), Backoff()), "a view", lambda _: None, make_runtime(create_engine("sqlite://")).journal)


def test_attempts_that_begin_later(scope: Scope) -> None:
    """It can be a part of what another begins to attempt."""
    add(scope)
    begun = attempts()
    scope.attempt(begun)

    assert scope.active("the test")._attempts is begun
    scope.attempt(None)
    scope.settle(ROLLBACK, None, None)


def test_attempt_that_is_undone(scope: Scope, engine: Engine) -> None:
    """What another's attempt undoes is undone, and the next one begins anew."""
    add(scope)
    scope.discard(NOTHING_BEFORE)
    add(scope, "Persuasion")
    scope.settle(COMMIT, None, None)

    assert titles(engine) == ["Persuasion"]


def test_log(scope: Scope) -> None:
    """What is logged of it names it."""
    add(scope)
    about = scope.about()
    transaction = scope.active("the test")

    assert transaction.id in about.values()
    scope.settle(ROLLBACK, None, None)


def test_deaf() -> None:
    """The double that these tests stand on has no ears."""
    assert not Deaf().has_listeners()
