"""A generator with a session and a transaction of its own, which are there only while its body runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar

from flask_uow._core.block import Home, end_begun, enter_scope, leave_scope
from flask_uow._core.options import Options
from flask_uow._core.policy import Decision
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.transaction import Transaction
from flask_uow.errors import NoScopeError

__all__ = ["Stream"]

logger = logging.getLogger("flask_uow.stream")

Y = TypeVar("Y")


class Stream(Iterator[Y], Generic[Y]):
    """What a function decorated with ``uow.stream`` returns: its generator, in a transaction of its own.

    The transaction begins with the first item. It is committed when the generator is exhausted, and rolled back when
    it raises or is closed before. Between two items it is out of the way.
    """

    def __init__(self, generator: Generator[Y, Any, Any], home: Home, options: Options, label: str) -> None:
        self._generator = generator
        self._home = home
        self._options = options
        self._label = label
        self._scope = Scope(home()[0], label=label)
        self._transaction: Transaction | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Y:
        return next(self._generator) if self._scope.closed else self._resumed(self._advance)

    def __del__(self) -> None:
        try:
            self.close()
        except Exception:
            about = self._scope.runtime.journal.about(None)
            logger.exception("Closing %s, which nobody had closed, failed", self._label, extra=about)

    def close(self) -> None:
        """End it before its time: its work is rolled back, and its connection returned."""
        if self._transaction is None:
            self._generator.close()
        else:
            self._resumed(self._abandon)

    def _resumed(self, step: Callable[[], Y]) -> Y:
        """Take a step with the session and the transaction of this stream as the current ones."""
        runtime: Runtime = self._scope.runtime
        outer: Scope | None = None
        # Its request may be over.
        with suppress(NoScopeError):
            runtime, outer = self._home()
        if outer is self._scope:
            # The body asks for its own next item, which Python refuses.
            return next(self._generator)
        if self._transaction is None and outer is not None:
            outer.refuse_shared_connection(self._label)

        enter_scope(self._scope, runtime, outer)
        if outer is None:
            self._scope.swap()
        self._scope.resume_guests()
        try:
            return step()
        finally:
            self._scope.suspend_guests()
            if outer is None:
                self._scope.swap()
            leave_scope(self._scope, runtime, outer)

    def _advance(self) -> Y:
        if self._transaction is None:
            self._transaction = self._scope.begin(self._options, self._label)
        try:
            return next(self._generator)
        except StopIteration:
            self._end(Decision.COMMIT, None)
            raise
        except BaseException as error:
            self._end(self._scope.decide(error, self._options), error)
            raise

    def _abandon(self) -> Any:
        try:
            self._generator.close()
        finally:
            self._end(Decision.ROLLBACK, None)

    def _end(self, decision: Decision, error: BaseException | None) -> None:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        try:
            end_begun(self._scope, transaction._latest, decision, error, self._label)
        finally:
            self._scope.close(error)
