"""The one place that opens, listens to and closes a SQLAlchemy session."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, NestedTransaction, event, inspect
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, UnboundExecutionError
from sqlalchemy.orm import InstanceState, Session, SessionTransaction, sessionmaker
from sqlalchemy.orm.session import SessionTransactionState, _sessions
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from flask_uow._core.connection import (
    PLAIN,
    Demands,
    Savepoints,
    Supervisor,
    adopt,
    attend,
    begin_at_once,
    begun,
    change_on,
    execution_options,
    follow,
    forget,
    give_back,
    has_given_up,
    has_written,
    in_front,
    listen_to_errors,
    measure,
    observe,
    refuse_autocommit,
    relax,
    take,
)
from flask_uow._core.faults import was_answered
from flask_uow._core.isolation import Detour, current_bind, is_isolated
from flask_uow._core.leftovers import Leftovers, find_leftovers, transactions
from flask_uow._core.once import once
from flask_uow._core.places import Places
from flask_uow._core.statements import described
from flask_uow._core.stopwatch import Stopwatch
from flask_uow._core.tracking import Record, track, untrack
from flask_uow.errors import ConfigurationError, PartialCommitError, UnexpectedRollbackError

__all__ = [
    "Mark",
    "Overseer",
    "SessionSource",
    "WatchedSession",
    "binds_of",
    "distinct_binds",
    "is_watched",
    "observe_all",
    "rebind",
]

logger = logging.getLogger("flask_uow.session")

_MOST_KEPT: Final = 100
"""How many objects are kept to be named."""

_SPOILT: Final = "_flask_uow_spoilt"


def _tell_nobody(_session: Session) -> None:
    """Do nothing."""


def _keep_nothing(_session: Session | None) -> Session | None:
    """Stand in for a registry where there is none."""
    return None


def _find_no_makers() -> list[sessionmaker[Any]]:
    """Stand in where it is not known how sessions are made."""
    return []


def _find_no_binds() -> list[Engine | Connection]:
    """Stand in where nobody knows."""
    return []


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

    detours: list[Detour] = field(default_factory=list)
    """Where sessions are led to instead of their databases, the one that holds last."""

    exchange: Callable[[Session | None], Session | None] = _keep_nothing
    """Lets a registry return another session, or open a new one, and returns the one that it had open."""

    makers: Callable[[], list[sessionmaker[Any]]] = _find_no_makers
    """Finds the factories of its sessions, which others may call past it."""

    binds: Callable[[], list[Engine | Connection]] = _find_no_binds
    """Finds what its sessions are bound to, the default first, as far as that can be known here and now."""


def binds_of(session: Session) -> list[Engine | Connection]:
    """Return what an open session is bound to, the default first."""
    return distinct_binds((session.bind, *_other_binds(session).values()))


def rebind(session: Session, binds: Mapping[Any, Engine | Connection]) -> None:
    """Let an open session be bound to others, by what it is bound to."""
    if session.bind in binds:
        session.bind = binds[session.bind]
    for what, bind in [*_other_binds(session).items()]:
        session._add_bind(what, binds.get(bind, bind))


def _other_binds(session: Session) -> Mapping[Any, Engine | Connection]:
    """Return what a session is bound to for some of its classes and tables. SQLAlchemy 2.1 has another name for it."""
    attributes = vars(session)
    binds: Mapping[Any, Engine | Connection] = attributes.get("binds", attributes.get("_Session__binds", {}))
    return binds


def distinct_binds(found: Iterable[object]) -> list[Engine | Connection]:
    """Return the engines and connections among *found*, in order and without repeats."""
    return list(dict.fromkeys(each for each in found if isinstance(each, (Engine, Connection))))


Mark = tuple[int, int]
"""Where a savepoint begins: in the hooks, and in the record of changes."""


class Overseer(Supervisor, Protocol):
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

    def has_observers(self) -> bool:
        """Whether anybody may want to know of connections, and of what is sent."""
        ...

    def connected(self, connection: Connection) -> None:
        """Learn that the session has begun on a connection, and that it is ready."""

    def lost(self) -> None:
        """Learn that the session's transaction was ended past its own methods, and another has begun."""

    def committed(self) -> None:
        """Learn that the session's COMMIT has returned."""

    def demands(self, bind: Engine | Connection) -> Demands | None:
        """Return what the transaction that a connection is wanted for demands of it; None is no transaction.

        Raise if the session must not begin there.
        """
        ...

    def about_to_commit(self) -> None:
        """Learn that all is flushed and COMMIT is next, and raise if it must not be sent."""

    def savepoint_begun(self) -> Mark:
        """Learn that the user has begun a savepoint, and return a mark for `savepoint_rolled_back`."""
        ...

    def savepoint_rolled_back(self, mark: Mark) -> None:
        """Learn that a savepoint of the user's own was rolled back."""

    def wants_changes(self) -> bool:
        """Whether anybody wants to know what a transaction that begins now changes."""
        ...

    def wants_time(self) -> bool:
        """Whether anybody wants to know how long the database works."""
        ...

    def wants_leftovers(self) -> bool:
        """Whether anybody wants to know what is left in the session at its end."""
        ...

    def tracked(self, record: Record) -> None:
        """Learn where it is written down what the session changes from now on."""

    def mark_own_savepoints(self) -> None:
        """Learn that something is about to be written down that goes with savepoints made of a connection."""

    def no_connection(self, error: Exception) -> Exception | None:
        """Learn that there was no connection to be had, and return a better error to raise, if there is one."""
        ...

    def flush_called(self) -> None:
        """Learn that the session is about to write its changes."""

    def about(self) -> dict[str, Any]:
        """Return what is logged beside a message about the session."""
        ...


_ACTIVE: Final = SessionTransactionState.ACTIVE

_OF_A_TRANSACTION: Final = ("isolation_level", "postgresql_readonly", "postgresql_deferrable")
"""Execution options that cannot be changed within one."""

_WATCHED: Final = "_flask_uow_watched"
"""The attribute of a session that is watched."""

_OURS: Final = (
    "commit",
    "rollback",
    "close",
    "reset",
    "begin",
    "_connection_for_bind",
    "_execute_internal",
    _WATCHED,
)
"""The attributes that such a session has from us."""

_NOTHING: Final = (None,) * len(_OURS)


class WatchedSession:
    """A user's session whose end is ours to decide.

    The session stays the user's own object. Its methods that settle are shadowed on the instance by the overseer's,
    until `release` takes them away again.
    """

    # As of a transaction, what most sessions never ask for is said in the class.

    _aside: NestedTransaction | None = None
    """The savepoint of a COMMIT that a test has let fail, while others use its connection."""

    _failed: tuple[BaseException, Connection] | None = None
    """What went wrong in a COMMIT, and where."""

    _passing: bool = False
    _demands: Demands | None = None
    """What is demanded of the connection that is about to begin."""

    is_committing: bool = False
    """Whether it is `commit` that commits, and nobody past it."""

    _is_sending: bool = False
    """Whether all is flushed, and COMMIT is what is sent from here on."""

    _kept: tuple[object, ...] = ()
    """What was flushed outside any transaction. SQLAlchemy forgets what nobody else keeps."""

    stopwatch: Stopwatch | None = None
    """Measures the work of the database for the session's transaction, if anybody wants to know."""

    def __init__(self, session: Session, source: SessionSource, overseer: Overseer) -> None:
        _check(session)
        self.session = session
        self._source = source
        self._overseer = overseer
        self._bound: dict[Connection, None] = {}
        """The connections that it was given by its maker, and has begun on."""

        self.record: Record | None = None
        """What the session's transaction has changed, if anybody wants to know."""

        self._taken: tuple[Connection, ...] = ()
        """The connections from a pool that its transaction, or the one before, has begun on."""

        self._root: SessionTransaction | None = None
        """The session's outermost transaction, or the last there was."""

        self.at_large: SessionTransaction | None = None
        """That, until it is ended here."""

        self._begun: SessionTransaction | None = None
        self._sent: list[Engine] = []
        """The engines that COMMIT was sent to, the last one perhaps in vain; where there are several."""

        session.__dict__.update(
            commit=self._commit_called,
            rollback=self._rollback_called,
            close=self._close_called,
            reset=self._reset_called,
            begin=self._begin_called,
            # No event tells of a statement when it has been executed, and the first one may begin the transaction.
            _execute_internal=self._execute,
            _flask_uow_watched=self,
        )
        _listen()

        root = None if session._transaction is None else session.get_transaction()
        if root is not None:
            # It has begun before we came.
            self.created(root)
            overseer.began(root)
            for connection in self.connections():
                bound = self._note(root, connection)
                adopt(connection, overseer, bound=bound)
                if overseer.wants_time():
                    self._measure(connection)

    # What stands for the session's own methods that settle. While it does one of them, others of its class are its own.

    def _commit_called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called("commit", *args, **kwargs)

    def _rollback_called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called("rollback", *args, **kwargs)

    def _close_called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called("close", *args, **kwargs)

    def _reset_called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called("reset", *args, **kwargs)

    def _begin_called(self, *args: Any, **kwargs: Any) -> Any:
        return self._called("begin", *args, **kwargs)

    def _called(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self._passing:
            return getattr(type(self.session), name)(self.session, *args, **kwargs)
        return getattr(self._overseer, f"{name}_called")(*args, **kwargs)

    def created(self, root: SessionTransaction) -> None:
        """Have a say in how *root* gets its connections, and in whether it is sent to them when all is flushed.

        No event tells of the one before the connection has begun, nor of the other after the last flush.
        """
        lost, self._root, self.at_large = self.at_large, root, root
        # A method of the user's class may end several.
        if lost is not None and not self._passing:
            self._overseer.lost()
        if self._taken:
            self._forget_connections()
        shadowed: Any = root
        shadowed._connection_for_bind = self._provide
        shadowed._prepare_impl = self._prepare
        self.stopwatch, self._kept = None, ()
        if self._overseer.wants_changes():
            self.track(root)
        elif self.record is not None:
            self._untrack()

    def track(self, root: SessionTransaction) -> None:
        """Write down what *root* changes from now on."""
        self.record = Record(self._overseer.mark_own_savepoints, is_complete=not root._connections)
        track(self.session, self.record)
        self._overseer.tracked(self.record)

    def places(self, written: Collection[Connection]) -> Places:
        """Return where the transaction has written, as far as that is known; else, where it is."""
        return Places(self.session, written or self.connections(), frozenset(self._bound))

    def _untrack(self) -> None:
        self.record = None
        untrack(self.session)

    def _execute(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """Stand in for the method that all statements go through."""
        session = self.session
        what = None
        if (self.record is not None or self._overseer.wants_changes()) and self._is_followed():
            what = described(statement)
        if what is not None:
            # Of an INSERT SQLAlchemy does not keep it by itself.
            kwargs["execution_options"] = {**(kwargs.get("execution_options") or {}), "preserve_rowcount": True}
        try:
            result = type(session)._execute_internal(session, statement, params, **kwargs)
        except BaseException:
            # The traceback has this frame, and a cycle of SQLAlchemy's has the traceback.
            del self
            raise
        # One that a listener of the user's executes is inside the one that it was told of.
        if what is not None and self.record is not None and kwargs.get("_parent_execute_state") is None:
            self.record.executed(what, statement, params, result)
        return result

    def _is_followed(self) -> bool:
        """Whether what is executed now is written down, where somebody wants changes.

        If it is the first of a transaction, that begins with it.
        """
        if self.record is not None:
            return True
        root = self.session.get_transaction()
        return root is None or not root._connections

    def _prepare(self) -> None:
        """Stand in for the method that flushes before COMMIT, and listeners may swallow what goes wrong in that."""
        root = self._root
        assert root is not None
        type(root)._prepare_impl(root)
        if not self.session.twophase:
            self._overseer.about_to_commit()
        self._is_sending = True

    def _provide(self, bind: Engine | Connection, options: Any = None) -> Connection:
        """Stand in for the method of the session's outermost transaction that finds a connection."""
        root = self._root
        assert root is not None
        entry = root._connections.get(bind)
        if entry is not None and not options and root._state is _ACTIVE and not self._source.detours:
            # What SQLAlchemy would answer, and it is asked for each statement.
            return entry[0]

        if self._source.detours:
            bind = self._source.detours[-1](self.session, current_bind(bind))
            in_front(bind, self._overseer)
            self._bound[bind] = None
            options = {name: value for name, value in (options or {}).items() if name not in _OF_A_TRANSACTION}
        if bind in root._connections:
            return type(root)._connection_for_bind(root, bind, options)
        return self._begin_on(root, bind, options)

    def _begin_on(self, root: SessionTransaction, bind: Engine | Connection, options: Any) -> Connection:
        """Let the session begin on *bind*, as its transaction demands."""
        overseer = self._overseer
        if self.record is None and not root._connections and overseer.wants_changes():
            # Somebody has begun to listen since the session began, and nothing was sent yet.
            self.track(root)
        if overseer.restricted:
            overseer.before_statement()
        if isinstance(bind, Connection):
            bind = current_bind(bind)
            if isinstance(bind, Connection) and bind.in_transaction():
                # A test's, perhaps, and the session is about to open a savepoint in it.
                begin_at_once(bind)
        demands = self._demands = overseer.demands(bind)
        is_plain = demands is PLAIN
        if not is_plain and demands is not None and (demands.read_only or demands.isolation_level is not None):
            options = _with_ours(options or {}, execution_options(bind, demands), demands)
        try:
            connection = type(root)._connection_for_bind(root, bind, options)
            if not is_plain and (demands is None or demands._is_prelude):
                begun(connection)
            return connection
        except SQLAlchemyError as error:
            better = overseer.no_connection(error)
            if better is None:
                raise
            raise better from error

    def restrict(self) -> None:
        """Ask the overseer before each statement."""
        # Before SQLAlchemy does, too, which refuses by itself, and says less, after a failed flush.
        vars(self.session)["_connection_for_bind"] = self._ask
        for connection in self.connections():
            attend(connection)

    def relax(self, seconds: float | None) -> None:
        """Let the servers know that a block that had less time is over."""
        for connection in self.connections():
            relax(connection, seconds)

    @property
    def is_isolated(self) -> bool:
        """Whether it has begun on connections of a test alone, where it is in a savepoint of its own."""
        return all(map(is_isolated, self.connections()))

    @property
    def is_bound(self) -> bool:
        """Whether it has begun on a connection of its maker's, who may be in a transaction on it."""
        return any(not from_pool for _, _, _, from_pool in self._entries())

    def has_given_up(self) -> bool:
        """Whether a database has given up its transaction, and would not say so at COMMIT."""
        for connection in self._taken:
            if has_given_up(connection):
                return True
        return bool(self._bound) and any(has_given_up(entry[0]) for entry in self._entries())

    def refuse_autocommit(self) -> None:
        """Raise if a connection that the session has begun on commits each statement by itself.

        Raises:
            ConfigurationError: One does.
        """
        for connection in self.connections():
            refuse_autocommit(connection)

    def _ask(self, *args: Any, **kwargs: Any) -> Connection:
        """Stand in for the session's method that finds a connection."""
        if self._overseer.restricted:
            self._overseer.before_statement()
        return type(self.session)._connection_for_bind(self.session, *args, **kwargs)

    def began(self, root: SessionTransaction, connection: Connection) -> None:
        """Watch a connection that the session has begun on."""
        overseer = self._overseer
        if self._demands is not PLAIN:
            overseer.began(root)
        # Each is there under itself, and under its engine.
        if len(root._connections) > 2:  # noqa: PLR2004
            self._note_commits()
        bound = self._note(root, connection)
        if self.session.twophase and not connection.get_nested_transaction():
            event.listen(connection, "prepare_twophase", _preparing)
            _prepared_for[connection] = overseer
        try:
            take(connection, overseer, self._demands, bound=bound)
            if self._demands is not PLAIN and overseer.wants_time():
                self._measure(connection)
        except Exception as error:
            overseer.no_connection(error)
            raise
        if overseer.has_observers():
            observe(connection)
            overseer.connected(connection)

    def _measure(self, connection: Connection) -> None:
        self.stopwatch = self.stopwatch or Stopwatch()
        measure(connection, self.stopwatch)

    def _note(self, root: SessionTransaction, connection: Connection) -> bool:
        """Remember a connection, and return whether the session was given it by its maker."""
        if root._connections[connection][3]:
            self._taken += (connection,)
            return False
        self._bound[connection] = None
        return True

    def _forget_connections(self) -> None:
        """Forget what was known of connections that are in their pool again."""
        for connection in self._taken:
            forget(connection)
        self._taken = ()

    def flushes(self) -> None:
        """Let the overseer know that changes are about to be written."""
        self._overseer.flush_called()

    def flushed(self) -> None:
        """Keep what was flushed, so that it can be named, where nobody may settle it."""
        if self._demands is not None:
            return
        room = _MOST_KEPT - len(self._kept)
        if room > 0 and self._overseer.wants_leftovers():
            session = self.session
            self._kept += tuple(islice(chain(session.new, session.dirty, session.deleted), room))

    def leftovers(self) -> Leftovers | None:
        """Return what is in the session that nobody has settled, if there is anything."""
        left = find_leftovers(self.session, next(filter(None, map(change_on, self.connections())), None))
        # What the database has given up is no commit away.
        return None if left is None or self.has_given_up() else left

    def committed(self) -> None:
        """Let the overseer know that COMMIT has returned, on every engine."""
        if self._sent:
            self._sent.clear()
        self._overseer.committed()

    def connections(self) -> list[Connection]:
        """Return the connections that the session has begun on, in the order in which it did."""
        return list({entry[0]: None for entry in self._entries()})

    @property
    def has_begun(self) -> bool:
        """Whether the session has begun on any connection."""
        return bool(self._entries())

    def _entries(self) -> Collection[tuple[Connection, Any, bool, bool]]:
        """Return what SQLAlchemy keeps of each connection, last whether it is from a pool; each is there twice."""
        root = self.session.get_transaction()
        return () if root is None else root._connections.values()

    def own_savepoints(self) -> Iterator[tuple[Connection, str]]:
        """Yield the savepoints that were made of the session's connections, past the session."""
        if any(entry[0].in_nested_transaction() for entry in self._entries()):
            for connection in self.connections():
                for savepoint in self._chain(connection):
                    if not self._is_of_session(savepoint):
                        yield connection, savepoint._savepoint

    def within_own_savepoint(self, connection: Connection | None = None) -> Savepoints:
        """Return the savepoints around what is done next, if the innermost was made of a connection."""
        for each in self.connections() if connection is None else (connection,):
            chain = list(self._chain(each))
            if chain and not self._is_of_session(chain[0]):
                return frozenset((each, savepoint._savepoint) for savepoint in chain)
        return frozenset()

    def _chain(self, connection: Connection) -> Iterator[NestedTransaction]:
        """Yield the savepoints of a connection, the innermost first, down to where the session has begun on it."""
        root = self.session.get_transaction()
        entry = None if root is None else root._connections.get(connection)
        savepoint = connection.get_nested_transaction()
        while savepoint is not None:
            yield savepoint
            if entry is not None and savepoint is entry[1]:
                return
            savepoint = savepoint._previous_nested

    def _is_of_session(self, savepoint: NestedTransaction) -> bool:
        return any(entry[1] is savepoint for each in transactions(self.session) for entry in each._connections.values())

    def follow(self) -> None:
        """Tell of savepoints of the session's connections that are rolled back."""
        for connection in self.connections():
            follow(connection)

    def has_changes(self) -> bool:
        """Whether a rollback would lose anything; of a session that began outside any transaction."""
        return any(True for _ in unsaved(self.session)) or any(map(has_written, self.connections()))

    def shared_connection(self) -> str | None:
        """Return why a second session would have the same connection, where it would and must not."""
        if self._source.detours:
            return None
        binds: list[Engine | Connection] = [
            connection.engine if from_pool else connection for connection, _, _, from_pool in self._entries()
        ]
        try:
            binds.append(self.session.get_bind())
        except UnboundExecutionError:
            logger.debug(
                "A session with several engines has not said yet which it will use.", extra=self._overseer.about()
            )
        return next((reason for bind in binds if (reason := shared(bind)) is not None), None)

    def _for_real(self, name: str) -> None:
        """Do what the session's own method does; one of the user's class may call others of its own."""
        if self._begun is not None:
            self._let_go(self._begun)
        self.at_large = None
        session = self.session
        method = getattr(type(session), name)
        if method is getattr(Session, name):
            method(session)
            return
        self._passing = True
        try:
            method(session)
        finally:
            self._passing = False
            self.at_large = session._transaction and self.at_large

    def commit(self) -> None:
        """COMMIT, for real.

        Raises:
            PartialCommitError: One of several engines has committed, and another could not.
        """
        self._failed = None
        if self._sent:
            self._sent.clear()
        self.is_committing = True
        try:
            self._for_real("commit")
        except BaseException as error:
            if self._is_sending and self._failed is None:
                self._failed = self._failure_in(error)
            if isinstance(error, Exception) and len(self._sent) > 1:
                *committed, failed = map(repr, self._sent)
                raise PartialCommitError(committed, failed) from error
            raise
        finally:
            self.is_committing = self._is_sending = False

    def commit_failed(self, error: BaseException, connection: Connection) -> None:
        """Learn that the driver could not tell of a success."""
        if self._is_sending and self._failed is None:
            self._failed = error, connection

    def _failure_in(self, error: BaseException) -> tuple[BaseException, Connection] | None:
        """Return what was wrong with COMMIT, where a listener of the user's has kept that from ours."""
        for connection in reversed(self.connections()):
            if not isinstance(error, Exception):
                # It can have come at any moment.
                return error, connection
            each: BaseException | None = error
            while each is not None:
                if isinstance(each, (DBAPIError, connection.dialect.loaded_dbapi.Error)):
                    return each, connection
                each = each.__cause__
        return None

    def has_several_engines(self) -> bool:
        """Whether its work is in more than one database, each of which commits by itself."""
        return len(self.connections()) > 1

    @property
    def is_unanswered(self) -> bool:
        """Whether COMMIT was sent, and the database has not said what became of it."""
        return self._failed is not None and not was_answered(self._failed[0])

    def single_connection(self) -> Connection | None:
        """Return the connection, if there is one alone, and its COMMIT is the session's."""
        connections = self.connections()
        return connections[0] if len(connections) == 1 and not self.is_bound and not self.session.twophase else None

    def lose_connection(self) -> Engine:
        """Give up the connection over which a COMMIT was sent, so that its place in the pool is free.

        Returns:
            The engine that it was of.
        """
        assert self._failed is not None
        connection = self._failed[1]
        self._failed = None
        if is_isolated(connection):
            # It is not lost, and others are asked over it. SQLAlchemy would have the savepoint rolled back before.
            savepoint = self._aside = connection._nested_transaction
            connection._nested_transaction = None if savepoint is None else savepoint._previous_nested
        elif not connection.invalidated:
            connection.invalidate()
        return connection.engine

    def complete(self) -> None:
        """Do the rest of ``session.commit()``, the answer to which was lost, now that it is known to have succeeded."""
        root = self.session.get_transaction()
        assert root is not None
        self._aside = None
        try:
            root._state = type(root._state).COMMITTED
            self.session.dispatch.after_commit(self.session)
            root._remove_snapshot()
            root.close()
            self.at_large = None
        except Exception:
            logger.exception("A listener failed after a COMMIT", extra=self._overseer.about())
            self.recover()

    def _note_commits(self) -> None:
        """Keep the order in which several engines commit. SQLAlchemy has none, and tells of each before it does."""
        for connection in self.connections():
            # Listening again is no second listening.
            for name in ("commit", "commit_twophase"):
                event.listen(connection, name, _sending_commit)
            _sent_by[connection] = self._sent

    def rollback(self) -> None:
        """ROLLBACK, for real, and leave a usable session whatever the database says to it."""
        if self.session._transaction is None:
            self.at_large = None
            return
        savepoint, self._aside = self._aside, None
        if savepoint is not None:
            savepoint._previous_nested = savepoint.connection._nested_transaction
            savepoint.connection._nested_transaction = savepoint
        try:
            self._for_real("rollback")
        except Exception:
            logger.debug(
                "ROLLBACK failed; the connection is thrown away, which ends its transaction.",
                exc_info=True,
                extra=self._overseer.about(),
            )
            self.session.invalidate()
            self.at_large = None

    def recover(self) -> None:
        """Make the session usable again after a COMMIT that returned, and a listener that did not."""
        Session.reset(self.session)
        self.at_large = None

    def states(self) -> Collection[InstanceState[Any]]:
        """Return the states of the objects in the session."""
        return frozenset(self.session.identity_map.all_states())

    def forget_all_but(self, states: Collection[InstanceState[Any]]) -> None:
        """Empty the session, but for objects that were there before."""
        for state in self.session.identity_map.all_states():
            instance = state.obj()
            if instance is not None and state not in states:
                self.session.expunge(instance)

    def begin(self, *, nested: bool) -> SessionTransaction:
        """Do what ``session.begin()`` does without us, but for the end of ``with session.begin():``, which is ours."""
        transaction = type(self.session).begin(self.session, nested=nested)
        if nested:
            self._forget_with(transaction)
        else:
            self._begun = transaction
            # SQLAlchemy's own with statement closes it, and nothing else, when a flush has failed inside.
            vars(transaction).update(
                commit=self._overseer.commit_called,
                rollback=self._overseer.rollback_called,
                close=self._overseer.rollback_called,
            )
        return transaction

    def begin_nested(self) -> SessionTransaction:
        """Begin a savepoint of ours."""
        return type(self.session).begin(self.session, nested=True)

    def _forget_with(self, savepoint: SessionTransaction) -> None:
        """Let the hooks and the changes of a savepoint of the user's own go with its work."""
        mark, reference = self._overseer.savepoint_begun(), ref(savepoint)

        def rollback(*args: Any, **kwargs: Any) -> None:
            rolled_back = reference()
            assert rolled_back is not None
            vars(rolled_back).pop("rollback", None)
            rolled_back.rollback(*args, **kwargs)
            self._overseer.savepoint_rolled_back(mark)

        def close(*args: Any, **kwargs: Any) -> None:
            closed = reference()
            assert closed is not None
            vars(closed).pop("close", None)
            # commit() and rollback() end with it, too.
            is_end_of_another = vars(closed).pop("rollback", None) is None or closed._state.name == "COMMITTED"
            closed.close(*args, **kwargs)
            if not is_end_of_another:
                self._overseer.savepoint_rolled_back(mark)

        vars(savepoint).update(rollback=rollback, close=close)

    def spoil(self, savepoint: SessionTransaction, reason: str, error: BaseException) -> None:
        """Keep a savepoint of the user's own, in which *error* happened, from being released: only rolled back."""
        reference = ref(savepoint)

        def commit(*_args: Any, **_kwargs: Any) -> None:
            spoilt = reference()
            assert spoilt is not None
            vars(spoilt).pop("commit", None)
            try:
                spoilt.rollback()
            except Exception as failure:
                raise failure from error
            raise UnexpectedRollbackError("The work of a savepoint", f"{reason}, and the error was caught") from error

        vars(savepoint).setdefault("commit", commit)
        vars(savepoint).setdefault(_SPOILT, (reason, error))

    def spoilt_by(self) -> tuple[str, BaseException] | None:
        """Return what has spoilt the innermost savepoint, if it is one of the user's own and anything has."""
        savepoint = self.session.get_nested_transaction()
        spoilt: tuple[str, BaseException] | None = None if savepoint is None else vars(savepoint).get(_SPOILT)
        return spoilt

    def _let_go(self, begun: SessionTransaction) -> None:
        """Give what ``session.begin()`` returned its own methods back."""
        self._begun = None
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
        if self._begun is not None:
            self._let_go(self._begun)
        if self.record is not None:
            untrack(self.session)
        # It is done for each session, and a loop of ours costs four times as much. Somebody may have taken one away.
        deque(map(self.session.__dict__.pop, _OURS, _NOTHING), maxlen=0)
        if self._taken:
            self._forget_connections()
        for connection in self._bound:
            give_back(connection, self._overseer)
        root, self._root = self._root, None
        if root is not None:
            root.__dict__.pop("_connection_for_bind", None)
            root.__dict__.pop("_prepare_impl", None)

    def release(self) -> None:
        """Close the session, and return its connection."""
        try:
            self.unwatch()
            self._source.release(self.session)
        except Exception:
            logger.debug(
                "Closing a session failed; its connection is thrown away.", exc_info=True, extra=self._overseer.about()
            )
            self.session.invalidate()


def _with_ours(asked: Mapping[str, Any], ours: Mapping[str, Any], demands: Demands) -> Mapping[str, Any]:
    """Return the execution options that a session has asked for, with those of its transaction."""
    # A setting is not what this block has asked for.
    return {**ours, **asked} if demands._is_default_level and not demands.read_only else {**asked, **ours}


def _check(session: object) -> None:
    """Refuse what cannot be watched."""
    if not isinstance(session, Session):
        raise ConfigurationError(
            "sessions",
            f"returned {session!r} instead of a sqlalchemy.orm.Session. Give UnitOfWork a sessionmaker, or a function "
            "that returns a new Session at each call.",
        )
    if is_watched(session):
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


_sent_by: WeakKeyDictionary[Connection, list[Engine]] = WeakKeyDictionary()
"""Where it is kept that COMMIT was sent to a connection of a session with several engines."""


def _sending_commit(connection: Connection, *_rest: Any) -> None:
    _sent_by[connection].append(connection.engine)


_prepared_for: WeakKeyDictionary[Connection, Overseer] = WeakKeyDictionary()
"""Who is asked before the first phase of a session with two."""


def _preparing(connection: Connection, _transaction_id: object) -> None:
    _prepared_for[connection].about_to_commit()


def shared(bind: Engine | Connection) -> str | None:
    """Return why all sessions on *bind* have the same connection, where they have."""
    if isinstance(bind, Connection):
        return None if is_isolated(bind) else "its session is bound to one Connection"
    if isinstance(bind.pool, (StaticPool, SingletonThreadPool)):
        return f"the pool of {bind!r} is a {type(bind.pool).__name__}, which has one connection"
    return None


def unsaved(session: Session) -> Iterator[str]:
    """Yield what the next flush of *session* would write, object by object."""
    for instance in session.new:
        yield f"a new {type(instance).__name__}"
    for instance in session.dirty:
        if session.is_modified(instance):
            yield _described(instance)
    for instance in session.deleted:
        yield f"the deletion of {_described(instance)}"


def refuse_lost_changes(expelled: Iterable[Callable[[], object | None]]) -> None:
    """Raise if somebody has kept an object from an attempt that has failed, and changed it now.

    Raises:
        ConfigurationError: One was changed, and is in no session that would store that.
    """
    for reference in expelled:
        instance = reference()
        state: InstanceState[Any] | None = None if instance is None else inspect(instance)
        if state is not None and state.modified and state.session is None:
            raise ConfigurationError(
                "attempts",
                f"of this block: {_described(instance)} was loaded by an attempt that has failed, kept somewhere, and "
                "changed by this one, which would be lost. Load it anew in each attempt, or add() it.",
            )


def _described(instance: object) -> str:
    state: InstanceState[Any] = inspect(instance)
    return f"{type(instance).__name__} {', '.join(map(repr, state.identity or ()))}"


@once
def _listen() -> None:
    """Listen to all sessions; those that nobody watches cost a look into a dict.

    On the class, for its listeners come before those of a sessionmaker, of a subclass and of an instance; and first,
    for one of the user's may raise.
    """
    event.listen(Session, "after_transaction_create", _after_transaction_create, insert=True)
    event.listen(Session, "after_begin", _after_begin, insert=True)
    event.listen(Session, "after_commit", _after_commit, insert=True)
    event.listen(Session, "after_flush", _after_flush, insert=True)
    listen_to_errors()


@once
def listen_to_flushes() -> None:
    """Listen to what sessions write, from the first transaction on that may not."""
    event.listen(Session, "before_flush", _before_flush, insert=True)


def is_watched(session: Session) -> bool:
    """Whether a scope has *session* in its care."""
    return hasattr(session, _WATCHED)


def observe_all() -> None:
    """Tell the overseers of all sessions of what is sent over their connections, those that want to know of it."""
    # A thread may open another meanwhile.
    for reference in _sessions.valuerefs():
        session = reference()
        watched: WatchedSession | None = None if session is None else getattr(session, _WATCHED, None)
        for connection in () if watched is None else watched.connections():
            observe(connection)


def _after_transaction_create(session: Session, transaction: SessionTransaction) -> None:
    if transaction._parent is None:
        watched: WatchedSession | None = getattr(session, _WATCHED, None)
        if watched is not None:
            watched.created(transaction)


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    watched: WatchedSession | None = getattr(session, _WATCHED, None)
    if watched is not None and not transaction.nested:
        watched.began(transaction, connection)


def _after_commit(session: Session) -> None:
    watched: WatchedSession | None = getattr(session, _WATCHED, None)
    if watched is not None and session._nested_transaction is None:
        watched.committed()


def _after_flush(session: Session, *_rest: Any) -> None:
    watched: WatchedSession | None = getattr(session, _WATCHED, None)
    if watched is not None:
        watched.flushed()


def _before_flush(session: Session, *_rest: Any) -> None:
    watched: WatchedSession | None = getattr(session, _WATCHED, None)
    if watched is not None:
        watched.flushes()
