"""What the tests of the core share: a database file, a model, a listener, and short ways to the core's objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from datetime import datetime
from inspect import signature
from pathlib import Path
from typing import Any, Unpack

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from flask_uow._core.block import Block, standalone_scope
from flask_uow._core.events import (
    AfterCommit,
    AfterRollback,
    BeforeCommit,
    Committing,
    Connected,
    Event,
    HookRan,
    Notify,
    Observer,
    Sending,
)
from flask_uow._core.hooks import Hook, Moment
from flask_uow._core.options import ManualCommit, Options, TransactionOptions, check_options
from flask_uow._core.policy import Decision, Judge, no_opinion
from flask_uow._core.propagation import Propagation
from flask_uow._core.runtime import HookErrors, Plan, Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource

COMMIT, ROLLBACK = Decision.COMMIT, Decision.ROLLBACK
NESTED = Propagation.NESTED

REQUEST = Plan(Options(), "the request to 'index'", by_block=False)
VIEW = Plan(Options(), "index()", by_block=True)


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT max(i) FROM n"
"""A query that takes SQLite longer than any test."""


class Base(DeclarativeBase):
    pass


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    printed: Mapped[datetime | None]


class Events(list[Event]):
    """Listens to everything, and keeps it."""

    observers: Collection[Observer] = ()
    audience: Mapping[type[Event], Collection[Any]] = defaultdict(lambda: ("somebody",))

    def wants(self, kind: type[Event], /) -> bool:
        return kind not in (Connected, Sending, Committing, HookRan)

    def __call__(self, event: Event, /) -> None:
        self.append(event)

    def wants_changes(self) -> bool:
        return any(map(self.wants, (BeforeCommit, AfterCommit, AfterRollback)))

    def has_listeners(self) -> bool:
        return True

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self]


class Reacting(Events):
    """Also calls a function with each event, as a receiver of a signal would."""

    def __init__(self, react: Callable[[Event], None]) -> None:
        super().__init__()
        self._react = react

    def __call__(self, event: Event, /) -> None:
        super().__call__(event)
        self._react(event)


class Deaf:
    """Wants nothing, and is told nothing."""

    observers: Collection[Observer] = ()
    audience: Mapping[type[Event], Collection[Any]] = defaultdict(tuple)

    def wants(self, kind: type[Event], /) -> bool:
        return False

    def wants_changes(self) -> bool:
        return False

    def has_listeners(self) -> bool:
        return False

    def __call__(self, event: Event, /) -> None:
        raise AssertionError(event)


def fail() -> None:
    raise ConnectionError("no mail today")


def give_back(session: Session) -> None:
    session.close()


def source_of(engine: Engine) -> SessionSource:
    return SessionSource(sessionmaker(engine), give_back)


def make_runtime(
    source: Engine | SessionSource,
    notify: Notify | None = None,
    *,
    judge: Judge = no_opinion,
    manual_commit: ManualCommit = "error",
    hook_errors: HookErrors = "raise",
    strict: bool = True,
) -> Runtime:
    return Runtime(
        source_of(source) if isinstance(source, Engine) else source,
        Deaf() if notify is None else notify,
        judge,
        manual_commit,
        lambda: hook_errors,
        strict=strict,
    )


def block(home: Runtime | Scope, label: str = "the block", **options: Unpack[TransactionOptions]) -> Block:
    """A block in a scope, or, given a runtime, one that finds or makes its own."""
    checked = check_options(options, decorator=False)
    if isinstance(home, Scope):
        return Block(lambda: (home.runtime, home), checked, label)
    return Block(lambda: (home, standalone_scope(home)), checked, label)


def on_commit(
    scope: Scope, callback: Callable[..., object], *args: Any, key: Hashable = None, run_if_inactive: bool = False
) -> None:
    scope.add_hook(Hook(Moment.COMMIT, callback, args, {}, key), run_if_inactive=run_if_inactive)


def on_rollback(
    scope: Scope, callback: Callable[..., object], *args: Any, key: Hashable = None, run_if_inactive: bool = False
) -> None:
    scope.add_hook(Hook(Moment.ROLLBACK, callback, args, {}, key), run_if_inactive=run_if_inactive)


def titles(engine: Engine) -> list[str]:
    """What is stored, seen from another connection."""
    with Session(engine) as session:
        return list(session.scalars(select(Book.title).order_by(Book.title)))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'books.db'}")
    Base.metadata.create_all(engine)
    yield engine
    # No test may leave a connection behind.
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts
    engine.dispose()


@pytest.fixture
def events() -> Events:
    return Events()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let tests that do not look at the events run without listeners, too: a plain transaction is tacit then."""
    if "runtime" in metafunc.fixturenames and "notify" not in vars(metafunc.module):
        kinds = [Events] if "events" in signature(metafunc.function).parameters else [Events, Deaf]
        metafunc.parametrize("notify", kinds, ids=lambda kind: kind.__name__.lower(), indirect=True)


@pytest.fixture
def notify(request: pytest.FixtureRequest, events: Events) -> Notify:
    return events if request.param is Events else Deaf()


@pytest.fixture
def runtime(engine: Engine, notify: Notify) -> Runtime:
    return make_runtime(engine, notify)


@pytest.fixture
def scope(runtime: Runtime) -> Iterator[Scope]:
    scope = Scope(runtime)
    yield scope
    scope.close()
