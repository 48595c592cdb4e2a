from __future__ import annotations

import asyncio
import sqlite3
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import mariadb as mariadb_driver
import mysql.connector
import oracledb
import psycopg
import psycopg2
import psycopg2.errors
import pymssql
import pymysql
import pytest
from oracledb.errors import _Error as OracleError
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from flask_uow._core.faults import (
    _TABLE,
    Fault,
    _Family,
    asks_for_another_attempt,
    ends_the_transaction,
    fault_of,
    is_locked,
    is_out_of_time,
    is_read_only,
    was_answered,
)

T = TypeVar("T")
Build = Callable[..., Exception]

ALL_DRIVERS_OF_POSTGRESQL = ["postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"]
ALL_DRIVERS_OF_MARIADB = ["mysql+pymysql", "mysql+mysqlconnector", "mysql+mariadbconnector"]


@dataclass(frozen=True)
class Verdict:
    """All that is told of an error."""

    fault: Fault
    again: bool = False
    answered: bool = True
    out_of_time: bool = False
    read_only: bool = False
    ends: bool = False


def verdict_on(error: DBAPIError, connection: Connection) -> Verdict:
    return Verdict(
        fault_of(error),
        asks_for_another_attempt(error),
        was_answered(error),
        is_out_of_time(error),
        is_read_only(error),
        ends_the_transaction(error, connection),
    )


def refused(connection: Connection, *statements: str) -> Verdict:
    """The verdict on the error of *statements* and a COMMIT after them."""
    with pytest.raises(DBAPIError) as caught:
        for statement in statements:
            connection.exec_driver_sql(statement)
        connection.commit()
    error = caught.value
    if not error.connection_invalidated:
        # Bare, it says the same; and so does asyncpg's own, of which SQLAlchemy makes another.
        assert error.orig is not None
        assert fault_of(error.orig) is fault_of(error)
        assert fault_of(error.orig.__cause__ or error.orig) is fault_of(error)
        assert was_answered(error.orig) is was_answered(error)
    return verdict_on(error, connection)


def on(url: URL, scenario: Callable[[Engine], T]) -> T:
    """Call *scenario* with an engine for *url*, in an event loop if its driver needs one."""
    if not url.drivername.endswith("asyncpg"):
        return scenario(create_engine(url, poolclass=NullPool))

    async def main() -> T:
        async with create_async_engine(url, poolclass=NullPool).connect() as connection:
            return await connection.run_sync(lambda connection: scenario(connection.engine))

    return asyncio.run(main())


def is_postgresql(engine: Engine) -> bool:
    return engine.dialect.name == "postgresql"


# What goes wrong on a server. There are two books, 1 and 2.


def update_of_what_has_changed(engine: Engine) -> Verdict:
    with engine.connect() as ours, engine.connect() as theirs:
        ours.exec_driver_sql(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
            if is_postgresql(engine)
            else "SET innodb_snapshot_isolation = ON"
        )
        ours.exec_driver_sql("SELECT title FROM book").all()
        theirs.exec_driver_sql("UPDATE book SET title = 'Sanditon' WHERE id = 1")
        theirs.commit()
        return refused(ours, "UPDATE book SET title = 'Lady Susan' WHERE id = 1")


def lock_without_waiting(engine: Engine) -> Verdict:
    with engine.connect() as ours, engine.connect() as theirs:
        theirs.exec_driver_sql("SELECT title FROM book WHERE id = 1 FOR UPDATE").all()
        return refused(ours, "SELECT title FROM book WHERE id = 1 FOR UPDATE NOWAIT")


def slow_statement(engine: Engine) -> Verdict:
    with engine.connect() as connection:
        if is_postgresql(engine):
            return refused(connection, "SET statement_timeout = 10", "SELECT pg_sleep(60)")
        return refused(connection, "SET max_statement_time = 0.01", "SELECT SLEEP(60)")


def write_where_it_may_only_read(engine: Engine) -> Verdict:
    with engine.connect() as connection:
        return refused(connection, "SET TRANSACTION READ ONLY", "DELETE FROM book")


def same_key(engine: Engine) -> Verdict:
    with engine.connect() as connection:
        return refused(connection, "INSERT INTO book (id, title) VALUES (1, 'Emma')")


def key_of_no_book(engine: Engine) -> Verdict:
    """PostgreSQL refuses it at COMMIT."""
    with engine.connect() as connection:
        return refused(connection, "INSERT INTO loan (id, book_id) VALUES (1, 99)")


def nonsense(engine: Engine) -> Verdict:
    with engine.connect() as connection:
        return refused(connection, "SELECT nothing_of_the_kind FROM book")


def killed(engine: Engine) -> tuple[Exception, bool]:
    """What a COMMIT raises after the connection was killed, and whether that ends the transaction."""
    with engine.connect() as ours, engine.connect() as theirs:
        ours.exec_driver_sql("UPDATE book SET title = 'Sanditon' WHERE id = 1")
        if is_postgresql(engine):
            number = ours.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
            theirs.exec_driver_sql(f"SELECT pg_terminate_backend({number}, 10000)").all()
        else:
            number = ours.exec_driver_sql("SELECT CONNECTION_ID()").scalar_one()
            theirs.exec_driver_sql(f"KILL {number}")
        # mysql.connector's library in C raises an error of its own, and SQLAlchemy does not know it.
        with pytest.raises(Exception) as caught:
            ours.commit()
        error = caught.value
        ends = isinstance(error, DBAPIError) and ends_the_transaction(error, ours)
        ours.invalidate()
        return error, ends


def deadlock(url: URL, *, in_savepoint: bool = False) -> Verdict:
    """Two lock the books in opposite order, and have one each before they ask for the other."""
    both_have_one = Barrier(2, timeout=30)

    def lock(one: int, other: int) -> Callable[[Engine], Verdict | None]:
        def scenario(engine: Engine) -> Verdict | None:
            with engine.connect() as connection:
                if is_postgresql(engine):
                    connection.exec_driver_sql("SET deadlock_timeout = 10")
                connection.exec_driver_sql(f"UPDATE book SET title = 'Sanditon' WHERE id = {one}")
                try:
                    if in_savepoint:
                        with connection.begin_nested():
                            both_have_one.wait()
                            connection.exec_driver_sql(f"UPDATE book SET title = 'Sanditon' WHERE id = {other}")
                    else:
                        both_have_one.wait()
                        connection.exec_driver_sql(f"UPDATE book SET title = 'Sanditon' WHERE id = {other}")
                except DBAPIError as error:
                    return verdict_on(error, connection)
            return None

        return scenario

    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(on, url, lock(1, 2)), threads.submit(on, url, lock(2, 1))]
    [verdict] = filter(None, (result.result() for result in results))
    return verdict


def fill(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO book (id, title) VALUES (1, 'Emma'), (2, 'Persuasion')")


@pytest.fixture(params=ALL_DRIVERS_OF_POSTGRESQL)
def url_of_postgresql(postgresql: Engine, request: pytest.FixtureRequest) -> URL:
    """PostgreSQL, with each of its drivers."""
    fill(postgresql)
    return postgresql.url.set(drivername=request.param)


@pytest.fixture(params=ALL_DRIVERS_OF_MARIADB)
def url_of_mariadb(mariadb: Engine, request: pytest.FixtureRequest) -> URL:
    """MariaDB, with each of its drivers."""
    fill(mariadb)
    # Not each driver knows charset=.
    return mariadb.url.set(drivername=request.param, query={})


ON_SERVERS: dict[Callable[[Engine], Verdict], Verdict] = {
    update_of_what_has_changed: Verdict(Fault.SERIALIZATION_FAILURE, again=True),
    lock_without_waiting: Verdict(Fault.LOCK_TIMEOUT, out_of_time=True),
    slow_statement: Verdict(Fault.STATEMENT_TIMEOUT, out_of_time=True),
    write_where_it_may_only_read: Verdict(Fault.READ_ONLY, read_only=True),
    same_key: Verdict(Fault.CONSTRAINT),
    key_of_no_book: Verdict(Fault.CONSTRAINT),
    nonsense: Verdict(Fault.UNKNOWN),
}

on_servers = pytest.mark.parametrize("scenario", ON_SERVERS, ids=lambda scenario: scenario.__name__)


@on_servers
def test_postgresql(url_of_postgresql: URL, scenario: Callable[[Engine], Verdict]) -> None:
    """PostgreSQL's errors mean the same with each of its drivers, and none lets another transaction begin unseen."""
    assert on(url_of_postgresql, scenario) == ON_SERVERS[scenario]


@on_servers
def test_mariadb(url_of_mariadb: URL, scenario: Callable[[Engine], Verdict], mariadb: Engine) -> None:
    """MariaDB's errors mean the same with each driver, and it undoes the transaction where it asks for another."""
    expected = ON_SERVERS[scenario]
    if scenario is update_of_what_has_changed:
        with mariadb.connect() as connection:
            if not connection.exec_driver_sql("SHOW VARIABLES LIKE 'innodb_snapshot_isolation'").all():
                pytest.skip("this MariaDB is too old for innodb_snapshot_isolation")

    assert on(url_of_mariadb, scenario) == replace(expected, ends=expected.again)


def test_deadlock_on_postgresql(url_of_postgresql: URL) -> None:
    """The victim of a deadlock is asked to come again, and PostgreSQL keeps it from going on until it does."""
    assert deadlock(url_of_postgresql) == Verdict(Fault.DEADLOCK, again=True)


def test_deadlock_on_mariadb(url_of_mariadb: URL) -> None:
    """The victim of a deadlock is asked to come again, and has lost its whole transaction."""
    assert deadlock(url_of_mariadb) == Verdict(Fault.DEADLOCK, again=True, ends=True)


def test_deadlock_in_a_savepoint_on_postgresql(url_of_postgresql: URL) -> None:
    """A deadlock in a savepoint stays one."""
    assert deadlock(url_of_postgresql, in_savepoint=True) == Verdict(Fault.DEADLOCK, again=True)


def test_deadlock_in_a_savepoint_on_mariadb(url_of_mariadb: URL) -> None:
    """MariaDB has lost the savepoint at a deadlock, and says so; the deadlock before it asks for another attempt."""
    assert deadlock(url_of_mariadb, in_savepoint=True) == Verdict(Fault.UNKNOWN, again=True)


def test_no_such_savepoint_on_mariadb(url_of_mariadb: URL) -> None:
    """Without a deadlock, a savepoint that does not exist is a mistake, which another attempt would repeat."""

    def scenario(engine: Engine) -> Verdict:
        with engine.connect() as connection:
            return refused(connection, "ROLLBACK TO SAVEPOINT nowhere")

    assert on(url_of_mariadb, scenario) == Verdict(Fault.UNKNOWN)


def test_write_skew(url_of_postgresql: URL) -> None:
    """A COMMIT that PostgreSQL refuses, because two transactions have read what the other wrote, is an answer."""

    def scenario(engine: Engine) -> Verdict:
        with engine.connect() as ours, engine.connect() as theirs:
            for number, connection in enumerate((ours, theirs), 1):
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                connection.exec_driver_sql("SELECT title FROM book").all()
                connection.exec_driver_sql(f"UPDATE book SET title = 'Sanditon' WHERE id = {number}")
            theirs.commit()
            return refused(ours)

    assert on(url_of_postgresql, scenario) == Verdict(Fault.SERIALIZATION_FAILURE, again=True)


@pytest.mark.parametrize(
    ("server", "patience"), [("postgresql", "lock_timeout"), ("mariadb", "innodb_lock_wait_timeout")]
)
def test_wait_for_a_lock(request: pytest.FixtureRequest, server: str, patience: str) -> None:
    """A lock that did not come in time is no reason to try again: the other may have it for long."""
    engine: Engine = request.getfixturevalue(server)
    fill(engine)

    def scenario(engine: Engine) -> Verdict:
        with engine.connect() as ours, engine.connect() as theirs:
            theirs.exec_driver_sql("SELECT title FROM book WHERE id = 1 FOR UPDATE").all()
            # A millisecond, or a second.
            return refused(ours, f"SET {patience} = 1", "SELECT title FROM book WHERE id = 1 FOR UPDATE")

    assert on(engine.url, scenario) == Verdict(Fault.LOCK_TIMEOUT, out_of_time=True)


def test_a_killed_connection_of_postgresql(url_of_postgresql: URL) -> None:
    """A COMMIT on a connection that was ended has no answer, whatever the driver says."""
    error, ends = on(url_of_postgresql, killed)

    assert fault_of(error) is Fault.DISCONNECT
    assert not was_answered(error)
    assert not asks_for_another_attempt(error)
    assert ends


def test_a_killed_connection_of_mariadb(url_of_mariadb: URL) -> None:
    """A COMMIT on a connection that was killed has no answer, even where the driver has no code for it."""
    error, _ = on(url_of_mariadb, killed)

    assert not was_answered(error)
    assert not asks_for_another_attempt(error)
    if not url_of_mariadb.drivername.endswith("mariadbconnector"):
        # mariadb 2.0.0rc2 says HY000, as it does for all that goes wrong in itself.
        assert fault_of(error) is Fault.DISCONNECT


# SQLite


def code_of(error: DBAPIError) -> int:
    assert isinstance(error.orig, sqlite3.Error)
    return error.orig.sqlite_errorcode


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.mark.parametrize(
    ("statements", "code", "expected"),
    [
        (["INSERT INTO book (title) VALUES ('Emma')"], sqlite3.SQLITE_CONSTRAINT_UNIQUE, Verdict(Fault.CONSTRAINT)),
        (
            ["INSERT OR ROLLBACK INTO book (title) VALUES ('Emma')"],
            sqlite3.SQLITE_CONSTRAINT_UNIQUE,
            Verdict(Fault.CONSTRAINT, ends=True),
        ),
        (
            ["PRAGMA query_only = ON", "DELETE FROM book"],
            sqlite3.SQLITE_READONLY,
            Verdict(Fault.READ_ONLY, read_only=True),
        ),
        (["SELECT nothing_of_the_kind FROM book"], sqlite3.SQLITE_ERROR, Verdict(Fault.UNKNOWN)),
    ],
    ids=["constraint", "constraint with rollback", "read only", "unknown"],
)
def test_sqlite(engine: Engine, statements: list[str], code: int, expected: Verdict) -> None:
    """SQLite's errors are known by their code, and its driver knows whether the transaction goes on."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql("INSERT INTO book (title) VALUES ('Emma')")
        with pytest.raises(DBAPIError) as caught:
            for statement in statements:
                connection.exec_driver_sql(statement)

        assert code_of(caught.value) == code
        assert verdict_on(caught.value, connection) == expected
        assert not is_locked(caught.value)
        connection.invalidate()  # with its PRAGMA


def test_foreign_key_of_sqlite(engine: Engine) -> None:
    """What SQLite refuses at COMMIT was answered, and its transaction is open still."""
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys = ON")
        connection.exec_driver_sql(
            "CREATE TABLE loan (book INTEGER REFERENCES book (id) DEFERRABLE INITIALLY DEFERRED)"
        )
        connection.commit()
        connection.exec_driver_sql("BEGIN")

        assert refused(connection, "INSERT INTO loan VALUES (99)") == Verdict(Fault.CONSTRAINT)
        connection.invalidate()


def test_sqlite_is_interrupted(engine: Engine) -> None:
    """A statement of SQLite that was interrupted is out of time."""
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        driver.set_progress_handler(lambda: 1, 1)
        verdict = refused(connection, SLOW)
        driver.set_progress_handler(None, 0)

    assert verdict == Verdict(Fault.STATEMENT_TIMEOUT, out_of_time=True)


def test_sqlite_is_busy(tmp_path: Path) -> None:
    """Where another writes to SQLite, the transaction can come again."""
    engine = create_engine(f"sqlite:///{tmp_path / 'busy.db'}", poolclass=NullPool, connect_args={"timeout": 0})
    with engine.connect() as ours, engine.connect() as theirs:
        theirs.exec_driver_sql("BEGIN IMMEDIATE")
        ours.exec_driver_sql("BEGIN")
        with pytest.raises(DBAPIError) as caught:
            ours.exec_driver_sql("CREATE TABLE loan (id)")

        assert code_of(caught.value) == sqlite3.SQLITE_BUSY
        assert verdict_on(caught.value, ours) == Verdict(Fault.LOCK_TIMEOUT, again=True, out_of_time=True)
        assert is_locked(caught.value)


def test_snapshot_of_sqlite_is_old(tmp_path: Path) -> None:
    """Where another has written to SQLite since, the transaction can come again."""
    engine = create_engine(f"sqlite:///{tmp_path / 'wal.db'}", poolclass=NullPool, connect_args={"timeout": 0})
    with engine.connect() as ours, engine.connect() as theirs:
        theirs.exec_driver_sql("PRAGMA journal_mode = WAL")
        theirs.exec_driver_sql("CREATE TABLE loan (id)")
        theirs.commit()
        ours.exec_driver_sql("BEGIN")
        ours.exec_driver_sql("SELECT id FROM loan").all()
        theirs.exec_driver_sql("INSERT INTO loan VALUES (1)")
        theirs.commit()
        with pytest.raises(DBAPIError) as caught:
            ours.exec_driver_sql("INSERT INTO loan VALUES (2)")

        assert code_of(caught.value) == sqlite3.SQLITE_BUSY_SNAPSHOT
        assert verdict_on(caught.value, ours) == Verdict(Fault.SERIALIZATION_FAILURE, again=True, out_of_time=True)
        assert is_locked(caught.value)


def test_table_of_sqlite_is_locked() -> None:
    """Where another connection with the same cache writes to a table, the transaction can come again."""
    url = f"sqlite:///file:{uuid4().hex}?mode=memory&cache=shared&uri=true"
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as ours, engine.connect() as theirs:
        theirs.exec_driver_sql("CREATE TABLE loan (id)")
        theirs.commit()
        theirs.exec_driver_sql("BEGIN")
        theirs.exec_driver_sql("INSERT INTO loan VALUES (1)")
        ours.exec_driver_sql("BEGIN")
        with pytest.raises(DBAPIError) as caught:
            ours.exec_driver_sql("SELECT id FROM loan")

        assert code_of(caught.value) & 0xFF == sqlite3.SQLITE_LOCKED
        assert verdict_on(caught.value, ours) == Verdict(Fault.LOCK_TIMEOUT, again=True, out_of_time=True)
        assert is_locked(caught.value)


# The whole table, with errors that are built as the drivers build them


def made_up(module: str, *args: object, **attributes: object) -> Exception:
    """An error of a driver that is not here."""
    error: Exception = type("OperationalError", (Exception,), {"__module__": module})(*args)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def of_sqlite(code: int) -> Exception:
    error = sqlite3.OperationalError("no")
    error.sqlite_errorcode = code
    return error


def of_psycopg(state: str) -> Exception:
    """As for a code that has no class of its own, which each version of psycopg has other ones of."""
    error = psycopg.DatabaseError("no")
    error.sqlstate = state
    return error


def of_psycopg2(state: str) -> Exception:
    error: Exception = psycopg2.OperationalError("no")
    # The attribute is read-only, except to pickle.
    error.__setstate__({"pgcode": state})
    return error


def of_asyncpg(state: str) -> Exception:
    error: Exception = asyncpg.PostgresError.new({"C": state, "M": "no"})
    return error


def of_pg8000(state: str) -> Exception:
    return made_up("pg8000.exceptions", {"S": "ERROR", "V": "ERROR", "C": state, "M": "no"})


def of_pymysql(number: int) -> Exception:
    """From the packet that the server sends."""
    with pytest.raises(pymysql.err.MySQLError) as caught:
        pymysql.err.raise_mysql_exception(b"\xff" + struct.pack("<H", number) + b"#HY000no")
    error: Exception = caught.value
    return error


def of_mysql_connector(number: int) -> Exception:
    error = mysql.connector.errors.get_mysql_exception(number, msg="no", sqlstate="HY000")
    assert isinstance(error, Exception)
    return error


def of_mysql_connector_in_c(number: int) -> Exception:
    """As the library in C has it, which is not in every wheel."""
    return made_up("_mysql_connector", "no", errno=number, sqlstate="HY000", msg="no")


def of_mariadb(number: int) -> Exception:
    error: Exception = mariadb_driver.OperationalError(msg="no", errno=number, sqlstate="HY000")
    return error


def of_oracledb(code: int | str) -> Exception:
    """From the message of the server, or of the driver itself, as thin mode does."""
    error = OracleError(f"{code}: no") if isinstance(code, str) else OracleError(f"ORA-{code:05}: no", code=code)
    exception: Exception = error.exc_type(error)
    return exception


def of_pymssql(number: int) -> Exception:
    message = (
        b"no.DB-Lib error message 20018, severity 16:\nGeneral SQL Server error: Check messages from the SQL Server\n"
    )
    return pymssql.OperationalError(number, message)


def of_pymssql_at_commit(number: int) -> Exception:
    return pymssql.OperationalError(f"Cannot commit transaction: ({number}, b'no.DB-Lib error message 20018')")


def in_odbc(number: int) -> tuple[str, str]:
    return "42000", (
        f"[42000] [Microsoft][ODBC Driver 18 for SQL Server][SQL Server]no. ({number}) (SQLExecDirectW);"
        " [01000] [Microsoft][ODBC Driver 18 for SQL Server][SQL Server]The statement has been terminated. (3621)"
    )


def of_pyodbc(number: int) -> Exception:
    return made_up("pyodbc", *in_odbc(number))


ROWS_OF_SQLSTATES: dict[int | str, Fault] = {
    "40001": Fault.SERIALIZATION_FAILURE,
    "40P01": Fault.DEADLOCK,
    "55P03": Fault.LOCK_TIMEOUT,
    "57014": Fault.STATEMENT_TIMEOUT,
    "HYT00": Fault.STATEMENT_TIMEOUT,
    "25006": Fault.READ_ONLY,
    **dict.fromkeys(["23000", "23001", "23502", "23503", "23505", "23514", "23P01"], Fault.CONSTRAINT),
    **dict.fromkeys(["08000", "08001", "08003", "08004", "08006", "08007", "08P01", "08S01"], Fault.DISCONNECT),
    **dict.fromkeys(["25P03", "25P04", "57P01", "57P02", "57P03", "57P04", "57P05"], Fault.DISCONNECT),
    **dict.fromkeys(["00000", "40000", "40002", "40003", "42601", "25P02", "25001", "57000"], Fault.UNKNOWN),
}

ROWS_OF_MYSQL: dict[int | str, Fault] = {
    1020: Fault.SERIALIZATION_FAILURE,
    **dict.fromkeys([1213, 1614], Fault.DEADLOCK),
    **dict.fromkeys([1205, 3572], Fault.LOCK_TIMEOUT),
    **dict.fromkeys([1969, 3024], Fault.STATEMENT_TIMEOUT),
    1792: Fault.READ_ONLY,
    **dict.fromkeys([1022, 1048, 1062, 1169, 1216, 1217, 1451, 1452, 1557, 1586, 3819, 4025], Fault.CONSTRAINT),
    **dict.fromkeys([1053, 1927, 4031, 2002, 2003, 2006, 2013, 2014, 2045, 2055], Fault.DISCONNECT),
    **dict.fromkeys([1064, 1146, 1305, 8177, 41302], Fault.UNKNOWN),
}

ROWS_OF_SQLITE: dict[int | str, Fault] = {
    sqlite3.SQLITE_BUSY_SNAPSHOT: Fault.SERIALIZATION_FAILURE,
    sqlite3.SQLITE_BUSY: Fault.LOCK_TIMEOUT,
    sqlite3.SQLITE_BUSY_RECOVERY: Fault.LOCK_TIMEOUT,
    sqlite3.SQLITE_LOCKED: Fault.LOCK_TIMEOUT,
    sqlite3.SQLITE_LOCKED_SHAREDCACHE: Fault.LOCK_TIMEOUT,
    sqlite3.SQLITE_INTERRUPT: Fault.STATEMENT_TIMEOUT,
    sqlite3.SQLITE_READONLY: Fault.READ_ONLY,
    sqlite3.SQLITE_READONLY_DBMOVED: Fault.READ_ONLY,
    sqlite3.SQLITE_CONSTRAINT: Fault.CONSTRAINT,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Fault.CONSTRAINT,
    sqlite3.SQLITE_ERROR: Fault.UNKNOWN,
    sqlite3.SQLITE_IOERR: Fault.UNKNOWN,
}

ROWS_OF_ORACLE: dict[int | str, Fault] = {
    8177: Fault.SERIALIZATION_FAILURE,
    60: Fault.DEADLOCK,
    **dict.fromkeys([54, 30006], Fault.LOCK_TIMEOUT),
    **dict.fromkeys([1013, "DPY-4024"], Fault.STATEMENT_TIMEOUT),
    1456: Fault.READ_ONLY,
    **dict.fromkeys([1, 1400, 1407, 2290, 2291, 2292], Fault.CONSTRAINT),
    **dict.fromkeys([28, 1012, 1033, 1034, 1089, 1092, 2396, 3113, 3114, 3135], Fault.DISCONNECT),
    **dict.fromkeys([12537, 12541, 12547, 12571, "DPY-1001", "DPY-4011", "DPY-6005"], Fault.DISCONNECT),
    # No row: oracledb says DPY-4011 in its place.
    600: Fault.DISCONNECT,
    **dict.fromkeys([942, 1205, 1213, 2091, "DPY-2007"], Fault.UNKNOWN),
}

ROWS_OF_SQL_SERVER: dict[int | str, Fault] = {
    **dict.fromkeys([3960, 41301, 41302, 41305, 41325, 41839], Fault.SERIALIZATION_FAILURE),
    1205: Fault.DEADLOCK,
    1222: Fault.LOCK_TIMEOUT,
    3906: Fault.READ_ONLY,
    **dict.fromkeys([515, 547, 2601, 2627], Fault.CONSTRAINT),
    **dict.fromkeys([64, 233, 6005, 10053, 10054, 10060], Fault.DISCONNECT),
    **dict.fromkeys([20003, 20004, 20006, 20017, 20047], Fault.DISCONNECT),
    **dict.fromkeys([102, 208, 1213, 3902], Fault.UNKNOWN),
}


def assert_found(build: Build, rows: Mapping[Any, Fault]) -> None:
    """Each code is found, in the driver's own error and in SQLAlchemy's around it."""
    assert {code: fault_of(build(code)) for code in rows} == rows
    assert {code: fault_of(wrapped(build(code))) for code in rows} == rows


def wrapped(original: BaseException | None, *, lost: bool = False) -> DBAPIError:
    return DBAPIError("SELECT 1", {}, original, connection_invalidated=lost)  # type: ignore[arg-type] # without one, too


@pytest.mark.parametrize("build", [of_psycopg, of_psycopg2, of_asyncpg, of_pg8000])
def test_rows_of_sqlstates(build: Build) -> None:
    """An SQLSTATE is found, wherever its driver keeps it, and by its class where that is all that counts."""
    assert_found(build, ROWS_OF_SQLSTATES)


@pytest.mark.parametrize("build", [of_pymysql, of_mysql_connector, of_mysql_connector_in_c, of_mariadb])
def test_rows_of_mysql(build: Build) -> None:
    """A number of MySQL's or MariaDB's is found, wherever its driver keeps it."""
    assert_found(build, ROWS_OF_MYSQL)


def test_rows_of_mysql_with_mysqlclient() -> None:
    """A number is found in mysqlclient's own class. This runs where it is installed, and against no server."""
    errors = pytest.importorskip("MySQLdb._exceptions", reason="mysqlclient has no wheels", exc_type=ImportError)
    assert_found(lambda number: errors.OperationalError(number, "no"), ROWS_OF_MYSQL)


@pytest.mark.parametrize("module", ["MySQLdb._exceptions", "asyncmy.errors"])
def test_rows_of_mysql_with_drivers_that_are_not_here(module: str) -> None:
    """A number is found where it is the first argument. These are made-up classes, and there was no server."""
    assert_found(lambda number: made_up(module, number, "no"), ROWS_OF_MYSQL)


def test_rows_of_sqlite() -> None:
    """A code is found as it is, or else as the primary one it extends."""
    assert_found(of_sqlite, ROWS_OF_SQLITE)


def test_rows_of_oracle() -> None:
    """A number is found in the object that is oracledb's first argument. The class is its own; there was no server."""
    assert_found(of_oracledb, ROWS_OF_ORACLE)


def test_rows_of_oracle_with_cx_oracle() -> None:
    """A number is found in cx_Oracle's object, which has less in it. The class is made up; there was no server."""

    class Details:
        def __init__(self, code: int) -> None:
            self.code = code

    rows = {code: fault for code, fault in ROWS_OF_ORACLE.items() if not isinstance(code, str)}
    rows[600] = Fault.UNKNOWN
    assert_found(lambda code: made_up("cx_Oracle", Details(code)), rows)


@pytest.mark.parametrize("build", [of_pymssql, of_pymssql_at_commit])
def test_rows_of_sql_server_with_pymssql(build: Build) -> None:
    """A number is found as pymssql's first argument, or in its text at COMMIT. The class is its own; no server ran."""
    assert_found(build, ROWS_OF_SQL_SERVER)


def test_rows_of_sql_server_with_pyodbc() -> None:
    """A number is found in pyodbc's own class. This runs where unixODBC is installed, and against no server."""
    pyodbc = pytest.importorskip("pyodbc", reason="pyodbc needs unixODBC", exc_type=ImportError)
    assert_found(lambda number: pyodbc.OperationalError(*in_odbc(number)), ROWS_OF_SQL_SERVER)


def test_rows_of_sql_server_without_pyodbc() -> None:
    """A number is found in the text that pyodbc writes. The class is made up, and there was no server."""
    assert_found(of_pyodbc, ROWS_OF_SQL_SERVER)


def test_each_row_is_tested() -> None:
    """No row of the table is left out above."""
    tested = {
        *((_Family.SQLSTATE, code) for code in ROWS_OF_SQLSTATES),
        *((_Family.SQLSTATE, str(code)[:2]) for code in ROWS_OF_SQLSTATES),
        *((_Family.MYSQL, code) for code in ROWS_OF_MYSQL),
        *((_Family.SQLITE, code) for code in ROWS_OF_SQLITE),
        *((_Family.ORACLE, code) for code in ROWS_OF_ORACLE),
        *((_Family.SQL_SERVER, code) for code in ROWS_OF_SQL_SERVER),
    }

    assert _TABLE.keys() <= tested


def test_pyodbc_of_another_database() -> None:
    """Through ODBC come other databases, too, and their numbers are not SQL Server's; their SQLSTATEs count."""
    of_mysql = "[{}] [MySQL][ODBC 9.1(w) Driver][mysqld-8.4.3]no ({}) (SQLExecDirectW)"

    timeout = made_up("pyodbc", "HY000", of_mysql.format("HY000", 1205))
    deadlock = made_up("pyodbc", "40001", of_mysql.format("40001", 1213))
    unique = made_up("pyodbc", "23000", of_mysql.format("23000", 1062))

    assert [fault_of(error) for error in (timeout, deadlock, unique)] == [
        Fault.UNKNOWN,
        Fault.SERIALIZATION_FAILURE,
        Fault.CONSTRAINT,
    ]
    assert not asks_for_another_attempt(timeout)
    assert [was_answered(error) for error in (timeout, deadlock, unique)] == [False, True, True]


def test_pyodbc_without_a_number() -> None:
    """Where the ODBC driver speaks for itself the number is 0, and the SQLSTATE says what there is to say."""
    text = "[{}] [Microsoft][ODBC Driver 18 for SQL Server]no (0) (SQLExecDirectW)"
    timeout, lost, other = (made_up("pyodbc", state, text.format(state)) for state in ("HYT00", "08S01", "HY010"))

    assert [fault_of(error) for error in (timeout, lost, other)] == [
        Fault.STATEMENT_TIMEOUT,
        Fault.DISCONNECT,
        Fault.UNKNOWN,
    ]
    assert not any(was_answered(error) for error in (timeout, lost, other))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        ValueError(),
        ValueError(1213, "no"),
        KeyError({"C": None}),
        psycopg.OperationalError("the connection is closed"),
        psycopg2.InterfaceError("connection already closed"),
        asyncpg.InterfaceError("connection is closed"),
        pymysql.err.InterfaceError(0, ""),
        pymysql.err.OperationalError(),
        mysql.connector.errors.OperationalError("MySQL Connection not available"),
        mariadb_driver.OperationalError("Execution failed: [Errno 32] Broken pipe"),
        made_up("MySQLdb._exceptions", 0, ""),
        made_up("pg8000.exceptions", "network error"),
        pymssql.InterfaceError("Connection is closed."),
        pymssql.OperationalError("Cannot commit transaction: Not connected to any MS SQL server"),
        made_up("pyodbc", "The cursor's connection has been closed."),
        made_up("pyodbc", "HY000", "The driver did not supply an error!"),
        oracledb.InterfaceError("no"),
        of_oracledb("DPY-2007"),
        of_oracledb("Something else"),
    ],
)
def test_no_code(error: Exception) -> None:
    """What has no code of a database means nothing that we know, and is not the database's answer."""
    for each in (error, wrapped(error)):
        assert fault_of(each) is Fault.UNKNOWN
        assert not asks_for_another_attempt(each)
        assert not was_answered(each)
    assert not is_out_of_time(wrapped(error))
    assert not is_read_only(wrapped(error))


def test_no_original() -> None:
    """SQLAlchemy's error says nothing by itself, except that the connection is gone."""
    assert fault_of(wrapped(None)) is Fault.UNKNOWN
    assert fault_of(wrapped(None, lost=True)) is Fault.DISCONNECT
    assert fault_of(wrapped(ValueError(), lost=True)) is Fault.DISCONNECT
    assert fault_of(wrapped(of_psycopg("40001"), lost=True)) is Fault.SERIALIZATION_FAILURE
    assert not was_answered(wrapped(None))


# Another attempt


@pytest.mark.parametrize(
    ("build", "code", "asks"),
    [
        (of_psycopg, "40001", True),
        (of_psycopg, "40P01", True),
        (of_psycopg, "55P03", False),
        (of_psycopg, "57014", False),
        (of_psycopg, "08006", False),
        (of_pymysql, 1213, True),
        (of_pymysql, 1020, True),
        (of_pymysql, 1205, False),
        (of_oracledb, 8177, True),
        (of_oracledb, 60, True),
        (of_oracledb, 54, False),
        (of_pymssql, 1205, True),
        (of_pymssql, 3960, True),
        (of_pymssql_at_commit, 41305, True),
        (of_pymssql, 1222, False),
        (of_sqlite, sqlite3.SQLITE_BUSY, True),
        (of_sqlite, sqlite3.SQLITE_BUSY_SNAPSHOT, True),
        (of_sqlite, sqlite3.SQLITE_LOCKED_SHAREDCACHE, True),
        (of_sqlite, sqlite3.SQLITE_CONSTRAINT_UNIQUE, False),
    ],
)
def test_another_attempt(build: Build, code: int | str, asks: bool) -> None:
    """Only a serialization failure and a deadlock ask for another attempt, and any lock of SQLite's."""
    error = build(code)

    assert asks_for_another_attempt(error) is asks
    assert asks_for_another_attempt(wrapped(error)) is asks


def no_such_savepoint(
    before: BaseException | None, text: str = "SAVEPOINT sa_savepoint_1 does not exist"
) -> DBAPIError:
    """As it comes from SQLAlchemy: the driver's error is raised while *before* is handled, and wrapped then."""
    original = pymysql.err.OperationalError(1305, text)
    original.__context__ = before
    error = wrapped(original)
    error.__context__ = error.__cause__ = original
    return error


def test_no_such_savepoint() -> None:
    """A savepoint that does not exist asks for another attempt only if a deadlock came before."""
    assert asks_for_another_attempt(no_such_savepoint(of_pymysql(1213)))
    assert asks_for_another_attempt(no_such_savepoint(wrapped(of_pymysql(1213))))
    assert asks_for_another_attempt(no_such_savepoint(no_such_savepoint(of_pymysql(1213))))

    assert not asks_for_another_attempt(no_such_savepoint(None))
    assert not asks_for_another_attempt(no_such_savepoint(of_pymysql(1062)))
    assert not asks_for_another_attempt(no_such_savepoint(ValueError("no")))


def test_no_such_function() -> None:
    """The same code says that a function does not exist, and that stays so, whatever came before."""
    assert not asks_for_another_attempt(no_such_savepoint(of_pymysql(1213), "FUNCTION test.nothing does not exist"))


# Answers


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (of_psycopg, "08000"),
        (of_psycopg, "08006"),
        (of_psycopg, "08007"),
        (of_psycopg, "40003"),
        (of_psycopg, "57P01"),
        (of_psycopg, "25P04"),
        (of_psycopg2, "57P01"),
        (of_asyncpg, "08003"),
        (of_pg8000, "57P02"),
        (of_pymysql, 2000),
        (of_pymysql, 2013),
        (of_pymysql, 2027),
        (of_pymysql, 2999),
        (of_pymysql, 1927),
        (of_mysql_connector, 2013),
        (of_mysql_connector, 3024),
        (of_mysql_connector_in_c, 2013),
        (of_mariadb, 2013),
        (of_oracledb, 3113),
        (of_oracledb, 12609),
        (of_oracledb, 600),
        (of_oracledb, "DPY-4011"),
        (of_oracledb, "DPY-4024"),
        (of_pymssql, 20003),
        (of_pymssql, 20009),
        (of_pymssql_at_commit, 20006),
    ],
)
def test_no_answer(build: Build, code: int | str) -> None:
    """What the client says for the server, and what comes as the session ends, leaves open what became of a COMMIT."""
    error = build(code)

    assert not was_answered(error)
    assert not was_answered(wrapped(error))
    assert not was_answered(wrapped(error, lost=True))


@pytest.mark.parametrize(
    ("build", "code"),
    [
        (of_psycopg, "40001"),
        (of_psycopg, "25P03"),
        (of_psycopg, "23503"),
        (of_psycopg, "57014"),
        (of_psycopg, "XX000"),
        (of_psycopg2, "23503"),
        (of_asyncpg, "40001"),
        (of_pg8000, "23505"),
        (of_pymysql, 1213),
        (of_pymysql, 1062),
        (of_pymysql, 1180),
        (of_pymysql, 3000),
        (of_mysql_connector, 1213),
        (of_mysql_connector_in_c, 1213),
        (of_mariadb, 1213),
        (of_oracledb, 2091),
        (of_oracledb, 8177),
        (of_pymssql_at_commit, 3902),
        (of_pymssql_at_commit, 41305),
        (of_pyodbc, 41325),
    ],
)
def test_answer(build: Build, code: int | str) -> None:
    """A code of the database is its answer: nothing is stored. But who has lost the connection can have missed it."""
    error = build(code)

    assert was_answered(error)
    assert was_answered(wrapped(error))
    # A code that is known counts for more than what somebody has made of the connection.
    assert was_answered(wrapped(error, lost=True)) == (fault_of(error) is not Fault.UNKNOWN)


@pytest.mark.parametrize(
    "error", [of_sqlite(sqlite3.SQLITE_BUSY), of_sqlite(sqlite3.SQLITE_IOERR), sqlite3.ProgrammingError("no")]
)
def test_sqlite_always_answers(error: Exception) -> None:
    """SQLite is no server that could be lost between a COMMIT and its answer."""
    assert was_answered(error)
    assert was_answered(wrapped(error))


def test_sqlite_that_was_closed() -> None:
    """A connection to SQLite that somebody has closed does not answer, and nobody knows when that was."""
    assert not was_answered(wrapped(sqlite3.ProgrammingError("Cannot operate on a closed database."), lost=True))


# The end of the transaction


@pytest.mark.parametrize(
    ("build", "code", "ends"),
    [
        (of_pymysql, 1213, True),
        (of_mysql_connector, 1213, True),
        (of_mariadb, 1020, True),
        (of_pymysql, 1205, False),
        (of_pymysql, 1062, False),
        (of_pymssql, 1205, True),
        (of_pymssql, 3960, True),
        (of_pymssql, 1222, False),
        (of_pyodbc, 1205, True),
        (of_oracledb, 60, False),
        (of_oracledb, 8177, False),
        (of_psycopg, "40001", False),
        (of_psycopg, "40P01", False),
    ],
)
def test_end_of_the_transaction(postgresql: Engine, build: Build, code: int | str, ends: bool) -> None:
    """MySQL and SQL Server roll back all at a deadlock and begin anew; Oracle undoes a statement, PostgreSQL waits."""
    with postgresql.connect() as connection:
        assert ends_the_transaction(wrapped(build(code)), connection) is ends


def test_an_unknown_error_ends_no_transaction(postgresql: Engine) -> None:
    """Where nothing is known, nothing is said to be lost."""
    with postgresql.connect() as connection:
        assert not ends_the_transaction(wrapped(ValueError("no")), connection)
        assert not ends_the_transaction(wrapped(None), connection)


def test_a_lost_connection_ends_the_transaction(engine: Engine) -> None:
    """What came before is gone with the connection, whatever the code."""
    with engine.connect() as connection:
        assert ends_the_transaction(wrapped(OSError("gone"), lost=True), connection)
        connection.invalidate()
        assert ends_the_transaction(wrapped(ValueError()), connection)


def test_sqlite_knows_by_itself(engine: Engine) -> None:
    """SQLite's driver knows whether it is in a transaction still, and no code says more."""
    with engine.connect() as connection:
        assert ends_the_transaction(wrapped(of_sqlite(sqlite3.SQLITE_CONSTRAINT_UNIQUE)), connection)
        connection.exec_driver_sql("BEGIN")
        assert not ends_the_transaction(wrapped(of_sqlite(sqlite3.SQLITE_CONSTRAINT_UNIQUE)), connection)
        assert not ends_the_transaction(wrapped(of_pymysql(1213)), connection)
