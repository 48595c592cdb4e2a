"""Tell from an error of the database what it means."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = ["ends_the_transaction", "is_locked", "is_out_of_time", "is_read_only"]

Code = str | int

_OUT_OF_TIME: Final = frozenset[Code](
    {
        "57014",  # PostgreSQL, query_canceled: statement_timeout
        1205,  # MySQL and MariaDB, ER_LOCK_WAIT_TIMEOUT
        1969,  # MariaDB, ER_STATEMENT_TIMEOUT: max_statement_time
        3024,  # MySQL, ER_QUERY_TIMEOUT
        5,  # SQLITE_BUSY: busy_timeout
        9,  # SQLITE_INTERRUPT: the progress handler
    }
)

_READ_ONLY: Final = frozenset[Code](
    {
        "25006",  # PostgreSQL, MySQL and MariaDB, read_only_sql_transaction
        1792,  # MySQL and MariaDB, ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION, with a driver that has no SQLSTATE
        8,  # SQLITE_READONLY: query_only
    }
)

_ENDS_THE_TRANSACTION: Final = frozenset[Code](
    {
        1213,  # MySQL and MariaDB, ER_LOCK_DEADLOCK
        1020,  # MariaDB, ER_CHECKREAD, with innodb_snapshot_isolation
    }
)


def is_out_of_time(error: DBAPIError) -> bool:
    """Whether a statement was stopped, or did not get its lock, because its time was up."""
    return not _OUT_OF_TIME.isdisjoint(_codes(error))


def is_locked(error: DBAPIError) -> bool:
    """Whether SQLite had no lock to give. It has one for the whole database."""
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_read_only(error: DBAPIError) -> bool:
    """Whether a statement was refused because its transaction is read-only."""
    return not _READ_ONLY.isdisjoint(_codes(error))


def ends_the_transaction(error: DBAPIError, connection: Connection) -> bool:
    """Whether the database has rolled back the whole transaction, so that what follows would be a second half.

    SQLite can, for example at ON CONFLICT ROLLBACK, and its driver knows. PostgreSQL does not begin a second half.
    """
    if error.connection_invalidated or connection.invalidated:
        return True
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection) and not driver.in_transaction:
        return True
    return not _ENDS_THE_TRANSACTION.isdisjoint(_codes(error))


def _codes(error: DBAPIError) -> Iterator[Code]:
    """Yield the codes of an error, wherever its driver keeps them.

    psycopg has a SQLSTATE in ``sqlstate``, psycopg2 in ``pgcode``, and sqlite3 a number in ``sqlite_errorcode``. The
    drivers for MySQL and MariaDB have a number as their first argument, and PyMySQL has a SQLSTATE as well.
    """
    original = error.orig
    for name in ("sqlstate", "pgcode"):
        code = getattr(original, name, None)
        if isinstance(code, str):
            yield code
    extended = getattr(original, "sqlite_errorcode", None)
    if isinstance(extended, int):
        # The lower byte is the primary result code: https://sqlite.org/rescode.html
        yield extended & 0xFF
    elif original is not None and original.args and isinstance(original.args[0], int):
        yield original.args[0]
