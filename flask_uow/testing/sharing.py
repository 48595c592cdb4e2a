"""One connection for all the sessions of a test: whose turn it is, and which of their savepoints the database has."""

from __future__ import annotations

import logging
import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Condition, get_ident
from typing import Any, Final, NoReturn
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, NestedTransaction, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction

from flask_uow._core.connection import begin_at_once, committing, refuse_autocommit
from flask_uow._core.isolation import isolated
from flask_uow._core.journal import Journal
from flask_uow._core.once import once
from flask_uow._core.verbs import defines, only_reads
from flask_uow.errors import ConfigurationError

__all__ = ["SharedConnection"]

logger = logging.getLogger("flask_uow.testing")

_PATIENCE: Final = 10.0
"""In seconds, for how long a thread waits for the transaction of another one."""

_KNOWN: Final = ("sqlite", "postgresql", "mysql", "mariadb")

_BEGIN: Final = "SAVEPOINT"
_KEEP: Final = "RELEASE SAVEPOINT"
_CONTROL: Final = re.compile(rf"({_BEGIN}|{_KEEP}|ROLLBACK TO SAVEPOINT) (\S+)")
"""How SQLAlchemy begins and ends savepoints."""


class _Savepoint:
    """A savepoint that was made of the connection: a session's transaction, or one inside that."""

    __slots__ = (
        "begins",
        "has_taken",
        "is_ending",
        "is_lost",
        "is_new",
        "is_real",
        "name",
        "options",
        "session",
        "thread",
        "wrote",
    )

    def __init__(self, name: str, session: Session | None, thread: int, options: Any) -> None:
        self.name = name
        self.session = session
        self.thread = thread
        """Whose turn it is while it is there."""

        self.options = options
        """The execution options of the connection, which its session may have set."""

        self.begins = False
        """Whether it stands for a transaction."""

        self.wrote = False
        self.is_new = True
        """Whether no session has said yet that it is its own."""

        self.is_real = True
        """Whether the database has it."""

        self.is_ending = False
        """Whether its end was sent, and not answered."""

        self.has_taken = False
        """Whether the committed transaction of another session is a part of it."""

        self.is_lost = False
        """Whether the rollback of another has taken along what was written in it."""

    @property
    def stays(self) -> bool:
        """Whether it must stay in the database: something was written in it, or it is the test's own, around others."""
        return self.wrote or self.is_new


class SharedConnection:
    """A connection in a transaction that is never committed, where each session has a savepoint for its own.

    Savepoints are a stack, and transactions are none. What makes up for that:

    - A thread waits while another one is in a transaction. The one in which all has begun, the test's, may be in one:
      it waits for what a server's thread does.
    - A savepoint in which nothing was written is taken out of the database when it is in the way, and is made again
      when its session goes on. So a transaction that only reads loses nothing to others, and takes nothing from them.

    Args:
        bind: An engine, or a connection of somebody's.
        home: The thread in which all has begun.

    Raises:
        ConfigurationError: It commits each statement by itself, or is of a database that nobody has tried.
    """

    def __init__(self, bind: Engine | Connection, home: int) -> None:
        if bind.dialect.name not in _KNOWN:
            raise ConfigurationError(
                "isolate()",
                f"was given {bind!r}; it knows SQLite, PostgreSQL, MySQL and MariaDB. Give each test a database of its "
                "own.",
            )
        self._home = home
        self._condition = Condition()
        self._savepoints: list[_Savepoint] = []
        self._executing: int | None = None
        """The thread that is executing a statement."""

        self._deferrable: Any = None
        """How many constraints of PostgreSQL can be deferred, and which are, unless they are to be counted anew."""

        self._touched: dict[int, Session] = {}
        """The session that is about to send something, by thread."""

        self.sessions: WeakSet[Session] = WeakSet()
        """Those that have begun on it."""

        self._bases: list[NestedTransaction] = []
        """What all the rest is in, one for each ``isolate()`` inside another."""

        with ExitStack() as stack:
            is_ours = isinstance(bind, Engine)
            self.connection = stack.enter_context(bind.connect()) if isinstance(bind, Engine) else bind
            if not self.connection.in_transaction():
                stack.callback(self.connection.begin().rollback)
            begin_at_once(self.connection)
            refuse_autocommit(self.connection)
            stack.enter_context(isolated(self.connection, bind))
            self._listen(stack)
            if is_ours:
                stack.callback(self._unprotect)
                self._protect()
            self._violations = frozenset(self._violated())
            """Foreign keys in SQLite that had been violated before."""

            self._stack = stack.pop_all()

    def _listen(self, stack: ExitStack) -> None:
        _listen_to_sessions()
        _shared[self.connection] = self
        stack.callback(_shared.pop, self.connection, None)
        for target, name, listener in (
            (self.connection, "before_cursor_execute", self._before),
            (self.connection, "after_cursor_execute", self._after),
            (self.connection.engine, "handle_error", self._failed),
        ):
            event.listen(target, name, listener)
            stack.callback(event.remove, target, name, listener)

    def _protect(self) -> None:
        """Let nobody end the transaction who means a session's, as if the connection were one of his own."""

        def refuse() -> NoReturn:
            raise ConfigurationError(
                "The connection of isolate()",
                "was to be rolled back or closed, with all that the test has done. Use a session on it: "
                "with Session(connection) as session:",
            )

        # Whatever is executed on it is there for everybody at once.
        vars(self.connection).update(commit=lambda: None, rollback=refuse, close=refuse)

    def _unprotect(self) -> None:
        for name in ("commit", "rollback", "close"):
            vars(self.connection).pop(name)

    # Levels

    def enter(self) -> None:
        """Begin what `leave` undoes."""
        base = self.connection.begin_nested()
        savepoint = self._savepoints[-1]
        # It is never in the way of anybody.
        savepoint.is_new, savepoint.wrote = False, True
        self._bases.append(base)

    def leave(self) -> bool:
        """Undo what was done since `enter`, and return whether that is all.

        Raises:
            ConfigurationError: The database has ended the transaction meanwhile, and may have stored something.
        """
        base = self._bases.pop()
        names = [savepoint.name for savepoint in self._savepoints]
        bottom = names.index(base._savepoint) if base._savepoint in names else 0
        with self._condition:
            self._condition.wait_for(lambda: not self._has_others(bottom), _PATIENCE)
        for session in {each.session: None for each in reversed(self._savepoints[bottom:]) if each.session is not None}:
            # Somebody has left it open.
            with suppress(Exception):
                Session.rollback(session)
        try:
            # Where only what is sent can end a transaction, the end of all is enough.
            if not self.connection.invalidated and (self._bases or self.connection.dialect.name != "postgresql"):
                base.rollback()
        except DBAPIError as error:
            raise ConfigurationError(
                "isolate()",
                f"cannot undo what was done inside: {error.orig}. The database has ended the transaction, as MariaDB "
                "and MySQL do at CREATE and ALTER, and at a deadlock; what came before and after it may be stored.",
            ) from error
        finally:
            del self._savepoints[bottom:]
            if not self._bases:
                self._stack.close()
        return not self._bases

    def _has_others(self, bottom: int) -> bool:
        return any(savepoint.thread != get_ident() for savepoint in self._savepoints[bottom:])

    # Whose turn it is

    def touch(self, session: Session) -> None:
        """Learn that the current thread is about to use the connection for *session*."""
        with self._condition:
            self._touched[get_ident()] = session
            for savepoint in self._savepoints:
                if savepoint.session is session:
                    savepoint.thread = get_ident()

    def began(self, session: Session, transaction: SessionTransaction) -> None:
        """Learn that the last savepoint is the session's own."""
        with self._condition:
            self._touched[get_ident()] = session
            self.sessions.add(session)
            savepoint = self._savepoints[-1] if self._savepoints else None
            if savepoint is not None and savepoint.is_new:
                savepoint.is_new, savepoint.session = False, session
                savepoint.begins = transaction.parent is None

    def _wait(self) -> None:
        if not self._condition.wait_for(self._may_go_on, _PATIENCE):
            raise ConfigurationError(
                "isolate()",
                "has one connection for all threads, and one of them has been in a transaction on it for "
                f"{_PATIENCE:g} s while this one waited. End that one before you wait for this one: commit(), "
                "rollback() or close() its session.",
            )

    def _may_go_on(self) -> bool:
        me = get_ident()
        if self._executing not in (None, me):
            return False
        others = {savepoint.thread for savepoint in self._savepoints} - {me}
        return not others or (me != self._home and others == {self._home})

    # Statements

    def _before(self, _connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        control = _CONTROL.fullmatch(statement)
        with self._condition:
            savepoint = None if control is None or control[1] == _BEGIN else self._find(control[2])
            if savepoint is not None:
                # Whoever ends it goes on with it, such as a request whose view has run in another thread.
                savepoint.thread = get_ident()
            self._wait()
            self._undo_failed_ends()
            if savepoint is not None and control is not None:
                self._before_end(savepoint, keeps=control[1] == _KEEP)
            elif control is None:
                self._before_statement(statement)
            elif session := self._touched.get(get_ident()):
                self._make_real(session)
            self._executing = get_ident()

    def _after(self, connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        control = _CONTROL.fullmatch(statement)
        with self._condition:
            self._executing = None
            if control is not None:
                savepoint = self._find(control[2])
                if control[1] == _BEGIN:
                    session = self._touched.get(get_ident())
                    options = connection.get_execution_options()
                    self._savepoints.append(_Savepoint(control[2], session, get_ident(), options))
                elif savepoint is not None:
                    self._ended(savepoint, kept=control[1] == _KEEP)
            self._condition.notify_all()

    def _failed(self, context: ExceptionContext) -> None:
        if context.connection is self.connection:
            if not isinstance(context.original_exception, self.connection.dialect.loaded_dbapi.Error):
                # What interrupts a program, or a test has raised, is no reason to lose all that the test has done.
                context.is_disconnect = False
            with self._condition:
                self._executing = None
                self._condition.notify_all()

    def _before_statement(self, statement: str) -> None:
        session = self._touched.get(get_ident())
        mine = [each for each in self._savepoints if session is not None and each.session is session]
        savepoint = (mine or self._savepoints)[-1]
        if savepoint.session is not None:
            self._make_real(savepoint.session)
        if not only_reads(statement):
            above = self._others_above(savepoint)
            if above and not any(each.stays for each in above):
                self._take_away(above)
            savepoint.wrote = True
            if defines(statement):
                self._deferrable = None

    def _before_end(self, savepoint: _Savepoint, *, keeps: bool) -> None:
        if savepoint.session is not None:
            self._touched[get_ident()] = savepoint.session
        self._put_on_top(savepoint.name)
        others = self._others_above(savepoint)
        if not savepoint.is_real or (
            others and (not savepoint.wrote or (keeps and any(each.stays for each in others)))
        ):
            # There is nothing to undo, or something of others that stays: what is ended is one of the same name.
            self._send(f"SAVEPOINT {savepoint.name}")
        else:
            # It takes them along.
            for each in others:
                each.is_real, each.is_lost = False, each.wrote
        savepoint.is_ending = True
        if savepoint.has_taken and not keeps:
            logger.warning(
                "isolate() has one connection: the rollback of a session that has written takes along what was "
                "committed since by others, in REQUIRES_NEW or in requests. Let the session commit() first.",
                extra=Journal().about(None),
            )
        if keeps and savepoint.begins:
            if savepoint.is_lost:
                raise ConfigurationError(
                    "isolate()",
                    "cannot commit a transaction: another one on the same connection, which had begun before it, was "
                    "rolled back meanwhile, and what this one had written with it. Let one of them end before the "
                    "other one writes, or give the test a database of its own.",
                )
            committing(self.connection)
            if savepoint.wrote:
                self._check_constraints()

    def _ended(self, savepoint: _Savepoint, *, kept: bool) -> None:
        session = savepoint.session
        index = self._savepoints.index(savepoint)
        self._savepoints[index:] = [
            each for each in self._savepoints[index + 1 :] if session is None or each.session is not session
        ]
        if savepoint.begins:
            self._touched = {thread: touched for thread, touched in self._touched.items() if touched is not session}
            outer = next((each for each in reversed(self._savepoints) if each.begins), self._savepoints[0])
            self.connection._execution_options = outer.options
        if not kept:
            if savepoint.begins:
                self._send(f"RELEASE SAVEPOINT {savepoint.name}")
        elif savepoint.begins and savepoint.wrote:
            self._take_away(self._readers_on_top())
            around = [each for each in self._savepoints[:index] if each.is_real and each.begins]
            for each in around[-1:]:
                each.has_taken = True
        elif not savepoint.begins:
            for outer in reversed(self._savepoints[:index]):
                outer.wrote |= savepoint.wrote and outer.session is session
                outer.has_taken |= savepoint.has_taken and outer.session is session

    def _undo_failed_ends(self) -> None:
        """Roll back what was to be released, and could not; SQLAlchemy believes that there is nothing to do."""
        for savepoint in [each for each in self._savepoints if each.is_ending]:
            savepoint.is_ending = False
            if savepoint.begins:
                self._send(f"ROLLBACK TO SAVEPOINT {savepoint.name}")
                self._ended(savepoint, kept=False)

    # Savepoints

    def _find(self, name: str) -> _Savepoint | None:
        return next((each for each in reversed(self._savepoints) if each.name == name), None)

    def _others_above(self, savepoint: _Savepoint) -> list[_Savepoint]:
        """Return the savepoints of other sessions that the database has above one."""
        above = self._savepoints[self._savepoints.index(savepoint) + 1 :]
        return [each for each in above if each.is_real and each.session is not savepoint.session]

    def _readers_on_top(self) -> list[_Savepoint]:
        """Return the savepoints above all that stay; the lowest one always does."""
        real = [each for each in self._savepoints if each.is_real]
        stay = [index for index, each in enumerate(real) if each.stays]
        return real[stay[-1] + 1 :]

    def _take_away(self, savepoints: list[_Savepoint]) -> None:
        """Take savepoints out of the database that are above all others, the first with those in it."""
        if savepoints:
            self._send(f"RELEASE SAVEPOINT {savepoints[0].name}")
        for each in savepoints:
            each.is_real = False

    def _make_real(self, session: Session) -> None:
        """Give a session the savepoints again that were taken away from it."""
        for savepoint in [each for each in self._savepoints if each.session is session and not each.is_real]:
            self._send(f"SAVEPOINT {savepoint.name}")
            savepoint.is_real = True
            self._savepoints.remove(savepoint)
            self._savepoints.append(savepoint)

    def _put_on_top(self, name: str) -> None:
        """Let SQLAlchemy believe that a savepoint is the innermost one, as it believes of any that ends."""
        chain = list(_chain(self.connection))
        ending = next((each for each in chain if each._savepoint == name), None)
        if ending is None or ending is chain[0]:
            return
        below = ending._previous_nested
        next(each for each in chain if each._previous_nested is ending)._previous_nested = below
        ending._previous_nested = chain[0]
        self.connection._nested_transaction = ending

    def _send(self, statement: str) -> Any:
        """Send a statement that nobody is told of, and return its rows."""
        cursor = self.connection.connection.cursor()
        try:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
        finally:
            cursor.close()

    # Constraints

    def _check_constraints(self) -> None:
        """Check what the database would check at COMMIT, and raise what it would answer.

        PostgreSQL does when they become immediate: see SET CONSTRAINTS in its documentation. Afterwards they are as
        they are at the beginning of a transaction.
        """
        try:
            if self.connection.dialect.name == "postgresql":
                if self._deferrable is None:
                    [self._deferrable] = self._send(_DEFERRABLE)
                count, deferred = self._deferrable
                if count:
                    self._send("SET CONSTRAINTS ALL IMMEDIATE")
                if deferred:
                    self._send(f"SET CONSTRAINTS {deferred} DEFERRED")
            elif not self._violations.issuperset(self._violated()):
                raise _violation()
        except self.connection.dialect.loaded_dbapi.Error as error:
            # As at COMMIT.
            self.connection._handle_dbapi_exception(error, None, None, None, None)

    def _violated(self) -> Iterator[Any]:
        """Yield the rows that violate a foreign key, where SQLite is to check them."""
        if self.connection.dialect.name == "sqlite" and self._send("PRAGMA foreign_keys") == [(1,)]:
            yield from map(tuple, self._send("PRAGMA foreign_key_check"))


_DEFERRABLE: Final = """
SELECT count(*), string_agg(format('%I.%I', nspname, conname), ', ') FILTER (WHERE condeferred)
FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace WHERE condeferrable
"""


def _violation() -> sqlite3.IntegrityError:
    """Return what SQLite answers to COMMIT where a deferred foreign key is violated."""
    error = sqlite3.IntegrityError("FOREIGN KEY constraint failed")
    error.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
    error.sqlite_errorname = "SQLITE_CONSTRAINT_FOREIGNKEY"
    return error


_shared: WeakKeyDictionary[Connection, SharedConnection] = WeakKeyDictionary()


@once
def _listen_to_sessions() -> None:
    event.listen(Session, "after_begin", _after_begin, insert=True)


def _after_begin(session: Session, transaction: SessionTransaction, connection: Connection) -> None:
    shared = _shared.get(connection)
    if shared is not None:
        shared.began(session, transaction)


def _chain(connection: Connection) -> Iterator[NestedTransaction]:
    """Yield the savepoints of a connection, the innermost first."""
    savepoint = connection.get_nested_transaction()
    while savepoint is not None:
        yield savepoint
        savepoint = savepoint._previous_nested
