from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, insert, inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, StatementError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker
from sqlalchemy.pool import NullPool

from flask_uow._core.connection import Demands, Statement
from flask_uow._core.session import Mark, SessionSource, WatchedSession
from flask_uow._core.tracking import Record
from flask_uow.errors import ConfigurationError
from tests.core.conftest import Book, give_back, source_of, titles


class Watcher:
    """An overseer that keeps what it is told, and lets nothing through."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: list[BaseException] = []
        self.restricted = False
        self.asked: Demands | None = None

    def commit_called(self) -> None:
        self.calls.append("commit")

    def rollback_called(self) -> None:
        self.calls.append("rollback")

    def close_called(self) -> None:
        self.calls.append("close")

    def reset_called(self) -> None:
        self.calls.append("reset")

    def begin_called(self, nested: bool = False) -> SessionTransaction:  # noqa: FBT002 - as in the protocol
        self.calls.append(f"begin({nested})")
        raise LookupError

    def began(self, root: SessionTransaction) -> None:
        self.calls.append("began")

    def committed(self) -> None:
        self.calls.append("committed")

    def commit_failed(self, error: BaseException, connection: Connection) -> None: ...

    def savepoint_lost(self, error: BaseException) -> None:
        self.errors.append(error)

    def statement_failed(self, error: DBAPIError, connection: Connection) -> Exception | None:
        self.errors.append(error)
        return None

    def rolled_back(self, connection: Connection, savepoint: str) -> None:
        self.calls.append(f"rolled back {savepoint}")

    def about_to_commit(self) -> None:
        """Nothing: it may."""

    def read_only_error(self, statement: str) -> Exception:
        return LookupError(statement)

    def connection_wanted(self, bind: Engine | Connection) -> None:
        """Nothing: any connection will do."""

    def savepoint_begun(self) -> Mark:
        return 7, 0

    def savepoint_rolled_back(self, mark: Mark) -> None:
        self.calls.append(f"rolled back to {mark}")

    def no_connection(self, error: Exception) -> Exception | None:
        self.errors.append(error)
        return None

    def before_statement(self) -> float | None:
        raise AssertionError

    def demands(self, bind: Engine | Connection) -> Demands | None:
        return self.asked

    def has_observers(self) -> bool:
        return False

    def is_observed(self) -> bool:
        raise AssertionError

    def sending(self, connection: Connection, statement: Statement) -> None:
        raise AssertionError

    def committing(self, connection: Connection) -> None:
        raise AssertionError

    def connected(self, connection: Connection) -> None:
        raise AssertionError

    def wants_changes(self) -> bool:
        return False

    def wants_time(self) -> bool:
        return False

    def wants_leftovers(self) -> bool:
        return True

    def about(self) -> dict[str, Any]:
        return {}

    def lost(self) -> None:
        raise AssertionError

    def tracked(self, record: Record) -> None:
        raise AssertionError

    def mark_own_savepoints(self) -> None:
        raise AssertionError

    def flush_called(self) -> None:
        """Nothing: it is called from the first read-only transaction of the process on."""


def watch(source: SessionSource, watcher: Watcher) -> WatchedSession:
    return WatchedSession(source.open(), source, watcher)


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.mark.parametrize("method", ["commit", "rollback", "close", "reset"])
def test_settling_is_handed_to_the_overseer(engine: Engine, watcher: Watcher, method: str) -> None:
    """A method that settles asks the overseer, and does nothing by itself."""
    watched = watch(source_of(engine), watcher)
    watched.session.add(Book(title="Emma"))

    getattr(watched.session, method)()

    assert watcher.calls == [method]
    assert watched.session.in_transaction()
    watched.release()


@pytest.mark.parametrize(("method", "call"), [("begin", "begin(False)"), ("begin_nested", "begin(True)")])
def test_beginning_is_handed_to_the_overseer(engine: Engine, watcher: Watcher, method: str, call: str) -> None:
    """Beginning asks the overseer too, savepoints included."""
    watched = watch(source_of(engine), watcher)

    with pytest.raises(LookupError):
        getattr(watched.session, method)()

    assert watcher.calls == [call]
    watched.release()


def test_doing_it_for_real(engine: Engine, watcher: Watcher) -> None:
    """What the overseer decides is done by the session itself."""
    watched = watch(source_of(engine), watcher)

    watched.begin(nested=False)
    watched.session.add(Book(title="Emma"))
    watched.commit()
    watched.session.add(Book(title="Persuasion"))
    watched.rollback()
    watched.session.add(Book(title="Sanditon"))
    watched.close()
    watched.session.add(Book(title="Lady Susan"))
    watched.reset()
    watched.release()

    assert titles(engine) == ["Emma"]
    assert watcher.calls == ["began", "committed"]


def test_a_session_that_has_begun_without_a_connection(engine: Engine, watcher: Watcher) -> None:
    """A session with something in it, but no connection yet, is watched from its first statement on."""
    session = Session(engine)
    session.add(Book(title="Emma"))
    watched = watch(SessionSource(lambda: session, give_back), watcher)
    calls = list(watcher.calls)

    session.flush()
    watched.commit()
    watched.release()

    assert calls == ["began"]
    assert watcher.calls == ["began", "began", "committed"]
    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("given", [None, "session", object()])
def test_no_session(watcher: Watcher, given: object) -> None:
    """A source that returns something else is refused, with what it returned."""
    source = SessionSource(lambda: given, give_back)  # type: ignore[arg-type,return-value] # this is the point

    with pytest.raises(ConfigurationError, match=r"^sessions returned .* instead of a sqlalchemy\.orm\.Session"):
        watch(source, watcher)


def test_a_session_of_somebody_else(engine: Engine, watcher: Watcher) -> None:
    """A session that is in use elsewhere is refused, and stays as it was."""
    session = Session(engine)
    source = SessionSource(lambda: session, give_back)
    first = watch(source, watcher)

    with pytest.raises(ConfigurationError, match=r"^sessions returned a session that is in use by another scope"):
        watch(source, Watcher())

    session.commit()
    assert watcher.calls == ["commit"]
    first.release()


def test_release_gives_the_session_back(engine: Engine, watcher: Watcher) -> None:
    """A released session is closed, has its own methods again, and can be watched by another."""
    session = Session(engine)
    source = SessionSource(lambda: session, give_back)
    watched = watch(source, watcher)
    session.add(Book(title="Emma"))

    watched.release()

    assert not session.in_transaction()
    session.add(Book(title="Persuasion"))
    session.commit()
    assert watcher.calls == []
    assert titles(engine) == ["Persuasion"]
    watch(source, watcher).release()


def test_release_that_fails(engine: Engine, watcher: Watcher, caplog: pytest.LogCaptureFixture) -> None:
    """A session that cannot be given back loses its connection, and nobody is disturbed."""

    def refuse(_session: Session) -> None:
        raise OSError("the registry is gone")

    watched = watch(SessionSource(sessionmaker(engine), refuse), watcher)
    watched.session.connection()
    caplog.set_level(logging.DEBUG, "flask_uow")

    watched.release()

    assert not watched.session.in_transaction()
    assert ["Closing a session failed" in message for message in caplog.messages] == [True]


def test_rollback_that_fails(engine: Engine, watcher: Watcher, caplog: pytest.LogCaptureFixture) -> None:
    """After a ROLLBACK that the database could not answer, the session works again on another connection."""
    watched = watch(source_of(engine), watcher)
    watched.session.add(Book(title="Emma"))
    watched.session.flush()
    driver = watched.session.connection().connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.close()
    caplog.set_level(logging.DEBUG, "flask_uow")

    watched.rollback()

    assert ["ROLLBACK failed" in message for message in caplog.messages] == [True]
    assert watched.session.scalars(select(Book)).all() == []
    watched.release()


def test_errors_of_the_database_are_told(engine: Engine, watcher: Watcher) -> None:
    """What the database refuses reaches the overseer of the session, with the error that the user sees."""
    watched = watch(source_of(engine), watcher)
    watched.session.add(Book(id=1, title="Emma"))
    watched.session.flush()

    with pytest.raises(IntegrityError) as caught:
        watched.session.execute(insert(Book).values(title="Emma"))

    assert watcher.errors == [caught.value]
    watched.release()


def test_errors_of_others_are_not_told(engine: Engine, watcher: Watcher) -> None:
    """An error on another connection of the same engine is none of the session's."""
    watched = watch(source_of(engine), watcher)
    watched.session.connection()

    with engine.connect() as other, pytest.raises(OperationalError, match="no such table"):
        other.execute(text("SELECT * FROM nowhere"))

    assert watcher.errors == []
    watched.release()


def test_errors_of_another_session_of_the_factory(engine: Engine, watcher: Watcher) -> None:
    """A session of the same factory that nobody watches has its errors for itself."""
    source = source_of(engine)
    watched = watch(source, watcher)

    with source.open() as other, pytest.raises(OperationalError, match="no such table"):
        other.execute(text("SELECT * FROM nowhere"))

    assert watcher.errors == []
    watched.release()


def test_errors_before_the_database_are_not_told(engine: Engine, watcher: Watcher) -> None:
    """A statement that was never sent has not hurt the transaction."""
    watched = watch(source_of(engine), watcher)

    with pytest.raises(StatementError, match="DateTime type only accepts Python datetime"):
        watched.session.execute(insert(Book).values(title="Emma", printed="yesterday"))

    assert watcher.errors == []
    watched.release()


def test_errors_while_connecting_are_told(tmp_path: Path, watcher: Watcher) -> None:
    """A statement for which there was no connection has failed like any other."""
    paths = iter([tmp_path / "books.db", tmp_path / "missing" / "books.db"])
    engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(next(paths)), poolclass=NullPool)
    watched = watch(source_of(engine), watcher)
    watched.session.connection()
    watched.rollback()

    with pytest.raises(OperationalError, match="unable to open database file") as caught:
        watched.session.connection()

    assert watcher.errors == [caught.value]
    watched.release()


def test_listening_once(engine: Engine, watcher: Watcher) -> None:
    """However many sessions there were, an error is told once."""
    source = source_of(engine)
    for _ in range(3):
        earlier = watch(source, Watcher())
        earlier.session.connection()
        earlier.release()
    watched = watch(source, watcher)

    with pytest.raises(OperationalError, match="no such table"):
        watched.session.execute(text("SELECT * FROM nowhere"))

    assert len(watcher.errors) == 1
    watched.release()


def statements_of(engine: Engine) -> list[str]:
    """What SQLite itself gets from now on, but for the ends of transactions."""
    sent: list[str] = []

    def keep(statement: str) -> None:
        if statement.split(maxsplit=1)[0] not in {"COMMIT", "PRAGMA", "ROLLBACK"}:
            sent.append(statement.strip())

    @event.listens_for(engine, "connect")
    def _trace(connection: sqlite3.Connection, _record: object) -> None:
        connection.set_trace_callback(keep)

    engine.dispose()
    return sent


@pytest.mark.parametrize(
    ("isolation_level", "begin"), [("", ["BEGIN"]), ("IMMEDIATE", ["BEGIN IMMEDIATE"]), (None, [])]
)
def test_sqlite_begins_at_once(tmp_path: Path, watcher: Watcher, isolation_level: Any, begin: list[str]) -> None:
    """On SQLite a transaction begins before its first statement, unless the driver's autocommit was chosen."""
    path = tmp_path / "books.db"
    engine = create_engine(
        "sqlite://", creator=lambda: sqlite3.connect(path, isolation_level=isolation_level), poolclass=NullPool
    )
    sent = statements_of(engine)
    watched = watch(source_of(engine), watcher)

    watched.session.execute(text("SELECT 1"))

    assert sent == [*begin, "SELECT 1"]
    watched.release()


def test_factories_and_sessions_that_come_and_go(engine: Engine) -> None:
    """A new factory or session is listened to, even where an old one was in memory."""
    sent = statements_of(engine)
    used = 100

    for _ in range(used):
        watched = watch(source_of(engine), Watcher())
        watched.session.execute(text("SELECT 1"))
        watched.release()

    assert sent == ["BEGIN", "SELECT 1"] * used


def test_sqlite_that_has_begun(engine: Engine, watcher: Watcher) -> None:
    """A connection that is in a transaction already is left in it."""
    sent = statements_of(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
        watched = watch(SessionSource(factory, give_back), watcher)

        watched.session.execute(text("SELECT 1"))

        watched.release()
    assert [statement for statement in sent if statement.startswith("BEGIN")] == ["BEGIN"]


def test_savepoints_begin_nothing(engine: Engine, watcher: Watcher) -> None:
    """A savepoint is opened in the transaction that is there."""
    sent = statements_of(engine)
    watched = watch(source_of(engine), watcher)

    watched.begin(nested=True)
    watched.session.execute(text("SELECT 1"))

    assert [statement.split()[0] for statement in sent] == ["BEGIN", "SAVEPOINT", "SELECT"]
    watched.release()


def test_released_savepoint_goes_with_its_transaction(engine: Engine, watcher: Watcher) -> None:
    """A savepoint that was released is lost when the transaction around it rolls back, on SQLite too."""
    watched = watch(source_of(engine), watcher)
    savepoint = watched.begin(nested=True)
    watched.session.add(Book(title="Emma"))
    savepoint.commit()

    watched.rollback()

    assert titles(engine) == []
    watched.release()


def test_sessions_that_nobody_watches(engine: Engine, watcher: Watcher) -> None:
    """A session of the same factory that flask_uow has not opened behaves as ever."""
    source = source_of(engine)
    watch(source, watcher).release()

    with source.open() as session, session.begin():
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]
    assert watcher.calls == []


def test_private_parts_of_sqlalchemy(engine: Engine) -> None:
    """What is read of SQLAlchemy that is not public is where it was."""
    found: list[object] = []

    with Session(engine, close_resets_only=False) as session, session.begin() as begun:
        original = begun._connection_for_bind

        def find(bind: Any, options: Any) -> Connection:
            found.append(bind)
            return original(bind, options)

        vars(begun)["_connection_for_bind"] = find
        with session.begin_nested():
            session.add(Book(title="Emma"))
            session.flush()
        in_block = session._trans_context_manager
        *entry, from_pool = begun._connections[session.connection()]

        # By a flush, in a savepoint, as by anything else.
        assert found[0] is engine
        assert entry[0] is session.connection()
        assert from_pool is True
        assert in_block is begun
        assert begun._state.name == "ACTIVE"
        with session.connection().begin_nested() as outer, session.connection().begin_nested() as inner:
            assert inner._previous_nested is outer
            assert inner._savepoint.startswith("sa_savepoint_")
        assert callable(begun._prepare_impl)
        assert callable(session._execute_internal)
        assert callable(session._connection_for_bind)
    assert session._close_state.name == "CLOSED"
    assert create_engine("sqlite://", isolation_level="AUTOCOMMIT").dialect._on_connect_isolation_level == "AUTOCOMMIT"


def test_private_parts_that_keep_what_is_changed(engine: Engine) -> None:
    """What SQLAlchemy keeps of new, changed and deleted objects is where it was."""
    emma, sanditon = Book(title="Emma"), Book(title="Sanditon")
    with Session(engine) as session:
        session.add_all([emma, sanditon])
        assert [inspect(book).insert_order for book in (emma, sanditon)] == [1, 2]
        assert list(session._new) == [inspect(emma), inspect(sanditon)]
        session.flush()
        root = session.get_transaction()
        assert root is not None
        assert set(root._new) == {inspect(emma), inspect(sanditon)}
        session.begin_nested()
        emma.title = "changed"
        assert session.identity_map._modified == {inspect(emma)}
        session.delete(sanditon)
        assert list(session._deleted) == [inspect(sanditon)]
        session.flush()
        nested = session.get_nested_transaction()
        assert nested is not None
        assert nested.parent is root
        assert list(nested._dirty) == [inspect(emma)]
        assert list(nested._deleted) == [inspect(sanditon)]


def test_source_that_does_not_say() -> None:
    """A source that nobody has told where its sessions are bound knows no binds."""
    assert SessionSource(Session, Session.close).binds() == []
