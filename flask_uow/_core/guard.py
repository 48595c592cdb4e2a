"""What a transaction may send, and what keeps it from committing: caught errors, deadlines, read-only."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from itertools import islice
from textwrap import shorten
from time import monotonic
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import SessionTransaction

from flask_uow._core.connection import Savepoints
from flask_uow._core.deadline import Deadline
from flask_uow._core.faults import ends_the_transaction, is_locked, is_out_of_time, is_read_only
from flask_uow._core.hooks import Hooks
from flask_uow._core.runtime import Plan, Runtime
from flask_uow._core.session import Mark, WatchedSession, listen_to_flushes, unsaved
from flask_uow._core.transaction import Doom, State, Transaction
from flask_uow.errors import (
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnitOfWorkError,
)

__all__ = ["Guard", "brief", "caught"]

_NAMED_AT_MOST: Final = 5
"""Objects, in the message of an error."""


class Guard(ABC):
    """The transactions of one context, the innermost last, and their session: what may be sent still."""

    # A scope is made for each request. Its classes declare what they need, and `Scope` gives it to all of them at once.

    _runtime: Runtime
    _stack: list[Transaction]
    _watched: WatchedSession | None

    restricted: bool
    """Whether a transaction on the stack is doomed, or has a deadline, so that statements are looked at."""

    _marks: dict[tuple[Connection, str], Mark]
    """Where what goes with them begins, of savepoints that the user has made of a connection."""

    _suspended: str | None
    """The transaction that is suspended meanwhile, if its place was taken."""

    _tacit: Plan | None
    """By which a transaction has begun that nobody has asked more of than its session, so that there is no object."""

    _opened_at: float | None
    """When its session was asked for, if it was."""

    @property
    def runtime(self) -> Runtime:
        """What it needs from outside."""
        return self._runtime

    @abstractmethod
    def _come_forward(self) -> Transaction:
        """Return the outermost transaction. One that was there tacitly is made."""

    @property
    def _outermost(self) -> Transaction | None:
        """The outermost transaction, if there is any. One that was there tacitly comes forward."""
        if self._tacit is not None:
            return self._come_forward()
        return self._stack[0] if self._stack else None

    def _in_transaction(self) -> bool:
        return self._watched is not None and self._watched.session._transaction is not None

    # Before a statement

    def before_statement(self) -> float | None:
        """Return how many seconds the next statement has, or None for no limit.

        Raises:
            TransactionDoomedError: It would be a part of work that can only be rolled back.
            TransactionTimeoutError: There is no time left.
        """
        self.refuse_if_doomed()
        return self._seconds_left()

    def refuse_if_doomed(self) -> None:
        """Raise if an error was caught in the transaction, and not in a savepoint that was rolled back since.

        Raises:
            TransactionDoomedError: It was.
        """
        spoilt = None if self._watched is None else self._watched.spoilt_by()
        if spoilt is not None:
            reason, error = spoilt
            raise TransactionDoomedError("a savepoint", caught(reason)) from error
        for transaction in reversed(self._stack):
            for doom in (transaction._doom, transaction._curable):
                # Not strict, the database decides. It does not know of a connection that is no good for a transaction.
                if doom is not None and doom.error is not None and (self._runtime.strict or doom.is_final):
                    raise TransactionDoomedError(transaction._label, caught(doom.reason)) from doom.error

    def _seconds_left(self) -> float | None:
        deadline = self.nearest_deadline()
        if deadline is None:
            return None
        if deadline.is_over:
            raise self.out_of_time(deadline)
        return deadline.at - monotonic()

    def nearest_deadline(self) -> Deadline | None:
        """Return the deadline that is up first, of all that hold."""
        deadlines = (deadline for transaction in self._stack for deadline in transaction._deadlines())
        return min(deadlines, key=lambda deadline: deadline.at, default=None)

    def out_of_time(self, deadline: Deadline) -> TransactionTimeoutError:
        """Doom the innermost transaction, and return what to raise."""
        error = TransactionTimeoutError(deadline.label, deadline.seconds)
        self.doom(self._stack[-1], f"{deadline.label} has used up its timeout of {deadline.seconds:g} s", error)
        return error

    def check_time(self, deadline: Deadline | None) -> None:
        """Raise if it is too late to keep the work of a block.

        Raises:
            TransactionTimeoutError: It is.
        """
        if deadline is not None and deadline.is_over and self._in_transaction():
            raise self.out_of_time(deadline)

    def relax(self) -> None:
        """Give what goes on the time that it has, now that a block that had less is over."""
        if self._watched is not None and self._stack[-1].state is State.ACTIVE:
            self._watched.relax(self._seconds_left())

    def doom(
        self,
        transaction: Transaction,
        reason: str,
        error: BaseException | None,
        within: Savepoints = frozenset(),
    ) -> None:
        """Make a commit of *transaction* impossible, but for a rollback of one of the savepoints *within* it."""
        transaction._doom_by(Doom(reason, error, within))
        self._restrict()
        if within and self._watched is not None:
            self._watched.follow()

    def _restrict(self) -> None:
        """Look at each statement before it is sent."""
        self.restricted = True
        listen_to_flushes()
        if self._watched is not None:
            self._watched.restrict()

    def rolled_back(self, connection: Connection, savepoint: str) -> None:
        """Forget what went wrong, and the hooks, in a savepoint that the user has made of a connection."""
        for transaction in self._stack:
            if transaction._curable is not None and (connection, savepoint) in transaction._curable.within:
                transaction._curable = None
        mark = self._marks.pop((connection, savepoint), None)
        if mark is not None:
            self.savepoint_rolled_back(mark)

    def savepoint_rolled_back(self, mark: Mark) -> None:
        """Forget the changes made since, drop the hooks registered since, and run those of a rollback."""
        hooks, changes = mark
        self._forget_changes(changes)
        if self._stack:
            self._undo_hooks(self._stack[-1], self._stack[-1]._drop_hooks_since(hooks), sys.exception())

    def _mark(self) -> Mark:
        """Return a mark for `savepoint_rolled_back`."""
        record = None if self._watched is None else self._watched.record
        return self._stack[-1]._mark_hooks() if self._stack else 0, 0 if record is None else record.mark()

    def _forget_changes(self, mark: int) -> None:
        if self._watched is not None and self._watched.record is not None:
            self._watched.record.forget_since(mark)

    @abstractmethod
    def _undo_hooks(self, transaction: Transaction, hooks: Hooks | None, error: BaseException | None) -> None:
        """Run the hooks of a rollback; those of a commit are forgotten."""

    def read_only_error(self, statement: str) -> ReadOnlyTransactionError:
        """Return what to raise for a statement that would write in a read-only transaction."""
        return ReadOnlyTransactionError(self._stack[0]._label, (f"the statement {shorten(statement, 80)}",))

    # What went wrong

    def statement_failed(self, error: DBAPIError, connection: Connection) -> Exception | None:
        """Doom the innermost transaction; inside a savepoint of the user's own, that savepoint alone."""
        if self._outermost is None or self._watched is None:
            return None
        better = self._better(error)
        ended = ends_the_transaction(error, connection)
        if ended:
            # With its savepoints: what follows would tell less, such as that one of them does not exist.
            for transaction in self._stack:
                self.doom(transaction, f"the database has rolled it back ({brief(error)})", better or error)
        if self._runtime.strict or better is not None or ended:
            first = better or error
            within = self._watched.within_own_savepoint(connection)
            self._failed(f"the database refused a statement ({brief(first)})", first, within)
        else:
            self._stack[0]._suspects = {connection: error, **(self._stack[0]._suspects or {})}
        return better

    def _better(self, error: DBAPIError) -> Exception | None:
        """Return an error that says what we know of it and the database does not."""
        transaction = self._stack[-1]
        if transaction.read_only and is_read_only(error):
            return self.read_only_error(error.statement or "that was sent")
        if is_locked(error) and (suspended := self._suspended) is not None:
            error.add_detail(
                f"The suspended transaction of {suspended} may hold the lock, and SQLite has one for the database. "
                "Put the block before its first statement."
            )
        deadline = self.nearest_deadline() if self.restricted and is_out_of_time(error) else None
        return self.out_of_time(deadline) if deadline is not None and deadline.is_over else None

    def _failed(self, reason: str, error: Exception, within: Savepoints = frozenset()) -> None:
        savepoint = None if within else self._own_savepoint()
        self._spoil_or_doom(savepoint, self._stack[-1], reason, error, within)

    def _spoil_or_doom(
        self,
        savepoint: SessionTransaction | None,
        transaction: Transaction,
        reason: str,
        error: BaseException,
        within: Savepoints,
    ) -> None:
        """Keep *savepoint*, one of the user's own, from being released, or *transaction* from committing."""
        if savepoint is None or self._watched is None:
            self.doom(transaction, reason, error, within)
        else:
            self._watched.spoil(savepoint, reason, error)
            self._restrict()

    def savepoint_lost(self, error: BaseException) -> None:
        """Doom every transaction: MySQL and MariaDB undo all of them at a deadlock, the savepoints included."""
        for transaction in self._stack if self._outermost is not None else ():
            self.doom(transaction, f"the database has rolled back more than a savepoint ({brief(error)})", error)

    def flush_called(self) -> None:
        """Refuse to write in a transaction that is read-only or doomed, or has no time left.

        Raises:
            ReadOnlyTransactionError: There is something to write.
            TransactionDoomedError: It would be a part of work that can only be rolled back.
            TransactionTimeoutError: There is no time left.
        """
        if self.restricted:
            self.before_statement()
        if not self._stack or not self._stack[-1].read_only or self._watched is None:
            return
        changes = unsaved(self._watched.session)
        objects = list(islice(changes, _NAMED_AT_MOST))
        if objects:
            if more := sum(1 for _ in changes):
                objects.append(f"{more} more")
            raise ReadOnlyTransactionError(self._stack[0]._label, objects)

    def _own_savepoint(self) -> SessionTransaction | None:
        """Return the innermost savepoint, if the user has begun it, and no block."""
        savepoint = None if self._watched is None else self._watched.session.get_nested_transaction()
        return None if not self._stack or savepoint is self._stack[-1]._savepoint else savepoint


def caught(reason: str) -> str:
    return f"{reason}, and the error was caught"


def brief(error: BaseException) -> str:
    """Return what an error is; one of ours says too much for a place in another's message."""
    text = "" if isinstance(error, UnitOfWorkError) else str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
