"""The session of one context: when it is opened, what may be done to it by hand, and when it is closed."""

from __future__ import annotations

from sqlalchemy.orm import Session, SessionTransaction

from flask_uow._core.events import Removed
from flask_uow._core.options import ManualCommit, Options
from flask_uow._core.policy import Decision
from flask_uow._core.session import WatchedSession
from flask_uow._core.stack import Plan, Runtime, Stack, brief
from flask_uow._core.transaction import Transaction
from flask_uow.errors import ManualTransactionControlError, NoScopeError

__all__ = ["Scope"]

_BY_HAND = Options()


class Scope(Stack):
    """One context's session and its transactions. It oversees the session: see `Overseer`."""

    __slots__ = ("__weakref__", "_closed_by_hand", "closed", "ending")

    def __init__(self, runtime: Runtime, plan: Plan | None = None) -> None:
        super().__init__(runtime, plan)
        self._closed_by_hand = False
        self.ending = False
        """Whether its context ends, so that others may close the session before we do."""

        self.closed = False
        """Whether it has come to its end, and no session may be opened in it."""

    @property
    def session(self) -> Session:
        """The session, opened on first use."""
        if self.closed:
            raise NoScopeError("The session", "its context has come to its end, and has closed its session already.")

        transaction = self.current()
        if self._closed_by_hand:
            self._replace_closed()
        if self._watched is None:
            self.adopt(self._runtime.source.open())
        assert self._watched is not None
        if transaction is not None:
            self._start(transaction)
        return self._watched.session

    def adopt(self, session: Session) -> None:
        """Watch a session that was opened for this scope, by us or by somebody else who has asked the registry."""
        watched = self._watched
        if self.closed or (watched is not None and watched.session is session):
            return
        if watched is not None and watched.session.in_transaction():
            if self.current() is not None:
                self._stack[0]._doom_by("a second session was opened in it while the first had work to settle", None)
            return
        if watched is not None:
            watched.unwatch()
        self._closed_by_hand = False
        self._watched = WatchedSession(session, self._runtime.source, self)

    def nest(self, options: Options, label: str) -> Transaction:
        """Open a savepoint in the innermost transaction."""
        savepoint = self.session.begin_nested()
        # Only now: begin_nested() has flushed what came before the savepoint, and hooks registered there stay.
        transaction = Transaction(options, label, self._stack[-1])
        transaction._savepoint = savepoint
        self._stack.append(transaction)
        return transaction

    def close(self, error: BaseException | None = None) -> None:
        """Roll back what nobody settled, and close the session."""
        self._plan = None
        try:
            if self._stack:
                self._roll_back_all(error)
        finally:
            self.closed = True
            if self._watched is not None:
                self._remove(self._watched)

    def _remove(self, watched: WatchedSession) -> None:
        self._watched = None
        watched.release()
        if self._runtime.notify.wants(Removed):
            self._runtime.notify(Removed(watched.session))

    # What the session asks

    def commit_called(self) -> None:
        """Commit by hand, where that is allowed."""
        mode = self._manual_mode("commit")
        if mode == "flush":
            self.session.flush()
        elif (transaction := self._by_hand()) is not None:
            try:
                self.end(transaction, Decision.COMMIT, by_hand=True)
            finally:
                self._succeed(transaction)

    def rollback_called(self) -> None:
        """Roll back by hand, where that is allowed."""
        if self._manual_mode("rollback") == "flush":
            raise self._refused("rollback")
        if (transaction := self._by_hand()) is not None:
            try:
                self._roll_back(transaction, None)
            finally:
                self._succeed(transaction)

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
        assert self._watched is not None
        return self._watched.begin(nested=nested)

    # What the session tells

    def began(self, root: SessionTransaction) -> None:
        """Remember what the outermost transaction's fate hangs on; one that is planned comes into being here."""
        if self.current() is not None:
            self._stack[0]._root = root

    def committed(self) -> None:
        """Remember that there is no way back."""
        if self._stack:
            self._stack[0]._stored = True

    def statement_failed(self, error: BaseException) -> None:
        """Doom the innermost transaction; inside a savepoint of the user's own, that savepoint alone."""
        if not self._stack or self._watched is None:
            return
        transaction = self._stack[-1]
        reason = f"the database refused a statement ({brief(error)})"
        savepoint = self._watched.session.get_nested_transaction()
        if savepoint is None or savepoint is transaction._savepoint:
            transaction._doom_by(reason, error)
        else:
            self._watched.spoil(savepoint, reason, error)

    def savepoint_lost(self, error: BaseException) -> None:
        """Doom every transaction: MySQL and MariaDB undo all of them at a deadlock, the savepoints included."""
        for transaction in self._stack:
            transaction._doom_by(f"the database has rolled back more than a savepoint ({brief(error)})", error)

    # By hand

    def _in_block(self) -> bool:
        """Whether somebody else owns the transaction, and not the app-wide policy alone."""
        if self._settling:
            return True
        if not self._stack:
            return self._plan is not None and self._plan.by_block and not self._is_outside
        transaction = self._stack[-1]
        return transaction._by_block or bool(transaction._blocks)

    def _manual_mode(self, method: str) -> ManualCommit:
        """Return what a settling call does, and refuse it where it is refused."""
        if not self._in_block():
            return "allow"

        transaction = self.active(method)
        innermost = transaction._blocks[-1][1] if transaction._blocks else transaction._options
        mode = innermost.manual_commit or transaction._options.manual_commit or self._runtime.manual_commit
        if self._settling or mode == "error" or (mode == "allow" and transaction.parent is not None):
            raise self._refused(method)
        return mode

    def _refused(self, method: str) -> ManualTransactionControlError:
        transaction = self.active(method)
        block = transaction._blocks[-1][0] if transaction._blocks else transaction._label
        return ManualTransactionControlError(method, block)

    def _by_hand(self) -> Transaction | None:
        """Return the outermost transaction that a settling call is about, if the session has begun one."""
        if not self._stack and not self._in_transaction():
            return None
        if self.current() is None:
            self._push(Transaction(_BY_HAND, "a session outside any block", by_block=False))
        self._start(self._stack[0])
        return self._stack[0]

    def _succeed(self, transaction: Transaction) -> None:
        """Let the blocks that are still running go on in a new transaction."""
        if transaction._outcome is not None and (transaction._by_block or transaction._blocks):
            successor = Transaction(transaction._options, transaction._label, by_block=transaction._by_block)
            successor._blocks = transaction._blocks
            transaction._successor = successor
            if transaction is self._planned:
                self._planned = successor
            self._push(successor)

    def _end_by_hand(self, method: str) -> WatchedSession:
        if self._in_block() and not self.ending:
            raise self._refused(method)
        if self._by_hand() is not None:
            self._roll_back_all(None)
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
