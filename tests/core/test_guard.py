from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from flask_uow._core.propagation import Propagation
from flask_uow.errors import TransactionDoomedError, TransactionTimeoutError, UnexpectedRollbackError
from tests.core.conftest import SLOW, Book, block, make_runtime, titles


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
