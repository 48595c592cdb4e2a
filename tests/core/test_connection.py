from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.dialects import mysql, oracle
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool

from flask_uow._core.connection import _Limit, _limit_of, _MariaDBLimit, _only_reads
from flask_uow._core.propagation import Propagation
from flask_uow._core.session import SessionSource
from flask_uow.errors import TransactionDoomedError, TransactionTimeoutError, UnexpectedRollbackError
from tests.core.conftest import Book, block, give_back, make_runtime, titles

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT max(i) FROM n"


@pytest.fixture
def read_only_engine(engine: Engine, tmp_path: Path) -> Iterator[Engine]:
    """An engine of a user's who lets nobody write."""
    other = create_engine(f"sqlite:///{tmp_path / 'books.db'}")

    @event.listens_for(other, "connect")
    def _read_only(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA query_only = ON")

    yield other
    other.dispose()


def test_query_only_of_the_users_stays(read_only_engine: Engine) -> None:
    """What the user has set is not put back to what we would have set it to."""
    with block(make_runtime(read_only_engine), read_only=True) as session:
        session.execute(text("SELECT 1"))

    with read_only_engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 1


def test_connection_that_cannot_be_put_back(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A connection whose settings cannot be put back is not used again."""
    runtime = make_runtime(engine)
    caplog.set_level(logging.DEBUG)

    with block(runtime, read_only=True) as session:
        driver: Any = session.connection().connection.driver_connection
        # Like a server that goes away between COMMIT and the return to the pool.
        event.listen(engine, "checkin", lambda dbapi, _record: dbapi.close(), insert=True, once=True)
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        other = session.connection().connection.driver_connection

    assert other is not driver
    assert titles(engine) == ["Emma"]


def test_timeout_after_a_rolled_back_savepoint(engine: Engine) -> None:
    """Rolling back a savepoint needs no time, and what follows has what is left."""
    runtime = make_runtime(engine)

    with block(runtime, timeout=60) as session:
        with pytest.raises(LookupError), block(runtime, propagation=Propagation.NESTED):
            session.add(Book(title="lost"))
            session.flush()
            raise LookupError
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


def test_rolling_back_late(engine: Engine) -> None:
    """A savepoint that has used up its time can be rolled back."""
    runtime = make_runtime(engine)

    with block(runtime) as session:
        session.add(Book(title="kept"))
        with (
            pytest.raises(TransactionTimeoutError),
            block(runtime, propagation=Propagation.NESTED, timeout=0.05),
        ):
            session.add(Book(title="lost"))
            session.execute(text(SLOW))

    assert titles(engine) == ["kept"]


def test_engine_with_execution_options(engine: Engine) -> None:
    """An engine made by execution_options() is listened to where its events come from, once."""
    seen: list[str] = []

    def open_session() -> Any:
        return sessionmaker(engine.execution_options(schema_translate_map={}))()

    runtime = make_runtime(SessionSource(open_session, give_back))
    for _ in range(2):
        with pytest.raises(LookupError), block(runtime):
            seen.append("entered")
            raise LookupError
    with block(runtime, timeout=60) as session:
        session.add(Book(title="Emma"))

    assert seen == ["entered"] * 2
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("select 1", True),
        (" SELECT 1", True),
        ("WITH n AS (SELECT 1) SELECT * FROM n", True),
        ("WITH gone AS (DELETE FROM book RETURNING id) SELECT * FROM gone", False),
        ("", False),
        ("  ", False),
        ("/* why */ SELECT 1", True),
        ("-- why\n(SELECT 1) UNION (SELECT 2)", True),
        ("TABLE book", True),
        ("EXPLAIN SELECT 1", True),
        ("EXPLAIN ANALYZE DELETE FROM book", False),
        ("SET search_path = tenant", False),
        ("CREATE TABLE other (id INTEGER)", False),
        ("CALL transfer()", False),
    ],
)
def test_what_only_reads(statement: str, reads: bool) -> None:
    """A statement that does not begin like a query counts as a change: nothing is thrown away in doubt."""
    assert _only_reads(statement) is reads


def test_limits_of_other_databases(engine: Engine) -> None:
    """MySQL and others have no limit of the server's; the time is looked at between statements all the same."""
    kinds: dict[str, Any] = {"mysql": mysql.dialect, "oracle": oracle.dialect}
    limit = _limit_of(kinds["mysql"]())

    assert type(limit) is type(_limit_of(kinds["oracle"]())) is _Limit
    assert isinstance(_limit_of(kinds["mysql"](is_mariadb=True)), _MariaDBLimit)
    with engine.connect() as connection:
        limit.apply(connection, 0.001)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000
    assert limit.after_rollback() is limit


def test_blocks_with_and_without_a_deadline(engine: Engine) -> None:
    """Of all blocks that are running, the one whose time is up first counts, wherever it is."""
    runtime = make_runtime(engine)

    with (
        pytest.raises(TransactionTimeoutError, match="transaction of the closest"),
        block(runtime, timeout=60) as session,
        block(runtime),
        block(runtime, "the closest", timeout=0.05),
        block(runtime, timeout=30),
    ):
        session.execute(text(SLOW))


def test_doomed_before_its_first_statement(engine: Engine) -> None:
    """A transaction can be doomed before it has a connection, and does not get one then."""
    runtime = make_runtime(engine)

    with pytest.raises(UnexpectedRollbackError), block(runtime) as session:
        with pytest.raises(LookupError), block(runtime, "inner"):
            raise LookupError
        with pytest.raises(TransactionDoomedError, match="inner, which had joined it, failed"):
            session.execute(text("SELECT 1"))
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts


def test_a_flush_of_nothing_in_a_read_only_transaction(engine: Engine) -> None:
    """An attribute that was set to what it is already is nothing to write."""
    runtime = make_runtime(engine)
    with block(runtime) as session:
        session.add(Book(title="Emma"))

    with block(runtime, read_only=True) as session:
        book = session.query(Book).one()
        book.title = "Emma"
        session.flush()

    assert titles(engine) == ["Emma"]


def test_a_savepoint_of_ones_own_outside_any_transaction(engine: Engine) -> None:
    """Where no transaction is, a savepoint of the user's own has no hooks, and is the session's alone."""
    runtime = make_runtime(engine)

    with block(runtime, propagation=Propagation.NEVER) as session:
        session.add(Book(title="kept"))
        with pytest.raises(LookupError), session.begin_nested():
            session.add(Book(title="lost"))
            raise LookupError
        session.commit()

    assert titles(engine) == ["kept"]


def test_no_savepoint_of_ones_own_in_a_doomed_transaction(engine: Engine) -> None:
    """A savepoint by hand is not begun after an error that was caught, either."""
    runtime = make_runtime(engine)

    with pytest.raises(UnexpectedRollbackError), block(runtime) as session:
        with pytest.raises(OperationalError):
            session.execute(text("SELECT * FROM missing"))
        with pytest.raises(TransactionDoomedError):
            session.begin_nested()


def test_a_block_with_less_time_in_a_doomed_transaction(engine: Engine) -> None:
    """A block that swallows an error and ends in time does not ask the database for anything more."""
    runtime = make_runtime(engine)

    with pytest.raises(UnexpectedRollbackError), block(runtime) as session:  # noqa: SIM117
        with block(runtime, timeout=60), pytest.raises(OperationalError):
            session.execute(text("SELECT * FROM missing"))


def test_not_strict_and_no_connection(tmp_path: Path, engine: Engine) -> None:
    """Not strict, a connection that could not be had at first has hurt nothing."""
    folders = iter([tmp_path / "missing", tmp_path, tmp_path])
    other = create_engine("sqlite://", creator=lambda: sqlite3.connect(next(folders) / "books.db"), poolclass=NullPool)
    runtime = make_runtime(other, strict=False)
    # SQLAlchemy's own first connection finds out about the database, and may fail without harm.
    with block(runtime) as session:
        with pytest.raises(OperationalError):
            session.execute(text("SELECT 1"))
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]
