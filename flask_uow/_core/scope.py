"""The session of one context: when it is opened, what may be done to it by hand, and when it is closed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from time import perf_counter
from types import MappingProxyType
from weakref import ref

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, SessionTransaction

from flask_uow._core.connection import PLAIN, Demands, Savepoints
from flask_uow._core.events import Removed
from flask_uow._core.guard import brief
from flask_uow._core.leftovers import Leftovers, is_failure, tell_of_leftovers
from flask_uow._core.options import ManualCommit, Options, Verify
from flask_uow._core.policy import Decision
from flask_uow._core.retry import Attempts, note_commit
from flask_uow._core.runtime import Plan, Runtime
from flask_uow._core.session import Mark, WatchedSession, shared
from flask_uow._core.stack import Stack
from flask_uow._core.transaction import Joined, Transaction, deadline_of, ended_past_us, outside_any_block
from flask_uow.errors import (
    ConfigurationError,
    IncompatibleTransactionError,
    ManualTransactionControlError,
    NoScopeError,
    TransactionRequiredError,
)

__all__ = ["Scope"]

_places: ContextVar[Mapping[Scope, Scope]] = ContextVar("flask_uow.places", default=MappingProxyType({}))
"""Which scope has the place of which. A context variable, for tasks of one view suspend by themselves."""


class Scope(Stack):
    """One context's session and its transactions. It oversees the session: see `Overseer`."""

    ending: bool = False
    """Whether its context ends, so that others may close the session before we do."""

    expects_rollback: bool = False
    """Whether nobody expects what is in it to be kept, for what it was for has failed."""

    _parked: Session | None = None
    """What a registry has open for it while another has its place, or had open when it took another's."""

    _written_off: ref[SessionTransaction] | None = None
    """The session's transaction with what a failure has left, which nobody expects to be kept."""

    def __init__(self, runtime: Runtime, plan: Plan | None = None, label: str = "") -> None:
        self._runtime = runtime
        self._stack = []
        self._watched = None
        self.restricted = False
        self._marks = {}
        self._suspended = None

        self._draining = self._committing = None
        self._telling = self._was_stored = False

        self._plan = plan
        self._tacit = self._opened_at = self._planned = self._attempts = None

        self._label = label
        """What to call the block that it is of, or nothing where it is of a whole context."""

        self.closed = False
        """Whether it has come to its end, and no session may be opened in it."""

        self.takes_a_place = False
        """Whether it has, or had, another's place."""

        self._closed_by_hand = False
        self._guests: tuple[Scope, ...] = ()
        """Those that have its place for a while; more than one, where several tasks run in it."""

    @property
    def session(self) -> Session:
        """The session, opened on first use."""
        return self.opened().session

    def opened(self) -> WatchedSession:
        """Return the session, opened on first use.

        Raises:
            NoScopeError: The scope has come to its end.
        """
        if self.closed:
            raise NoScopeError("The session", "its context has come to its end, and has closed its session already.")
        if not self._stack:
            self._begin_if_planned()
        if self._closed_by_hand:
            self._replace_closed()
        if self._watched is None:
            self.adopt(self._runtime.source.open())
        assert self._watched is not None
        if self._stack:
            if self._stack[0]._started is None:
                self._start(self._stack[0])
        elif self._opened_at is None and self._tacit is not None:
            self._opened_at = perf_counter()
        return self._watched

    def adopt(self, session: Session) -> None:
        """Watch a session that was opened for this scope, by us or by somebody else who has asked the registry."""
        watched = self._watched
        if self.closed or (watched is not None and watched.session is session):
            return
        if watched is not None:
            if watched.session.in_transaction():
                if self.current() is not None:
                    reason = "a second session was opened in it while the first had work to settle"
                    self.doom(self._stack[0], reason, None)
                return
            watched.unwatch()
            self._closed_by_hand = False
        self._watched = WatchedSession(session, self._runtime.source, self)
        if (self._stack or self._tacit is not None) and session._transaction is not None:
            try:
                self._made_fit(self._come_forward())
            except BaseException:
                watched, self._watched = self._watched, None
                # What a registry has is others' as well, and stays as it is.
                if self._runtime.source.is_registry:
                    watched.unwatch()
                else:
                    watched.release()
                raise

    # One scope in the place of another

    def innermost(self) -> Scope:
        """Return the scope that has its place at the moment, or itself."""
        places = _places.get()
        if not places:
            return self
        scope = self
        while (inner := places.get(scope)) is not None and not inner.closed:
            scope = inner
        return scope

    def refuse_shared_connection(self, block: str) -> None:
        """Raise if a second session could not have a connection of its own, and there is a transaction to protect.

        Raises:
            ConfigurationError: It could not.
        """
        if self.current() is None:
            return
        if self._watched is None:
            self.adopt(self._runtime.source.open())
        reason = None if self._watched is None else self._watched.shared_connection()
        if reason is not None:
            raise _no_second_connection(block, self._stack[0]._label, reason)

    def give_way(self, inner: Scope) -> None:
        """Let *inner* have this scope's place until `take_back`, for the code of this task alone."""
        if self._guests and self._runtime.source.is_registry:
            raise ConfigurationError(
                inner._label,
                "would suspend a transaction of which another task has suspended a part already, and a registry such "
                "as scoped_session or db.session has one session for a context at a time. Give UnitOfWork a "
                "sessionmaker, or let the tasks suspend one after the other.",
            )
        _places.set({**_current_places(), self: inner})
        self._guests += (inner,)
        inner.takes_a_place = True
        inner._suspended = None if (suspended := self._outermost) is None else suspended._label
        inner.swap()

    def take_back(self, inner: Scope) -> None:
        """Have the place again that was given to *inner*."""
        if inner in self._guests:
            self._guests = tuple(guest for guest in self._guests if guest is not inner)
            inner.swap()
        places = _current_places()
        if places.get(self) is inner:
            del places[self]
        _places.set(places)

    def _note_commit(self) -> None:
        # One that has another's place is meant to be kept whatever becomes of that one.
        if not self.takes_a_place:
            note_commit()

    def _verify(self, verify: Verify, label: str) -> object:
        inner = Scope(self._runtime, label=f"the function verify of {label}")
        self.give_way(inner)
        try:
            return verify(inner.session)
        finally:
            try:
                inner.close()
            finally:
                self.take_back(inner)

    def resume_guests(self) -> None:
        """Give the blocks that the body of a stream is in their places again, in whatever context it goes on."""
        places, scope = _current_places(), self
        while scope._guests:
            guest = scope._guests[-1]
            places[scope], scope = guest, guest
        _places.set(places)

    def suspend_guests(self) -> None:
        """Undo `resume_guests`."""
        places, scope = _current_places(), self
        while scope._guests:
            places.pop(scope, None)
            scope = scope._guests[-1]
        _places.set(places)

    def swap(self) -> None:
        """Let a registry hand out this scope's session, or again the one that it handed out before."""
        self._parked = self._runtime.source.exchange(self._parked)

    def _abandon_guests(self) -> None:
        """End those that have this scope's place and were never left."""
        while self._guests:
            inner = self._guests[-1]
            try:
                inner.close()
            finally:
                self.take_back(inner)

    def _notice(self, transaction: Transaction) -> None:
        if self._guests:
            self.doom(transaction, f"{self._guests[-1]._label} inside it was never left", None)
            self._abandon_guests()
        super()._notice(transaction)

    # Blocks

    def nest(self, options: Options, label: str) -> Transaction:
        """Open a savepoint in the innermost transaction.

        Raises:
            TransactionDoomedError: An error was caught in it.
            IncompatibleTransactionError: *options* ask for what a savepoint cannot have.
        """
        outer = self.active(label)
        if options.isolation_level is not None:
            raise IncompatibleTransactionError(
                label,
                f"isolation_level={options.isolation_level!r}",
                f"would be a savepoint in the transaction of {outer._label}, and the level holds for the whole of it. "
                "Give it to the block that begins the transaction, or use Propagation.REQUIRES_NEW.",
            )
        self._refuse_writing(outer, options, label)
        if self.restricted:
            self.before_statement()
        savepoint = self.opened().begin_nested()
        # Only now: that has flushed what came before the savepoint, and hooks registered there stay.
        transaction = Transaction(options, label, self._stack[-1])
        transaction._savepoint = savepoint
        return self._add(transaction)

    def join(self, options: Options, label: str) -> tuple[Transaction, Joined]:
        """Let a block be a part of the innermost transaction.

        Raises:
            IncompatibleTransactionError: *options* ask for what the transaction is not.
            TransactionRequiredError: Its COMMIT has returned.
        """
        transaction = self.active(label)
        if transaction._stored:
            # We are in a listener of the user's, between COMMIT and the end of commit().
            raise TransactionRequiredError(label)
        level = options.isolation_level
        if level is not None and level != transaction.isolation_level:
            actual = f"at {transaction.isolation_level}" if transaction.isolation_level else "at the engine's own level"
            raise IncompatibleTransactionError(
                label,
                f"isolation_level={level!r}",
                f"would join the transaction of {transaction._label}, which is {actual}. Give the level to the block "
                "that begins the transaction, or use Propagation.REQUIRES_NEW.",
            )
        self._refuse_writing(transaction, options, label)
        deadline = deadline_of(options, label)
        if deadline is not None:
            self._restrict()
        within: Savepoints = frozenset() if self._watched is None else self._watched.within_own_savepoint()
        block = Joined(label, options, deadline, self._own_savepoint(), within)
        transaction._blocks += (block,)
        return transaction, block

    def leave(self, transaction: Transaction, block: Joined, error: BaseException | None, decision: Decision) -> None:
        """Let a block that has joined *transaction* end. With tasks it need not be the innermost one.

        Raises:
            TransactionTimeoutError: It is too late for it.
        """
        try:
            if error is None:
                self.check_time(block.deadline)
        finally:
            transaction._blocks = tuple(other for other in transaction._blocks if other is not block)
        if error is not None and decision is Decision.ROLLBACK:
            reason = f"{block.label}, which had joined it, failed with {type(error).__name__}"
            # A savepoint of the user's own around it can be rolled back alone. One begun inside it was left behind.
            savepoint = block.savepoint if block.savepoint is self._own_savepoint() else None
            self._spoil_or_doom(savepoint, transaction, reason, error, block.within)
        elif block.deadline is not None:
            self.relax()

    def savepoint_begun(self) -> Mark:
        """Mark what is there before a savepoint of the user's own."""
        self.current()
        return self._mark()

    def _refuse_writing(self, transaction: Transaction, options: Options, label: str) -> None:
        if options.read_only is False and transaction.read_only:
            raise IncompatibleTransactionError(
                label,
                "read_only=False",
                f"would be a part of the transaction of {transaction._label}, which is read-only. Let that one write, "
                "or use Propagation.REQUIRES_NEW.",
            )

    def close(self, error: BaseException | None = None) -> None:
        """Roll back what nobody settled, and close the session."""
        self._plan = None
        try:
            if self._guests:
                self._abandon_guests()
            if self.is_open():
                self._settle_leftovers(error)
        finally:
            self.closed = True
            if self._watched is not None:
                self._remove(self._watched)

    # What nobody has settled

    def _settle_leftovers(self, error: BaseException | None) -> None:
        if not is_failure(error):
            self._tell_of_leftovers()
        if not self._stack and self._watched is not None and self._watched.record:
            # What nobody has committed is rolled back, and those who listen are told.
            self._by_hand()
        if self._stack:
            self._roll_back_all(error)

    def leftovers(self) -> Leftovers | None:
        """Return what is in the session that nobody has settled, if somebody may have meant to keep it."""
        if self._watched is None or self.expects_rollback or not self._in_transaction():
            return None
        if not self.wants_leftovers():
            return None
        if self._stack and self._stack[0]._must_roll_back:
            return None
        if self._written_off is not None and self._written_off() is self._watched.session.get_transaction():
            return None
        return self._watched.leftovers()

    def write_off(self) -> None:
        """Expect what leftovers() has told of not to be kept: what it was for has failed."""
        assert self._watched is not None
        root = self._watched.session.get_transaction()
        assert root is not None
        self._written_off = ref(root)

    def undo(self) -> None:
        """Roll back what nobody has settled."""
        if self._by_hand() is not None:
            self._roll_back_all(None)

    def _tell_of_leftovers(self) -> None:
        left = self.leftovers()
        if left is not None:
            level = logging.ERROR if self._runtime.uncommitted == "raise" else logging.WARNING
            tell_of_leftovers(left, self._label or None, self._runtime.journal, level)

    def _remove(self, watched: WatchedSession) -> None:
        self._watched = None
        watched.release()
        notify = self._runtime.notify
        if (notify.audience[Removed] or notify.observers) and notify.wants(Removed):
            self._runtime.notify(Removed(watched.session))

    # What the session asks

    def commit_called(self) -> None:
        """Commit by hand, where that is allowed."""
        mode = self._manual_mode("commit")
        if mode == "flush":
            self.session.flush()
        elif (transaction := self._by_hand()) is not None:
            attempts = transaction._take_attempts()
            try:
                self.end(transaction, Decision.COMMIT, by_hand=True)
            finally:
                self._succeed(transaction, attempts)

    def rollback_called(self) -> None:
        """Roll back by hand, where that is allowed."""
        if self._manual_mode("rollback") == "flush":
            raise self._refused("rollback")
        if (transaction := self._by_hand()) is not None:
            attempts = transaction._take_attempts()
            try:
                self._roll_back(transaction, None)
            finally:
                self._succeed(transaction, attempts)

    def close_called(self) -> None:
        """Close by hand, where that is allowed."""
        self._end_by_hand("close").close()
        self._closed_by_hand = True

    def reset_called(self) -> None:
        """Reset by hand, where that is allowed."""
        self._end_by_hand("reset").reset()

    def begin_called(self, nested: bool = False) -> SessionTransaction:  # noqa: FBT001, FBT002 - the signature of Session.begin()
        """Begin by hand, where no block has begun already."""
        if not nested and self._in_block():
            raise self._refused("begin")
        if self.restricted:
            self.before_statement()
        assert self._watched is not None
        return self._watched.begin(nested=nested)

    # What the session tells

    def began(self, root: SessionTransaction) -> None:
        """Remember what the outermost transaction's fate hangs on; one that is planned comes into being here."""
        if self._begin_if_planned() and self._stack:
            outermost = self._stack[0]
            outermost._root = root
            outermost._has_begun = True

    def lost(self) -> None:
        """Doom the transaction that was ended past us: what comes after would be committed in its name."""
        if (outermost := self._outermost) is not None:
            outermost._doom_by(ended_past_us())

    def committed(self) -> None:
        """Remember that there is no way back."""
        if self._tacit is not None and self._is_committing:
            self._was_stored = True
            self._note_commit()
            return
        outermost = self._outermost
        if outermost is None or not outermost.read_only:
            self._note_commit()
        if outermost is not None:
            outermost._stored = True

    def demands(self, bind: Engine | Connection) -> Demands | None:
        """Say what the outermost transaction demands of its connections; one that is planned comes into being here.

        Raises:
            ConfigurationError: A suspended transaction may be on *bind* already, and all sessions there have one
                connection.
        """
        if self._tacit is not None:
            return PLAIN
        if self._suspended is not None and (reason := shared(bind)) is not None:
            raise _no_second_connection(self._label, self._suspended, reason)
        if not self._begin_if_planned():
            return None
        return self._stack[0] if self._stack else PLAIN

    def no_connection(self, error: Exception) -> Exception | None:
        """Doom the transaction that could not have a connection."""
        if self._outermost is None:
            return None
        if self._runtime.strict or isinstance(error, ConfigurationError):
            self._failed(f"there was no connection for it ({brief(error)})", error)
        if isinstance(error, PoolTimeoutError) and self._suspended is not None:
            return PoolTimeoutError(
                f"{error} It was wanted for {self._label}, which runs on a second connection "
                f"(Propagation.REQUIRES_NEW) while the suspended transaction of {self._suspended} holds the first. A "
                "pool needs two for each thread that does so, or they wait for each other: raise pool_size or "
                "max_overflow."
            )
        return None

    # By hand

    def _in_block(self) -> bool:
        """Whether somebody else owns the transaction, and not the app-wide policy alone."""
        if self._settling or self._is_committing:
            return True
        if not self._stack:
            plan = self._tacit or self._plan
            return plan is not None and plan.by_block and not self._is_outside
        transaction = self._stack[-1]
        return transaction._by_block or bool(transaction._blocks)

    @property
    def _is_committing(self) -> bool:
        """Whether we are in a listener of the session's, on the way to COMMIT or after it."""
        return self._watched is not None and self._watched.is_committing

    def _manual_mode(self, method: str) -> ManualCommit:
        """Return what a settling call does, and refuse it where it is refused."""
        if not self._in_block():
            return "allow"

        transaction = self.active(method)
        innermost = transaction._blocks[-1].options if transaction._blocks else transaction._options
        mode = innermost.manual_commit or transaction._options.manual_commit or self._runtime.manual_commit
        is_inner = transaction.parent is not None or self._is_committing
        if self._settling or mode == "error" or (mode == "allow" and is_inner):
            raise self._refused(method)
        return mode

    def _refused(self, method: str) -> ManualTransactionControlError:
        transaction = self.active(method)
        block = transaction._blocks[-1].label if transaction._blocks else transaction._label
        return ManualTransactionControlError(method, block)

    def _by_hand(self) -> Transaction | None:
        """Return the outermost transaction that a settling call is about, if the session has begun one."""
        if not self.is_open():
            return None
        if self.current() is None:
            self._push(outside_any_block())
        self._start(self._stack[0])
        return self._stack[0]

    def _succeed(self, transaction: Transaction, attempts: Attempts | None) -> None:
        """Let the blocks that are still running go on in a new transaction."""
        if transaction._outcome is not None and (transaction._by_block or transaction._blocks):
            successor = Transaction(transaction._options, transaction._label, by_block=transaction._by_block)
            successor.isolation_level, successor._deadline = transaction.isolation_level, transaction._deadline
            successor._blocks = transaction._blocks
            successor._attempts, successor.attempt = attempts, transaction.attempt
            transaction._successor = successor
            if transaction is self._planned:
                self._planned = successor
            self._push(successor)

    def _end_by_hand(self, method: str) -> WatchedSession:
        if self._in_block() and not self.ending:
            raise self._refused(method)
        if self.ending:
            # A teardown function of somebody else's does it, and it is no decision about the work.
            self._tell_of_leftovers()
        self.undo()
        assert self._watched is not None
        return self._watched

    def _replace_closed(self) -> None:
        """Let go of a session that was closed by hand, where it cannot be used again, or is no longer the one."""
        self._closed_by_hand = False
        source, watched = self._runtime.source, self._watched
        if watched is None or watched.session.in_transaction():
            return
        other = source.is_registry and source.open() is not watched.session
        # A registry has told us of a new one already, and it is watched.
        if (watched.is_spent or other) and self._watched is watched:
            watched.unwatch()
            self._watched = None


def _current_places() -> dict[Scope, Scope]:
    """Return who has the place of whom, without those that were left in another context than they were entered in."""
    return {scope: guest for scope, guest in _places.get().items() if not guest.closed}


def _no_second_connection(block: str, suspended: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        block,
        f"would suspend the transaction of {suspended}, and needs a second connection for that (REQUIRES_NEW, "
        f"NOT_SUPPORTED, a stream), but {reason}: its COMMIT or ROLLBACK would end the suspended transaction. Use a "
        "database file or a server, or run it where no transaction is active.",
    )
