"""Databases with the models of these tests in them, what receivers are told, and short ways to both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import URL, Engine, event, make_url, select, update
from sqlalchemy.orm import Session

from flask_uow import BulkChange, Change, ChangeSet, Transaction, UnitOfWork, signals
from tests.conftest import SERVERS, _database_on, assert_nothing_checked_out, sqlite_engine
from tests.databases.changes.models import Model, Node

FULL = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in Model.metadata.tables)
"""Asks for the tables that have rows."""

Listen = Callable[[Any, str, Callable[..., Any]], None]


class Told:
    """What receivers were given."""

    def __init__(self) -> None:
        self.before: list[ChangeSet] = []
        self.committed: list[ChangeSet] = []
        self.lost: list[ChangeSet] = []

    @property
    def changes(self) -> ChangeSet:
        """Those of the only commit."""
        (changes,) = self.committed
        assert changes.is_complete
        return changes

    @property
    def bulk(self) -> list[tuple[str, str | None, int]]:
        """Those of the only commit, all of which are of statements, without their SQL."""
        assert all(isinstance(change, BulkChange) for change in self.changes)
        return [(change[0], change.table, change.rowcount) for change in self.changes if isinstance(change, BulkChange)]


def receiver(changes_of: list[ChangeSet]) -> Callable[..., None]:
    def receive(_sender: object, changes: ChangeSet, **_extra: object) -> None:
        changes_of.append(changes)

    return receive


@pytest.fixture(scope="session")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A SQLite file with the tables of these tests in it."""
    engine = sqlite_engine(tmp_path_factory.mktemp("changes") / "test.db")
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    Model.metadata.create_all(engine)
    yield engine
    engine.dispose()


def database_with_tables(server: URL) -> Iterator[Engine]:
    """A database of their own, so that the tables are made once, and no other test comes upon them."""
    for engine in _database_on(server):
        Model.metadata.create_all(engine)
        yield engine


@pytest.fixture(scope="session")
def postgresql_database(embedded_postgresql: URL) -> Iterator[Engine]:
    yield from database_with_tables(embedded_postgresql)


@pytest.fixture(scope="session")
def postgresql_server_database() -> Iterator[Engine]:
    yield from database_with_tables(make_url(SERVERS["postgresql"]))


@pytest.fixture(scope="session")
def mariadb_database() -> Iterator[Engine]:
    yield from database_with_tables(make_url(SERVERS["mariadb"]))


@pytest.fixture(params=["sqlite", "postgresql", "postgresql_server", "mariadb"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each kind of database in turn, with the tables of these tests alone: made once, and empty."""
    engine: Engine = request.getfixturevalue(f"{request.param}_database")
    empty(engine)
    yield engine
    assert_nothing_checked_out(engine)


def empty(engine: Engine) -> None:
    """Delete what the test before has left."""
    with engine.begin() as connection:
        full = {name for (name,) in connection.exec_driver_sql(FULL)}
        if "node" in full:
            connection.execute(update(Node).values(next_id=None))
        for table in reversed(Model.metadata.sorted_tables if full else []):
            if table.name in full:
                connection.execute(table.delete())


@pytest.fixture
def app(app: Flask, db: UnitOfWork) -> Flask:
    db.init_app(app)
    return app


@pytest.fixture
def told(db: UnitOfWork) -> Iterator[Told]:
    """Receivers of all signals that tell of changes."""
    told = Told()
    with (
        signals.before_commit.connected_to(receiver(told.before)),
        signals.after_commit.connected_to(receiver(told.committed)),
        signals.after_rollback.connected_to(receiver(told.lost)),
    ):
        yield told


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listens as long as the test runs."""
    listeners: list[tuple[Any, str, Callable[..., Any]]] = []

    def listen(target: Any, name: str, listener: Callable[..., Any]) -> None:
        event.listen(target, name, listener)
        listeners.append((target, name, listener))

    yield listen
    for target, name, listener in listeners:
        event.remove(target, name, listener)


def given(engine: Engine, *objects: object) -> None:
    """Store objects past the UnitOfWork."""
    with Session(engine) as session, session.begin():
        session.add_all(objects)


def rows(engine: Engine, table: Any) -> list[tuple[Any, ...]]:
    """What is stored, seen from another connection."""
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(table)))


def transaction_of(db: UnitOfWork) -> Transaction:
    transaction = db.current_transaction
    assert transaction is not None
    return transaction


def so_far(db: UnitOfWork) -> ChangeSet:
    """What has changed in the transaction that is current."""
    return transaction_of(db).changes


def in_order(changes: Iterable[Change | BulkChange]) -> list[Change]:
    """Changes of rows by table and key, where SQLAlchemy promises no order."""
    return sorted(
        (change for change in changes if isinstance(change, Change)),
        key=lambda change: (change.table, [str(part) for part in change.identity]),
    )
