from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from flask_uow._core.block import standalone_scope
from flask_uow._core.options import Options
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.stream import Stream
from flask_uow._core.transaction import Outcome, Transaction
from flask_uow.errors import NoScopeError, UnexpectedRollbackError
from tests.core.conftest import Book, Events, block, make_runtime, on_commit, on_rollback, titles


def scope_of(runtime: Runtime) -> Scope:
    scope = standalone_scope(runtime)
    assert scope is not None
    return scope


def stream(runtime: Runtime, generator: object, **options: object) -> Stream[str]:
    return Stream(generator, lambda: (runtime, standalone_scope(runtime)), Options(**options), "the stream")  # type: ignore[arg-type]


def books(runtime: Runtime, *names: str) -> Iterator[str]:
    for name in names:
        scope_of(runtime).session.add(Book(title=name))
        scope_of(runtime).session.flush()
        yield name


def test_exhausted(runtime: Runtime, engine: Engine, events: Events) -> None:
    """A stream that is read to its end is committed, and has one session and one transaction for all of it."""
    sessions: list[Session] = []
    transactions: list[Transaction | None] = []

    def body() -> Iterator[str]:
        for name in ("Emma", "Persuasion"):
            scope = scope_of(runtime)
            sessions.append(scope.session)
            transactions.append(scope.current())
            scope.session.add(Book(title=name))
            on_commit(scope, sessions.clear)
            yield name

    items = list(stream(runtime, body()))

    assert items == ["Emma", "Persuasion"]
    assert titles(engine) == ["Emma", "Persuasion"]
    assert sessions == []
    assert transactions[0] is transactions[1]
    assert transactions[0] is not None
    assert transactions[0].outcome is Outcome.COMMITTED
    assert events.names == ["Started", "BeforeCommit", "AfterCommit", "Completed", "Removed"]


def test_nothing_is_current_between_two_items(runtime: Runtime, engine: Engine) -> None:
    """What is done between two items is no part of the stream, and the stream no part of it."""
    with block(runtime, "outer") as session:
        reading = stream(runtime, books(runtime, "Emma", "Persuasion"))
        scope = scope_of(runtime)
        outer = scope.current()

        for _ in reading:
            assert scope_of(runtime) is scope
            assert scope.current() is outer
            assert scope.session is session

    reading = stream(runtime, books(runtime, "Sanditon"))
    next(reading)
    assert standalone_scope(runtime) is None
    reading.close()
    assert titles(engine) == ["Emma", "Persuasion"]


def test_closed_early(runtime: Runtime, engine: Engine, events: Events) -> None:
    """A stream that is closed before its end is rolled back, its finally clauses run in it, and it is over."""
    seen: list[object] = []

    def body() -> Iterator[str]:
        on_rollback(scope_of(runtime), seen.append)
        try:
            yield from books(runtime, "Emma", "Persuasion")
        finally:
            seen.append(scope_of(runtime).current() is not None)

    reading = stream(runtime, body())
    next(reading)

    reading.close()
    reading.close()

    assert seen == [True, None]
    assert list(reading) == []
    assert titles(engine) == []
    assert events.names == ["Started", "AfterRollback", "Completed", "Removed"]


def test_closed_before_its_first_item(runtime: Runtime, events: Events) -> None:
    """A stream that nobody reads does nothing."""
    reading = stream(runtime, books(runtime, "Emma"))

    reading.close()

    assert list(reading) == []
    assert events == []


def test_forgotten(runtime: Runtime, engine: Engine) -> None:
    """A stream that nobody closes gives its connection back when it is no longer referred to."""
    reading = stream(runtime, books(runtime, "Emma", "Persuasion"))
    next(reading)

    del reading
    gc.collect()

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts
    assert titles(engine) == []


def test_forgotten_and_failing(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong then is logged, for there is nobody to raise it to."""

    def body() -> Iterator[str]:
        try:
            yield "Emma"
        finally:
            raise LookupError("no end")

    reading = stream(runtime, body())
    next(reading)

    del reading
    gc.collect()

    assert caplog.messages == ["Closing the stream, which nobody had closed, failed"]


def test_failing(runtime: Runtime, engine: Engine) -> None:
    """What the body raises rolls back, goes on, and ends the stream."""
    seen: list[BaseException | None] = []

    def body() -> Iterator[str]:
        on_rollback(scope_of(runtime), seen.append)
        yield from books(runtime, "Emma")
        raise LookupError

    reading = stream(runtime, body())

    with pytest.raises(LookupError) as caught:
        list(reading)

    assert seen == [caught.value]
    assert list(reading) == []
    assert titles(engine) == []


def test_failing_and_kept(runtime: Runtime, engine: Engine) -> None:
    """A stream has the options of a block, such as exceptions that do not roll back."""

    def body() -> Iterator[str]:
        yield from books(runtime, "Emma")
        raise LookupError

    with pytest.raises(LookupError):
        list(stream(runtime, body(), no_rollback_for=(LookupError,)))

    assert titles(engine) == ["Emma"]


def test_failing_to_commit(runtime: Runtime, engine: Engine) -> None:
    """A COMMIT that cannot be is raised where the last item would end."""

    def body() -> Iterator[str]:
        yield from books(runtime, "Emma")
        with pytest.raises(LookupError), block(runtime, "inner"):
            raise LookupError

    reading = stream(runtime, body())
    next(reading)

    with pytest.raises(UnexpectedRollbackError, match="The work of the stream"):
        next(reading)

    assert titles(engine) == []


def test_commit_by_hand_where_that_is_allowed(runtime: Runtime, engine: Engine) -> None:
    """With manual_commit="allow" a stream can store as it goes."""

    def body() -> Iterator[str]:
        for name in books(runtime, "Emma", "Persuasion"):
            scope_of(runtime).session.commit()
            yield name

    reading = stream(runtime, body(), manual_commit="allow")
    next(reading)
    next(reading)
    reading.close()

    assert titles(engine) == ["Emma", "Persuasion"]


def test_reading_itself(runtime: Runtime) -> None:
    """A body that reads its own stream is told so by Python, and not hung."""
    reading: Stream[str]

    def body() -> Iterator[str]:
        yield next(reading)

    reading = stream(runtime, body())

    with pytest.raises(ValueError, match="generator already executing"):
        next(reading)


def test_stream_in_a_stream(runtime: Runtime, engine: Engine) -> None:
    """Streams read each other, each in a transaction of its own."""

    def body() -> Iterator[str]:
        transaction = scope_of(runtime).current()
        for name in stream(runtime, books(runtime, "Emma", "Persuasion")):
            assert scope_of(runtime).current() is transaction
            yield name
        raise LookupError

    with pytest.raises(LookupError):
        list(stream(runtime, body()))

    assert titles(engine) == ["Emma", "Persuasion"]


def test_its_surroundings_are_gone(engine: Engine) -> None:
    """A stream outlives the place in which it was made."""
    runtime = make_runtime(engine)
    gone: list[bool] = []

    def home() -> tuple[Runtime, Scope | None]:
        if gone:
            raise NoScopeError("the session", "the context has been popped.")
        return runtime, None

    reading: Stream[str] = Stream(books(runtime, "Emma"), home, Options(), "the stream")  # type: ignore[arg-type] # books() is a generator
    gone.append(True)

    assert list(reading) == ["Emma"]
    assert titles(engine) == ["Emma"]


def test_ended_from_outside(runtime: Runtime, engine: Engine) -> None:
    """A stream whose scope is closed under it does not end as if its work were stored."""

    def body() -> Iterator[str]:
        yield from books(runtime, "Emma")
        scope_of(runtime).close()

    with pytest.raises(UnexpectedRollbackError, match="ended from outside"):
        list(stream(runtime, body()))

    assert titles(engine) == []
