"""The transactions of one context, the innermost last: which there are, and how they begin."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flask_uow._core.connection import bound_to_a_connection
from flask_uow._core.contents import Contents
from flask_uow._core.deadline import Deadline
from flask_uow._core.ending import Ending
from flask_uow._core.guard import brief
from flask_uow._core.hooks import Hook, Moment
from flask_uow._core.options import Options
from flask_uow._core.policy import COMMIT, Decision
from flask_uow._core.retry import NOTHING_BEFORE, Attempts, Baseline
from flask_uow._core.runtime import Plan
from flask_uow._core.session import WatchedSession, listen_to_flushes
from flask_uow._core.tracking import Span
from flask_uow._core.transaction import State, Transaction
from flask_uow.errors import IncompatibleTransactionError, TransactionRequiredError

__all__ = ["Stack", "run_now"]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What was asked of a request's transaction before its view."""

    hooks: tuple[Hook, ...]
    info: dict[Any, Any]
    contents: Contents
    rollback_only: bool


class Stack(Ending):
    """The transactions of one context, the innermost last. It ends what is in the session, and never opens one."""

    _plan: Plan | None
    _planned: Transaction | None
    _attempts: Attempts | None
    """Those of which the planned transaction is one."""

    _asked: _Asked | None = None
    _begun_for: int = 0
    """The number of the attempt whose planned transaction has begun; what follows a commit by hand is another."""

    # What is active

    def current(self) -> Transaction | None:
        """Return the innermost transaction; the planned one comes into being here.

        But not for hooks and receivers after the fact: they are outside it, and a block of theirs is a transaction of
        its own.
        """
        if self._stack:
            return self._stack[-1]
        if self._tacit is not None:
            return self._come_forward()
        if self._plan is None or self._draining is not None or self._telling:
            return None
        return self._begin_planned(self._plan)

    def _begin_if_planned(self) -> bool:
        """Begin what is planned, unless it has, and return whether there is a transaction.

        One that is plain is there tacitly: an object is made of it when somebody wants to know of it.
        """
        if self._stack or self._tacit is not None:
            return True
        plan = self._plan
        if plan is None or self._draining is not None or self._telling:
            return False
        watched = self._watched
        if (
            plan.is_plain
            and (watched is None or watched.session._transaction is None)
            and self._attempts is None
            and self._runtime.is_plain
            and not self._has_listeners()
        ):
            self._tacit = plan
        else:
            self._begin_planned(plan)
        return True

    def _come_forward(self) -> Transaction:
        plan, self._tacit = self._tacit, None
        if plan is not None:
            transaction = self._planned = Transaction(plan.options, plan.label, by_block=plan.by_block)
            transaction._started, self._opened_at = self._opened_at, None
            transaction._stored, transaction._sent_at = self._was_stored, self._sent_at
            self._push(transaction)
            if self._watched is not None and self._watched.at_large is not None:
                # That has ended, perhaps, and not by us.
                transaction._root, transaction._has_begun = self._watched.at_large, True
            if self._was_stored and self._watched is not None and self._watched.record is not None:
                # Somebody has begun to listen while it was being committed.
                transaction._span = Span(self._watched.record)
        return self._stack[0]

    def _begin_planned(self, plan: Plan) -> Transaction:
        planned = self._planned = Transaction(plan.options, plan.label, by_block=plan.by_block)
        if self._attempts is None:
            if plan.retry is not None:
                planned._is_prelude = True
        elif not self._attempts.is_decided:
            planned._attempts = self._attempts
            if self._asked is not None and 1 < self._attempts.number != self._begun_for:
                self._ask_again(planned, self._asked)
        try:
            return self._push(self._made_fit(planned))
        except Exception as error:
            # It is there, and cannot commit: whoever catches this must not work on in no transaction at all.
            self._push(planned)
            self.doom(planned, f"it could not begin as it should ({brief(error)})", error)
            raise

    def _push(self, transaction: Transaction) -> Transaction:
        """Put an outermost transaction on the stack; the session may have begun already."""
        if self._watched is not None and (root := self._watched.session.get_transaction()) is not None:
            transaction._root = root
            if self._watched.record is not None:
                transaction._span = Span(self._watched.record)
            transaction._has_begun = bool(root._connections)
        return self._add(transaction)

    def _made_fit(self, transaction: Transaction) -> Transaction:
        """Give an outermost transaction the defaults, and see to it that it is what it says that it is.

        Raises:
            IncompatibleTransactionError: The session has begun already, with changes that would be lost.
            ConfigurationError: The session has begun already, on a connection that commits by itself.
        """
        runtime = self._runtime
        if transaction.isolation_level is None:
            transaction.isolation_level = runtime.isolation_level
        if transaction._deadline is None and runtime.timeout is not None:
            transaction._deadline = Deadline.after(runtime.timeout, transaction._label)
        if transaction._attempts is not None:
            self._count(transaction, transaction._attempts)
        if self._watched is not None and self._watched.has_begun:
            self._watched.refuse_autocommit()
            if transaction.isolation_level is not None or transaction.read_only:
                self._begin_anew(transaction, self._watched)
        return transaction

    # Attempts

    def attempt(self, attempts: Attempts | None) -> None:
        """Let what is planned be one of *attempts* from now on, or of none.

        What was asked of the transaction before the first one holds for each of them.
        """
        self._attempts = attempts
        if attempts is None:
            self._asked, self._begun_for = None, 0
            return
        if self._tacit is not None:
            self._come_forward()
        if self._planned is None or self._planned not in self._stack:
            if self._asked is not None:
                self.current()
        else:
            self._asked = _Asked(
                tuple(self._planned._hooks or ()),
                self._planned.info,
                Contents(self._planned.info),
                rollback_only=self._planned._rollback_only,
            )
            self._planned._attempts = attempts
            self._count(self._planned, attempts)

    def _ask_again(self, transaction: Transaction, asked: _Asked) -> None:
        """Let *transaction*, of a later attempt, have what was asked of the one before the first."""
        for hook in asked.hooks:
            transaction._add_hook(hook)
        asked.contents.put_back()
        transaction.info.update(asked.info)
        transaction._rollback_only = asked.rollback_only

    def _count(self, transaction: Transaction, attempts: Attempts) -> None:
        transaction.attempt = attempts.number
        if transaction is not self._planned or self._begun_for != attempts.number:
            transaction._deadline = attempts.begun(self._runtime, transaction._deadline)
        if transaction is self._planned:
            self._begun_for = attempts.number

    def look(self) -> Baseline:
        """Return what there is before the first attempt."""
        watched = self._watched
        if watched is None:
            return NOTHING_BEFORE
        return Baseline(watched.states(), has_changes=self._in_transaction() and watched.has_changes())

    def discard(self, baseline: Baseline) -> None:
        """Roll back what is left of an attempt, and empty the session, but for what was there before."""
        if self._outermost is not None:
            self._roll_back_all(None)
        elif self._in_transaction() and self._watched is not None:
            self._watched.rollback()
        if self._watched is not None:
            self._watched.forget_all_but(baseline.states)

    def _begin_anew(self, transaction: Transaction, watched: WatchedSession) -> None:
        """End what the session has begun outside any transaction, so that the next one can be set as it demands."""
        demanded = not transaction._is_default_level
        if watched.is_bound and not watched.is_isolated:
            # It may be its maker's transaction. Nothing is set on it, and nothing ended.
            if demanded:
                raise bound_to_a_connection(transaction._label, str(transaction.isolation_level))
            return
        if watched.has_changes():
            if not demanded and not transaction.read_only:
                # A setting that nobody has asked for here is no reason to refuse anything.
                return
            option = "read_only=True" if transaction.read_only else f"isolation_level={transaction.isolation_level!r}"
            raise IncompatibleTransactionError(
                transaction._label,
                option,
                "its session has begun already, with changes that nobody has committed, or before flask_uow knew of "
                "it. Commit or roll back first, put the changes into the block, or use Propagation.REQUIRES_NEW.",
            )
        watched.rollback()

    def _add(self, transaction: Transaction) -> Transaction:
        # One that goes on after a commit by hand has the blocks that had joined the one before it.
        if transaction._deadline is not None or (transaction._blocks and any(transaction._deadlines())):
            self._restrict()
        if transaction.read_only:
            listen_to_flushes()
        self._stack.append(transaction)
        return transaction

    def active(self, wanted_by: str) -> Transaction:
        """Return the innermost transaction.

        Raises:
            TransactionRequiredError: There is none.
        """
        transaction = self.current()
        if transaction is None:
            raise TransactionRequiredError(wanted_by)
        return transaction

    def add_hook(self, hook: Hook, *, run_if_inactive: bool) -> None:
        """Register *hook* with the innermost transaction, or with the hooks that are running.

        Raises:
            TransactionRequiredError: There is no transaction, and *run_if_inactive* is false.
        """
        drain = self._draining
        if drain is not None and drain.moment is hook.moment and drain.depth == len(self._stack):
            drain.hooks.add(hook)
        elif (transaction := self.current()) is not None:
            self.mark_own_savepoints()
            transaction._add_hook(hook)
        elif run_if_inactive:
            run_now(hook)
        else:
            raise TransactionRequiredError(f"{hook.moment.value}()")

    def mark_own_savepoints(self) -> None:
        """Remember where the hooks and the changes begin that go with savepoints made of a connection."""
        for savepoint in () if self._watched is None else self._watched.own_savepoints():
            self._marks.setdefault(savepoint, self._mark())
        if self._marks and self._watched is not None:
            self._watched.follow()

    def about(self) -> dict[str, Any]:
        """Return what is logged beside a message about the session."""
        return self._runtime.journal.about(self._outermost)

    # Beginning

    def replan(self, plan: Plan | None) -> None:
        """Let another plan, or none, hold for the transactions to come."""
        if self._tacit is not None:
            # What has begun keeps the plan that it has begun by.
            self._come_forward()
        self._plan = plan

    def begin(self, options: Options, label: str, attempts: Attempts | None = None) -> Transaction:
        """Begin an outermost transaction, perhaps one of several *attempts*.

        Raises:
            IncompatibleTransactionError: The session has begun already, with changes that would be lost.
            ConfigurationError: The session has begun already, on a connection that commits by itself.
        """
        transaction = Transaction(options, label)
        transaction._attempts = attempts
        return self._push(self._made_fit(transaction))

    def has_planned(self) -> bool:
        """Whether there is anything of the planned transaction to end.

        A session that was used without asking for it again has begun by itself, and counts.
        """
        if self._stack:
            return self._planned in self._stack
        return self._tacit is not None or (self._plan is not None and self._in_transaction())

    @property
    def planned(self) -> Transaction | None:
        """The planned transaction, if there is anything to end."""
        if not self._stack:
            if not self.has_planned():
                return None
            with suppress(Exception):
                # It is doomed then, and tells so when it ends.
                self.current()
        return self._planned if self._planned in self._stack else None

    def is_open(self) -> bool:
        """Whether there is a transaction, or work in the session outside any."""
        return bool(self._stack) or self._tacit is not None or self._in_transaction()

    @property
    def is_doomed(self) -> bool:
        """Whether the planned transaction can no longer commit."""
        return self._planned in self._stack and self._stack[0].state is State.DOOMED

    def settle(self, decision: Decision, error: BaseException | None, then: Plan | None) -> None:
        """End the planned transaction, if there is anything to end.

        Args:
            decision: Whether to keep its work.
            error: What was raised, if it was.
            then: The plan for what comes after, hooks included.
        """
        watched = self._watched
        if (
            self._tacit is not None
            and watched is not None
            and watched.at_large is watched.session._transaction
            and not self._has_listeners()
        ):
            # Nobody has begun to listen since it has begun, and it has not ended past us.
            self._plan = then
            try:
                if decision is COMMIT:
                    self._commit(None, error)
                else:
                    self._roll_back_tacitly(watched, error)
            finally:
                self._tacit = self._opened_at = self._planned = None
                self._was_stored = False
            return
        planned = self.planned
        self._plan, self._planned = then, None
        if planned is not None:
            self.end(planned, decision, error)


def run_now(hook: Hook) -> None:
    """Run *hook* where there is no transaction to wait for; an ``on_rollback`` hook has nothing to wait for either."""
    if hook.moment is Moment.COMMIT:
        hook.callback(*hook.args, **hook.kwargs)
