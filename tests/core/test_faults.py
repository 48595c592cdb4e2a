from __future__ import annotations

import sqlite3

import psycopg.errors
import pymysql
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from flask_uow._core.faults import ends_the_transaction, is_out_of_time, is_read_only


class Psycopg2Error(Exception):
    """An error as psycopg2 has it, with its code in another place."""

    pgcode = "57014"


def of_sqlite(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    return error


def wrapped(original: BaseException | None, *, lost: bool = False) -> DBAPIError:
    return DBAPIError("SELECT 1", {}, original, connection_invalidated=lost)  # type: ignore[arg-type] # without one, too


@pytest.mark.parametrize(
    ("original", "found"),
    [
        (psycopg.errors.QueryCanceled("no"), "time"),
        (psycopg.errors.ReadOnlySqlTransaction("no"), "read"),
        (psycopg.errors.UniqueViolation("no"), ""),
        (Psycopg2Error("no"), "time"),
        (pymysql.err.OperationalError(1205, "no"), "time"),
        (pymysql.err.OperationalError(1969, "no"), "time"),
        (pymysql.err.OperationalError(3024, "no"), "time"),
        (pymysql.err.InternalError(1792, "no"), "read"),
        (pymysql.err.OperationalError(1213, "no"), "end"),
        (pymysql.err.OperationalError(1020, "no"), "end"),
        (pymysql.err.IntegrityError(1062, "no"), ""),
        (of_sqlite(sqlite3.SQLITE_BUSY), "time"),
        (of_sqlite(sqlite3.SQLITE_BUSY_SNAPSHOT), "time"),
        (of_sqlite(sqlite3.SQLITE_INTERRUPT), "time"),
        (of_sqlite(sqlite3.SQLITE_READONLY), "read"),
        (of_sqlite(sqlite3.SQLITE_CONSTRAINT_UNIQUE), ""),
        (ValueError("no"), ""),
        (ValueError(), ""),
        (None, ""),
    ],
)
def test_meaning(engine: Engine, original: BaseException | None, found: str) -> None:
    """An error is known by its code, wherever its driver keeps it."""
    error = wrapped(original)

    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        ends = ends_the_transaction(error, connection)
    told = [("time", is_out_of_time(error)), ("read", is_read_only(error)), ("end", ends)]

    assert [name for name, holds in told if holds] == ([found] if found else [])


def test_a_lost_connection_ends_the_transaction(engine: Engine) -> None:
    """What came before is gone with the connection, whatever the code."""
    with engine.connect() as connection:
        assert ends_the_transaction(wrapped(OSError("gone"), lost=True), connection)
        connection.invalidate()
        assert ends_the_transaction(wrapped(ValueError()), connection)


def test_sqlite_knows_by_itself(engine: Engine) -> None:
    """SQLite's driver knows whether it is in a transaction still."""
    with engine.connect() as connection:
        assert ends_the_transaction(wrapped(of_sqlite(sqlite3.SQLITE_CONSTRAINT_UNIQUE)), connection)
