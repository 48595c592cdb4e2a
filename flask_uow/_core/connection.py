"""A connection in a transaction: what it is set to, what may be sent over it, and how it is put back."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.engine.interfaces import ExecutionContext
from sqlalchemy.exc import DBAPIError

from flask_uow._core.isolation import is_isolated
from flask_uow._core.limits import Limit, limit_of
from flask_uow._core.once import once
from flask_uow._core.pool import put_back_later, send
from flask_uow._core.stopwatch import Stopwatch
from flask_uow._core.verbs import changes, is_control, only_reads, writes
from flask_uow.errors import ConfigurationError, IncompatibleTransactionError

__all__ = [
    "PLAIN",
    "Demands",
    "Savepoints",
    "Statement",
    "Supervisor",
    "adopt",
    "attend",
    "begin_at_once",
    "begun",
    "bound_to_a_connection",
    "change_on",
    "commits_by_itself",
    "committing",
    "execution_options",
    "follow",
    "forget",
    "give_back",
    "has_given_up",
    "has_written",
    "in_front",
    "is_set_to_autocommit",
    "listen_to_errors",
    "measure",
    "observe",
    "quietly",
    "refuse_autocommit",
    "relax",
    "take",
]


Savepoints = frozenset[tuple[Connection, str]]
"""Savepoints by their names, which are of one connection each."""


class Statement(NamedTuple):
    """A statement, as SQLAlchemy is about to give it to a cursor."""

    text: str
    parameters: Any
    cursor: Any
    context: ExecutionContext | None


class Supervisor(Protocol):
    """Who decides what may be sent over a connection, and is told what went wrong."""

    restricted: bool
    """Whether `before_statement` has anything to say. It is asked before each statement."""

    def is_observed(self) -> bool:
        """Whether `sending` and `committing` are wanted."""
        ...

    def sending(self, connection: Connection, statement: Statement) -> None:
        """Learn of a statement that is about to be sent, and raise in its place what it is to fail with."""

    def committing(self, connection: Connection) -> None:
        """Learn that COMMIT is about to be sent, and raise in its place what it is to fail with."""

    def before_statement(self) -> float | None:
        """Return how many seconds the next statement has, or None for no limit; raise if it may not be sent."""
        ...

    def statement_failed(self, error: DBAPIError, connection: Connection) -> Exception | None:
        """Learn that the database refused something, and return a better error to raise, if there is one."""
        ...

    def rolled_back(self, connection: Connection, savepoint: str) -> None:
        """Learn that a savepoint of a connection that is followed was rolled back."""

    def read_only_error(self, statement: str) -> Exception:
        """Return what to raise for a statement that would write in a read-only transaction."""
        ...

    def commit_failed(self, error: BaseException, connection: Connection) -> None:
        """Learn that something went wrong in what may have been a COMMIT."""

    def savepoint_lost(self, error: BaseException) -> None:
        """Learn that a savepoint could not be rolled back: the database has undone more than it."""


class Demands(Protocol):
    """What a transaction asks of its connections."""

    @property
    def _label(self) -> str:
        """What to call its block in a message."""
        ...

    @property
    def isolation_level(self) -> str | None:
        """The level, or None for the engine's own."""
        ...

    @property
    def _is_default_level(self) -> bool:
        """Whether the level is the setting's, and not the block's own."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether it may not write."""
        ...

    @property
    def _is_prelude(self) -> bool:
        """Whether to remember what is written from here on, for it would be missing when a view is run again."""
        ...


class _Plain:
    """What a transaction demands that asks for nothing but a COMMIT at its end."""

    def __init__(self) -> None:
        self._label = ""
        self.isolation_level = None
        self._is_default_level = True
        self.read_only = self._is_prelude = False


PLAIN: Final[Demands] = _Plain()
"""What most transactions demand of their connections."""

_ROLLBACK_TO: Final = "ROLLBACK TO SAVEPOINT "

_COMMITS: Final = ("COMMIT", "XA COMMIT")
"""How statements begin that keep what was done. The drivers' own have no text."""

_SAVEPOINT: Final = "SAVEPOINT "

_ALWAYS_SENT: Final = ("ROLLBACK", "XA END", "XA ROLLBACK")
"""How statements begin that are a part of rolling back."""


class _Watch:
    """What is known of one connection while a session uses it."""

    # What is usual is said once, in the class: most connections are given few attributes of their own.

    written: bool = False
    change: str | None = None
    """The first statement that has changed something for certain, of a connection that began outside any."""

    refuses_writing: bool = False
    """Whether it is read-only, and its database does not see to it."""

    stopwatch: Stopwatch | None = None
    """Measures the work of the database, if anybody wants to know."""

    outer: _Watch | None = None
    """That of another session, which its maker has bound to the same connection."""

    _has_just_changed: bool = False
    _savepoints: tuple[str, ...] = ()
    """Those that were begun before it."""

    _limit: Limit | None = None
    _attended: bool = False
    _followed: bool = False
    _observed: bool = False
    _busy: bool = False

    def __init__(self, supervisor: Supervisor, *, supervised: bool, manage_limit: bool) -> None:
        self.supervisor = supervisor
        self.supervised = supervised
        """Whether it began in a transaction. What is written outside one is remembered, for it must not be lost."""

        self._manage_limit = manage_limit

    def observe(self, connection: Connection) -> None:
        """Tell of each statement, and of COMMIT."""
        self.attend(connection)
        if not self._observed:
            self._observed = True
            event.listen(connection, "commit", committing)

    def attend(self, connection: Connection) -> None:
        """Be asked before each statement. It costs as much as a statement does, and few transactions need it."""
        if not self._attended:
            self._attended = True
            event.listen(connection, "before_cursor_execute", _before_statement)

    def follow(self, connection: Connection) -> None:
        """Tell of savepoints that are rolled back."""
        if not self._followed:
            self._followed = True
            event.listen(connection, "after_cursor_execute", _after_statement)

    def measure(self, connection: Connection, stopwatch: Stopwatch) -> None:
        """Measure what the database does. It costs more than to be asked does, and is for those who want it."""
        self.stopwatch = stopwatch
        # First, for what else is done before a statement may send others, which are ours.
        event.listen(connection, "before_cursor_execute", _statement_starts, insert=True)
        event.listen(connection, "after_cursor_execute", _statement_ends)
        for name in ("commit", "rollback"):
            event.listen(connection, name, _transaction_ends)

    def starts(self, statement: str) -> None:
        """Learn that a statement is sent; one that is sent within another, on the way, is a part of that."""
        if self.stopwatch is not None and not self._busy:
            self.stopwatch.statements += self.stopwatch.counts and not is_control(statement)
            self.stopwatch.start()

    def ends(self) -> None:
        """Learn that a statement was carried out, or has failed."""
        if self.stopwatch is not None and not self._busy:
            self.stopwatch.stop()

    def before(self, connection: Connection, statement: str) -> None:
        if not self.supervised and not self._busy:
            self.written = self.written or not only_reads(statement)
            self._look_for_change(connection, statement)
        if self.refuses_writing and writes(statement):
            raise self.supervisor.read_only_error(statement)
        if self.supervisor.restricted and not self._busy:
            if statement.startswith(_ALWAYS_SENT):
                # It takes settings of a savepoint with it.
                self._limit = None if self._limit is None else self._limit.after_rollback()
                return
            self.give(connection, self.supervisor.before_statement())

    def tell(self, connection: Connection, statement: Statement) -> None:
        """Tell of a statement that is about to be sent, if it is not one of ours, nor of those around the others."""
        if self._observed and not self._busy and not is_control(statement.text):
            self.supervisor.sending(connection, statement)

    def quietly(self, *, busy: bool) -> bool:
        """Let what is sent from here on be ours, or no longer, and return whether it was."""
        before, self._busy = self._busy, busy
        return before

    def _look_for_change(self, connection: Connection, statement: str) -> None:
        self._has_just_changed = False
        if statement.startswith(_ROLLBACK_TO):
            if statement.removeprefix(_ROLLBACK_TO).strip() in self._savepoints:
                self.change = None
        elif self.change is not None:
            return
        elif statement.startswith(_SAVEPOINT):
            self._savepoints += (statement.removeprefix(_SAVEPOINT).strip(),)
        # Whether it only reads was looked at already.
        elif self.written and changes(statement, connection.dialect.name):
            self.change = statement
            self._has_just_changed = True

    def failed(self) -> None:
        """Learn that the last statement has failed."""
        self.ends()
        if self._has_just_changed:
            self.change = None

    def give(self, connection: Connection, seconds: float | None) -> None:
        """Give the next statement *seconds*, on the server's side too, where that can be."""
        if self._limit is None:
            if seconds is None or not self._manage_limit:
                return
            self._limit = limit_of(connection.dialect)
        self._busy = True
        try:
            self._limit.apply(connection, seconds)
        finally:
            self._busy = False


_WATCH: Final = "_flask_uow_watch"
"""The attribute of a connection that is watched."""


def take(connection: Connection, supervisor: Supervisor, demands: Demands | None, *, bound: bool) -> None:
    """Watch a connection that a session has just begun on, and set it to what is demanded.

    Args:
        connection: The connection. Nothing was sent over it since it began.
        supervisor: Who decides what may be sent.
        demands: What the transaction demands, or None outside any.
        bound: Whether the session was given the connection by its maker, who may be in a transaction on it. Its
            settings are left as they are.

    Raises:
        ConfigurationError: It commits each statement by itself, and a transaction is demanded.
    """
    supervised = demands is PLAIN or (demands is not None and not demands._is_prelude)
    watch = _watch(connection, supervisor, supervised=supervised, bound=bound)
    if not supervised or supervisor.restricted:
        watch.attend(connection)
    driver = connection.connection.driver_connection
    # One that is sent BEGIN does not commit by itself.
    has_begun = isinstance(driver, sqlite3.Connection) and driver.in_transaction
    if not has_begun and not _begin_at_once(connection, driver) and demands is not None:
        _refuse_autocommit(connection, driver)
    is_read_only = demands is not PLAIN and demands is not None and demands.read_only
    if is_read_only and (bound or not _make_read_only(connection, driver)):
        watch.refuses_writing = True
        watch.attend(connection)


def _watch(connection: Connection, supervisor: Supervisor, *, supervised: bool, bound: bool) -> _Watch:
    watch = _Watch(supervisor, supervised=supervised, manage_limit=not bound)
    if bound:
        give_back(connection, supervisor)
        watch.outer = _watch_of(connection)
    watched: Any = connection
    watched._flask_uow_watch = watch
    return watch


def give_back(connection: Connection, supervisor: Supervisor) -> None:
    """Forget that a session was on a bound connection, which tells the one before it again if it was the last."""
    kept = [watch for watch in _watches_of(connection) if watch.supervisor is not supervisor]
    for watch, outer in zip(kept, (*kept[1:], None), strict=False):
        watch.outer = outer
    if kept:
        setattr(connection, _WATCH, kept[0])
    else:
        forget(connection)


def _watch_of(connection: Connection) -> _Watch | None:
    watch: _Watch | None = getattr(connection, _WATCH, None)
    return watch


def _known_watch_of(connection: Connection) -> _Watch:
    watch: _Watch = getattr(connection, _WATCH)
    return watch


def _watches_of(connection: Connection) -> Iterator[_Watch]:
    watch = _watch_of(connection)
    while watch is not None:
        yield watch
        watch = watch.outer


def forget(connection: Connection) -> None:
    """Forget a connection that its session has given back; one that has listeners is a cycle of SQLAlchemy's."""
    if hasattr(connection, _WATCH):
        delattr(connection, _WATCH)


def adopt(connection: Connection, supervisor: Supervisor, *, bound: bool) -> None:
    """Watch a connection that a session had begun on before it was watched; what was sent over it is not known."""
    watch = _watch(connection, supervisor, supervised=False, bound=bound)
    watch.written = True
    watch.attend(connection)
    if supervisor.is_observed():
        watch.observe(connection)
    begin_at_once(connection)


def in_front(connection: Connection, supervisor: Supervisor) -> None:
    """Let *supervisor* be told of what is next sent over a connection that several sessions are on in turn."""
    watches = sorted(_watches_of(connection), key=lambda watch: watch.supervisor is not supervisor)
    if not watches or watches[0].supervisor is not supervisor:
        # It is about to begin, which is not the affair of the one before.
        _watch(connection, supervisor, supervised=True, bound=True)
        return
    for watch, outer in zip(watches, (*watches[1:], None), strict=False):
        watch.outer = outer
    setattr(connection, _WATCH, watches[0])


def observe(connection: Connection) -> None:
    """Tell the supervisor of a connection of what is sent from now on, if it is watched, and that wants to know."""
    watch = _watch_of(connection)
    if watch is not None and watch.supervisor.is_observed():
        watch.observe(connection)


@contextmanager
def quietly(connection: Connection) -> Generator[None]:
    """Let what is sent inside be our own, which observers are not told of."""
    watch = _known_watch_of(connection)
    before = watch.quietly(busy=True)
    try:
        yield
    finally:
        watch.quietly(busy=before)


def attend(connection: Connection) -> None:
    """Ask the supervisor of a connection that is watched before each statement, from now on."""
    _known_watch_of(connection).attend(connection)


def measure(connection: Connection, stopwatch: Stopwatch) -> None:
    """Measure the work of the database for a connection that is watched, from now on."""
    _known_watch_of(connection).measure(connection, stopwatch)


def follow(connection: Connection) -> None:
    """Tell the supervisor of a connection that is watched of savepoints that are rolled back, from now on."""
    _known_watch_of(connection).follow(connection)


def begun(connection: Connection) -> None:
    """Forget what listeners to the beginning have sent: they send it again when the session begins anew."""
    watch = _known_watch_of(connection)
    watch.written, watch.change = False, None


def change_on(connection: Connection) -> str | None:
    """Return the first statement that has changed something; of a connection that began outside any transaction."""
    watch = _watch_of(connection)
    return None if watch is None else watch.change


def relax(connection: Connection, seconds: float | None) -> None:
    """Let the server know that a block that had less time is over."""
    _known_watch_of(connection).give(connection, seconds)


def refuse_autocommit(connection: Connection) -> None:
    """Raise if a connection commits each statement by itself.

    Raises:
        ConfigurationError: It does.
    """
    _refuse_autocommit(connection, connection.connection.driver_connection)


def _refuse_autocommit(connection: Connection, driver: Any) -> None:
    if _commits_by_itself(connection, driver):
        raise ConfigurationError(
            "isolation_level",
            f"of a connection of {connection.engine!r} is AUTOCOMMIT: each statement would be stored at once, and no "
            "rollback could undo it. Give UnitOfWork an engine without it, and use engine.connect() for what must run "
            "outside a transaction.",
        )


def execution_options(bind: Engine | Connection, demands: Demands) -> dict[str, Any]:
    """Return the execution options with which a session is to begin on *bind*.

    They are SQLAlchemy's own, which takes them back when the connection is returned to its pool.

    Raises:
        IncompatibleTransactionError: *bind* is a Connection, whose isolation level is not ours to set.
    """
    level = demands.isolation_level
    if (level is None and not demands.read_only) or is_isolated(bind):
        # All sessions of a test are in one transaction, and have its level.
        return {}
    if isinstance(bind, Connection):
        if level is not None and not demands._is_default_level:
            raise bound_to_a_connection(demands._label, level)
        return {}

    dialect = bind.dialect
    if dialect.name == "sqlite":
        # It has one level, and that is SERIALIZABLE: https://sqlite.org/isolation.html
        return {}

    options: dict[str, Any] = {}
    if level is not None:
        options["isolation_level"] = level
    if demands.read_only and dialect.name == "postgresql":
        options["postgresql_readonly"] = True
    return options


def bound_to_a_connection(block: str, level: str) -> IncompatibleTransactionError:
    """Return what to raise where a level is asked for, and it is not ours to set."""
    return IncompatibleTransactionError(
        block,
        f"isolation_level={level!r}",
        "its session is bound to a Connection, which may be in a transaction already. Bind the session to the engine.",
    )


def has_written(connection: Connection) -> bool:
    """Whether a transaction would lose anything by a rollback.

    PostgreSQL is asked as well, for a query can call functions that write: its transaction has an id then. See
    "Transaction ID and Snapshot Information Functions" in its documentation.
    """
    watch = _known_watch_of(connection)
    if watch.written or watch.supervised:
        # Nobody keeps account of what is sent in most transactions.
        return True
    if connection.dialect.name != "postgresql" or is_isolated(connection):
        # The transaction of all sessions of a test has an id, whoever has written.
        return False
    try:
        return connection.exec_driver_sql("SELECT txid_current_if_assigned()").scalar() is not None
    except DBAPIError:
        # It has given the transaction up, and there is nothing to lose.
        return False


def has_given_up(connection: Connection) -> bool:
    """Whether PostgreSQL has given up the transaction of a connection, and would answer COMMIT with a ROLLBACK.

    psycopg and psycopg2 know that without asking, in ``info.transaction_status``; 3 is libpq's PQTRANS_INERROR.
    """
    if connection.invalidated:
        return True
    if connection.dialect.name != "postgresql":
        return False
    info = getattr(connection.connection.driver_connection, "info", None)
    status = getattr(info, "transaction_status", None)
    return status is not None and int(status) == _IN_ERROR


_IN_ERROR: Final = 3

# Beginning


def begin_at_once(connection: Connection) -> None:
    """Send BEGIN where the driver would wait with it."""
    _begin_at_once(connection, connection.connection.driver_connection)


def _begin_at_once(connection: Connection, driver: Any) -> bool:
    """Send BEGIN where the driver would wait with it, and return whether it was sent."""
    if not isinstance(driver, sqlite3.Connection) or not _begins_late(driver):
        return False
    if driver.isolation_level:
        connection.exec_driver_sql(f"BEGIN {driver.isolation_level}")
    else:
        # A deferred BEGIN takes no lock and cannot fail, and SQLAlchemy has told of it already.
        driver.execute("BEGIN")
    return True


def _begins_late(driver: sqlite3.Connection) -> bool:
    """Whether Python's sqlite3 would wait for the first INSERT, UPDATE or DELETE before it sends BEGIN.

    A savepoint opened before that is committed when it is released, whatever becomes of the transaction. See
    "Transaction control" in the documentation of sqlite3; -1 is its LEGACY_TRANSACTION_CONTROL, all there is before
    Python 3.12. An isolation level of None is the driver's autocommit, which is the user's own choice.
    """
    legacy = getattr(driver, "autocommit", -1) == -1
    return legacy and driver.isolation_level is not None and not driver.in_transaction


def _commits_by_itself(connection: Connection, driver: Any) -> bool:
    """Whether the connection is in autocommit mode, set in SQLAlchemy or in the driver."""
    if isinstance(driver, sqlite3.Connection):
        # Without an isolation level it is left to listeners of the user's to send BEGIN.
        return not driver.in_transaction

    if is_set_to_autocommit(connection):
        return True
    # psycopg, psycopg2, asyncpg and pg8000 have an attribute, PyMySQL and mysqlclient a method beside it.
    dbapi = connection.connection.dbapi_connection
    autocommit = getattr(dbapi, "autocommit", False)
    return bool(dbapi.get_autocommit() if callable(autocommit) else autocommit)  # type: ignore[union-attr]


def is_set_to_autocommit(bind: Engine | Connection) -> bool:
    """Whether SQLAlchemy was told to put connections, or this one, into autocommit mode."""
    options: Mapping[str, Any] = bind.get_execution_options()
    level: object = options.get("isolation_level", bind.dialect._on_connect_isolation_level)
    return level == "AUTOCOMMIT"


def commits_by_itself(connection: Connection) -> bool:
    """Whether a connection that has just begun would store each statement at once, whatever we do about it."""
    driver = connection.connection.driver_connection
    _begin_at_once(connection, driver)
    return _commits_by_itself(connection, driver)


def _make_read_only(connection: Connection, driver: Any) -> bool:
    """Let the server refuse to write, where the execution options have not done it, and return whether it can."""
    if isinstance(driver, sqlite3.Connection):
        if not driver.execute("PRAGMA query_only").fetchone()[0]:
            driver.execute("PRAGMA query_only = ON")
            put_back_later(connection, _allow_writing)
        return True
    if connection.dialect.name in ("mysql", "mariadb"):
        # Of the session, for DDL would commit a transaction that alone is read-only, and the next could write. Nothing
        # was sent yet, so it holds for the transaction that is about to begin.
        writes = connection.info.get(_CAN_WRITE)
        if writes is None:
            writes = connection.info[_CAN_WRITE] = {row[1] for row in connection.exec_driver_sql(_READ_ONLY)} == {"OFF"}
        if writes:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
            put_back_later(connection, _allow_transactions_to_write)
        return True
    return connection.dialect.name == "postgresql"


_CAN_WRITE: Final = "flask_uow.can_write"
"""Whether a driver's connection was made for writing. To ask for that takes longer than a transaction may."""

_READ_ONLY: Final = "SHOW SESSION VARIABLES WHERE Variable_name IN ('tx_read_only', 'transaction_read_only')"
"""The first is the name in MariaDB before 11.1 and MySQL before 8.0."""


def _allow_writing(dbapi: Any) -> None:
    dbapi.execute("PRAGMA query_only = OFF")


def _allow_transactions_to_write(dbapi: Any) -> None:
    send(dbapi, "SET SESSION TRANSACTION READ WRITE")


# Statements


@once
def listen_to_errors() -> None:
    """Listen to what goes wrong on all engines.

    On the class, for its listeners come before those of an engine: one of the user's may raise another error, and
    SQLAlchemy calls none of the rest then.
    """
    event.listen(Engine, "handle_error", _handle_error)


def _before_statement(
    connection: Connection,
    cursor: Any,
    statement: str,
    parameters: Any,
    context: ExecutionContext | None,
    _executemany: bool,  # noqa: FBT001 - the signature of SQLAlchemy's event
) -> None:
    watch = _watch_of(connection)
    # One that a session was bound to is its maker's again.
    if watch is not None:
        watch.before(connection, statement)
        watch.tell(connection, Statement(statement, parameters, cursor, context))


def committing(connection: Connection) -> None:
    """Tell the supervisor of a connection that is watched, and is observed, that COMMIT is next."""
    watch = _watch_of(connection)
    if watch is not None:
        watch.supervisor.committing(connection)


def _after_statement(connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
    watch = _watch_of(connection)
    if watch is not None and statement.startswith(_ROLLBACK_TO):
        watch.supervisor.rolled_back(connection, statement.removeprefix(_ROLLBACK_TO).strip())


def _statement_starts(connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
    watch = _watch_of(connection)
    if watch is not None:
        watch.starts(statement)


def _statement_ends(connection: Connection, *_rest: Any) -> None:
    watch = _watch_of(connection)
    if watch is not None:
        watch.ends()


def _transaction_ends(connection: Connection) -> None:
    watch = _watch_of(connection)
    if watch is not None and watch.stopwatch is not None:
        # With several engines there is one after the other.
        watch.stopwatch.stop()
        watch.stopwatch.start()


def _handle_error(context: ExceptionContext) -> Exception | None:
    error = context.sqlalchemy_exception
    connection = context.connection
    watch = None if connection is None else _watch_of(connection)
    if connection is None or watch is None:
        return None
    watch.failed()
    if (context.statement or _COMMITS[0]).startswith(_COMMITS):
        watch.supervisor.commit_failed(error or context.original_exception, connection)
    if not isinstance(error, DBAPIError):
        return None

    if (context.statement or "").startswith(_ROLLBACK_TO):
        watch.supervisor.savepoint_lost(error)
        return None
    return watch.supervisor.statement_failed(error, connection)
