"""What a transaction tells the outside, as values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from flask_uow._core.changes import ChangeSet
from flask_uow._core.connection import Statement
from flask_uow._core.hooks import Hook
from flask_uow._core.transaction import Outcome, Transaction

__all__ = [
    "AfterCommit",
    "AfterRollback",
    "BeforeCommit",
    "Committing",
    "Completed",
    "Connected",
    "Event",
    "HookRan",
    "Notify",
    "Observer",
    "Removed",
    "Retried",
    "Sending",
    "Started",
]


@dataclass(frozen=True, slots=True)
class Started:
    """An outermost transaction began."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class BeforeCommit:
    """The session is flushed and COMMIT is next. Raising is a veto."""

    transaction: Transaction
    session: Session
    changes: ChangeSet


@dataclass(frozen=True, slots=True)
class AfterCommit:
    """COMMIT has returned."""

    transaction: Transaction
    changes: ChangeSet


@dataclass(frozen=True, slots=True)
class AfterRollback:
    """The work is undone. *changes* are what was lost."""

    transaction: Transaction
    error: BaseException | None
    changes: ChangeSet


@dataclass(frozen=True, slots=True)
class Retried:
    """An attempt failed, and another follows. *delay* is in seconds."""

    transaction: Transaction
    error: BaseException | None
    attempt: int
    delay: float


@dataclass(frozen=True, slots=True)
class Completed:
    """Always last, once per transaction, and so per attempt. *duration* is in seconds."""

    transaction: Transaction
    outcome: Outcome
    error: BaseException | None
    duration: float


@dataclass(frozen=True, slots=True)
class Removed:
    """A session was closed for good."""

    session: Session


# What follows is for tests alone, and no signal.


@dataclass(frozen=True, slots=True)
class Connected:
    """A session has begun on a connection; *transaction* is None outside any."""

    transaction: Transaction | None
    connection: Connection


@dataclass(frozen=True, slots=True)
class Sending:
    """A statement is about to be sent. What is raised is raised in its place."""

    transaction: Transaction | None
    connection: Connection
    statement: Statement


@dataclass(frozen=True, slots=True)
class Committing:
    """COMMIT is about to be sent over a connection. What is raised is raised in its place."""

    transaction: Transaction | None
    connection: Connection


@dataclass(frozen=True, slots=True)
class HookRan:
    """A hook was called, and *error* is what it raised. *transaction* is the outermost one."""

    transaction: Transaction
    hook: Hook
    error: BaseException | None


Event = (
    Started
    | BeforeCommit
    | AfterCommit
    | AfterRollback
    | Retried
    | Completed
    | Removed
    | Connected
    | Sending
    | Committing
    | HookRan
)


class Observer(Protocol):
    """Whom something is told."""

    def wants(self, kind: type[Event], /) -> bool:
        """Whether anybody listens, so that nothing is made for nobody."""
        ...

    def __call__(self, event: Event, /) -> None:
        """Pass *event* on.

        What it raises for `BeforeCommit` is a veto, and for `Sending` and `Committing` in place of what the database
        would answer; it raises for nothing else.
        """


class Notify(Observer, Protocol):
    """Whom a transaction tells."""

    @property
    def audience(self) -> Mapping[type[Event], Collection[Any]]:
        """Who may listen to an event, by its class. Where nobody does, nothing more is asked, as with observers."""
        ...

    @property
    def observers(self) -> Collection[Observer]:
        """Who is told of more than signals have: tests. Where there are none, nothing of that is looked at."""
        ...

    def wants_changes(self) -> bool:
        """Whether anybody listens to an event that has changes."""
        ...

    def has_listeners(self) -> bool:
        """Whether anybody may listen to anything now. It is asked for each transaction, and at its end."""
        ...
