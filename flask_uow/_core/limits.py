"""How long a statement may take, on the server's side, where that can be set."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from math import ceil, inf
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, Dialect

from flask_uow._core.pool import put_back_later, send

__all__ = ["Limit", "limit_of"]


class Limit:
    """How long a statement may take. By itself it knows no server, and what is asked before each statement is all."""

    def apply(self, connection: Connection, seconds: float | None) -> None:
        """Give the next statement *seconds*, or what it would have without us."""

    def after_rollback(self) -> Limit:
        """Return the limit that holds after a savepoint was rolled back."""
        return self


class _ServerLimit(Limit, ABC):
    """A setting of the server that holds for each statement. One of the user's that is shorter stays."""

    def __init__(self) -> None:
        self._original: float | None = None
        """In seconds; 0 is none. None is not known."""

        self._current: float | None = None

    def apply(self, connection: Connection, seconds: float | None) -> None:
        if self._original is None:
            self._original = self._current = self._read(connection)
        wanted = self._original if seconds is None else min(seconds, self._original or inf)
        if self._current is None or not _is_near(wanted, self._current):
            self._write(connection, wanted)
            self._current = wanted

    def after_rollback(self) -> Limit:
        self._current = None
        return self

    @abstractmethod
    def _read(self, connection: Connection) -> float:
        """Return the setting, in seconds."""

    @abstractmethod
    def _write(self, connection: Connection, seconds: float) -> None:
        """Send the setting."""


def _is_near(wanted: float, current: float) -> bool:
    """Whether a setting can stay as it is. Sending another costs as much time as a statement does."""
    return wanted == current or (wanted > 0 and 0 <= current - wanted <= max(0.005, wanted / 100))


class _PostgreSQLLimit(_ServerLimit):
    """``statement_timeout``, set for the transaction alone.

    See "Client Connection Defaults" in PostgreSQL's documentation.
    """

    def _read(self, connection: Connection) -> float:
        # SHOW is no query, after which SET TRANSACTION would be too late. It answers with a unit, such as 5min.
        shown = re.fullmatch(r"(\d+)(\D*)", connection.exec_driver_sql("SHOW statement_timeout").scalar_one())
        assert shown is not None
        return int(shown[1]) * _UNITS[shown[2]]

    def _write(self, connection: Connection, seconds: float) -> None:
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {min(ceil(seconds * 1000), _LONGEST_MS)}")


_UNITS: Final = {"": 0.001, "ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_LONGEST_MS: Final = 2**31 - 1
_LONGEST_S: Final = 31_536_000
"""What the servers take at most: 24 days, and a year."""


class _MariaDBLimit(_ServerLimit):
    """``max_statement_time``, which MySQL has not. It is the session's, and is put back."""

    def _read(self, connection: Connection) -> float:
        original = float(connection.exec_driver_sql("SELECT @@max_statement_time").scalar_one())
        put_back_later(connection, lambda dbapi: send(dbapi, f"SET max_statement_time = {original}"))
        return original

    def _write(self, connection: Connection, seconds: float) -> None:
        connection.exec_driver_sql(f"SET max_statement_time = {min(ceil(seconds * 1000) / 1000, _LONGEST_S)}")


class _SQLiteLimit(Limit):
    """The busy timeout for locks, and a progress handler for the rest."""

    _INSTRUCTIONS: Final = 1000
    """Of SQLite's virtual machine, between two looks at the clock; some 10 µs."""

    def __init__(self) -> None:
        self._patience: int | None = None
        self._end = inf

    def apply(self, connection: Connection, seconds: float | None) -> None:
        driver: Any = connection.connection.driver_connection
        patience = self._patience
        if patience is None:
            patience = self._patience = driver.execute("PRAGMA busy_timeout").fetchone()[0]
            driver.set_progress_handler(self._is_over, self._INSTRUCTIONS)

            def put_back(dbapi: Any) -> None:
                dbapi.set_progress_handler(None, 0)
                dbapi.execute(f"PRAGMA busy_timeout = {patience}")

            put_back_later(connection, put_back)
        self._end = inf if seconds is None else monotonic() + seconds
        wanted = patience if seconds is None else min(patience, ceil(seconds * 1000))
        driver.execute(f"PRAGMA busy_timeout = {wanted}")

    def _is_over(self) -> bool:
        return monotonic() >= self._end


def limit_of(dialect: Dialect) -> Limit:
    if dialect.name == "sqlite":
        return _SQLiteLimit()
    if dialect.name == "postgresql":
        return _PostgreSQLLimit()
    if getattr(dialect, "is_mariadb", False):
        return _MariaDBLimit()
    return Limit()
