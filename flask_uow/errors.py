"""Every error that a user of flask_uow can meet.

::

    UnitOfWorkError
    ├── ConfigurationError (also ValueError)
    ├── NoScopeError (also RuntimeError)
    ├── TransactionRequiredError
    ├── TransactionForbiddenError
    ├── IncompatibleTransactionError
    ├── ManualTransactionControlError
    ├── ReadOnlyTransactionError
    ├── TransactionDoomedError
    ├── UnexpectedRollbackError
    ├── TransactionTimeoutError
    ├── CommitOutcomeUnknownError
    ├── PartialCommitError
    ├── UncommittedChangesError
    └── HookError (also ExceptionGroup)

Each one carries its data as attributes, survives pickling, and says what happened, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Self

__all__ = [
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "HookError",
    "IncompatibleTransactionError",
    "ManualTransactionControlError",
    "NoScopeError",
    "PartialCommitError",
    "ReadOnlyTransactionError",
    "TransactionDoomedError",
    "TransactionForbiddenError",
    "TransactionRequiredError",
    "TransactionTimeoutError",
    "UncommittedChangesError",
    "UnexpectedRollbackError",
    "UnitOfWorkError",
]


class UnitOfWorkError(Exception):
    """The base of every error that flask_uow raises on purpose."""


class ConfigurationError(UnitOfWorkError, ValueError):
    """A setting, an option or an argument cannot be what was meant.

    Args:
        name: The setting, option or argument at fault, as the user wrote it.
        problem: What is wrong with it, and what is allowed.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.name} {self.problem}"


class NoScopeError(UnitOfWorkError, RuntimeError):
    """There is no place in which a session could live.

    Args:
        wanted: What was asked for.
        advice: Why it is not there, and what to do.
    """

    def __init__(self, wanted: str, advice: str) -> None:
        super().__init__(wanted, advice)
        self.wanted = wanted
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.wanted} is not available here: {self.advice}"


class TransactionRequiredError(UnitOfWorkError):
    """Something that needs an active transaction was used without one.

    Args:
        wanted_by: What needs the transaction.
    """

    def __init__(self, wanted_by: str) -> None:
        super().__init__(wanted_by)
        self.wanted_by = wanted_by

    def __str__(self) -> str:
        return (
            f"{self.wanted_by} needs an active transaction, and there is none. Call it in a view "
            "under UOW_AUTO_COMMIT, in a function decorated with @transactional, or inside "
            "'with uow.transaction():'."
        )


class TransactionForbiddenError(UnitOfWorkError):
    """A transaction is active where none may be.

    Args:
        wanted_by: What must run without one.
        transaction: The transaction that is active.
    """

    def __init__(self, wanted_by: str, transaction: str) -> None:
        super().__init__(wanted_by, transaction)
        self.wanted_by = wanted_by
        self.transaction = transaction

    def __str__(self) -> str:
        return (
            f"{self.wanted_by} must not run inside a transaction (Propagation.NEVER), and that of {self.transaction} "
            "is active. Register it with on_commit() to run it afterwards, or use Propagation.NOT_SUPPORTED, which "
            "suspends the transaction meanwhile."
        )


class IncompatibleTransactionError(UnitOfWorkError):
    """A block asks for what the transaction that it would be a part of cannot give any more.

    Nothing was done, and the transaction is as it was.

    Args:
        block: The block that asks.
        option: What it asks for, such as ``"isolation_level='SERIALIZABLE'"``.
        problem: Why it cannot have that, and what to do.
    """

    def __init__(self, block: str, option: str, problem: str) -> None:
        super().__init__(block, option, problem)
        self.block = block
        self.option = option
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.block} asks for {self.option}, but {self.problem}"


_INSTEAD: Final = {
    "commit": (
        ", or use session.flush() to send the statements now, uow.savepoint() for a part that may fail alone, or "
        'manual_commit="flush" for code that you cannot change'
    ),
    "rollback": ", and raise, or use uow.set_rollback_only(), or uow.savepoint() for a part that may fail alone",
    "close": ", and 'with session:', which closes it too; the session is closed with its context",
    "reset": "; session.expunge_all() forgets what was loaded",
    "begin": "; uow.savepoint() and session.begin_nested() begin a part that may fail alone",
}


class ManualTransactionControlError(UnitOfWorkError):
    """``session.commit()`` and its kin were called inside a block that settles by itself.

    The call was not carried out, and the transaction is as it was.

    Args:
        method: The method of the session, such as ``"commit"``.
        block: The block that owns the transaction.
    """

    def __init__(self, method: str, block: str) -> None:
        super().__init__(method, block)
        self.method = method
        self.block = block

    def __str__(self) -> str:
        return (
            f"session.{self.method}() was called inside {self.block}, and would break its transaction in two. The "
            f"block keeps its work when it ends and undoes it when it raises: remove the call{_INSTEAD[self.method]}."
        )


class ReadOnlyTransactionError(UnitOfWorkError):
    """Something was to be written in a read-only transaction. Nothing was.

    Args:
        transaction: The transaction.
        objects: What was to be written: objects by class and primary key, or the statement that was refused.
    """

    def __init__(self, transaction: str, objects: Sequence[str]) -> None:
        super().__init__(transaction, tuple(objects))
        self.transaction = transaction
        self.objects = tuple(objects)

    def __str__(self) -> str:
        return (
            f"The transaction of {self.transaction} is read-only, and was to write {', '.join(self.objects)}. Leave "
            "the change out, or give the block that begins the transaction read_only=False."
        )


class TransactionDoomedError(UnitOfWorkError):
    """A statement came after an error that was caught. It was not sent.

    The transaction cannot commit any more, whatever becomes of the statement. ``__cause__`` is the first error.

    Args:
        transaction: The transaction.
        reason: What has doomed it.
    """

    def __init__(self, transaction: str, reason: str) -> None:
        super().__init__(transaction, reason)
        self.transaction = transaction
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The transaction of {self.transaction} can only be rolled back, because {self.reason}. Nothing more is "
            "sent to the database. Let errors go on to the block that they end. A part that may fail alone goes into "
            "uow.savepoint() (propagation=Propagation.NESTED), and the 'try' goes around that."
        )


class TransactionTimeoutError(UnitOfWorkError):
    """A transaction has used up its time.

    Args:
        transaction: The transaction.
        timeout: What it was given, in seconds.
    """

    def __init__(self, transaction: str, timeout: float) -> None:
        super().__init__(transaction, timeout)
        self.transaction = transaction
        self.timeout = timeout

    def __str__(self) -> str:
        return (
            f"The transaction of {self.transaction} was not done after {self.timeout:g} s, its timeout. Nothing of it "
            "is stored. Give it more time, do less in it, or move slow work that needs no database out of it."
        )


class UnexpectedRollbackError(UnitOfWorkError):
    """A transaction that was about to commit had to be rolled back.

    Something inside it failed, and the failure was caught before it reached the block that commits. Committing would
    have kept one half of the work. ``__cause__`` is the first error, where there was one.

    Args:
        transaction: The transaction that was rolled back.
        reason: What made it impossible to commit.
    """

    def __init__(self, transaction: str, reason: str) -> None:
        super().__init__(transaction, reason)
        self.transaction = transaction
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"{self.transaction} was rolled back instead of committed, because {self.reason}. Let errors go on to the "
            "block that they end. A part that may fail alone goes into uow.savepoint() "
            "(propagation=Propagation.NESTED), and the 'try' goes around that."
        )


class CommitOutcomeUnknownError(UnitOfWorkError):
    """The answer to a COMMIT was lost: its work is stored, or it is not.

    No hooks were run, and nothing is tried again. ``__cause__`` is the driver's error.

    Args:
        transaction: The transaction.
        transaction_id: Its ``id``, as receivers of signals have seen it.
        database: The URL of its database, without the password.
        xact_id: PostgreSQL's id of the transaction, if it was asked for before COMMIT, or None.
        sent_at: When COMMIT was sent, in ISO 8601, UTC.
        reason: Why the outcome could not be learnt.
    """

    def __init__(  # noqa: PLR0917 - pickling passes by position
        self,
        transaction: str,
        transaction_id: str,
        database: str,
        xact_id: str | None,
        sent_at: str,
        reason: str,
    ) -> None:
        super().__init__(transaction, transaction_id, database, xact_id, sent_at, reason)
        self.transaction = transaction
        self.transaction_id = transaction_id
        self.database = database
        self.xact_id = xact_id
        self.sent_at = sent_at
        self.reason = reason

    def __str__(self) -> str:
        ask = (
            f"ask PostgreSQL: SELECT pg_xact_status('{self.xact_id}')"
            if self.xact_id is not None
            else "look for its rows, or into the server's log"
        )
        return (
            f"The answer to the COMMIT of {self.transaction} was lost, and {self.reason}. Its work is stored, or it is "
            f"not: before it is done again, {ask}. It was sent at {self.sent_at} to {self.database}, for the "
            f"transaction {self.transaction_id}."
        )


class PartialCommitError(UnitOfWorkError):
    """One database committed, and another could not.

    They are several UnitOfWork objects of one request, or several engines of one session.

    Args:
        committed: The names of those that committed, in order.
        failed: The name of the one that failed. ``__cause__`` says why.
    """

    def __init__(self, committed: Sequence[str], failed: str) -> None:
        super().__init__(tuple(committed), failed)
        self.committed = tuple(committed)
        self.failed = failed

    def __str__(self) -> str:
        done = ", ".join(repr(name) for name in self.committed)
        return (
            f"{self.failed!r} failed to commit after {done} had committed; that work is stored and cannot be taken "
            "back. Put work that must stand or fall together into one database, or give one session twophase=True "
            "where the databases can do that; of several UnitOfWork objects, initialise first the one that is most "
            "likely to fail."
        )


class UncommittedChangesError(UnitOfWorkError):
    """A session came to its end with changes that nobody had settled. They are rolled back.

    Args:
        endpoint: The endpoint of the request, or None outside requests.
        objects: What is lost, in words.
        more: How much else is, which is not named.
        block: The block whose session it was, where that is not the request's.
    """

    def __init__(self, endpoint: str | None, objects: Sequence[str], more: int = 0, block: str | None = None) -> None:
        super().__init__(endpoint, objects, more, block)
        self.endpoint = endpoint
        self.objects = tuple(objects)
        self.more = more
        self.block = block

    def __str__(self) -> str:
        if self.block is not None:
            where = f"The session of {self.block}"
        elif self.endpoint is not None:
            where = f"The request to {self.endpoint!r}"
        else:
            where = "A context outside any request"
        named = self.objects[:_MOST_NAMED]
        more = self.more + len(self.objects) - len(named)
        lost = ", ".join(named) + (f" and {more} more" if more else "")
        return (
            f"{where} ended with changes that nobody has committed, and they are rolled back: {lost}. To keep them, "
            "let a policy commit (UOW_AUTO_COMMIT or @transactional), or call session.commit(). If they are not meant "
            "to be kept, call session.rollback(). The setting UOW_UNCOMMITTED says whether this is told."
        )


_MOST_NAMED: Final = 5
"""Changes, in a message."""


class HookError(ExceptionGroup[Exception], UnitOfWorkError):
    """Hooks failed. All of them were run; what they raised is inside.

    Args:
        message: What happened.
        exceptions: What the hooks raised, in the order in which they ran.
        committed: Whether the work is stored. It is for ``on_commit`` hooks, so do not send it again.
    """

    committed: bool

    def __new__(cls, message: str, exceptions: Sequence[Exception], committed: bool = True) -> Self:  # noqa: D102, FBT001, FBT002 - pickling passes by position
        self = super().__new__(cls, message, exceptions)
        self.committed = committed
        return self

    def __init__(self, message: str, exceptions: Sequence[Exception], committed: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002 - as above; __new__ has used it
        super().__init__(message, exceptions)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with *committed*, and with notes."""
        return type(self), (self.message, self.exceptions, self.committed), vars(self)

    def derive(self, excs: Sequence[Exception], /) -> HookError:  # type: ignore[override] # split() and subgroup() of a HookError hold Exceptions only
        """Keep *committed* when the group is split."""
        return HookError(self.message, excs, self.committed)
