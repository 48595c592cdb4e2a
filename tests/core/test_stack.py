from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from flask_uow._core.changes import Change, ChangeSet
from flask_uow._core.events import AfterCommit, AfterRollback, BeforeCommit, Completed, Event, Started
from flask_uow._core.hooks import Hook, Moment
from flask_uow._core.options import Options
from flask_uow._core.policy import Decision
from flask_uow._core.runtime import Plan
from flask_uow._core.scope import Scope
from flask_uow._core.stack import run_now
from flask_uow._core.transaction import Outcome, State, Transaction
from flask_uow.errors import (
    HookError,
    ManualTransactionControlError,
    TransactionRequiredError,
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
    Reacting,
    block,
    fail,
    make_runtime,
    on_commit,
    on_rollback,
    titles,
)

Settle = Callable[[Session], object]


# Transactions


def test_no_transaction(scope: Scope) -> None:
    """Without a plan and without a block there is no transaction, and what needs one says so."""
    current = scope.current()

    with pytest.raises(TransactionRequiredError, match=r"^set_rollback_only\(\) needs an active transaction"):
        scope.active("set_rollback_only()")

    assert current is None


def test_planned_transaction(scope: Scope) -> None:
    """A planned transaction is there from the first look at it, under the plan's name."""
    scope.replan(VIEW)

    transaction = scope.current()

    assert transaction is not None
    assert (transaction.name, transaction.depth, transaction.state) == ("index()", 0, State.ACTIVE)
    assert scope.current() is transaction
    assert scope.active("the test") is transaction


@pytest.mark.parametrize(("decision", "kept"), [(COMMIT, ["Emma"]), (ROLLBACK, [])])
def test_settle(scope: Scope, engine: Engine, decision: Decision, kept: list[str]) -> None:
    """A planned transaction is ended by a decision, and the next plan holds from then on."""
    scope.replan(VIEW)
    scope.session.add(Book(title="Emma"))

    planned = scope.planned

    scope.settle(decision, None, REQUEST)

    assert planned is not None
    assert planned.outcome is not None
    assert titles(engine) == kept
    assert scope.active("the test").name == "the request to 'index'"


def test_settle_nothing(scope: Scope) -> None:
    """Where nobody touched the database or registered a hook there is nothing to settle."""
    scope.replan(VIEW)

    assert scope.planned is None

    scope.settle(COMMIT, None, None)

    assert scope.current() is None


def test_settle_twice(scope: Scope, engine: Engine) -> None:
    """A planned transaction is ended once."""
    scope.replan(VIEW)
    scope.session.add(Book(title="Emma"))
    scope.settle(COMMIT, None, None)

    scope.settle(ROLLBACK, None, None)

    assert scope.planned is None
    assert titles(engine) == ["Emma"]


def test_settle_leaves_blocks_alone(scope: Scope, engine: Engine) -> None:
    """A block's transaction is ended by the block, and not by who settles what was planned."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        assert scope.planned is None
        scope.settle(ROLLBACK, None, None)

    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize(("decision", "kept"), [(COMMIT, ["Emma", "Persuasion"]), (ROLLBACK, ["Emma"])])
def test_settle_a_session_that_began_by_itself(
    scope: Scope, engine: Engine, decision: Decision, kept: list[str]
) -> None:
    """A session that was kept and used after a commit by hand belongs to the plan again."""
    scope.replan(REQUEST)
    session = scope.session
    session.add(Book(title="Emma"))
    session.commit()
    session.add(Book(title="Persuasion"))

    scope.settle(decision, None, None)

    assert titles(engine) == kept


def test_settle_with_an_error(scope: Scope, events: Events) -> None:
    """Why a planned transaction was rolled back is told to hooks and listeners."""
    error = ValueError()
    told: list[object] = []
    scope.replan(VIEW)
    scope.session.add(Book(title="Emma"))
    on_rollback(scope, told.append)

    scope.settle(ROLLBACK, error, None)

    assert told == [error]
    assert [event.error for event in events if isinstance(event, AfterRollback | Completed)] == [error, error]


@pytest.mark.parametrize(
    ("plan", "use", "needed"),
    [
        (None, lambda _: None, False),
        (None, lambda scope: scope.session.connection(), False),
        (REQUEST, lambda _: None, False),
        (REQUEST, lambda scope: scope.current(), True),
        (REQUEST, lambda scope: scope.session, True),
        (VIEW, lambda scope: on_commit(scope, print), True),
        (REQUEST, lambda scope: (scope.replan(None), scope.session.connection(), scope.replan(REQUEST)), True),
    ],
)
def test_planned(scope: Scope, plan: Plan | None, use: Callable[[Scope], object], needed: bool) -> None:
    """What is planned needs settling when there is a transaction, or a session that has begun one."""
    scope.replan(plan)

    use(scope)

    assert (scope.planned is not None) is needed
    scope.replan(None)


def test_end_with_unfinished_savepoints(scope: Scope, engine: Engine) -> None:
    """What is open inside an ended transaction is undone, and the transaction with it."""
    outer = scope.begin(Options(), "transfer()")
    scope.session.add(Book(title="Emma"))
    middle = scope.nest(Options(), "reserve()")
    inner = scope.nest(Options(), "check()")

    with pytest.raises(UnexpectedRollbackError, match=r"because check\(\) inside it was never left"):
        scope.end(outer, COMMIT)

    assert [member.outcome for member in (outer, middle, inner)] == [Outcome.ROLLED_BACK] * 3
    assert titles(engine) == []


def test_savepoint_that_cannot_be_rolled_back(scope: Scope, engine: Engine) -> None:
    """A savepoint that is gone when it is to be rolled back dooms what is around it."""

    def work() -> None:
        with block(scope, "transfer()") as session:
            session.add(Book(title="Emma"))
            with suppress(ValueError), block(scope, "reserve()", propagation=NESTED):
                # As MySQL does by itself after a deadlock.
                session.execute(text("ROLLBACK"))
                raise ValueError

    with pytest.raises(
        UnexpectedRollbackError,
        match=r"because the database has rolled back more than a savepoint \(OperationalError: .*no such savepoint",
    ):
        work()

    assert titles(engine) == []


def test_commit_without_a_database(scope: Scope, events: Events) -> None:
    """A transaction that nobody used runs its hooks, and tells nobody of a commit that was none."""
    calls: list[str] = []
    transaction = scope.begin(Options(), "transfer()")
    on_commit(scope, calls.append, "hook")

    scope.end(transaction, COMMIT)

    assert calls == ["hook"]
    assert events == []
    assert transaction.outcome is Outcome.COMMITTED


def test_rollback_without_a_database(scope: Scope, events: Events) -> None:
    """A transaction that nobody used can be rolled back, for its hooks."""
    calls: list[object] = []
    transaction = scope.begin(Options(), "transfer()")
    on_rollback(scope, calls.append)

    scope.end(transaction, ROLLBACK)

    assert calls == [None]
    assert events == []
    assert transaction.outcome is Outcome.ROLLED_BACK


def test_opened_and_not_used(scope: Scope, events: Events) -> None:
    """A session that was opened without a statement has nothing to commit."""
    with block(scope):
        pass

    assert events.names == ["Started", "Completed"]


# Events


def test_events_of_a_commit(scope: Scope, events: Events) -> None:
    """A commit is told in order, hooks run before the last word, and all is about one transaction."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        transaction = scope.active("the test")
        on_commit(scope, lambda: names.extend(events.names))
        names: list[str] = []

    completed = events.pop()
    changes = ChangeSet([Change("insert", "Book", "book", (1,), {}, {"id": 1, "title": "Emma", "printed": None})])
    assert events == [
        Started(transaction),
        BeforeCommit(transaction, session, changes),
        AfterCommit(transaction, changes),
    ]
    assert isinstance(completed, Completed)
    assert (completed.transaction, completed.outcome, completed.error) == (transaction, Outcome.COMMITTED, None)
    assert completed.duration > 0
    assert names == ["Started", "BeforeCommit", "AfterCommit"]


def test_events_of_a_rollback(scope: Scope, events: Events) -> None:
    """A rollback is told with what caused it."""
    error = ValueError()

    with suppress(ValueError), block(scope) as session:
        session.add(Book(title="Emma"))
        transaction = scope.active("the test")
        raise error

    completed = events.pop()
    assert events == [Started(transaction), AfterRollback(transaction, error, ChangeSet())]
    assert isinstance(completed, Completed)
    assert (completed.outcome, completed.error) == (Outcome.ROLLED_BACK, error)


def test_events_of_a_failed_commit(scope: Scope, events: Events) -> None:
    """A commit that fails is told as a rollback, and never as a commit."""
    with suppress(IntegrityError), block(scope) as session:
        session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Emma")])

    assert events.names == ["Started", "AfterRollback", "Completed"]
    assert [type(event.error) for event in events if isinstance(event, Completed)] == [IntegrityError]


def test_events_of_savepoints(scope: Scope, events: Events) -> None:
    """Savepoints are told to nobody."""
    with block(scope):
        with block(scope, propagation=NESTED) as session:
            session.add(Book(title="Emma"))
        with suppress(ValueError), block(scope, propagation=NESTED):
            session.add(Book(title="Persuasion"))
            raise ValueError

    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed"]


def reacting_scope(engine: Engine, react: Callable[[BeforeCommit, Scope], object]) -> tuple[Scope, Reacting]:
    """A scope in which somebody reacts to what is about to be committed."""

    def dispatch(event: Event) -> None:
        if isinstance(event, BeforeCommit):
            react(event, scope)

    reacting = Reacting(dispatch)
    scope = Scope(make_runtime(engine, reacting))
    return scope, reacting


def test_before_commit_sees_flushed_work(engine: Engine) -> None:
    """Before a commit everything has been sent, generated keys included."""
    seen: list[int] = []
    scope, _ = reacting_scope(engine, lambda _event, _scope: seen.append(book.id))
    book = Book(title="Emma")

    with block(scope) as session:
        session.add(book)

    assert seen == [1]
    scope.close()


def test_before_commit_adds_work(engine: Engine) -> None:
    """What is added before a commit is part of it."""
    scope, events = reacting_scope(engine, lambda event, _: event.session.add(Book(title="audit")))

    with block(scope) as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma", "audit"]
    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed"]
    scope.close()


def test_before_commit_veto(engine: Engine) -> None:
    """What is raised before a commit keeps it from happening, and reaches the user."""
    undone: list[object] = []
    error = PermissionError("not on a Sunday")

    def veto(_event: BeforeCommit, _scope: Scope) -> None:
        raise error

    scope, events = reacting_scope(engine, veto)

    def work() -> None:
        with block(scope) as session:
            session.add(Book(title="Emma"))
            on_rollback(scope, undone.append)

    with pytest.raises(PermissionError, match="not on a Sunday") as caught:
        work()

    assert caught.value is error
    assert undone == [error]
    assert titles(engine) == []
    assert events.names == ["Started", "BeforeCommit", "AfterRollback", "Completed"]
    scope.close()


def test_before_commit_asks_for_a_rollback(engine: Engine) -> None:
    """A quiet rollback can be asked for until the last moment."""
    scope, events = reacting_scope(engine, lambda event, _: event.transaction.set_rollback_only())

    with block(scope) as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == []
    assert events.names == ["Started", "BeforeCommit", "AfterRollback", "Completed"]
    scope.close()


def test_before_commit_dooms(engine: Engine) -> None:
    """A database error that is swallowed before a commit keeps it from happening."""

    def swallow(event: BeforeCommit, _scope: Scope) -> None:
        with suppress(IntegrityError):
            event.session.execute(text("INSERT INTO book (id) VALUES (7)"))

    scope, events = reacting_scope(engine, swallow)

    def work() -> None:
        with block(scope) as session:
            session.add(Book(title="Emma"))

    with pytest.raises(UnexpectedRollbackError, match="because the database refused a statement"):
        work()

    assert titles(engine) == []
    assert events.names == ["Started", "BeforeCommit", "AfterRollback", "Completed"]
    scope.close()


@pytest.mark.parametrize("method", ["commit", "rollback", "close", "reset", "begin"])
def test_before_commit_settles(engine: Engine, method: str) -> None:
    """Who is told of a commit cannot settle by itself."""
    scope, _ = reacting_scope(engine, lambda event, _: getattr(event.session, method)())

    def work() -> None:
        with block(scope) as session:
            session.add(Book(title="Emma"))

    with pytest.raises(ManualTransactionControlError, match=rf"^session\.{method}\(\) was called inside the block"):
        work()

    assert titles(engine) == []
    scope.close()


# Hooks


def test_hooks_after_the_commit(scope: Scope, engine: Engine) -> None:
    """Hooks run in order, when their rows can be seen from another connection, outside the transaction."""
    seen: list[object] = []

    with block(scope) as session:
        session.add(Book(title="Emma"))
        on_commit(scope, lambda: seen.append(titles(engine)))
        on_commit(scope, lambda: seen.append(scope.current()))

    assert seen == [["Emma"], None]


def test_hooks_may_query(scope: Scope) -> None:
    """A hook can read by the same session."""
    seen: list[str] = []

    with block(scope) as session:
        session.add(Book(title="Emma"))
        on_commit(scope, lambda: seen.extend(scope.session.scalars(select(Book.title))))

    assert seen == ["Emma"]


@pytest.mark.parametrize(
    ("error", "ran"), [(None, ["committed"]), (ValueError("no"), ["rolled back"])], ids=["commit", "rollback"]
)
def test_hooks_of_the_other_end(scope: Scope, error: Exception | None, ran: list[str]) -> None:
    """Only the hooks of the end that came are run, once."""
    calls: list[str] = []
    transaction = scope.begin(Options(), "transfer()")
    on_commit(scope, calls.append, "committed")
    on_rollback(scope, lambda _, word: calls.append(word), "rolled back")

    scope.end(transaction, COMMIT if error is None else ROLLBACK, error)
    scope.close()

    assert calls == ran


def test_hooks_of_a_joined_block(scope: Scope) -> None:
    """Hooks of a block that joined wait for the whole."""
    calls: list[str] = []

    with block(scope):
        with block(scope):
            on_commit(scope, calls.append, "joined")
        before = list(calls)

    assert before == []
    assert calls == ["joined"]


def test_hooks_of_savepoints(scope: Scope) -> None:
    """A savepoint that is undone drops its hooks, and one that is kept hands them up, in order."""
    calls: list[str] = []

    with block(scope):
        on_commit(scope, calls.append, "before")
        with block(scope, propagation=NESTED):
            on_commit(scope, calls.append, "kept")
        with suppress(ValueError), block(scope, propagation=NESTED):
            on_commit(scope, calls.append, "undone")
            with block(scope, propagation=NESTED):
                on_commit(scope, calls.append, "undone too")
            raise ValueError
        on_commit(scope, calls.append, "after")
        during = list(calls)

    assert during == []
    assert calls == ["before", "kept", "after"]


def test_rollback_hooks_of_savepoints(scope: Scope) -> None:
    """A rollback hook runs when its own block is undone, once, with what undid it."""
    first, second = ValueError("first"), LookupError("second")
    calls: list[object] = []

    def note(error: BaseException | None, name: str) -> None:
        calls.append((name, error))

    with suppress(LookupError), block(scope):
        on_rollback(scope, note, "outer")
        with suppress(ValueError), block(scope, propagation=NESTED):
            on_rollback(scope, note, "undone")
            raise first
        with block(scope, propagation=NESTED):
            on_rollback(scope, note, "kept")
        raise second

    assert calls == [("undone", first), ("outer", second), ("kept", second)]


def test_hooks_of_a_commit_that_failed(scope: Scope) -> None:
    """Hooks for the commit do not run if the commit fails, and those for the rollback get the error."""
    calls: list[object] = []

    with suppress(IntegrityError), block(scope) as session:
        session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Emma")])
        on_commit(scope, calls.append, "committed")
        on_rollback(scope, lambda error: calls.append(type(error)))

    assert calls == [IntegrityError]


def test_hooks_of_an_unexpected_rollback(scope: Scope) -> None:
    """Rollback hooks of a doomed transaction get the error that its block raises."""
    calls: list[object] = []

    def work() -> None:
        with block(scope):
            on_rollback(scope, calls.append)
            with suppress(ValueError), block(scope):
                raise ValueError

    with pytest.raises(UnexpectedRollbackError) as caught:
        work()

    assert calls == [caught.value]


def test_hooks_of_hooks(scope: Scope) -> None:
    """A hook that a hook registers runs in the same drain, after those that were there."""
    calls: list[str] = []

    with block(scope):
        on_commit(scope, lambda: on_commit(scope, calls.append, "third"))
        on_commit(scope, calls.append, "second")

    assert calls == ["second", "third"]


def test_hooks_of_hooks_at_a_rollback(scope: Scope) -> None:
    """A rollback hook that a rollback hook registers runs in the same drain."""
    calls: list[object] = []
    error = ValueError()

    with suppress(ValueError), block(scope):
        on_rollback(scope, lambda _: on_rollback(scope, calls.append))
        raise error

    assert calls == [error]


def test_hooks_of_a_hook_in_a_plan(scope: Scope) -> None:
    """In a request too a hook of a hook runs in the same drain, and begins nothing."""
    calls: list[str] = []
    scope.replan(VIEW)
    on_commit(scope, lambda: on_commit(scope, calls.append, "second"))

    scope.settle(COMMIT, None, REQUEST)

    assert calls == ["second"]
    assert scope.planned is None


def test_hooks_of_a_transaction_in_a_hook(scope: Scope, engine: Engine) -> None:
    """A transaction that a hook opens has hooks of its own, and then the drain goes on."""
    calls: list[str] = []

    def follow_up() -> None:
        with block(scope) as session:
            session.add(Book(title="Persuasion"))
            on_commit(scope, lambda: calls.extend(["second", *titles(engine)]))
        on_commit(scope, calls.append, "fourth")

    with block(scope) as session:
        session.add(Book(title="Emma"))
        on_commit(scope, calls.append, "first")
        on_commit(scope, follow_up)
        on_commit(scope, calls.append, "third")

    assert calls == ["first", "second", "Emma", "Persuasion", "third", "fourth"]


def test_key(scope: Scope) -> None:
    """A hook with a key is registered once a transaction, savepoints and joined blocks included."""
    calls: list[int] = []

    for _ in range(2):
        with block(scope):
            on_commit(scope, calls.append, 1, key="mail")
            with block(scope, propagation=NESTED):
                on_commit(scope, calls.append, 2, key="mail")
            with block(scope):
                on_commit(scope, calls.append, 3, key="mail")

    assert calls == [1, 1]


def test_key_of_a_savepoint_that_was_undone(scope: Scope) -> None:
    """A key that went with its savepoint can be used again."""
    calls: list[str] = []

    with block(scope):
        with suppress(ValueError), block(scope, propagation=NESTED):
            on_commit(scope, calls.append, "undone", key="mail")
            raise ValueError
        on_commit(scope, calls.append, "kept", key="mail")

    assert calls == ["kept"]


def test_key_in_a_drain(scope: Scope) -> None:
    """A hook does not register again what has run already."""
    calls: list[int] = []

    with block(scope):
        on_commit(scope, calls.append, 1, key="mail")
        on_commit(scope, lambda: on_commit(scope, calls.append, 2, key="mail"))

    assert calls == [1]


@pytest.mark.parametrize(
    ("register", "name"), [(on_commit, r"on_commit\(\)"), (on_rollback, r"on_rollback\(\)")], ids=["commit", "rollback"]
)
def test_hook_without_a_transaction(scope: Scope, register: Callable[..., None], name: str) -> None:
    """A hook that waits for nothing is refused."""
    with pytest.raises(TransactionRequiredError, match=rf"^{name} needs an active transaction"):
        register(scope, print)


@pytest.mark.parametrize(("register", "ran"), [(on_commit, ["now"]), (on_rollback, [])], ids=["commit", "rollback"])
def test_hook_that_may_run_at_once(scope: Scope, register: Callable[..., None], ran: list[str]) -> None:
    """Where there is no transaction a commit hook may run at once, and a rollback hook has nothing to wait for."""
    calls: list[str] = []

    register(scope, calls.append, "now", run_if_inactive=True)

    assert calls == ran


def test_hook_that_need_not_run_at_once(scope: Scope) -> None:
    """In a transaction such a hook waits like any other."""
    calls: list[str] = []

    with block(scope):
        on_commit(scope, calls.append, "later", run_if_inactive=True)
        during = list(calls)

    assert during == []
    assert calls == ["later"]


def test_run_now() -> None:
    """A hook that runs at once gets its arguments, and what it raises goes on."""
    hook = Hook(Moment.COMMIT, int, ("zz",), {"base": 10})

    with pytest.raises(ValueError, match="invalid literal"):
        run_now(hook)


def test_hook_error_raised(engine: Engine, events: Events) -> None:
    """Failing hooks are raised together after all have run, and the work is stored."""
    calls: list[str] = []
    scope = Scope(make_runtime(engine, events, hook_errors="raise"))

    def work() -> None:
        with block(scope) as session:
            session.add(Book(title="Emma"))
            on_commit(scope, fail)
            on_commit(scope, calls.append, "next")
            on_commit(scope, fail)
            on_rollback(scope, calls.append)

    with pytest.raises(HookError, match="after the COMMIT: the work is stored") as caught:
        work()

    assert caught.value.committed
    assert [str(error) for error in caught.value.exceptions] == ["no mail today"] * 2
    assert calls == ["next"]
    assert titles(engine) == ["Emma"]
    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed"]
    scope.close()


def test_hook_error_logged(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Failing hooks are logged one by one with their tracebacks, and the block ends well."""
    scope = Scope(make_runtime(engine, hook_errors="log"))

    with block(scope) as session:
        session.add(Book(title="Emma"))
        on_commit(scope, fail)
        on_commit(scope, fail)

    assert caplog.messages == ["The on_commit hook fail failed. The work is stored all the same."] * 2
    assert [record.exc_info and record.exc_info[0] for record in caplog.records] == [ConnectionError] * 2
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert titles(engine) == ["Emma"]
    scope.close()


def test_hook_error_at_a_quiet_rollback(engine: Engine) -> None:
    """A failing rollback hook is raised where nothing else is."""
    scope = Scope(make_runtime(engine))
    transaction = scope.begin(Options(), "transfer()")
    transaction.set_rollback_only()
    on_rollback(scope, lambda _: fail())

    with pytest.raises(HookError, match="after the ROLLBACK: the work is undone") as caught:
        scope.end(transaction, COMMIT)

    assert not caught.value.committed
    scope.close()


def test_hook_error_beside_an_error(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An error that is on its way is not replaced by that of a rollback hook, which is logged."""
    scope = Scope(make_runtime(engine, hook_errors="raise"))

    def notify_stock(_error: BaseException | None) -> None:
        raise ConnectionError

    def work() -> None:
        with block(scope):
            on_rollback(scope, notify_stock)
            raise ValueError("no stock")

    with pytest.raises(ValueError, match=r"^no stock$"):
        work()

    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("The on_rollback hook ")
    assert caplog.messages[0].endswith("notify_stock failed. The work is undone all the same.")
    scope.close()


def test_exit_in_a_hook(scope: Scope, engine: Engine, events: Events) -> None:
    """A hook that ends the process is obeyed, and the work is stored and told."""

    def leave() -> None:
        raise SystemExit

    def work() -> None:
        with block(scope) as session:
            session.add(Book(title="Emma"))
            on_commit(scope, leave)

    with pytest.raises(SystemExit):
        work()

    assert titles(engine) == ["Emma"]
    assert events.names[-2:] == ["AfterCommit", "Completed"]
    assert scope.current() is None


# Transactions seen from outside


def test_current_in_blocks(scope: Scope) -> None:
    """The innermost transaction is the current one, and a joined block has none of its own."""
    seen: list[Transaction | None] = []

    with block(scope):
        seen.append(scope.current())
        with block(scope):
            seen.append(scope.current())
        with block(scope, propagation=NESTED):
            seen.append(scope.current())
    seen.append(scope.current())

    outer, joined, nested, after = seen
    assert outer is joined
    assert nested is not None
    assert nested.parent is outer
    assert after is None


def test_names(scope: Scope) -> None:
    """A transaction has the name of its block, or the one that was given."""
    with block(scope, "a transaction() block", name="payday"), block(scope, "a savepoint() block", propagation=NESTED):
        savepoint = scope.active("the test")

    assert savepoint.name == "a savepoint() block"
    assert savepoint.parent is not None
    assert savepoint.parent.name == "payday"


def test_closed_by_a_receiver(engine: Engine) -> None:
    """A receiver under which the scope is closed, and which then fails, is told of by its own error."""

    def react(_event: BeforeCommit, scope: Scope) -> None:
        scope.close()
        raise LookupError("too far")

    scope, _ = reacting_scope(engine, react)
    transaction = scope.begin(Options(), "the block")
    scope.session.add(Book(title="Emma"))

    with pytest.raises(LookupError, match="too far"):
        scope.end(transaction, COMMIT)

    assert transaction.outcome is Outcome.ROLLED_BACK
    assert titles(engine) == []
