"""A block of code and the transaction around it: what a with statement and a decorator have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Literal

from sqlalchemy.orm import Session

from flask_uow._core.options import Options
from flask_uow._core.policy import Decision
from flask_uow._core.propagation import Step, decide
from flask_uow._core.retry import Attempts, retry_of
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.transaction import Joined, Outcome, Transaction
from flask_uow.errors import ConfigurationError, UnexpectedRollbackError

__all__ = ["Block", "Home", "end_begun", "enter_scope", "innermost_standalone", "leave_scope", "standalone_scope"]

_NOWHERE: Mapping[tuple[Runtime, int], Scope] = {}

_standalone: ContextVar[Mapping[tuple[Runtime, int], Scope]] = ContextVar("flask_uow.standalone", default=_NOWHERE)
"""The scopes of blocks outside any other home. The thread is part of the key: a session must not follow a context
that is copied into another thread."""


def standalone_scope(runtime: Runtime) -> Scope | None:
    """Return the scope of the ``transaction()`` block that surrounds us, where there is no other home."""
    scopes = _standalone.get()
    scope = scopes.get((runtime, threading.get_ident())) if scopes else None
    # A context that was copied inside a block outlives the block, and must not bring its scope back to life.
    return None if scope is None or scope.closed else scope.innermost()


Home = Callable[[], tuple[Runtime, Scope | None]]
"""Finds what a block needs when it starts: the runtime, and the scope of the context, if it has one."""


class Block:
    """A context manager that begins, joins or nests a transaction, and ends what it began. It yields the session."""

    __slots__ = (
        "_can_repeat",
        "_entered",
        "_home",
        "_joined",
        "_label",
        "_options",
        "_outer",
        "_scope",
        "_transaction",
        "attempts",
    )

    def __init__(
        self,
        home: Home,
        options: Options,
        label: str,
        *,
        can_repeat: bool = False,
        attempts: Attempts | None = None,
    ) -> None:
        self._home = home
        self._can_repeat = can_repeat
        self.attempts = attempts
        """Those of which it is one, once it has begun a transaction, and if somebody can run it again."""

        self._options = options
        self._label = label
        self._entered = False
        self._joined: Joined | None = None
        self._outer: Scope | None = None
        self._transaction: Transaction | None = None

    def __enter__(self) -> Session:
        self.enter()
        try:
            return self._scope.session
        except BaseException as error:
            self.leave(error)
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> Literal[False]:
        self.leave(exc)
        return False

    def enter(self) -> None:
        """Begin, join or nest, without opening the session."""
        if self._entered:
            raise ConfigurationError(
                self._label,
                "was entered a second time while it was running. Call transaction() or savepoint() anew for each "
                "with statement.",
            )

        runtime, outer = self._home()
        active = None if outer is None else outer.current()
        step = decide(
            self._options.propagation, active=None if active is None else active._label, wanted_by=self._label
        )
        self._outer = outer
        if outer is not None and step in _SUSPENDING:
            outer.refuse_shared_connection(self._label)
            self._scope = Scope(runtime, label=self._label)
        else:
            self._scope = outer or Scope(runtime, label=self._label)
        if self._scope is not outer:
            enter_scope(self._scope, runtime, outer)
        try:
            self._take(step)
        except BaseException as error:
            self._leave_scope(error)
            raise
        self._entered = True

    def _take(self, step: Step) -> None:
        """Take the first step of the block."""
        if step is Step.JOIN:
            self._transaction, self._joined = self._scope.join(self._options, self._label)
        elif step is Step.NEST:
            self._transaction = self._scope.nest(self._options, self._label)
        elif step in (Step.BEGIN, Step.BEGIN_ANOTHER):
            if self._can_repeat and self.attempts is None:
                runtime = self._scope.runtime
                retry = retry_of(self._options, runtime.attempts)
                if retry is not None:
                    self.attempts = Attempts(retry, self._label, runtime.sleep, runtime.journal)
                    self.attempts.baseline = self._scope.look()
            self._transaction = self._scope.begin(self._options, self._label, self.attempts)

    def discard(self) -> None:
        """Undo what hooks and receivers have left in the session, so that another attempt can begin."""
        if self.attempts is not None and not self._scope.closed:
            self._scope.discard(self.attempts.baseline)

    def leave(self, error: BaseException | None) -> None:
        """End what this block began.

        Args:
            error: What left the block, which the caller lets go on.
        """
        if not self._entered:
            raise ConfigurationError(self._label, "was left without being entered. Use it in a with statement.")
        self._entered = False
        try:
            if self._transaction is not None:
                self._end(self._transaction, error)
        finally:
            self._transaction = self._joined = None
            self._leave_scope(error)

    def _leave_scope(self, error: BaseException | None) -> None:
        if self._scope is not self._outer:
            try:
                self._scope.close(error)
            finally:
                leave_scope(self._scope, self._scope.runtime, self._outer)

    def _end(self, transaction: Transaction, error: BaseException | None) -> None:
        decision = Decision.COMMIT if error is None else self._scope.decide(error, self._options)
        if self._joined is not None:
            self._end_joined(transaction._latest, self._joined, decision, error)
        else:
            end_begun(self._scope, transaction._latest, decision, error, self._label)

    def _end_joined(
        self, transaction: Transaction, block: Joined, decision: Decision, error: BaseException | None
    ) -> None:
        self._scope.leave(transaction, block, error, decision)
        if error is None and transaction.outcome is Outcome.ROLLED_BACK:
            raise UnexpectedRollbackError(f"The work of {self._label}", "the transaction that it had joined is over")


def end_begun(
    scope: Scope, transaction: Transaction, decision: Decision, error: BaseException | None, block: str
) -> None:
    """End a transaction for the block that began it."""
    if transaction.outcome is None:
        scope.end(transaction, decision, error)
    elif decision is Decision.COMMIT and error is None and transaction.outcome is not Outcome.COMMITTED:
        raise UnexpectedRollbackError(
            f"The work of {block}", "its transaction was ended from outside while the block was still running"
        )


_SUSPENDING: Final = (Step.BEGIN_ANOTHER, Step.STEP_OUT)


def enter_scope(scope: Scope, runtime: Runtime, outer: Scope | None) -> None:
    """Make *scope* the current one.

    Args:
        scope: The scope.
        runtime: By which it will be looked for, where there is no other home. A stream of an app is read outside it.
        outer: The scope whose place it takes, if there is one.
    """
    if outer is None:
        _standalone.set({**_standalone.get(), (runtime, threading.get_ident()): scope})
    else:
        outer.give_way(scope)


def leave_scope(scope: Scope, runtime: Runtime, outer: Scope | None) -> None:
    """Undo what `enter_scope` did."""
    if outer is None:
        key = (runtime, threading.get_ident())
        # In another context than it was entered in, there is somebody else.
        _standalone.set({other: kept for other, kept in _standalone.get().items() if other != key or kept is not scope})
    else:
        outer.take_back(scope)


def innermost_standalone() -> Scope | None:
    """Return the scope of the innermost such block of this thread, whichever UnitOfWork it belongs to."""
    thread = threading.get_ident()
    scopes = reversed(list(_standalone.get().items()))
    return next((scope.innermost() for (_, owner), scope in scopes if owner == thread and not scope.closed), None)
