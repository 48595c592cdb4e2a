"""Write down what a UnitOfWork does, and say what a test expects of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from textwrap import shorten
from threading import RLock, get_ident
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

from flask_uow._core.changes import BulkChange, Change, ChangeSet
from flask_uow._core.events import (
    AfterCommit,
    AfterRollback,
    Completed,
    Connected,
    Event,
    HookRan,
    Removed,
    Sending,
    Started,
)
from flask_uow._core.faults import said
from flask_uow._core.options import name_of
from flask_uow._core.session import observe_all
from flask_uow._core.tracking import listen_to_writes
from flask_uow._core.transaction import Outcome, Transaction
from flask_uow.context import current_endpoint
from flask_uow.errors import ConfigurationError
from flask_uow.extension import UnitOfWork

__all__ = ["HookCall", "RecordedTransaction", "Recording", "record"]

_WANTED: Final = (AfterCommit, AfterRollback, Completed, Connected, HookRan, Removed, Sending, Started)

_TOLD_AT_MOST: Final = 10
"""Transactions or statements, in the message of an assertion."""

_WIDTH: Final = 120


class HookCall(NamedTuple):
    """A hook that was called."""

    moment: Literal["on_commit", "on_rollback"]
    callback: Callable[..., object]
    args: tuple[Any, ...]
    """Those that it was registered with."""

    kwargs: Mapping[str, Any]
    error: BaseException | None
    """What it raised."""

    @property
    def name(self) -> str:
        """The name of the function."""
        return name_of(self.callback)


@dataclass(frozen=True, slots=True)
class RecordedTransaction:
    """An outermost transaction that has ended."""

    id: str
    name: str
    outcome: Outcome
    error: BaseException | None
    """Why it was rolled back, if there was an error."""

    attempt: int
    """Which attempt at its block it was, from 1."""

    endpoint: str | None
    """That of the request, or None outside one."""

    duration: float
    """In seconds."""

    statements: Sequence[str]
    """What was sent, without what begins and ends transactions and savepoints."""

    hooks: Sequence[HookCall]
    """Those that were called, in order."""

    changes: ChangeSet
    """What it has changed; of one that was rolled back, what was lost."""


@dataclass(slots=True)
class _Draft:
    """A transaction that goes on."""

    endpoint: str | None
    statements: list[str] = field(default_factory=list)
    hooks: list[HookCall] = field(default_factory=list)
    changes: ChangeSet = field(default_factory=ChangeSet)


class Recording:
    """What `record` yields. It can be asked afterwards as well."""

    def __init__(self) -> None:
        self.transactions: list[RecordedTransaction] = []
        """The outermost transactions that have used the database and have ended, in the order in which they did."""

        self.statements: list[str] = []
        """All that was sent, in transactions and outside."""

        self.hooks: list[HookCall] = []
        """All hooks that were called."""

        self.connections = 0
        """How often a connection was used for a transaction, or outside any."""

        self._drafts: dict[Transaction, _Draft] = {}
        self._outside: dict[int, list[str]] = {}
        """What was sent outside a transaction, by thread: it belongs to one that is committed by hand later."""

        self._lock = RLock()

    @property
    def changes(self) -> list[Change | BulkChange]:
        """What all transactions have changed, one after the other, those included that were rolled back."""
        return [change for transaction in self.transactions for change in transaction.changes]

    # What is asserted

    def assert_committed(self, times: int = 1) -> None:
        """Raise an AssertionError unless exactly *times* transactions were committed, 1 by default."""
        __tracebackhide__ = True
        self._assert_outcome(Outcome.COMMITTED, times, "COMMIT")

    def assert_rolled_back(self, times: int = 1) -> None:
        """Raise an AssertionError unless exactly *times* transactions were rolled back, 1 by default."""
        __tracebackhide__ = True
        self._assert_outcome(Outcome.ROLLED_BACK, times, "ROLLBACK")

    def assert_no_database(self) -> None:
        """Raise an AssertionError if a connection was taken, or a statement sent."""
        __tracebackhide__ = True
        if self.connections or self.statements:
            raise AssertionError(
                "The database was not to be used, and it was: "
                f"{_counted(self.connections, 'connection')}, {_counted(len(self.statements), 'statement')}."
                f"{_listed(self.statements)}"
            )

    def _assert_outcome(self, outcome: Outcome, times: int, word: str) -> None:
        __tracebackhide__ = True
        if type(times) is not int or times < 0:
            raise ConfigurationError("times", f"is {times!r}; it must be a whole number, 0 or above.")
        count = sum(transaction.outcome is outcome for transaction in self.transactions)
        if count != times:
            raise AssertionError(f"{_counted(times, word)} expected, and {count} seen.{self._told()}")

    def _told(self) -> str:
        """Return what has happened instead, for a person to read."""
        if self.transactions:
            return f" These transactions have ended:{_listed(map(_line, self.transactions))}"
        if self.statements:
            return (
                " No transaction has ended, but statements were sent outside any. Is the request covered by a policy "
                f"(@transactional or UOW_AUTO_COMMIT)?{_listed(self.statements)}"
            )
        return " No transaction has ended, and the database was not used."

    # What happens

    def wants(self, kind: type[Event], /) -> bool:
        """Whether events of a kind are recorded."""
        return kind in _WANTED

    def __call__(self, event: Event, /) -> None:
        """Record *event*."""
        with self._lock:
            self._note(event)

    def _note(self, event: Event) -> None:
        match event:
            case Connected():
                self.connections += 1
            case Sending(transaction, _, statement):
                self.statements.append(statement.text)
                if transaction is None:
                    self._outside.setdefault(get_ident(), []).append(statement.text)
                else:
                    self._draft(transaction).statements.append(statement.text)
            case Started(transaction):
                sent = self._outside.pop(get_ident(), [])
                if transaction._has_begun:
                    self._draft(transaction).statements[:0] = sent
            case HookRan(transaction, hook, error):
                call = HookCall(hook.moment.value, hook.callback, hook.args, hook.kwargs, error)
                self.hooks.append(call)
                self._draft(transaction).hooks.append(call)
            case AfterCommit(transaction, changes) | AfterRollback(transaction, _, changes):
                self._draft(transaction).changes = changes
            case Completed(transaction, outcome, error, duration):
                self._end(transaction, outcome, error, duration)
            case _:
                self._outside.pop(get_ident(), None)

    def _draft(self, transaction: Transaction) -> _Draft:
        draft = self._drafts.get(transaction)
        if draft is None:
            draft = self._drafts[transaction] = _Draft(current_endpoint())
        return draft

    def _end(self, transaction: Transaction, outcome: Outcome, error: BaseException | None, duration: float) -> None:
        draft = self._draft(transaction)
        del self._drafts[transaction]
        self.transactions.append(
            RecordedTransaction(
                transaction.id,
                transaction.name,
                outcome,
                error,
                transaction.attempt,
                draft.endpoint,
                duration,
                draft.statements,
                draft.hooks,
                draft.changes,
            )
        )


def record(uow: UnitOfWork) -> _Record:
    """Return a context manager that yields a `Recording` of what *uow* does inside, in all threads.

    Args:
        uow: The UnitOfWork.

    Raises:
        ConfigurationError: Something else was given.
    """
    if not isinstance(uow, UnitOfWork):
        raise ConfigurationError("record()", f"was given {uow!r}; it takes one UnitOfWork: record(uow).")
    return _Record(uow)


class _Record:
    """The context manager."""

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._recordings: list[Recording] = []

    def __enter__(self) -> Recording:
        recording = Recording()
        self._recordings.append(recording)
        listen_to_writes()
        self._uow._observers.append(recording)
        observe_all()
        return recording

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._uow._observers.remove(self._recordings.pop())


def _line(transaction: RecordedTransaction) -> str:
    name = transaction.name.rpartition("<locals>.")[2]
    where = f" in {transaction.endpoint!r}" if transaction.endpoint else ""
    again = f", attempt {transaction.attempt}" if transaction.attempt > 1 else ""
    error = transaction.error
    why = f" ({type(error).__name__}: {shorten(said(error), _WIDTH)})" if error is not None else ""
    count = _counted(len(transaction.statements), "statement")
    return f"{name}{where}: {transaction.outcome.replace('_', ' ')}{again}, {count}{why}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _listed(lines: Iterable[str]) -> str:
    """Return lines of their own, some of them, and how many there are beside."""
    waiting: Iterator[str] = iter(lines)
    shown = "".join(f"\n  - {shorten(line, 2 * _WIDTH)}" for line in islice(waiting, _TOLD_AT_MOST))
    more = sum(1 for _ in waiting)
    return f"{shown}\n  - and {more} more" if more else shown
