from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.orm import sessionmaker

from flask_uow._core.session import SessionSource
from tests.core.conftest import Book, block, give_back, make_runtime, titles


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
