"""What a transaction tells the outside, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.orm import Session

from flask_uow._core.changes import ChangeSet
from flask_uow._core.transaction import Outcome, Transaction

__all__ = [
    "AfterCommit",
    "AfterRollback",
    "BeforeCommit",
    "Completed",
    "Event",
    "Notify",
    "Removed",
    "Retried",
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


Event = Started | BeforeCommit | AfterCommit | AfterRollback | Retried | Completed | Removed


class Notify(Protocol):
    """Whom a transaction tells."""

    def wants(self, kind: type[Event], /) -> bool:
        """Whether anybody listens, so that nothing is made for nobody."""
        ...

    def __call__(self, event: Event, /) -> None:
        """Pass *event* on. What it raises for `BeforeCommit` is a veto; it raises for nothing else."""
