"""What the tests on every kind of database share."""

from __future__ import annotations

from contextlib import suppress

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import UnitOfWork

SLOW = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e9) SELECT max(i) FROM n",
    "postgresql": "SELECT pg_sleep(60)",
    "mysql": "SELECT sleep(60)",
}
"""Queries that take longer than any test, by the name of the dialect."""


@pytest.fixture
def db(any_engine: Engine) -> UnitOfWork:
    """A UnitOfWork on each kind of database in turn."""
    return UnitOfWork(sessionmaker(any_engine))


def fail_in(session: Session) -> None:
    """Execute a statement that the database refuses, and swallow that."""
    with suppress(DBAPIError):
        session.execute(text("SELECT * FROM missing"))
