"""Let what an app commits be gone when a test is over."""

from __future__ import annotations

from contextlib import ExitStack
from threading import RLock, get_ident
from types import TracebackType
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Engine
from sqlalchemy.orm import Session, sessionmaker

from flask_uow._core.isolation import current_bind
from flask_uow._core.session import rebind
from flask_uow.errors import ConfigurationError
from flask_uow.extension import UnitOfWork
from flask_uow.testing.sharing import SharedConnection

__all__ = ["Isolation", "isolate"]

_Key = tuple[Dialect | Connection, frozenset[tuple[Any, Any]]]

_shared: Final[dict[_Key, SharedConnection]] = {}
"""What is isolated at the moment, by any of them: one ``isolate()`` can be inside another."""


def isolate(*uows: UnitOfWork) -> Isolation:
    """Return a context manager inside which everything that is committed is visible, and after which it is gone.

    All sessions of *uows* share one connection for each database, in a transaction that is rolled back at the end.
    Each of their own transactions is a savepoint there: what the app commits, rolls back, nests, retries and tells by
    hooks and signals is as in production. It yields the list of those connections; one that is not known before it is
    used is added then.

    Isolation levels, and what the server does when a ``timeout`` is over, are not applied. ``REQUIRES_NEW`` shares the
    connection, so that it is lost if the block outside is rolled back.

    Args:
        uows: The UnitOfWork objects of the app, one or more.

    Raises:
        ConfigurationError: Something else was given. On entry: a transaction is active, or a database cannot be
            isolated. At the end: the database has ended the transaction by itself.
    """
    if not uows or not all(isinstance(uow, UnitOfWork) for uow in uows):
        raise ConfigurationError(
            "isolate()",
            f"was given {', '.join(map(repr, uows)) or 'nothing'}; it takes UnitOfWork objects: isolate(uow).",
        )
    return Isolation(uows)


class Isolation:
    """What `isolate` returns: a context manager, which yields its connections."""

    def __init__(self, uows: tuple[UnitOfWork, ...]) -> None:
        self._uows = uows
        self._connections: list[Connection] = []
        self._stack = ExitStack()
        self._home = 0
        self._lock = RLock()
        self._keys: dict[_Key, None] = {}
        self._originals: dict[Connection, Engine | Connection] = {}
        """In whose place the connections are."""

        self._used: set[Session] = set()
        """Sessions that have begun on the connections, at the end."""

        self._changed: WeakKeyDictionary[Session, tuple[Any, Any]] = WeakKeyDictionary()
        """How sessions that have begun were set before."""

    def __enter__(self) -> list[Connection]:
        for uow in self._uows:
            _refuse_active(uow)
        self._home = get_ident()
        with ExitStack() as stack:
            stack.callback(self._put_back)
            for source in {uow._source: None for uow in self._uows}:
                for bind in map(current_bind, source.binds()):
                    self._connection_for(bind, stack)
                for maker in source.makers():
                    self._configure(maker, stack)
                if source.find_open is not None and (session := source.find_open()) is not None:
                    # A registry's, from before, which somebody may use past the UnitOfWork.
                    self._change(session)
                    rebind(session, {self._originals[each]: each for each in self._connections})
                source.detours.append(self._lead)
                stack.callback(source.detours.remove, self._lead)
            self._stack = stack.pop_all()
        return self._connections

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _connection_for(self, bind: Engine | Connection, stack: ExitStack) -> Connection:
        with self._lock:
            key = _key(bind)
            if key not in self._keys:
                shared = _shared.get(key) or SharedConnection(bind, self._home)
                shared.enter()
                _shared[key] = shared
                self._keys[key] = None
                stack.callback(self._leave, key)
                self._connections.append(shared.connection)
                self._originals[shared.connection] = bind
            return _shared[key].connection

    def _leave(self, key: _Key) -> None:
        is_all = True
        self._used.update(_shared[key].sessions)
        try:
            is_all = _shared[key].leave()
        finally:
            if is_all:
                del _shared[key]

    def _configure(self, maker: sessionmaker[Any], stack: ExitStack) -> None:
        """Let those who make a session past the UnitOfWork be on the same connections."""
        kept = dict(maker.kw)
        stack.callback(maker.kw.update, kept)
        stack.callback(maker.kw.clear)
        if kept.get("bind") is not None:
            maker.configure(bind=self._connection_for(kept["bind"], stack))
        if kept.get("binds"):
            maker.configure(binds={what: self._connection_for(bind, stack) for what, bind in kept["binds"].items()})
        maker.configure(join_transaction_mode="create_savepoint")
        if kept.get("twophase"):
            # Its transaction is a savepoint, which has one phase.
            maker.configure(twophase=False)

    def _lead(self, session: Session, bind: Engine | Connection) -> Connection:
        """Return the connection that *session* is to use; see `Detour`."""
        connection = self._connection_for(bind, self._stack)
        self._change(session)
        _shared[_key(bind)].touch(session)
        return connection

    def _change(self, session: Session) -> None:
        """Let the transactions of *session* be savepoints."""
        if session not in self._changed:
            self._changed[session] = session.join_transaction_mode, session.twophase
            session.join_transaction_mode, session.twophase = "create_savepoint", False

    def _put_back(self) -> None:
        for session, (mode, twophase) in list(self._changed.items()):
            session.join_transaction_mode, session.twophase = mode, twophase
        # Those that were made inside, and live on, go back to the databases.
        for session in {*self._changed, *self._used}:
            rebind(session, self._originals)
        self._used.clear()
        self._changed.clear()
        self._connections = []
        self._keys.clear()
        self._originals.clear()


def _key(bind: Engine | Connection) -> _Key:
    """Return what tells one connection from another: an engine with other options is the same database."""
    for key, shared in _shared.items():
        if shared.connection is bind:
            return key
    if isinstance(bind, Connection):
        return bind, frozenset()
    schemas = bind.get_execution_options().get("schema_translate_map") or {}
    return bind.dialect, frozenset(schemas.items())


def _refuse_active(uow: UnitOfWork) -> None:
    scope = uow._scope_or_none()
    if scope is not None and (scope.current() is not None or scope._in_transaction()):
        whose = repr(uow)
    elif (find := uow._source.find_open) is not None and (session := find()) is not None and session.in_transaction():
        whose = "a session of the registry"
    else:
        return
    raise ConfigurationError(
        "isolate()",
        f"was entered while a transaction of {whose} was active, which it cannot undo. Enter it before the first use "
        "of the session, or commit() or rollback() before.",
    )
