"""A block of code and the transaction around it: what a with statement and a decorator have in common."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Literal

from sqlalchemy.orm import Session

from flask_uow._core.options import Options
from flask_uow._core.policy import Decision
from flask_uow._core.propagation import Step, decide
from flask_uow._core.scope import Scope
from flask_uow._core.stack import Runtime
from flask_uow._core.transaction import Outcome, Transaction
from flask_uow.errors import ConfigurationError, TransactionRequiredError, UnexpectedRollbackError

__all__ = ["Block", "Home", "innermost_standalone", "standalone_scope"]

_NOWHERE: Mapping[tuple[Runtime, int], Scope] = {}

_standalone: ContextVar[Mapping[tuple[Runtime, int], Scope]] = ContextVar("flask_uow.standalone", default=_NOWHERE)
"""The scopes of blocks outside any other home. The thread is part of the key: a session must not follow a context
that is copied into another thread."""


def standalone_scope(runtime: Runtime) -> Scope | None:
    """Return the scope of the ``transaction()`` block that surrounds us, where there is no other home."""
    scopes = _standalone.get()
    scope = scopes.get((runtime, threading.get_ident())) if scopes else None
    # A context that was copied inside a block outlives the block, and must not bring its scope back to life.
    return None if scope is None or scope.closed else scope


Home = Callable[[], tuple[Runtime, Scope | None]]
"""Finds what a block needs when it starts: the runtime, and the scope of the context, if it has one."""


class Block:
    """A context manager that begins, joins or nests a transaction, and ends what it began. It yields the session."""

    __slots__ = ("_home", "_joined", "_label", "_options", "_runtime", "_scope", "_standalone", "_transaction")

    def __init__(self, home: Home, options: Options, label: str) -> None:
        self._home = home
        self._options = options
        self._label = label
        self._standalone = False
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
        if self._transaction is not None:
            raise ConfigurationError(
                self._label,
                "was entered a second time while it was running. Call transaction() or savepoint() anew for each "
                "with statement.",
            )

        self._runtime, scope = self._home()
        self._scope = scope if scope is not None else Scope(self._runtime)
        self._standalone = scope is None
        step = decide(self._options.propagation, active=self._scope.current() is not None, wanted_by=self._label)
        self._joined = step is Step.JOIN

        if self._joined:
            transaction = self._scope.active(self._label)
            if transaction._stored:
                # We are in a listener of the user's, between COMMIT and the end of commit().
                raise TransactionRequiredError(self._label)
            transaction._blocks.append((self._label, self._options))
            self._transaction = transaction
        elif step is Step.NEST:
            self._transaction = self._scope.nest(self._options, self._label)
        else:
            self._transaction = self._scope.begin(self._options, self._label)

        if self._standalone:
            _standalone.set({**_standalone.get(), (self._runtime, threading.get_ident()): self._scope})

    def leave(self, error: BaseException | None) -> None:
        """End what this block began.

        Args:
            error: What left the block, which the caller lets go on.
        """
        try:
            self._end(error)
        finally:
            if self._standalone:
                key = (self._runtime, threading.get_ident())
                _standalone.set({other: scope for other, scope in _standalone.get().items() if other != key})
                self._scope.close(error)

    def _end(self, error: BaseException | None) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            raise ConfigurationError(self._label, "was left without being entered. Use it in a with statement.")
        while transaction._successor is not None:
            transaction = transaction._successor

        decision = Decision.COMMIT if error is None else self._scope.decide(error, self._options)

        if self._joined:
            transaction._blocks.pop()
            if error is not None and decision is Decision.ROLLBACK:
                transaction._doom_by(f"{self._label}, which had joined it, failed with {type(error).__name__}", error)
            if error is None and transaction.outcome is Outcome.ROLLED_BACK:
                raise UnexpectedRollbackError(
                    f"The work of {self._label}", "the transaction that it had joined is over"
                )
        elif transaction.outcome is None:
            self._scope.end(transaction, decision, error)
        elif error is None and transaction.outcome is not Outcome.COMMITTED:
            raise UnexpectedRollbackError(
                f"The work of {self._label}", "its transaction was ended from outside while the block was still running"
            )


def innermost_standalone() -> Scope | None:
    """Return the scope of the innermost such block of this thread, whichever UnitOfWork it belongs to."""
    thread = threading.get_ident()
    scopes = reversed(list(_standalone.get().items()))
    return next((scope for (_, owner), scope in scopes if owner == thread and not scope.closed), None)
