from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError, StatementError
from sqlalchemy.orm import Session

from flask_uow._core.block import innermost_standalone, standalone_scope
from flask_uow._core.events import Completed
from flask_uow._core.policy import Decision
from flask_uow._core.propagation import Propagation
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource
from flask_uow._core.transaction import Outcome, State
from flask_uow.errors import ConfigurationError, TransactionRequiredError, UnexpectedRollbackError
from tests.core.conftest import Book, Events, block, give_back, make_runtime, on_commit, on_rollback, titles

NESTED, MANDATORY = Propagation.NESTED, Propagation.MANDATORY


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


# T1: a block that begins


def test_commit(runtime: Runtime, engine: Engine) -> None:
    """The work of a block is stored when the block ends."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit(), BaseExceptionGroup("all", [SystemExit()])],
    ids=lambda error: type(error).__name__,
)
def test_rollback_on_any_exception(runtime: Runtime, engine: Engine, error: BaseException) -> None:
    """Whatever leaves a block undoes its work, and goes on unchanged."""

    def work() -> None:
        with block(runtime) as session:
            session.add(Book(title="Emma"))
            session.flush()
            raise error

    with pytest.raises(type(error)) as caught:
        work()

    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)
    assert titles(engine) == []


@pytest.mark.parametrize(
    ("error", "kept"),
    [
        (LookupError(), ["Emma"]),
        (KeyError(), []),
        (IndexError(), ["Emma"]),
        (ValueError(), []),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_nearest_class_decides(runtime: Runtime, engine: Engine, error: Exception, kept: list[str]) -> None:
    """An exception rolls back or not by the class that is nearest to it, and goes on either way."""

    def work() -> None:
        with block(runtime, rollback_for=KeyError, no_rollback_for=LookupError) as session:
            session.add(Book(title="Emma"))
            raise error

    with pytest.raises(type(error)) as caught:
        work()

    assert caught.value is error
    assert titles(engine) == kept


def test_the_judge_decides(engine: Engine) -> None:
    """An exception that somebody outside knows is judged there."""
    runtime = make_runtime(engine, judge=lambda error: Decision.COMMIT if isinstance(error, EOFError) else None)

    def work() -> None:
        with block(runtime) as session:
            session.add(Book(title="Emma"))
            raise EOFError

    with pytest.raises(EOFError):
        work()

    assert titles(engine) == ["Emma"]


def test_commit_that_fails(runtime: Runtime, engine: Engine) -> None:
    """What the database refuses at the end of a block is raised there, and nothing is stored."""

    def work() -> None:
        with block(runtime) as session:
            session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Emma")])

    with pytest.raises(IntegrityError):
        work()

    assert titles(engine) == []


def test_a_block_again(runtime: Runtime, engine: Engine) -> None:
    """A block that has ended can be entered anew."""
    again = block(runtime)

    with again as session:
        session.add(Book(title="Emma"))
    with again as session:
        session.add(Book(title="Persuasion"))

    assert titles(engine) == ["Emma", "Persuasion"]


def test_a_block_inside_itself(runtime: Runtime, engine: Engine) -> None:
    """A block that is running cannot be entered, and goes on as if nothing had happened."""
    again = block(runtime, "a transaction() block")

    with again as session:
        session.add(Book(title="Emma"))
        with pytest.raises(ConfigurationError, match=r"^a transaction\(\) block was entered a second time"), again:
            pass

    assert titles(engine) == ["Emma"]


def test_no_session_without_need(engine: Engine) -> None:
    """A block that is entered without its session opens none."""
    opened: list[Session] = []

    def open_session() -> Session:
        opened.append(Session(engine))
        return opened[-1]

    runtime = make_runtime(SessionSource(open_session, give_back))
    quiet = block(runtime)

    quiet.enter()
    quiet.leave(None)

    assert opened == []


def test_a_session_that_cannot_be_opened(runtime: Runtime) -> None:
    """A block whose session cannot be opened ends at once, and leaves nothing behind."""
    broken = make_runtime(SessionSource(raising(OSError("no database")), give_back))  # type: ignore[arg-type]

    with pytest.raises(OSError, match="no database"), block(broken):
        pytest.fail("the body ran")

    assert standalone_scope(broken) is None


# T2 and T3: blocks that join


def test_joining(runtime: Runtime, engine: Engine, events: Events) -> None:
    """A block in a block shares its session, and its end is none."""
    with block(runtime) as session:
        with block(runtime) as inner, block(runtime, propagation=MANDATORY) as innermost:
            inner.add(Book(title="Emma"))
        before = titles(engine)

    assert session is inner is innermost
    assert before == []
    assert titles(engine) == ["Emma"]
    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed", "Removed"]


def test_swallowed_failure_of_a_joined_block(runtime: Runtime, engine: Engine) -> None:
    """A failure that was caught outside its block dooms the whole, which says who failed and why."""
    error = ValueError("no stock")

    def work() -> None:
        with block(runtime, "transfer()") as session:
            session.add(Book(title="Emma"))
            with suppress(ValueError), block(runtime, "reserve()"):
                raise error

    with pytest.raises(
        UnexpectedRollbackError,
        match=r"^The work of transfer\(\) was rolled back instead of committed, because reserve\(\), which had joined "
        r"it, failed with ValueError.*uow\.savepoint\(\)",
    ) as caught:
        work()

    assert caught.value.__cause__ is error
    assert titles(engine) == []


def test_the_first_failure_is_the_cause(runtime: Runtime) -> None:
    """Of several swallowed failures the first is the cause."""

    def work() -> None:
        with block(runtime):
            with suppress(ValueError), block(runtime, "first()"):
                raise ValueError
            with suppress(LookupError), block(runtime, "second()"):
                raise LookupError

    with pytest.raises(UnexpectedRollbackError, match=r"because first\(\)") as caught:
        work()

    assert isinstance(caught.value.__cause__, ValueError)


def test_a_joined_block_with_no_rollback_for(runtime: Runtime, engine: Engine) -> None:
    """A joined block whose own rule forgives its failure dooms nothing."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with suppress(KeyError), block(runtime, no_rollback_for=LookupError):
            raise KeyError

    assert titles(engine) == ["Emma"]


def test_a_failure_that_goes_on(runtime: Runtime, engine: Engine) -> None:
    """A failure that leaves the outermost block too is raised as it is."""
    error = ValueError()

    def work() -> None:
        with block(runtime), block(runtime) as session:
            session.add(Book(title="Emma"))
            raise error

    with pytest.raises(ValueError, match=r"^$") as caught:
        work()

    assert caught.value is error
    assert titles(engine) == []


def test_set_rollback_only(scope: Scope, engine: Engine, events: Events) -> None:
    """A block that asked for its own rollback ends quietly, and nothing is stored."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        scope.active("the test").set_rollback_only()

    assert titles(engine) == []
    assert events.names == ["Started", "AfterRollback", "Completed"]


def test_set_rollback_only_by_a_joined_block(scope: Scope, engine: Engine) -> None:
    """A joined block cannot take back quietly what the outermost block believes it has stored."""

    def work() -> None:
        with block(scope, "transfer()") as session, block(scope, "audit()"):
            session.add(Book(title="Emma"))
            scope.active("the test").set_rollback_only()

    with pytest.raises(
        UnexpectedRollbackError, match=r"because audit\(\), which had joined it, called set_rollback_only\(\)"
    ) as caught:
        work()

    assert caught.value.__cause__ is None
    assert titles(engine) == []


def test_set_rollback_only_of_the_outermost_wins(scope: Scope, engine: Engine) -> None:
    """What would have rolled back anyway is quiet."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        with suppress(ValueError), block(scope):
            raise ValueError
        scope.active("the test").set_rollback_only()

    assert titles(engine) == []


def test_set_rollback_only_in_a_savepoint(scope: Scope, engine: Engine) -> None:
    """A savepoint that asked for its own rollback is undone alone."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        with block(scope, propagation=NESTED):
            session.add(Book(title="Persuasion"))
            scope.active("the test").set_rollback_only()

    assert titles(engine) == ["Emma"]


def test_a_block_that_joined_a_savepoint(scope: Scope, engine: Engine) -> None:
    """What joins a savepoint dooms the savepoint, and not what is around it."""

    def nested() -> None:
        with block(scope, "reserve()", propagation=NESTED) as session:
            session.add(Book(title="Persuasion"))
            with suppress(ValueError), block(scope, "check()"):
                raise ValueError

    with block(scope, "transfer()") as session:
        session.add(Book(title="Emma"))
        with pytest.raises(UnexpectedRollbackError, match=r"^The work of reserve\(\).* because check\(\)"):
            nested()

    assert titles(engine) == ["Emma"]


# MANDATORY


def test_mandatory_alone(runtime: Runtime, engine: Engine) -> None:
    """A block that needs a transaction is refused before its body."""
    with (
        pytest.raises(TransactionRequiredError, match=r"^pay\(\) needs an active transaction"),
        block(runtime, "pay()", propagation=MANDATORY),
    ):
        pytest.fail("the body ran")

    assert standalone_scope(runtime) is None


# NESTED and T5


def test_savepoint_kept(runtime: Runtime, engine: Engine) -> None:
    """A savepoint that ends well is stored with what is around it, and not before."""
    with block(runtime) as session:
        with block(runtime, propagation=NESTED):
            session.add(Book(title="Emma"))
        before = titles(engine)

    assert before == []
    assert titles(engine) == ["Emma"]


def test_savepoint_undone_alone(runtime: Runtime, engine: Engine) -> None:
    """What a savepoint raises undoes the savepoint, and what is around it can go on."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with suppress(ValueError), block(runtime, propagation=NESTED):
            session.add(Book(title="Persuasion"))
            session.flush()
            raise ValueError
        session.add(Book(title="Sanditon"))

    assert titles(engine) == ["Emma", "Sanditon"]


def test_released_savepoint_undone_with_the_rest(runtime: Runtime, engine: Engine) -> None:
    """A savepoint that was released is gone when the block around it fails, on SQLite too."""

    def work() -> None:
        with block(runtime):
            with block(runtime, propagation=NESTED) as session:
                session.add(Book(title="Emma"))
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        work()

    assert titles(engine) == []


def test_savepoint_without_a_transaction(scope: Scope, engine: Engine) -> None:
    """NESTED begins a transaction where there is none."""
    with block(scope, propagation=NESTED) as session:
        session.add(Book(title="Emma"))
        depth = scope.active("the test").depth

    assert depth == 0
    assert titles(engine) == ["Emma"]


def test_savepoint_with_no_rollback_for(runtime: Runtime, engine: Engine) -> None:
    """A savepoint keeps its work when its rule forgives what left it."""
    with block(runtime), suppress(KeyError), block(runtime, propagation=NESTED, no_rollback_for=KeyError) as session:
        session.add(Book(title="Emma"))
        raise KeyError

    assert titles(engine) == ["Emma"]


def test_database_error_in_a_savepoint(runtime: Runtime, engine: Engine) -> None:
    """A doom that arose in a savepoint ends with its rollback."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with suppress(IntegrityError), block(runtime, propagation=NESTED):
            session.add(Book(title="Emma"))
            session.flush()
        session.add(Book(title="Sanditon"))

    assert titles(engine) == ["Emma", "Sanditon"]


@pytest.mark.parametrize(
    ("wrong", "error", "cause"),
    [
        (lambda: Book(title="Emma"), IntegrityError, IntegrityError),
        (lambda: Book(title="Sanditon", printed="yesterday"), StatementError, PendingRollbackError),
    ],
    ids=["refused by the database", "refused before it"],
)
def test_swallowed_flush_error_in_a_savepoint(
    runtime: Runtime, engine: Engine, wrong: Callable[[], Book], error: type[Exception], cause: type[Exception]
) -> None:
    """A flush error that was caught inside a savepoint is raised at its end, and what is around it goes on."""

    def nested(session: Session) -> None:
        with block(runtime, "reserve()", propagation=NESTED):
            session.add(wrong())
            with suppress(error):
                session.flush()

    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with pytest.raises(UnexpectedRollbackError, match=r"^The work of reserve\(\) was rolled back") as caught:
            nested(session)
        session.add(Book(title="Persuasion"))

    assert isinstance(caught.value.__cause__, cause)
    assert titles(engine) == ["Emma", "Persuasion"]


def test_savepoint_that_cannot_be_released(runtime: Runtime, engine: Engine) -> None:
    """What the database refuses at the end of a savepoint is raised there, and what is around it goes on."""

    def nested() -> None:
        with block(runtime, propagation=NESTED) as session:
            session.add(Book(title="Emma"))

    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with pytest.raises(IntegrityError):
            nested()
        session.add(Book(title="Persuasion"))

    assert titles(engine) == ["Emma", "Persuasion"]


def test_flush_error_before_a_savepoint(runtime: Runtime, engine: Engine) -> None:
    """What was pending before a savepoint belongs to the block around it, and dooms that."""

    def work() -> None:
        with block(runtime) as session:
            session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Emma")])
            with suppress(IntegrityError), block(runtime, propagation=NESTED):
                pytest.fail("the body ran")

    with pytest.raises(UnexpectedRollbackError, match="the database refused a statement") as caught:
        work()

    assert isinstance(caught.value.__cause__, IntegrityError)
    assert titles(engine) == []


def test_savepoints_in_savepoints(scope: Scope, engine: Engine) -> None:
    """Each savepoint stands or falls with those around it."""
    depths = []

    with block(scope) as session:
        session.add(Book(title="kept"))
        with suppress(ValueError), block(scope, propagation=NESTED):
            session.add(Book(title="lost"))
            with block(scope, propagation=NESTED):
                session.add(Book(title="lost too"))
                depths.append(scope.active("the test").depth)
            depths.append(scope.active("the test").depth)
            raise ValueError
        depths.append(scope.active("the test").depth)

    assert depths == [2, 1, 0]
    assert titles(engine) == ["kept"]


def test_outcome_of_savepoints(scope: Scope) -> None:
    """A released savepoint ends as the whole does, one that was undone is rolled back, and neither is told."""
    with block(scope):
        with block(scope, propagation=NESTED):
            released = scope.active("the test")
        with suppress(ValueError), block(scope, propagation=NESTED):
            undone = scope.active("the test")
            raise ValueError
        during = (released.outcome, released.state, undone.outcome)

    assert during == (None, State.COMPLETED, Outcome.ROLLED_BACK)
    assert (released.outcome, undone.outcome) == (Outcome.COMMITTED, Outcome.ROLLED_BACK)


# What the database refuses dooms (T4)


def test_swallowed_database_error(runtime: Runtime, engine: Engine) -> None:
    """An error of the database that was caught inside a block dooms it, with the error as cause."""

    def work() -> None:
        with block(runtime, "transfer()") as session:
            session.add(Book(title="Emma"))
            with suppress(IntegrityError):
                session.execute(text("INSERT INTO book (id) VALUES (1)"))

    with pytest.raises(
        UnexpectedRollbackError,
        match=r"^The work of transfer\(\) .* because the database refused a statement "
        r"\(IntegrityError: \(sqlite3\.IntegrityError\) NOT NULL constraint failed: book\.title\), and",
    ) as caught:
        work()

    assert isinstance(caught.value.__cause__, IntegrityError)
    assert titles(engine) == []


def test_state_of_a_doomed_transaction(scope: Scope) -> None:
    """A transaction shows that it is doomed."""

    def work() -> None:
        with block(scope) as session:
            with suppress(IntegrityError):
                session.execute(text("INSERT INTO book (id) VALUES (1)"))
            states.append(scope.active("the test").state)

    states: list[State] = []

    with pytest.raises(UnexpectedRollbackError):
        work()

    assert states == [State.DOOMED]


def test_own_savepoint_of_the_user(runtime: Runtime, engine: Engine) -> None:
    """An error inside the user's own begin_nested() dooms nothing, for it is undone there."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        with suppress(IntegrityError), session.begin_nested():
            session.add(Book(title="Emma"))
            session.flush()

    assert titles(engine) == ["Emma"]


def test_own_savepoint_of_the_user_in_a_savepoint(runtime: Runtime, engine: Engine) -> None:
    """An error inside the user's own begin_nested() does not doom the savepoint around it either."""
    with block(runtime), block(runtime, propagation=NESTED) as session:
        session.add(Book(title="Emma"))
        with suppress(IntegrityError), session.begin_nested():
            session.execute(text("INSERT INTO book (id) VALUES (1)"))

    assert titles(engine) == ["Emma"]


def test_swallowed_flush_error_that_the_database_never_saw(runtime: Runtime, engine: Engine) -> None:
    """A flush that failed before it was sent has emptied the session, so the block cannot commit."""

    def work() -> None:
        with block(runtime) as session:
            session.add(Book(title="Emma", printed="yesterday"))
            with suppress(StatementError):
                session.flush()

    with pytest.raises(UnexpectedRollbackError, match="because a flush failed inside it, and the error was") as caught:
        work()

    assert isinstance(caught.value.__cause__, PendingRollbackError)
    assert titles(engine) == []


# Blocks that are left in another order, or never


def test_a_savepoint_that_was_never_left(scope: Scope, engine: Engine) -> None:
    """A block with an unfinished savepoint in it does not commit half of the work."""
    undone: list[BaseException | None] = []

    def work() -> None:
        with block(scope, "transfer()") as session:
            session.add(Book(title="Emma"))
            block(scope, "reserve()", propagation=NESTED).enter()
            on_rollback(scope, undone.append)

    with pytest.raises(UnexpectedRollbackError, match=r"because reserve\(\) inside it was never left"):
        work()

    assert undone == [None]
    assert titles(engine) == []


def test_a_savepoint_that_is_left_too_late(scope: Scope, engine: Engine) -> None:
    """A block that outlives its transaction is told that its work is lost."""

    def generate() -> Iterator[None]:
        with block(scope, "reserve()", propagation=NESTED) as session:
            session.add(Book(title="Emma"))
            yield

    late = generate()

    def work() -> None:
        with block(scope):
            next(late)
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        work()
    with pytest.raises(UnexpectedRollbackError, match=r"^The work of reserve\(\).* because its transaction was ended"):
        next(late, None)

    assert titles(engine) == []


def test_a_savepoint_that_fails_too_late(scope: Scope) -> None:
    """What a block raises after its transaction has ended goes on unchanged."""
    late = block(scope, propagation=NESTED)
    error = LookupError()

    def work() -> None:
        with block(scope):
            late.enter()
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        work()
    late.leave(error)

    assert error.__context__ is None


def test_a_transaction_that_was_committed_from_outside(scope: Scope, engine: Engine) -> None:
    """A block whose transaction has been committed already has nothing left to do."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        scope.end(scope.active("the test"), Decision.COMMIT)

    assert titles(engine) == ["Emma"]


# Blocks outside any other home


def test_scope_of_a_block(runtime: Runtime) -> None:
    """Outside any other home the outermost block is the home, as long as it runs."""
    before = standalone_scope(runtime)

    with block(runtime) as session:
        during = standalone_scope(runtime)
        same = during is not None and during.session is session

    assert before is None
    assert same
    assert standalone_scope(runtime) is None


def test_the_session_is_closed(runtime: Runtime, engine: Engine, events: Events) -> None:
    """Outside any other home the session is closed with the outermost block."""
    with block(runtime) as session:
        session.add(Book(title="Emma"))

    assert not session.in_transaction()
    assert events.names[-1] == "Removed"


def test_the_session_is_closed_after_a_failed_commit(runtime: Runtime, events: Events) -> None:
    """The session is closed too when the end of the block fails."""

    def work() -> None:
        with block(runtime) as session:
            session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Emma")])

    with pytest.raises(IntegrityError):
        work()

    assert events.names[-2:] == ["Completed", "Removed"]
    assert standalone_scope(runtime) is None


def test_two_units_of_work(engine: Engine, runtime: Runtime) -> None:
    """Blocks of different UnitOfWork objects have nothing to do with each other."""
    other = make_runtime(engine)

    with block(runtime) as session:
        with block(other) as another:
            another.add(Book(title="Emma"))
        between = titles(engine)
        session.add(Book(title="Persuasion"))

    assert session is not another
    assert between == ["Emma"]
    assert titles(engine) == ["Emma", "Persuasion"]


def test_innermost_standalone(engine: Engine, runtime: Runtime) -> None:
    """The innermost block's home is found, whichever UnitOfWork it belongs to."""
    other = make_runtime(engine)
    found = [innermost_standalone()]

    with block(runtime):
        with block(other):
            found.append(innermost_standalone())
            expected = standalone_scope(other)
        found.append(innermost_standalone())
        outer = standalone_scope(runtime)
    found.append(innermost_standalone())

    assert found == [None, expected, outer, None]
    assert expected is not None
    assert outer is not None


def test_threads(runtime: Runtime) -> None:
    """A thread that got a copy of the context does not get the session."""
    seen: list[Scope | None] = []

    def look() -> None:
        seen.extend([standalone_scope(runtime), innermost_standalone()])

    with block(runtime):
        thread = threading.Thread(target=copy_context().run, args=[look])
        thread.start()
        thread.join()

    assert seen == [None, None]


def test_hooks_may_open_blocks(runtime: Runtime, engine: Engine) -> None:
    """A hook can do work of its own, in a transaction of its own, after the first is stored."""
    seen: list[list[str]] = []

    def follow_up() -> None:
        seen.append(titles(engine))
        with block(runtime) as session:
            session.add(Book(title="Persuasion"))

    with block(runtime) as session:
        session.add(Book(title="Emma"))
        scope = standalone_scope(runtime)
        assert scope is not None
        on_commit(scope, follow_up)

    assert seen == [["Emma"]]
    assert titles(engine) == ["Emma", "Persuasion"]


def test_error_in_events(runtime: Runtime, events: Events) -> None:
    """What left the block is told with its end."""
    error = ValueError()

    def work() -> None:
        with block(runtime) as session:
            session.add(Book(title="Emma"))
            raise error

    with pytest.raises(ValueError, match=r"^$"):
        work()

    completed = [event for event in events if isinstance(event, Completed)]
    assert [(event.outcome, event.error) for event in completed] == [(Outcome.ROLLED_BACK, error)]
    assert completed[0].duration > 0
