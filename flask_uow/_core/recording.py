"""Who writes down what a transaction has changed, in the same transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Table

from flask_uow._core.changes import ChangeSet
from flask_uow._core.transaction import Transaction

__all__ = ["Recorder"]


class Recorder(Protocol):
    """Who writes down what a transaction has changed, in the same transaction."""

    def look(self, transaction: Transaction, /) -> Any:
        """Return what is to be known beside the changes.

        All is flushed, COMMIT is to come, and the session can be used. What it raises keeps the transaction from
        committing.
        """
        ...

    def write(self, changes: ChangeSet, seen: Any, connect: Callable[[Table], Connection], /) -> None:
        """Write down what was changed. COMMIT is next, and what this raises keeps it from being sent.

        Args:
            changes: What it has changed, all of it.
            seen: What `look` has returned.
            connect: Returns the connection of the transaction that a table is reached by.
        """

    def write_lost(
        self,
        transaction: Transaction,
        changes: ChangeSet,
        error: BaseException | None,
        bind: Callable[[Table], Engine | Connection],
        /,
    ) -> None:
        """Write down what was rolled back, in a transaction of its own. What it raises is logged.

        Args:
            transaction: The transaction.
            changes: What was lost.
            error: Why, if there was an error.
            bind: Returns what a table is reached by.
        """
