"""One transaction: what it is called, how it stands, and what keeps it from committing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import SessionTransaction

from flask_uow._core.changes import ChangeSet
from flask_uow._core.connection import Savepoints
from flask_uow._core.deadline import Deadline
from flask_uow._core.fate import Ticket
from flask_uow._core.hooks import Hook, Hooks
from flask_uow._core.options import Options
from flask_uow._core.retry import Attempts
from flask_uow._core.tracking import Span
from flask_uow.errors import ConfigurationError

__all__ = [
    "Doom",
    "Joined",
    "Outcome",
    "State",
    "Transaction",
    "deadline_of",
    "ended_past_us",
    "outside_any_block",
]


class Outcome(StrEnum):
    """How a transaction ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"


class State(StrEnum):
    """How a transaction stands."""

    ACTIVE = "active"
    DOOMED = "doomed"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """A block that has joined a transaction and is running."""

    label: str
    options: Options
    deadline: Deadline | None
    savepoint: SessionTransaction | None = None
    """The innermost savepoint at its beginning; one of the user's own can be rolled back, and the block with it."""

    within: Savepoints = frozenset()
    """Those around it, if the innermost was made of a connection."""


@dataclass(frozen=True, slots=True)
class Doom:
    """Why a transaction can no longer commit, although nobody asked for a rollback."""

    reason: str
    error: BaseException | None
    within: Savepoints = frozenset()
    """Savepoints that the user has made of a connection: the rollback of any of them makes everything well."""

    @property
    def is_final(self) -> bool:
        """Whether no database can be asked what it makes of the error."""
        return isinstance(self.error, ConfigurationError)


def ended_past_us() -> Doom:
    """Return what dooms a transaction whose session was ended without a word to us."""
    return Doom("its session was ended past flask_uow, and what became of its work is not known", None)


def deadline_of(options: Options, label: str) -> Deadline | None:
    """Return when a block that begins now is to be done, if it has a timeout."""
    return None if options.timeout is None else Deadline.after(options.timeout, label)


class Transaction:
    """One unit of work, kept whole or not at all: an outermost transaction, or a savepoint in one.

    It is made by flask_uow alone, and met as ``uow.current_transaction`` and in signals. It holds no session, and can
    be kept after its end.
    """

    # What most transactions never ask for is said once, in the class. The rest is given to each: before Python 3.13,
    # to read an attribute from the class of an object costs ten times as much as from the object.

    attempt: int = 1
    """Which attempt at its block this is, from 1."""

    will_retry: bool = False
    """Whether another attempt follows this one. It is known when it is rolled back, and hooks and receivers run."""

    _mark: int = 0
    """Where its own begin among the hooks."""

    _ticket: Ticket | None = None
    """By which its database can be asked what became of its COMMIT."""

    _session: int | None = None
    """The server's number of its session, if somebody can find out what became of its COMMIT."""

    _sent_at: float = 0.0
    """When COMMIT was sent, in seconds since the epoch."""

    _successor: Transaction | None = None
    _id: str | None = None
    _info: dict[Any, Any] | None = None

    def __init__(
        self, options: Options, label: str, parent: Transaction | None = None, *, by_block: bool = True
    ) -> None:
        self._options = options
        self._label = label
        self._by_block = by_block
        self.parent = parent
        """The enclosing transaction of a savepoint, or None."""

        self.isolation_level = options.isolation_level
        """Its isolation level, or None for the engine's own."""

        self.read_only = options.read_only or False
        """Whether it may not write."""

        self._hooks: Hooks | None = None
        """Of an outermost one, those of its savepoints included, once there are any."""

        self._blocks: tuple[Joined, ...] = ()
        """The blocks that have joined it and are running, the innermost last."""

        self._deadline = deadline_of(options, label)
        self._doom: Doom | None = None
        self._curable: Doom | None = None
        """One that goes with a savepoint that the user has made of a connection, when that is rolled back."""

        self._suspects: dict[Connection, DBAPIError] | None = None
        """Errors that were left to the database, which may have given the transaction up."""

        self._rollback_only = self._released = False
        self._outcome: Outcome | None = None
        self._savepoint: SessionTransaction | None = None
        self._root: SessionTransaction | None = None
        """The session's own transaction, since it began, so that an end that passed us by is noticed."""

        self._attempts: Attempts | None = None
        """Those of which it is one, where there can be another."""

        self._has_begun = False
        """Whether anything may have been sent in it."""

        self._is_prelude = False
        """Whether it has begun before the view that can be run again, and what it writes there would be lost."""

        self._span: Span | None = None
        """What it has changed, if anybody wants to know."""

        self._started: float | None = None
        self._stored = False
        """Whether a COMMIT of it has returned."""

        if parent is not None:
            self.isolation_level = parent.isolation_level
            self.read_only = self.read_only or parent.read_only
            self.attempt = parent.attempt
            self._mark = parent._mark_hooks()
            if parent._span is not None:
                self._span = parent._span.nested()

    def __bool__(self) -> bool:
        """Be true, so that ``if current_transaction:`` asks whether there is one."""
        return True

    def __repr__(self) -> str:
        return f"<Transaction {self.id} of {self._label}, {self.outcome or self.state}>"

    @property
    def id(self) -> str:
        """A unique name: 32 hexadecimal digits."""
        if self._id is None:
            self._id = uuid4().hex
        return self._id

    @property
    def name(self) -> str:
        """The option *name*, or what flask_uow calls the block, such as the name of the decorated function."""
        return self._options.name or self._label

    @property
    def _outermost(self) -> Transaction:
        """The transaction that a savepoint is in, or itself."""
        outermost = self
        while outermost.parent is not None:
            outermost = outermost.parent
        return outermost

    def _add_hook(self, hook: Hook) -> None:
        outermost = self._outermost
        if outermost._hooks is None:
            outermost._hooks = Hooks()
        outermost._hooks.add(hook)

    def _mark_hooks(self) -> int:
        """Return a mark for `_drop_hooks_since`."""
        hooks = self._outermost._hooks
        return 0 if hooks is None else hooks.mark()

    def _drop_hooks_since(self, mark: int) -> Hooks | None:
        """Take out the hooks of what is rolled back, and return them, if there are any."""
        hooks = self._outermost._hooks
        return None if hooks is None else hooks.drop_since(mark)

    @property
    def _is_default_level(self) -> bool:
        """Whether its isolation level is the setting's, and not the block's own."""
        return self._options.isolation_level is None

    @property
    def depth(self) -> int:
        """0 for an outermost transaction, 1 for a savepoint in it, and so on."""
        return 0 if self.parent is None else self.parent.depth + 1

    @property
    def state(self) -> State:
        """Active, doomed or completed."""
        if self._outcome is not None or self._released:
            return State.COMPLETED
        return State.ACTIVE if self._doom is None and self._curable is None else State.DOOMED

    @property
    def _must_roll_back(self) -> bool:
        """Whether its work is not to be kept, or cannot be."""
        if self._doom is None and self._curable is None:
            return self._rollback_only
        return self._rollback_only or self.state is State.DOOMED

    @property
    def outcome(self) -> Outcome | None:
        """How it ended, or None before its end. A released savepoint ends as its parent does."""
        if self._released and self.parent is not None:
            return self.parent.outcome
        return self._outcome

    @property
    def info(self) -> dict[Any, Any]:
        """A dict of the user's, for what subscribers and hooks want to know."""
        if self._info is None:
            self._info = {}
        return self._info

    @property
    def changes(self) -> ChangeSet:
        """What has been written in it so far, by flushes and by statements, and not been rolled back: the net change.

        It is followed if somebody listens to `before_commit`, `after_commit` or `after_rollback` when the transaction
        begins, or if there is an audit trail. Otherwise it is empty, and its ``is_complete`` is false.
        """
        if self._span is not None:
            return self._span.changes()
        return ChangeSet(is_complete=not self._outermost._has_begun)

    def set_rollback_only(self) -> None:
        """Let this transaction roll back when it ends.

        In the block that began it this is quiet: the block's result is kept, its work is not. In a block that has
        joined it, it dooms the transaction: the block that began it raises `UnexpectedRollbackError`, for it did not
        ask for a rollback.
        """
        if self._blocks:
            self._doom_by(Doom(f"{self._blocks[-1].label}, which had joined it, called set_rollback_only()", None))
        else:
            self._rollback_only = True

    @property
    def _latest(self) -> Transaction:
        """The one that its block is in now, after it was settled by hand; itself, where it was not."""
        transaction = self
        while transaction._successor is not None:
            transaction = transaction._successor
        return transaction

    def _deadlines(self) -> Iterator[Deadline]:
        """Yield the deadlines that hold in it; a block that has joined it can have a closer one."""
        if self._deadline is not None:
            yield self._deadline
        for block in self._blocks:
            if block.deadline is not None:
                yield block.deadline

    def _take_attempts(self) -> Attempts | None:
        """Let it end by hand, which its block goes on after, and be no attempt any more."""
        attempts, self._attempts = self._attempts, None
        return attempts

    def _caught(self) -> Iterator[BaseException]:
        """Yield the errors that keep it from committing, or may, and were caught."""
        for doom in (self._doom, self._curable):
            if doom is not None and doom.error is not None:
                yield doom.error
        yield from (self._suspects or {}).values()

    def _doom_by(self, doom: Doom) -> None:
        """Make a commit impossible. The first reason stays, but that an error tells more than none."""
        if self._outcome is not None:
            return
        if doom.within:
            self._curable = self._curable or doom
        elif self._doom is None or (self._doom.error is None and doom.error is not None):
            self._doom = doom

    def _duration(self) -> float:
        """Seconds since it began."""
        return 0.0 if self._started is None else perf_counter() - self._started


def outside_any_block() -> Transaction:
    """Return what stands for a transaction that a session has begun by itself, and somebody ends by hand."""
    return Transaction(Options(), "a session outside any block", by_block=False)
