"""The transactions of one context, the innermost last: how they begin and how they end."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm import SessionTransaction

from flask_uow._core.connection import bound_to_a_connection
from flask_uow._core.events import (
    AfterCommit,
    AfterRollback,
    BeforeCommit,
    Completed,
    Event,
    Started,
)
from flask_uow._core.guard import Guard, brief, caught
from flask_uow._core.hooks import Failure, Hook, Hooks, Moment
from flask_uow._core.options import Options
from flask_uow._core.policy import Decision, on_error
from flask_uow._core.runtime import Plan, Runtime
from flask_uow._core.session import WatchedSession, listen_to_flushes
from flask_uow._core.transaction import Deadline, Doom, Outcome, State, Transaction
from flask_uow.errors import (
    HookError,
    IncompatibleTransactionError,
    TransactionRequiredError,
    UnexpectedRollbackError,
)

__all__ = ["Stack", "run_now"]

logger = logging.getLogger("flask_uow")


@dataclass(frozen=True, slots=True)
class _Drain:
    """Hooks that are running, and how deep the stack is around them."""

    hooks: Hooks
    moment: Moment
    depth: int


class _NotFit(Exception):  # noqa: N818 - nobody meets it
    """On the way to COMMIT it turned out that a transaction must not commit."""


class Stack(Guard):
    """The transactions of one context, the innermost last. It ends what is in the session, and never opens one."""

    __slots__ = ("_committing", "_draining", "_plan", "_planned", "_settling", "_telling")

    def __init__(self, runtime: Runtime, plan: Plan | None = None) -> None:
        super().__init__(runtime)
        self._plan = plan
        self._planned: Transaction | None = None
        self._draining: _Drain | None = None
        self._settling = False
        self._committing: Transaction | None = None
        self._telling = False

    # What is active

    def current(self) -> Transaction | None:
        """Return the innermost transaction; the planned one comes into being here.

        But not for hooks and receivers after the fact: they are outside it, and a block of theirs is a transaction of
        its own.
        """
        if not self._stack and self._plan is not None and not self._is_outside:
            self._planned = Transaction(self._plan.options, self._plan.label, by_block=self._plan.by_block)
            try:
                self._push(self._made_fit(self._planned))
            except Exception as error:
                # It is there, and cannot commit: whoever catches this must not work on in no transaction at all.
                self._push(self._planned)
                self.doom(self._planned, f"it could not begin as it should ({brief(error)})", error)
                raise
        return self._stack[-1] if self._stack else None

    @property
    def _is_outside(self) -> bool:
        """Whether hooks or receivers after the fact are running."""
        return self._draining is not None or self._telling

    def _push(self, transaction: Transaction) -> Transaction:
        """Put an outermost transaction on the stack; the session may have begun already."""
        if self._watched is not None:
            transaction._root = self._watched.session.get_transaction()
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
        if self._watched is not None and self._watched.connections():
            self._watched.refuse_autocommit()
            if transaction.isolation_level is not None or transaction.read_only:
                self._begin_anew(transaction, self._watched)
        return transaction

    def _begin_anew(self, transaction: Transaction, watched: WatchedSession) -> None:
        """End what the session has begun outside any transaction, so that the next one can be set as it demands."""
        demanded = not transaction._is_default_level
        if watched.is_bound:
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
        if any(transaction._deadlines()):
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
            self._mark_own_savepoints(transaction)
            transaction._hooks.add(hook)
        elif run_if_inactive:
            run_now(hook)
        else:
            raise TransactionRequiredError(f"{hook.moment.value}()")

    def _mark_own_savepoints(self, transaction: Transaction) -> None:
        """Remember where the hooks begin that go with savepoints that the user has made of a connection."""
        for savepoint in () if self._watched is None else self._watched.own_savepoints():
            self._marks.setdefault(savepoint, transaction._hooks.mark())
        if self._marks and self._watched is not None:
            self._watched.follow()

    # Beginning

    def replan(self, plan: Plan | None) -> None:
        """Let another plan, or none, hold for the transactions to come."""
        self._plan = plan

    def begin(self, options: Options, label: str) -> Transaction:
        """Begin an outermost transaction.

        Raises:
            IncompatibleTransactionError: The session has begun already, with changes that would be lost.
            ConfigurationError: The session has begun already, on a connection that commits by itself.
        """
        return self._push(self._made_fit(Transaction(options, label)))

    def _start(self, transaction: Transaction) -> None:
        outermost = self._stack[0] if transaction.parent is not None else transaction
        if outermost._started is None:
            outermost._started = perf_counter()
            if self._runtime.notify.wants(Started):
                self._runtime.notify(Started(outermost))

    # Ending

    def decide(self, error: BaseException, options: Options) -> Decision:
        """Decide whether the work of a block that raised *error* is kept."""
        return on_error(error, options, self._runtime.judge)

    def end(
        self,
        transaction: Transaction,
        decision: Decision,
        error: BaseException | None = None,
        *,
        by_hand: bool = False,
    ) -> None:
        """End *transaction*, and what is still open inside it.

        Args:
            transaction: One that is on the stack.
            decision: Whether to keep its work.
            error: What its block raised, if it did.
            by_hand: Whether its blocks are running still, and go on afterwards.

        Raises:
            UnexpectedRollbackError: It was to commit, and cannot.
            HookError: Hooks failed, and are to raise.
        """
        self._notice(transaction)
        if transaction._blocks and not by_hand:
            transaction._doom_by(Doom(f"{transaction._blocks[-1].label}, which had joined it, was never left", None))

        if decision is Decision.ROLLBACK or transaction._rollback_only:
            self._roll_back(transaction, error)
        elif transaction.state is State.DOOMED:
            raise self._unexpected(transaction, error)
        elif transaction._savepoint is not None:
            self._release_savepoint(transaction, transaction._savepoint)
        else:
            self._commit(transaction, error)

    def _notice(self, transaction: Transaction) -> None:
        """Doom a transaction that is not what its block believes it to be."""
        unfinished = self._stack[self._stack.index(transaction) + 1 :]
        if unfinished:
            transaction._doom_by(Doom(f"{unfinished[-1]._label} inside it was never left", None))
            self._abandon(unfinished)

        root = None if self._watched is None else self._watched.session.get_transaction()
        if transaction._root is not None and transaction._root is not root:
            transaction._doom_by(
                Doom("its session was ended past flask_uow, and what became of its work is not known", None)
            )

    @property
    def planned(self) -> Transaction | None:
        """The planned transaction, if there is anything to end.

        A session that was used without asking for it again has begun by itself, and counts.
        """
        if self._plan is not None and not self._stack and self._in_transaction():
            with suppress(Exception):
                # It is doomed then, and tells so when it ends.
                self.current()
        return self._planned if self._planned in self._stack else None

    def settle(self, decision: Decision, error: BaseException | None, then: Plan | None) -> None:
        """End the planned transaction, if there is anything to end.

        Args:
            decision: Whether to keep its work.
            error: What was raised, if it was.
            then: The plan for what comes after, hooks included.
        """
        planned = self.planned
        self._plan, self._planned = then, None
        if planned is not None:
            self.end(planned, decision, error)

    def _commit(self, transaction: Transaction, leaving: BaseException | None) -> None:
        notify = self._runtime.notify
        watched = self._watched

        try:
            if watched is not None and watched.session.in_transaction():
                self._start(transaction)
                if notify.wants(BeforeCommit):
                    self._ask_receivers(transaction, watched)
                self._committing = transaction
                try:
                    watched.commit()
                finally:
                    self._committing = None
        except _NotFit:
            self.end(transaction, Decision.COMMIT, leaving)
            return
        except BaseException as error:
            if transaction not in self._stack:
                raise
            if watched is None or not transaction._stored:
                self._fail(transaction, error)
                raise
            # COMMIT has returned, and a listener of the user's has not: the work is stored, and is told so.
            watched.recover()
            self._committed(transaction, error)
            raise

        self._committed(transaction, leaving)

    def about_to_commit(self) -> None:
        """Look once more at what is about to be committed: listeners may have swallowed an error of the last flush."""
        transaction = self._committing
        if transaction is None or self._watched is None:
            return
        self.check_time(transaction._deadline)
        self._ask_the_database(transaction, self._watched)
        self._check_fitness(transaction)

    def _check_fitness(self, transaction: Transaction) -> None:
        if transaction._rollback_only or transaction.state is State.DOOMED:
            raise _NotFit

    def _ask_the_database(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Doom what the database has given up after an error that was caught; it would not say so at COMMIT."""
        for connection, error in (transaction._suspects or {}).items():
            try:
                connection.exec_driver_sql("SELECT 1")
            except DBAPIError:
                self.doom(transaction, f"the database refused a statement ({brief(error)}), and gave it up", error)
        if watched.has_given_up():
            reason = "the database has given it up, after an error that was caught where flask_uow did not see it"
            self.doom(transaction, reason, None)

    def _committed(self, transaction: Transaction, leaving: BaseException | None) -> None:
        """Tell of a commit, and run its hooks."""
        self._leave_stack(transaction, Outcome.COMMITTED)
        try:
            if transaction._stored and self._runtime.notify.wants(AfterCommit):
                self._tell_of(AfterCommit(transaction))
        finally:
            try:
                failures = self._drain(transaction._hooks, Moment.COMMIT)
            finally:
                self._complete(transaction, Outcome.COMMITTED, None)
        if failures:
            self._report(failures, committed=True, quietly=leaving is not None)

    def _tell_of(self, event: Event) -> None:
        """Send an event after the fact, to receivers who are outside the transaction."""
        outer, self._telling = self._telling, True
        try:
            self._runtime.notify(event)
        finally:
            self._telling = outer

    def _ask_receivers(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Flush, ask the receivers of `BeforeCommit`, and make sure that they have left the transaction fit."""
        self._settling = True
        try:
            watched.session.flush()
            self._runtime.notify(BeforeCommit(transaction, watched.session))
        finally:
            self._settling = False
        self._check_fitness(transaction)

    def _roll_back(self, transaction: Transaction, error: BaseException | None, *, others_follow: bool = False) -> None:
        savepoint = transaction._savepoint
        in_database = self._in_transaction()
        if savepoint is None and in_database:
            self._start(transaction)

        if savepoint is not None:
            self._roll_back_savepoint(transaction, savepoint)
        elif in_database and self._watched is not None:
            self._watched.rollback()

        self._leave_stack(transaction, Outcome.ROLLED_BACK)
        hooks = transaction._hooks.drop_since(transaction._mark)
        if savepoint is None and in_database and self._runtime.notify.wants(AfterRollback):
            self._tell_of(AfterRollback(transaction, error))
        try:
            self._undo_hooks(hooks, error, others_follow=others_follow)
        finally:
            if savepoint is None:
                self._complete(transaction, Outcome.ROLLED_BACK, error)

    def _undo_hooks(self, hooks: Hooks, error: BaseException | None, *, others_follow: bool = False) -> None:
        """Run the hooks of a rollback; those of a commit are forgotten."""
        failures = self._drain(hooks, Moment.ROLLBACK, error)
        if failures:
            self._report(failures, committed=False, quietly=error is not None or others_follow)

    def _fail(self, transaction: Transaction, error: BaseException) -> None:
        """Roll back a transaction whose end failed with *error*, and say it better where SQLAlchemy cannot know."""
        if isinstance(error, PendingRollbackError):
            transaction._doom_by(Doom("a flush failed inside it", error))
            raise self._unexpected(transaction, None)
        self._roll_back(transaction, error)

    def _unexpected(self, transaction: Transaction, leaving: BaseException | None) -> UnexpectedRollbackError:
        """Roll back a doomed transaction, and return what to raise."""
        doom = transaction._doom or transaction._curable
        assert doom is not None
        was_caught = doom.error is not None and doom.error is not leaving
        reason = caught(doom.reason) if was_caught else doom.reason
        unexpected = UnexpectedRollbackError(f"The work of {transaction._label}", reason)
        unexpected.__cause__ = doom.error
        self._roll_back(transaction, unexpected)
        return unexpected

    def _release_savepoint(self, transaction: Transaction, savepoint: SessionTransaction) -> None:
        try:
            assert self._watched is not None
            # Listeners may swallow what goes wrong in that.
            self._watched.session.flush()
            self.check_time(transaction._deadline)
            self._check_fitness(transaction)
            savepoint.commit()
        except _NotFit:
            self.end(transaction, Decision.COMMIT)
            return
        except BaseException as error:
            self._fail(transaction, error)
            raise

        self._stack.pop()
        transaction._released = True
        transaction._savepoint = None
        if transaction._deadline is not None:
            self.relax()

    def _roll_back_savepoint(self, transaction: Transaction, savepoint: SessionTransaction) -> None:
        try:
            savepoint.rollback()
        except Exception as error:  # noqa: BLE001 - told by dooming what encloses the savepoint
            assert transaction.parent is not None
            self.doom(
                transaction.parent,
                f"the savepoint of {transaction._label} could not be rolled back: {brief(error)}",
                error,
            )

    def _leave_stack(self, transaction: Transaction, outcome: Outcome) -> None:
        del self._stack[self._stack.index(transaction) :]
        if not self._stack:
            self.restricted = False
            self._marks.clear()
        transaction._outcome = outcome
        # Its errors have tracebacks, whose frames have it.
        transaction._savepoint = transaction._root = transaction._suspects = None
        transaction._doom = transaction._curable = None

    def _abandon(self, savepoints: list[Transaction]) -> None:
        """Roll back savepoints that nobody left."""
        for savepoint in reversed(savepoints):
            self._roll_back(savepoint, None, others_follow=True)

    def _roll_back_all(self, error: BaseException | None) -> None:
        """Roll back the outermost transaction, and every savepoint in it."""
        self._abandon(self._stack[1:])
        self._roll_back(self._stack[0], error)

    def _complete(self, transaction: Transaction, outcome: Outcome, error: BaseException | None) -> None:
        if transaction._started is not None and self._runtime.notify.wants(Completed):
            self._tell_of(Completed(transaction, outcome, error, transaction._duration()))

    def _drain(self, hooks: Hooks, moment: Moment, *args: Any) -> list[Failure]:
        if not hooks:
            return []

        outer, self._draining = self._draining, _Drain(hooks, moment, len(self._stack))
        try:
            return hooks.run(moment, *args)
        finally:
            self._draining = outer

    def _report(self, failures: list[Failure], *, committed: bool, quietly: bool) -> None:
        """Log or raise what hooks raised; *quietly* where an error is on its way already, or others must end too."""
        if self._runtime.hook_errors() == "raise" and not quietly:
            what = "after the COMMIT: the work is stored" if committed else "after the ROLLBACK: the work is undone"
            raise HookError(f"Hooks failed {what}", [failure.error for failure in failures], committed)

        for failure in failures:
            logger.error(
                "The %s hook %s failed. The work is %s all the same.",
                failure.hook.moment.value,
                failure.hook.name,
                "stored" if committed else "undone",
                exc_info=failure.error,
            )


def run_now(hook: Hook) -> None:
    """Run *hook* where there is no transaction to wait for; an ``on_rollback`` hook has nothing to wait for either."""
    if hook.moment is Moment.COMMIT:
        hook.callback(*hook.args, **hook.kwargs)
