"""Tell from an error of the database what it means: one table, by code, for every driver."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

__all__ = [
    "Fault",
    "asks_for_another_attempt",
    "ends_the_transaction",
    "fault_of",
    "is_locked",
    "is_out_of_time",
    "is_read_only",
    "said",
    "was_answered",
]


class Fault(Enum):
    """What an error of the database means."""

    SERIALIZATION_FAILURE = "serialization failure"
    """The transaction would not fit into any order of those beside it."""

    DEADLOCK = "deadlock"
    LOCK_TIMEOUT = "lock timeout"
    STATEMENT_TIMEOUT = "statement timeout"
    READ_ONLY = "read only"
    CONSTRAINT = "constraint"
    DISCONNECT = "disconnect"
    UNKNOWN = "unknown"


class _Family(Enum):
    """Who has given a code, for the numbers of one mean something else to another."""

    SQLSTATE = "SQLSTATE"
    MYSQL = "MySQL and MariaDB"
    SQLITE = "SQLite"
    ORACLE = "Oracle"
    SQL_SERVER = "SQL Server"


_Code = tuple[_Family, str | int]


def _rows(family: _Family, faults: Mapping[Fault, tuple[str | int, ...]]) -> dict[_Code, Fault]:
    return {(family, code): fault for fault, codes in faults.items() for code in codes}


_TABLE: Final[Mapping[_Code, Fault]] = {
    # PostgreSQL, appendix A, "PostgreSQL Error Codes". A class of two characters stands for the rest of it.
    **_rows(
        _Family.SQLSTATE,
        {
            Fault.SERIALIZATION_FAILURE: ("40001",),
            Fault.DEADLOCK: ("40P01",),
            Fault.LOCK_TIMEOUT: ("55P03",),
            # HYT00 is of ODBC, for the driver's own timeout.
            Fault.STATEMENT_TIMEOUT: ("57014", "HYT00"),
            Fault.READ_ONLY: ("25006",),
            Fault.CONSTRAINT: ("23",),
            # 25P03 and 25P04 end the session, and 57P01 to 57P05 are a shutdown, a crash, or an end by an operator.
            Fault.DISCONNECT: ("08", "25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05"),
        },
    ),
    # MySQL 8.4, "Server Error Message Reference" and "Client Error Message Reference"; MariaDB, "Error Codes".
    **_rows(
        _Family.MYSQL,
        {
            # ER_CHECKREAD: MariaDB with innodb_snapshot_isolation.
            Fault.SERIALIZATION_FAILURE: (1020,),
            # ER_LOCK_DEADLOCK, ER_XA_RBDEADLOCK.
            Fault.DEADLOCK: (1213, 1614),
            # ER_LOCK_WAIT_TIMEOUT, ER_LOCK_NOWAIT.
            Fault.LOCK_TIMEOUT: (1205, 3572),
            # ER_STATEMENT_TIMEOUT of MariaDB, ER_QUERY_TIMEOUT of MySQL.
            Fault.STATEMENT_TIMEOUT: (1969, 3024),
            # ER_CANT_EXECUTE_IN_READ_ONLY_TRANSACTION.
            Fault.READ_ONLY: (1792,),
            Fault.CONSTRAINT: (1022, 1048, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 3819, 4025),
            # ER_SERVER_SHUTDOWN, ER_CONNECTION_KILLED, ER_CLIENT_INTERACTION_TIMEOUT, and CR_* of the client.
            Fault.DISCONNECT: (1053, 1927, 4031, 2002, 2003, 2006, 2013, 2014, 2045, 2055),
        },
    ),
    # https://sqlite.org/rescode.html: an extended code, or else the primary one, its lowest byte.
    **_rows(
        _Family.SQLITE,
        {
            Fault.SERIALIZATION_FAILURE: (sqlite3.SQLITE_BUSY_SNAPSHOT,),
            Fault.LOCK_TIMEOUT: (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
            Fault.STATEMENT_TIMEOUT: (sqlite3.SQLITE_INTERRUPT,),
            Fault.READ_ONLY: (sqlite3.SQLITE_READONLY,),
            Fault.CONSTRAINT: (sqlite3.SQLITE_CONSTRAINT,),
        },
    ),
    # Oracle Database Error Messages, ORA-; and DPY-, which oracledb says by itself, or in place of several ORA-.
    **_rows(
        _Family.ORACLE,
        {
            Fault.SERIALIZATION_FAILURE: (8177,),
            Fault.DEADLOCK: (60,),
            Fault.LOCK_TIMEOUT: (54, 30006),
            Fault.STATEMENT_TIMEOUT: (1013, "DPY-4024"),
            Fault.READ_ONLY: (1456,),
            Fault.CONSTRAINT: (1, 1400, 1407, 2290, 2291, 2292),
            Fault.DISCONNECT: (
                *(28, 1012, 1033, 1034, 1089, 1092, 2396, 3113, 3114, 3135, 12537, 12541, 12547, 12571),
                *("DPY-1001", "DPY-4011", "DPY-6005"),
            ),
        },
    ),
    # SQL Server, sys.messages; 413xx are of memory-optimized tables. 20xxx are DB-Library's, and the rest Windows's.
    **_rows(
        _Family.SQL_SERVER,
        {
            Fault.SERIALIZATION_FAILURE: (3960, 41301, 41302, 41305, 41325, 41839),
            Fault.DEADLOCK: (1205,),
            Fault.LOCK_TIMEOUT: (1222,),
            Fault.READ_ONLY: (3906,),
            Fault.CONSTRAINT: (515, 547, 2601, 2627),
            Fault.DISCONNECT: (64, 233, 6005, 10053, 10054, 10060, 20003, 20004, 20006, 20017, 20047),
        },
    ),
}

_FAMILIES: Final[Mapping[str, _Family]] = {
    # "_mysql_connector" is mysql.connector's library in C, whose error is the cause of that one's.
    **dict.fromkeys(("pymysql", "MySQLdb", "mariadb", "mysql", "_mysql_connector", "asyncmy"), _Family.MYSQL),
    **dict.fromkeys(("oracledb", "cx_Oracle"), _Family.ORACLE),
    **dict.fromkeys(("pymssql", "pyodbc"), _Family.SQL_SERVER),
}
"""By the package of a driver, those whose numbers are not found by the name of an attribute."""

_NOT_ANSWERED: Final = frozenset({"40003", "08007"})
"""statement_completion_unknown and transaction_resolution_unknown."""

_ENDED_IDLE: Final = "25P03"
"""idle_in_transaction_session_timeout: it ends a session that has not been sent a COMMIT."""

_CLIENTS_OWN: Final = ("01", "HY", "IM", "DPY-")
"""How codes begin that a client has where the database gave none: of warnings, of the interface's SQLSTATEs, and of
oracledb. "HY000" is mariadb's for every error of its own."""

_CLIENTS_NUMBERS: Final = {
    # 3024 is also what mysql.connector says at a read timeout of its own, and the server at a SELECT alone.
    _Family.MYSQL: (*range(2000, 3000), 3024),
    _Family.ORACLE: range(12150, 12700),
    _Family.SQL_SERVER: range(20000, 20300),
}
"""CR_* of MySQL's and MariaDB's client, TNS- of Oracle's, and SYBE* of DB-Library."""

_SAYS_NO_SUCH_SAVEPOINT: Final = 1305
"""ER_SP_DOES_NOT_EXIST: MySQL and MariaDB undo every savepoint at a deadlock, and say this at the next one's end."""

_RETRIED: Final = frozenset({Fault.SERIALIZATION_FAILURE, Fault.DEADLOCK})

_UNDO_ALL: Final = frozenset({_Family.MYSQL, _Family.SQL_SERVER})
"""Which have rolled back the transaction at one of these, and begin another with the next statement."""


def fault_of(error: BaseException) -> Fault:
    """Return what an error means.

    Args:
        error: One of SQLAlchemy's, or one of a driver's.
    """
    for code in _codes(error):
        fault = _TABLE.get(code)
        if fault is not None:
            return fault
    return Fault.DISCONNECT if getattr(error, "connection_invalidated", False) else Fault.UNKNOWN


def asks_for_another_attempt(error: BaseException) -> bool:
    """Whether the database itself says that the same transaction, run again, can succeed.

    A serialization failure and a deadlock do: see "Serialization Failure Handling" in PostgreSQL's documentation, and
    "How to Minimize and Handle Deadlocks" in MySQL's. So does SQLite where a lock was not to be had: it has one writer,
    and refuses at once where waiting would be a deadlock. A lock timeout elsewhere says nothing of the kind.
    """
    fault = fault_of(error)
    if fault is Fault.LOCK_TIMEOUT:
        return any(family is _Family.SQLITE for family, _ in _codes(error))
    if fault is Fault.UNKNOWN and (_Family.MYSQL, _SAYS_NO_SUCH_SAVEPOINT) in _codes(error):
        # The same code says that a function does not exist; and DDL, too, takes savepoints away, by a commit.
        first = error.__context__
        return "SAVEPOINT" in str(error) and first is not None and asks_for_another_attempt(first)
    return fault in _RETRIED


def was_answered(error: BaseException) -> bool:
    """Whether an error at COMMIT is the database's own answer, so that nothing is stored.

    One that the driver has made up for the lack of an answer is not, nor one by which the server ends the session: it
    can come after the COMMIT was carried out, and before that was told.
    """
    original = _original(error)
    if isinstance(original, sqlite3.Error):
        # It is no server, and the answer is there when the function returns. But one that somebody has closed meanwhile
        # gives none, and what has no code the module says itself.
        return hasattr(original, "sqlite_errorcode") or not getattr(error, "connection_invalidated", False)
    codes = list(_codes(error))
    if (
        any(cls.__name__ == "IntegrityError" for cls in type(original).__mro__)
        or (_Family.SQLSTATE, _ENDED_IDLE) in codes
    ):
        # "The relational integrity of the database is affected" (PEP 249), which the database alone can know.
        return True
    if all(isinstance(code, str) and code.startswith(_CLIENTS_OWN) for _, code in codes):
        return False
    if any(code in _NOT_ANSWERED or code in _CLIENTS_NUMBERS.get(family, ()) for family, code in codes):
        return False
    fault = next((_TABLE[code] for code in codes if code in _TABLE), Fault.UNKNOWN)
    if fault is Fault.UNKNOWN:
        return not getattr(error, "connection_invalidated", False)
    # What the server has said counts for more than what somebody has made of the connection.
    return fault is not Fault.DISCONNECT


def is_out_of_time(error: DBAPIError) -> bool:
    """Whether a statement was stopped, or did not get its lock, because its time was up."""
    return fault_of(error) in (Fault.STATEMENT_TIMEOUT, Fault.LOCK_TIMEOUT) or is_locked(error)


def is_locked(error: DBAPIError) -> bool:
    """Whether SQLite had no lock to give. It has one for the whole database."""
    return getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_read_only(error: DBAPIError) -> bool:
    """Whether a statement was refused because its transaction is read-only."""
    return fault_of(error) is Fault.READ_ONLY


def ends_the_transaction(error: DBAPIError, connection: Connection) -> bool:
    """Whether the database has rolled back the whole transaction, so that what follows would be a second half.

    SQLite can, for example at ON CONFLICT ROLLBACK, and its driver knows. MySQL, MariaDB and SQL Server do at a
    deadlock, and Oracle undoes the statement alone. PostgreSQL does not begin a second half.
    """
    if error.connection_invalidated or connection.invalidated:
        return True
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        return not driver.in_transaction
    return fault_of(error) in _RETRIED and any(family in _UNDO_ALL for family, _ in _codes(error))


def _original(error: BaseException) -> BaseException:
    """Return the driver's error."""
    return error.orig or error if isinstance(error, DBAPIError) else error


def said(error: BaseException) -> str:
    """Return the first line of what the driver says. SQLAlchemy's error has the statement as well."""
    return str(_original(error)).partition("\n")[0]


def _codes(error: BaseException) -> Iterator[_Code]:
    """Yield the codes of an error, wherever its driver keeps them, the most telling one first."""
    original = _original(error)
    number = getattr(original, "sqlite_errorcode", None)
    if isinstance(number, int):
        yield _Family.SQLITE, number
        yield _Family.SQLITE, number & 0xFF
        return

    packages = (cls.__module__.partition(".")[0] for cls in type(original).__mro__)
    family = next((_FAMILIES[package] for package in packages if package in _FAMILIES), None)
    if family is not None:
        number = _number(original, family)
        if number is not None:
            yield family, number
        full = getattr(_first(original), "full_code", None)
        if isinstance(full, str) and full.startswith("DPY-"):
            yield family, full
    state = _sqlstate(original, family)
    if state is not None:
        yield _Family.SQLSTATE, state
        yield _Family.SQLSTATE, state[:2]


def _first(original: BaseException) -> object:
    return original.args[0] if original.args else None


def _number(original: BaseException, family: _Family) -> int | None:
    """Return the number of an error: in ``errno``, as the first argument, in an object there, or in the text.

    mariadb and mysql.connector have the first; PyMySQL, mysqlclient and pymssql the second; oracledb has an object with
    a ``code``; and pyodbc writes it into the message, after the SQLSTATE, as pymssql does at COMMIT.
    """
    first = _first(original)
    if family is _Family.SQL_SERVER and isinstance(first, str):
        found = _IN_TEXT.search(str(original.args[-1]))
        return int(found[1] or found[2]) or None if found else None
    for number in (getattr(original, "errno", None), first, getattr(first, "code", None)):
        if isinstance(number, int) and number > 0:
            return number
    return None


_IN_TEXT: Final = re.compile(r"SQL Server.*?\((\d+)\) \(SQL\w+\)|^Cannot \w+ transaction: \((\d+), ", re.DOTALL)
"""The native number before the function of ODBC that failed, if it is SQL Server's; and what pymssql says at COMMIT."""


def _sqlstate(original: BaseException, family: _Family | None) -> str | None:
    """Return the SQLSTATE of an error.

    psycopg, asyncpg, mariadb and mysql.connector have it in ``sqlstate``, psycopg2 in ``pgcode``, pg8000 in a dict
    under "C", and pyodbc as its first argument.
    """
    first = _first(original)
    candidates = (
        getattr(original, "sqlstate", None),
        getattr(original, "pgcode", None),
        first.get("C") if isinstance(first, dict) else None,
        first if family is _Family.SQL_SERVER else None,
    )
    return next((state for state in candidates if isinstance(state, str) and _STATE.fullmatch(state)), None)


_STATE: Final = re.compile(r"[0-9A-Z]{5}")
