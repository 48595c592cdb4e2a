"""Let the database fail where a test wants it to, as it does by itself."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Literal, NoReturn, Self, cast, get_args
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError

from flask_uow._core.connection import Statement
from flask_uow._core.events import Committing, Connected, Event, Sending
from flask_uow._core.isolation import is_isolated
from flask_uow._core.session import observe_all, shared
from flask_uow.errors import ConfigurationError
from flask_uow.extension import UnitOfWork

__all__ = ["Fault", "Injection", "inject"]

Fault = Literal["serialization_failure", "deadlock", "disconnect", "disconnect_at_commit"]

_FAULTS: Final = get_args(Fault)

_COMMIT: Final = "commit"


def inject(
    uow: UnitOfWork,
    error: Fault | BaseException | type[BaseException],
    *,
    at: int | str | re.Pattern[str] | None = None,
    times: int = 1,
) -> Injection:
    """Return a context manager inside which the database fails, and which yields what counts how often it did.

    The errors are the driver's own: a server is made to answer with them, and a lost connection has been cut.

    Args:
        uow: The UnitOfWork whose transactions are to fail.
        error: "serialization_failure", "deadlock", "disconnect", "disconnect_at_commit", or an exception.
        at: Which statement of a transaction is to fail: its number, from 1 (the default), or a regular expression that
            is searched for in it; or "commit", for the COMMIT.
        times: How often at most, 1 by default; each attempt at a block is a transaction of its own.

    Raises:
        ConfigurationError: An argument cannot be right. Where it strikes: the database knows no such error.
    """
    if not isinstance(uow, UnitOfWork):
        raise ConfigurationError("inject()", f"was given {uow!r}; its first argument is a UnitOfWork.")
    is_exception = isinstance(error, BaseException) or (isinstance(error, type) and issubclass(error, BaseException))
    if not is_exception and error not in _FAULTS:
        raise ConfigurationError(
            "error", f"is {error!r}; it must be one of {', '.join(map(repr, _FAULTS))}, or an exception."
        )
    if type(times) is not int or times < 1:
        raise ConfigurationError("times", f"is {times!r}; it must be a whole number, 1 or above.")
    if error == "disconnect_at_commit":
        if at not in (None, _COMMIT):
            raise ConfigurationError("at", f'is {at!r}; "disconnect_at_commit" strikes at the COMMIT. Leave it out.')
        at = _COMMIT
    return Injection(uow, error, _place(at), times)


def _place(at: object) -> int | str | re.Pattern[str]:
    """Return the place of a fault, checked: a number, a pattern, or "commit"."""
    if at is None:
        return 1
    if isinstance(at, re.Pattern) or (isinstance(at, int) and not isinstance(at, bool) and at > 0):
        return at
    if at == _COMMIT:
        return _COMMIT
    if isinstance(at, str):
        with suppress(re.error):
            return re.compile(at)
    raise ConfigurationError(
        "at", f'is {at!r}; it must be the number of a statement, from 1, a regular expression, or "commit".'
    )


class Injection:
    """What `inject` returns: a context manager, which yields itself."""

    def __init__(
        self,
        uow: UnitOfWork,
        error: Fault | BaseException | type[BaseException],
        place: int | str | re.Pattern[str],
        times: int,
    ) -> None:
        self.struck = 0
        """How often it has struck."""

        self._uow = uow
        self._error = error
        self._place = place
        self._times = times
        self._counts: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        """How many statements there were, by transaction, or else by connection."""

    def __repr__(self) -> str:
        place = self._place.pattern if isinstance(self._place, re.Pattern) else self._place
        return f"<Injection of {self._error!r} at {place!r}, struck {self.struck} of {self._times} times>"

    def __enter__(self) -> Self:
        if self not in self._uow._observers:
            self._uow._observers.append(self)
        observe_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self in self._uow._observers:
            self._uow._observers.remove(self)

    def wants(self, kind: type[Event], /) -> bool:
        """Whether events of a kind tell where it may strike."""
        return kind in (Connected, Sending, Committing)

    def __call__(self, event: Event, /) -> None:
        """Strike, if it is time."""
        match event:
            case Connected(_, connection):
                self._counts[connection] = 0
            case Sending(transaction, connection, statement):
                counted = transaction or connection
                self._counts[counted] = number = self._counts.get(counted, 0) + 1
                if self._is_at(number, statement.text):
                    self._strike(connection, statement)
            case Committing(_, connection) if self._place == _COMMIT:
                self._strike(connection, None)
            case _:
                pass

    def _is_at(self, number: int, text: str) -> bool:
        if isinstance(self._place, re.Pattern):
            return self._place.search(text) is not None
        return self._place == number

    def _strike(self, connection: Connection, statement: Statement | None) -> None:
        if self.struck >= self._times:
            return
        self.struck += 1
        error = self._error
        if isinstance(error, str):
            if error.startswith("disconnect"):
                _disconnect(connection, statement)
            else:
                _fail(connection, statement, _provoked(connection, error))
            return
        error = error() if isinstance(error, type) else error
        if isinstance(error, DBAPIError):
            error = _original(connection, error)
        if not isinstance(error, connection.dialect.loaded_dbapi.Error):
            raise error
        if connection.dialect.name == "postgresql":
            # It gives a transaction up at any error.
            _execute(connection, _RAISE.format("no", "P0001"))
        _fail(connection, statement, error)


def _fail(connection: Connection, statement: Statement | None, error: BaseException) -> NoReturn:
    """Raise a driver's error, as SQLAlchemy does where the driver has raised it."""
    text, parameters, cursor, context = statement or (None, None, None, None)
    try:
        raise error  # noqa: TRY301 - what SQLAlchemy does with it is done where it is being handled
    except BaseException:  # noqa: BLE001 - it is raised again in there, perhaps in another
        connection._handle_dbapi_exception(error, text, parameters, cursor, context)


def _original(connection: Connection, error: DBAPIError) -> BaseException:
    """Return the driver's error in one of SQLAlchemy's, or where it has none, one of the same kind."""
    driver = connection.dialect.loaded_dbapi
    if isinstance(error.orig, driver.Error):
        return error.orig
    kind: Callable[[str], BaseException] = getattr(driver, type(error).__name__, driver.Error)
    return kind(str(error.orig))


# Serialization failures and deadlocks

_RAISE: Final = "DO $$ BEGIN RAISE EXCEPTION '{}' USING ERRCODE = '{}'; END $$"
_SIGNAL: Final = "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = {}, MESSAGE_TEXT = '{}'"

_BY_SERVER: Final[Mapping[tuple[str, str], str]] = {
    ("postgresql", "serialization_failure"): _RAISE.format(
        "could not serialize access due to concurrent update", "40001"
    ),
    ("postgresql", "deadlock"): _RAISE.format("deadlock detected", "40P01"),
    ("mysql", "serialization_failure"): _SIGNAL.format(1020, "Record has changed since last read"),
    ("mysql", "deadlock"): _SIGNAL.format(1213, "Deadlock found when trying to get lock; try restarting transaction"),
}
"""What a server is sent, so that it answers with a fault. What comes of that in the transaction is real, too."""


def _provoked(connection: Connection, fault: str) -> BaseException:
    """Return the driver's error for a fault.

    Raises:
        ConfigurationError: There is no such fault in this database, or nobody knows how it looks.
    """
    name = "mysql" if connection.dialect.name == "mariadb" else connection.dialect.name
    if name == "sqlite":
        return _locked(fault)
    statement = _BY_SERVER.get((name, fault))
    if statement is None:
        raise ConfigurationError(
            "inject()", f"cannot let {connection.engine!r} fail with {fault!r}. Give it an exception of the driver's."
        )
    if name == "mysql" and not is_isolated(connection):
        # At both it rolls back the whole transaction.
        _execute(connection, "ROLLBACK")
    error = _execute(connection, statement)
    assert error is not None
    return error


def _execute(connection: Connection, statement: str) -> BaseException | None:
    """Send a statement past SQLAlchemy, and return the driver's error."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute(statement)
    except connection.dialect.loaded_dbapi.Error as error:
        # Without the frames from here.
        return cast(BaseException, error.with_traceback(None))
    finally:
        cursor.close()
    return None


def _locked(fault: str) -> sqlite3.OperationalError:
    """Return what SQLite says where a transaction has to begin again. It has one writer, and calls all that locked."""
    error = sqlite3.OperationalError("database is locked")
    is_deadlock = fault == "deadlock"
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY if is_deadlock else sqlite3.SQLITE_BUSY_SNAPSHOT
    error.sqlite_errorname = "SQLITE_BUSY" if is_deadlock else "SQLITE_BUSY_SNAPSHOT"
    return error


# Lost connections


def _disconnect(connection: Connection, statement: Statement | None) -> None:
    """Cut a connection, so that what is sent next over it fails; where it cannot be cut, fail as if it were."""
    if is_isolated(connection):
        _pretend(connection, statement)
    driver: Any = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        if shared(connection.engine) is not None:
            raise ConfigurationError(
                "inject()", "would close a database in memory, which would be gone. Use a file, or isolate()."
            )
        _fail(connection, statement, sqlite3.ProgrammingError(_CLOSED))
    line = getattr(driver, "_sock", driver)
    if not hasattr(line, "fileno"):
        driver.close()
        return
    with socket.socket(fileno=os.dup(line.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


_CLOSED: Final = "Cannot operate on a closed database."
_LOST: Final = "Lost connection to server during query"


def _pretend(connection: Connection, statement: Statement | None) -> NoReturn:
    """Raise what is raised when a connection is lost, and keep it: a test's has all that the test has done."""
    driver = connection.dialect.loaded_dbapi
    if connection.dialect.name == "sqlite":
        error = driver.ProgrammingError(_CLOSED)
    elif connection.dialect.name == "postgresql":
        error = driver.OperationalError(_LOST)
    else:
        error = driver.OperationalError(2013, _LOST)

    def keep(context: ExceptionContext) -> None:
        context.is_disconnect = False

    event.listen(connection.engine, "handle_error", keep)
    try:
        _fail(connection, statement, error)
    except DBAPIError as lost:
        lost.connection_invalidated = True
        raise
    finally:
        event.remove(connection.engine, "handle_error", keep)
