"""Blocks that take the place of another: what happens to the one that is suspended, whatever happens to them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow._core.block import standalone_scope
from flask_uow._core.propagation import Propagation
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource
from flask_uow.errors import (
    ConfigurationError,
    NoScopeError,
    TransactionForbiddenError,
    TransactionRequiredError,
    UnexpectedRollbackError,
)
from tests.core.conftest import COMMIT, VIEW, Book, Events, block, give_back, make_runtime, on_commit, titles

REQUIRES_NEW, NOT_SUPPORTED = Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED
NEVER, SUPPORTS, MANDATORY = Propagation.NEVER, Propagation.SUPPORTS, Propagation.MANDATORY


def test_the_inner_block_is_told_by_itself(runtime: Runtime, engine: Engine, events: Events) -> None:
    """A transaction of its own has its own events, and its session is closed at its end."""
    with block(runtime, "outer") as outer:
        with block(runtime, "inner", propagation=REQUIRES_NEW) as inner:
            inner.add(Book(title="inner"))
        names = events.names
        outer.add(Book(title="outer"))

    assert names == ["Started", "Started", "BeforeCommit", "AfterCommit", "Completed", "Removed"]
    assert events.names == [*names, "BeforeCommit", "AfterCommit", "Completed", "Removed"]
    assert titles(engine) == ["inner", "outer"]


@pytest.mark.parametrize("mode", [REQUIRES_NEW, NOT_SUPPORTED])
@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt, GeneratorExit])
def test_restored_whatever_happens(runtime: Runtime, mode: Propagation, error: type[BaseException]) -> None:
    """The outer transaction is current again after whatever left the block."""
    with block(runtime) as session:
        scope = standalone_scope(runtime)
        with pytest.raises(error), block(runtime, propagation=mode):
            assert standalone_scope(runtime) is not scope
            raise error
        assert standalone_scope(runtime) is scope
        assert scope is not None
        assert scope.session is session


def test_restored_when_its_session_cannot_be_opened(engine: Engine) -> None:
    """A block whose session cannot even be made leaves the outer transaction as it was."""
    sessions: list[Session] = [sessionmaker(engine)()]

    def open_session() -> Session:
        if not sessions:
            raise OSError("no more sessions")
        return sessions.pop()

    runtime = make_runtime(SessionSource(open_session, give_back))

    with block(runtime) as session:
        with pytest.raises(OSError, match="no more"), block(runtime, propagation=REQUIRES_NEW):
            pytest.fail("the body ran")
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


def test_restored_when_its_begin_fails(engine: Engine, tmp_path: Path) -> None:
    """A BEGIN that fails is an error of the inner block alone."""
    broken = create_engine(f"sqlite:///{tmp_path / 'missing' / 'books.db'}")
    engines = [broken, engine]
    runtime = make_runtime(SessionSource(lambda: Session(engines.pop()), give_back))

    with block(runtime) as session:
        with pytest.raises(OperationalError), block(runtime, propagation=REQUIRES_NEW) as inner:
            inner.execute(text("SELECT 1"))
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]
    broken.dispose()


def test_suspended_in_turn(runtime: Runtime, engine: Engine) -> None:
    """A suspending block can be suspended, and each gets its place back."""
    found: list[Session] = []

    def current() -> Session:
        scope = standalone_scope(runtime)
        assert scope is not None
        return scope.session

    with block(runtime) as first:
        with block(runtime, propagation=REQUIRES_NEW) as second:
            with block(runtime, propagation=NOT_SUPPORTED):
                with block(runtime, propagation=REQUIRES_NEW) as third:
                    third.add(Book(title="third"))
                found.append(current())
            found.append(current())
            second.add(Book(title="second"))
        found.append(current())

    assert found[1:] == [second, first]
    assert found[0] is third
    assert titles(engine) == ["second", "third"]


def test_hooks_stay_with_their_transaction(runtime: Runtime) -> None:
    """A hook belongs to the transaction in which it was registered."""
    ran: list[str] = []

    def note(name: str) -> None:
        scope = standalone_scope(runtime)
        assert scope is not None
        on_commit(scope, ran.append, name)

    with block(runtime):
        note("outer")
        with block(runtime, propagation=REQUIRES_NEW):
            note("inner")
        assert ran == ["inner"]
        with block(runtime, propagation=NOT_SUPPORTED), pytest.raises(TransactionRequiredError):
            note("nowhere")

    assert ran == ["inner", "outer"]


def test_modes_that_run_without(runtime: Runtime, engine: Engine) -> None:
    """Outside any transaction they have a session of their own, which is closed and stores nothing by itself."""
    for mode in (SUPPORTS, NOT_SUPPORTED, NEVER):
        with block(runtime, propagation=mode) as session:
            scope = standalone_scope(runtime)
            assert scope is not None
            assert scope.current() is None
            session.add(Book(title=f"lost {mode.name}"))
            session.flush()
        assert standalone_scope(runtime) is None
        with block(runtime, propagation=mode) as session:
            session.add(Book(title=mode.name))
            session.commit()

    assert titles(engine) == ["NEVER", "NOT_SUPPORTED", "SUPPORTS"]


def test_a_block_in_one_that_runs_without(runtime: Runtime, engine: Engine) -> None:
    """Where no transaction is, a block begins one, in the session that is there."""
    with block(runtime, propagation=NEVER) as session:
        with block(runtime) as joined:
            assert joined is session
            joined.add(Book(title="kept"))
        with pytest.raises(TransactionRequiredError), block(runtime, propagation=MANDATORY):
            pytest.fail("the body ran")

    assert titles(engine) == ["kept"]


def test_never_in_a_transaction(runtime: Runtime, engine: Engine) -> None:
    """NEVER is refused before its body, and the transaction goes on."""
    with block(runtime, "order") as session:
        with (
            pytest.raises(TransactionForbiddenError, match="that of order is active"),
            block(runtime, propagation=NEVER),
        ):
            pytest.fail("the body ran")
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


# Blocks that are not left as they should


def begin(runtime: Runtime) -> Iterator[None]:
    """A block that is never left as long as somebody holds this."""
    with block(runtime, "the forgotten block", propagation=REQUIRES_NEW) as session:
        session.add(Book(title="forgotten"))
        session.flush()
        yield


def test_never_left(runtime: Runtime, engine: Engine) -> None:
    """A suspending block that is never left is rolled back, and its surroundings are not told to be whole."""
    with pytest.raises(UnexpectedRollbackError, match="the forgotten block inside it was never left"), block(runtime):
        forgotten = begin(runtime)
        next(forgotten)

    assert titles(engine) == []
    with pytest.raises(UnexpectedRollbackError, match="ended from outside"):
        next(forgotten)


def test_never_left_at_teardown(runtime: Runtime, engine: Engine) -> None:
    """So it is when its context ends."""
    scope = Scope(runtime, VIEW)

    with ExitStack() as blocks:
        session = blocks.enter_context(block(scope, propagation=REQUIRES_NEW))
        session.add(Book(title="forgotten"))
        session.flush()
        scope.close()
        with pytest.raises(NoScopeError):
            _ = scope.session
        blocks.pop_all()

    assert titles(engine) == []


def test_left_in_the_wrong_order(runtime: Runtime, engine: Engine) -> None:
    """A block that is left before one inside it takes that one with it, which does not end as if it were stored."""
    with block(runtime) as outer:
        first = block(runtime, "first", propagation=REQUIRES_NEW)
        first.__enter__()
        second = block(runtime, "second", propagation=REQUIRES_NEW)
        inner = second.__enter__()
        inner.add(Book(title="lost"))
        inner.flush()

        with pytest.raises(UnexpectedRollbackError, match="second inside it was never left"):
            first.__exit__(None, None, None)
        with pytest.raises(UnexpectedRollbackError, match="ended from outside"):
            second.__exit__(None, None, None)

        scope = standalone_scope(runtime)
        assert scope is not None
        assert scope.session is outer
        outer.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


def test_settled_while_suspended(runtime: Runtime, engine: Engine) -> None:
    """A request that ends while a block of its own is suspending it is not told to be whole either."""
    scope = Scope(runtime, VIEW)
    scope.session.add(Book(title="lost"))
    forgotten = block(scope, "forgotten", propagation=REQUIRES_NEW)
    forgotten.__enter__()

    with pytest.raises(UnexpectedRollbackError, match="forgotten inside it was never left"):
        scope.settle(COMMIT, None, None)

    scope.close()
    assert titles(engine) == []


# Sessions with several engines


def test_a_session_that_has_not_chosen_its_engine(engine: Engine) -> None:
    """A session with several engines can be suspended before it has used any of them."""
    runtime = make_runtime(SessionSource(sessionmaker(binds={Book: engine}), give_back))

    with block(runtime) as outer:
        with block(runtime, propagation=REQUIRES_NEW) as inner:
            inner.add(Book(title="inner"))
        outer.add(Book(title="outer"))

    assert titles(engine) == ["inner", "outer"]


def test_a_session_that_is_bound_in_part(engine: Engine) -> None:
    """A session that has used a Connection of its maker's is not suspended."""
    with engine.connect() as connection:
        runtime = make_runtime(SessionSource(sessionmaker(binds={Book: connection}), give_back))
        with block(runtime) as session:
            session.add(Book(title="kept"))
            session.flush()
            with (
                pytest.raises(ConfigurationError, match="bound to one Connection"),
                block(runtime, propagation=REQUIRES_NEW),
            ):
                pytest.fail("the body ran")

    assert titles(engine) == ["kept"]


def test_no_connection_outside_any_transaction(tmp_path: Path) -> None:
    """Where there is no transaction, an engine that cannot connect says so, and nothing is doomed."""
    broken = create_engine("sqlite://", creator=lambda: sqlite3.connect(tmp_path / "missing" / "books.db"))
    runtime = make_runtime(broken)

    with block(runtime, propagation=NEVER) as session, pytest.raises(OperationalError, match="unable to open"):
        session.execute(text("SELECT 1"))
