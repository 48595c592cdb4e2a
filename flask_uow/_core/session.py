"""The one place that opens, listens to and closes a SQLAlchemy session."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from flask_uow.errors import ConfigurationError

__all__ = ["Overseer", "SessionSource", "WatchedSession"]

logger = logging.getLogger("flask_uow")

_KEY = "flask_uow.overseer"


@dataclass(frozen=True, slots=True, eq=False)
class SessionSource:
    """Where sessions come from, and how they are given back."""

    open: Callable[[], Session]
    release: Callable[[Session], None]
    factory: sessionmaker[Session] | None = None
    """The sessionmaker behind *open*, where there is one: its sessions are listened to all at once."""


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

    def statement_failed(self, error: BaseException) -> None:
        """Learn that the database refused something."""


_overseers: WeakKeyDictionary[Connection, Overseer] = WeakKeyDictionary()
"""Who oversees the session that a connection is used by, so that an error finds its transaction."""


_listened_to: WeakSet[object] = WeakSet()


def _listen_once(target: object, name: str, listener: Callable[..., None]) -> None:
    # event.contains() goes by id(), and takes a new session at an old address for one that is listened to.
    if target not in _listened_to:
        event.listen(target, name, listener)
        _listened_to.add(target)


class WatchedSession:
    """A user's session whose end is ours to decide.

    The session stays the user's own object. Its methods that settle are shadowed on the instance by the overseer's,
    until `release` takes them away again.
    """

    __slots__ = ("_begun", "_overseer", "_source", "session")

    def __init__(self, source: SessionSource, overseer: Overseer) -> None:
        session = source.open()
        if not isinstance(session, Session):
            raise ConfigurationError(
                "sessions",
                f"returned {session!r} instead of a sqlalchemy.orm.Session. Give UnitOfWork a sessionmaker, or a "
                "function that returns a new Session at each call.",
            )
        if _KEY in session.info:
            raise ConfigurationError(
                "sessions",
                "returned a session that is in use by another scope or another UnitOfWork. A scoped_session gives "
                "every context of a thread the same one: use a sessionmaker or flask_scoped_session, and one "
                "UnitOfWork a factory.",
            )

        self.session = session
        self._source = source
        self._overseer = overseer
        self._begun: SessionTransaction | None = None

        vars(session).update(
            commit=overseer.commit_called,
            rollback=overseer.rollback_called,
            close=overseer.close_called,
            reset=overseer.reset_called,
            begin=overseer.begin_called,
        )
        session.info[_KEY] = overseer

        _listen_once(session if source.factory is None else source.factory, "after_begin", _after_begin)

    def commit(self) -> None:
        """COMMIT, for real."""
        self._let_go()
        type(self.session).commit(self.session)

    def rollback(self) -> None:
        """ROLLBACK, for real, and leave a usable session whatever the database says to it."""
        self._let_go()
        try:
            type(self.session).rollback(self.session)
        except Exception:
            logger.debug("ROLLBACK failed; the connection is thrown away, which ends its transaction.", exc_info=True)
            self.session.invalidate()

    def begin(self, *, nested: bool) -> SessionTransaction:
        """Do what ``session.begin()`` does without us, but for the end of ``with session.begin():``, which is ours."""
        begun = type(self.session).begin(self.session, nested=nested)
        if not nested:
            self._begun = begun
            vars(begun).update(commit=self._overseer.commit_called, rollback=self._overseer.rollback_called)
        return begun

    def _let_go(self) -> None:
        """Give what ``session.begin()`` returned its own methods back."""
        if self._begun is not None:
            vars(self._begun).pop("commit", None)
            vars(self._begun).pop("rollback", None)
            self._begun = None

    def close(self) -> None:
        """Do what ``session.close()`` does without us."""
        type(self.session).close(self.session)

    def reset(self) -> None:
        """Do what ``session.reset()`` does without us."""
        type(self.session).reset(self.session)

    def unwatch(self) -> None:
        """Give the session its own methods back."""
        self._let_go()
        for name in ("commit", "rollback", "close", "reset", "begin"):
            vars(self.session).pop(name, None)
        self.session.info.pop(_KEY, None)

    def release(self) -> None:
        """Close the session, and return its connection."""
        self.unwatch()
        try:
            self._source.release(self.session)
        except Exception:
            logger.debug("Closing a session failed; its connection is thrown away.", exc_info=True)
            self.session.invalidate()


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    overseer = session.info.get(_KEY)
    if overseer is None or transaction.nested:
        return

    overseer.began(transaction)
    _overseers[connection] = overseer
    _listen_once(connection.engine, "handle_error", _handle_error)

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
    if context.connection is not None and isinstance(error, DBAPIError):
        overseer = _overseers.get(context.connection)
        if overseer is not None:
            overseer.statement_failed(error)
