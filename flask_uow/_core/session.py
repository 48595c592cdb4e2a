"""The one place that opens, listens to and closes a SQLAlchemy session."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from flask_uow.errors import ConfigurationError, UnexpectedRollbackError

__all__ = ["OVERSEEN", "Overseer", "SessionSource", "WatchedSession"]

logger = logging.getLogger("flask_uow")

OVERSEEN: Final = "flask_uow.overseer"
"""The key in ``session.info`` of a session that is watched."""


def _tell_nobody(_session: Session) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class SessionSource:
    """Where sessions come from, and how they are given back."""

    open: Callable[[], Session]
    release: Callable[[Session], None]
    is_registry: bool = False
    """Whether *open* returns the same session in a scope until it is removed, and others call it as well."""

    find_open: Callable[[], Session | None] | None = None
    """Finds a session that a registry had open before there was a scope for it, where that can be."""

    tell: Callable[[Session], None] = _tell_nobody
    """Called with a session that somebody else has made a registry open."""


class Overseer(Protocol):
    """Who is asked before a session is settled by hand, and told what happens in it."""

    def commit_called(self) -> None:
        """Stand in for ``session.commit()``."""

    def rollback_called(self) -> None:
        """Stand in for ``session.rollback()``."""

    def close_called(self) -> None:
        """Stand in for ``session.close()``."""

    def reset_called(self) -> None:
        """Stand in for ``session.reset()``."""

    def begin_called(self, nested: bool = False) -> SessionTransaction:  # noqa: FBT001, FBT002 - the signature of Session.begin()
        """Stand in for ``session.begin()``."""
        ...

    def began(self, root: SessionTransaction) -> None:
        """Learn that the session has begun a transaction in the database."""

    def committed(self) -> None:
        """Learn that the session's COMMIT has returned."""

    def statement_failed(self, error: BaseException) -> None:
        """Learn that the database refused something."""

    def savepoint_lost(self, error: BaseException) -> None:
        """Learn that a savepoint could not be rolled back: the database has undone more than it."""


_overseers: WeakKeyDictionary[Connection, Overseer] = WeakKeyDictionary()
"""Who oversees the session that a connection is used by, so that an error finds its transaction."""


_SHADOWED: Final = ("commit", "rollback", "close", "reset", "begin")

# event.contains() goes by id(), and takes a new session at an old address for one that is listened to.
_engines_listened_to: WeakSet[object] = WeakSet()


class WatchedSession:
    """A user's session whose end is ours to decide.

    The session stays the user's own object. Its methods that settle are shadowed on the instance by the overseer's,
    until `release` takes them away again.
    """

    __slots__ = ("_begun", "_overseer", "_passing", "_source", "session")

    def __init__(self, session: Session, source: SessionSource, overseer: Overseer) -> None:
        _check(session)
        self.session = session
        self._source = source
        self._overseer = overseer
        self._begun: SessionTransaction | None = None
        self._passing = False

        vars(session).update({name: partial(self._called, name) for name in _SHADOWED})
        vars(session)["_connection_for_bind"] = self._connect
        session.info[OVERSEEN] = overseer
        _listen()

        root = session.get_transaction()
        if root is not None:
            # It has begun before we came. SQLAlchemy does not tell with which connections, but here.
            overseer.began(root)
            for connection in {entry[0] for entry in root._connections.values()}:
                _take(connection, overseer)

    def _called(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Stand in for a method that settles."""
        if self._passing:
            return getattr(type(self.session), name)(self.session, *args, **kwargs)
        return getattr(self._overseer, f"{name}_called")(*args, **kwargs)

    def _connect(self, *args: Any, **kwargs: Any) -> Connection:
        """Stand in for the method that finds a connection, which no event tells of when there is none to be had."""
        try:
            return type(self.session)._connection_for_bind(self.session, *args, **kwargs)
        except SQLAlchemyError as error:
            self._overseer.statement_failed(error)
            raise

    def _for_real(self, name: str) -> None:
        """Do what the session's own method does; one of the user's class may call others of its own."""
        self._let_go()
        method = getattr(type(self.session), name)
        self._passing = method is not getattr(Session, name)
        try:
            method(self.session)
        finally:
            self._passing = False

    def commit(self) -> None:
        """COMMIT, for real."""
        self._for_real("commit")

    def rollback(self) -> None:
        """ROLLBACK, for real, and leave a usable session whatever the database says to it."""
        try:
            self._for_real("rollback")
        except Exception:
            logger.debug("ROLLBACK failed; the connection is thrown away, which ends its transaction.", exc_info=True)
            self.session.invalidate()

    def recover(self) -> None:
        """Make the session usable again after a COMMIT that returned, and a listener that did not."""
        Session.reset(self.session)

    def begin(self, *, nested: bool) -> SessionTransaction:
        """Do what ``session.begin()`` does without us, but for the end of ``with session.begin():``, which is ours."""
        begun = type(self.session).begin(self.session, nested=nested)
        if not nested:
            self._begun = begun
            # SQLAlchemy's own with statement closes it, and nothing else, when a flush has failed inside.
            vars(begun).update(
                commit=self._overseer.commit_called,
                rollback=self._overseer.rollback_called,
                close=self._overseer.rollback_called,
            )
        return begun

    def spoil(self, savepoint: SessionTransaction, reason: str, error: BaseException) -> None:
        """Keep a savepoint of the user's own, in which *error* happened, from being released: only rolled back."""
        reference = ref(savepoint)

        def commit(*_args: Any, **_kwargs: Any) -> None:
            spoilt = reference()
            assert spoilt is not None
            vars(spoilt).pop("commit", None)
            spoilt.rollback()
            raise UnexpectedRollbackError("The work of a savepoint", f"{reason}, and the error was caught") from error

        vars(savepoint).setdefault("commit", commit)

    def _let_go(self) -> None:
        """Give what ``session.begin()`` returned its own methods back."""
        begun, self._begun = self._begun, None
        if begun is not None:
            for name in ("commit", "rollback", "close"):
                vars(begun).pop(name, None)
            # Inside its with statement the session refuses to begin again, and hooks run there.
            if getattr(self.session, "_trans_context_manager", None) is begun:
                self.session._trans_context_manager = None

    def close(self) -> None:
        """Do what ``session.close()`` does without us."""
        self._for_real("close")

    def reset(self) -> None:
        """Do what ``session.reset()`` does without us."""
        self._for_real("reset")

    @property
    def is_spent(self) -> bool:
        """Whether it has been closed for good, as a session with ``close_resets_only=False`` is."""
        return getattr(getattr(self.session, "_close_state", None), "name", "") == "CLOSED"

    def unwatch(self) -> None:
        """Give the session its own methods back."""
        self._let_go()
        for name in (*_SHADOWED, "_connection_for_bind"):
            vars(self.session).pop(name, None)
        self.session.info.pop(OVERSEEN, None)

    def release(self) -> None:
        """Close the session, and return its connection."""
        self.unwatch()
        try:
            self._source.release(self.session)
        except Exception:
            logger.debug("Closing a session failed; its connection is thrown away.", exc_info=True)
            self.session.invalidate()


def _check(session: object) -> None:
    """Refuse what cannot be watched."""
    if not isinstance(session, Session):
        raise ConfigurationError(
            "sessions",
            f"returned {session!r} instead of a sqlalchemy.orm.Session. Give UnitOfWork a sessionmaker, or a function "
            "that returns a new Session at each call.",
        )
    if OVERSEEN in session.info:
        raise ConfigurationError(
            "sessions",
            "returned a session that is in use by another scope or another UnitOfWork. A scoped_session gives every "
            "context of a thread the same one: use a sessionmaker or flask_scoped_session, and one UnitOfWork a "
            "factory.",
        )
    if not session.autobegin:
        raise ConfigurationError(
            "sessions",
            "returned a session with autobegin=False. A UnitOfWork begins with the first use: leave autobegin out.",
        )


@cache
def _listen() -> None:
    """Listen to all sessions; those that nobody watches cost a look into a dict.

    On the class, for its listeners come before those of a sessionmaker, of a subclass and of an instance; and first,
    for one of the user's may raise.
    """
    event.listen(Session, "after_begin", _after_begin, insert=True)
    event.listen(Session, "after_commit", _after_commit, insert=True)


def _overseer_of(session: Session) -> Overseer | None:
    overseer: Overseer | None = vars(session).get("info", {}).get(OVERSEEN)
    return overseer


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    overseer = _overseer_of(session)
    if overseer is not None and not transaction.nested:
        overseer.began(transaction)
        _take(connection, overseer)


def _after_commit(session: Session) -> None:
    overseer = _overseer_of(session)
    if overseer is not None and not session.in_nested_transaction():
        overseer.committed()


def _take(connection: Connection, overseer: Overseer) -> None:
    """Let *overseer* learn what becomes of *connection*, and begin where the driver would begin too late."""
    _overseers[connection] = overseer
    engine = connection.engine
    if engine not in _engines_listened_to:
        event.listen(engine, "handle_error", _handle_error)
        _engines_listened_to.add(engine)

    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection) and _begins_late(driver):
        if driver.isolation_level:
            connection.exec_driver_sql(f"BEGIN {driver.isolation_level}")
        else:
            # A deferred BEGIN takes no lock and cannot fail, and SQLAlchemy has told of it already.
            driver.execute("BEGIN")


def _begins_late(driver: sqlite3.Connection) -> bool:
    """Whether Python's sqlite3 would wait for the first INSERT, UPDATE or DELETE before it sends BEGIN.

    A savepoint opened before that is committed when it is released, whatever becomes of the transaction. See
    "Transaction control" in the documentation of sqlite3; -1 is its LEGACY_TRANSACTION_CONTROL, all there is before
    Python 3.12. An isolation level of None is the driver's autocommit, which is the user's own choice.
    """
    legacy = getattr(driver, "autocommit", -1) == -1
    return legacy and driver.isolation_level is not None and not driver.in_transaction


def _handle_error(context: ExceptionContext) -> None:
    error = context.sqlalchemy_exception
    if context.connection is None or not isinstance(error, DBAPIError):
        return

    overseer = _overseers.get(context.connection)
    if overseer is not None:
        if (context.statement or "").startswith("ROLLBACK TO SAVEPOINT"):
            overseer.savepoint_lost(error)
        else:
            overseer.statement_failed(error)
