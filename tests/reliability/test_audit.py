"""The audit trail among many writers, and when the process is killed before COMMIT."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import Engine, MetaData, Table, create_engine, select
from sqlalchemy.orm import sessionmaker

from flask_uow import UnitOfWork
from flask_uow.audit import AuditTrail
from tests.conftest import Base, Book, titles

WRITERS, EACH = 20, 10


@pytest.fixture
def metadata(postgresql: Engine) -> Iterator[MetaData]:
    """The tables of the tests and a trail, without adding that to the tests' own metadata."""
    metadata = MetaData()
    for table in Base.metadata.sorted_tables:
        table.to_metadata(metadata)
    yield metadata
    metadata.tables["audit_log"].drop(postgresql)


def test_many_writers(app: Flask, postgresql: Engine, metadata: MetaData) -> None:
    """20 concurrent writers, of whom every third fails: there is a row for each book that is stored, and no other."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    trail = AuditTrail(uow, metadata, actor=threading.get_ident)
    metadata.create_all(postgresql)
    together = threading.Barrier(WRITERS)

    @app.post("/<int:number>")
    @uow.transactional
    def add(number: int) -> tuple[str, int]:
        together.wait(timeout=30)
        uow.session.add(Book(title=f"{number:03}"))
        uow.session.flush()
        if number % 3 == 1:
            raise LookupError
        return "", 200 if number % 3 == 0 else 409

    with ThreadPoolExecutor(WRITERS) as pool:
        statuses = list(pool.map(lambda n: app.test_client().post(f"/{n}").status_code, range(WRITERS * EACH)))

    with postgresql.connect() as connection:
        rows = connection.execute(select(trail.table)).all()
    assert statuses.count(200) == 67
    assert sorted(row.after["title"] for row in rows) == titles(postgresql)
    assert len({row.transaction_id for row in rows}) == len(rows) == 67
    assert {row.operation for row in rows} == {"insert"}
    assert postgresql.pool.checkedout() == 0  # type: ignore[attr-defined] # it is a QueuePool


KILLED = """
import os, signal, sys
from sqlalchemy import create_engine, event, select
from sqlalchemy.orm import sessionmaker
from flask_uow import UnitOfWork
from flask_uow.audit import AuditTrail
from tests.conftest import Base, Book

engine = create_engine(sys.argv[1])
uow = UnitOfWork(sessionmaker(engine))
trail = AuditTrail(uow, Base)
Base.metadata.create_all(engine)

with uow.transaction() as session:
    session.add(Book(title="stored"))

@event.listens_for(engine, "commit")
def kill(connection):
    assert len(connection.execute(select(trail.table)).all()) == 2
    assert len(connection.execute(select(Book)).all()) == 2
    print("killed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

with uow.transaction() as session:
    session.add(Book(title="lost"))
"""


@pytest.mark.parametrize("kind", ["engine", "postgresql"])
def test_killed_before_commit(request: pytest.FixtureRequest, kind: str) -> None:
    """When the process is killed between the flush and COMMIT, neither the change nor its row is there."""
    engine: Engine = request.getfixturevalue(kind)
    url = engine.url.render_as_string(hide_password=False)

    process = subprocess.run(
        [sys.executable, "-c", KILLED, url], capture_output=True, text=True, timeout=60, check=False
    )

    assert (process.returncode, process.stdout) == (-signal.SIGKILL, "killed\n"), process.stderr
    other = create_engine(engine.url)
    table = Table("audit_log", MetaData(), autoload_with=other)
    with other.connect() as connection:
        rows = connection.execute(select(table)).all()
    assert titles(other) == ["stored"]
    assert [row.primary_key for row in rows] == ["[1]"]
    table.drop(other)
    other.dispose()
