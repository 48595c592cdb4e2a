"""How the transactions of one context end: kept, undone, or nobody knows; and who is told."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from time import monotonic, perf_counter, time
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.orm import SessionTransaction

from flask_uow._core.connection import Statement, quietly
from flask_uow._core.events import (
    AfterCommit,
    AfterRollback,
    BeforeCommit,
    Committing,
    Completed,
    Connected,
    Event,
    HookRan,
    Retried,
    Sending,
    Started,
)
from flask_uow._core.fate import Answer, Fate, ask_postgresql, ask_user, is_gone, session_of, take_ticket
from flask_uow._core.guard import Guard, brief, caught
from flask_uow._core.hooks import Failure, Hook, Hooks, Moment
from flask_uow._core.options import Options, Verify
from flask_uow._core.places import Places
from flask_uow._core.policy import COMMIT, ROLLBACK, Decision, on_error
from flask_uow._core.recording import Recorder
from flask_uow._core.retry import Attempts, apart
from flask_uow._core.session import WatchedSession, refuse_lost_changes
from flask_uow._core.slow import tell_if_slow
from flask_uow._core.stopwatch import Stopwatch
from flask_uow._core.tracking import Record, Span
from flask_uow._core.transaction import Doom, Outcome, Transaction, ended_past_us, outside_any_block
from flask_uow.errors import (
    CommitOutcomeUnknownError,
    HookError,
    UnexpectedRollbackError,
)

__all__ = ["Drain", "Ending"]

logger = logging.getLogger("flask_uow.transaction")
commit_logger = logging.getLogger("flask_uow.commit")
hooks_logger = logging.getLogger("flask_uow.hooks")


@dataclass(frozen=True, slots=True)
class Drain:
    """Hooks that are running, and how deep the stack is around them."""

    hooks: Hooks
    moment: Moment
    depth: int


class _NotFit(Exception):  # noqa: N818 - nobody meets it
    """On the way to COMMIT it turned out that a transaction must not commit."""


class Ending(Guard):
    """The transactions of one context, the innermost last: how they end. It knows not how they begin."""

    _draining: Drain | None
    _telling: bool
    _committing: Transaction | None

    # What most scopes never ask for is said once, in the class.

    _settling: bool = False
    _was_stored: bool
    """Whether the COMMIT of a transaction that is there tacitly has returned."""

    _sent_at: float = 0.0
    """When that was sent, in seconds since the epoch."""

    _seen: Mapping[Recorder, Any] = MappingProxyType({})
    """What recorders want to know beside the changes, of the transaction that is about to commit."""

    @property
    def _is_outside(self) -> bool:
        """Whether hooks or receivers after the fact are running."""
        return self._draining is not None or self._telling

    def _start(self, transaction: Transaction) -> None:
        outermost = self._stack[0] if transaction.parent is not None else transaction
        if outermost._started is None:
            outermost._started = perf_counter()
            notify = self._runtime.notify
            if (notify.audience[Started] or notify.observers) and notify.wants(Started):
                notify(Started(outermost))

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

        if decision is ROLLBACK or transaction._rollback_only:
            self._roll_back(transaction, error)
        elif transaction._must_roll_back:
            raise self._unexpected(transaction, error)
        elif transaction._savepoint is not None:
            self._release_savepoint(transaction, transaction._savepoint)
        else:
            self._commit(transaction, error)

    def _notice(self, transaction: Transaction) -> None:
        """Doom a transaction that is not what its block believes it to be."""
        if transaction is not self._stack[-1]:
            unfinished = self._stack[self._stack.index(transaction) + 1 :]
            transaction._doom_by(Doom(f"{unfinished[-1]._label} inside it was never left", None))
            self._abandon(unfinished)

        watched = self._watched
        current = None if watched is None else watched.session.get_transaction()
        # One that had no connection yet has an end, too.
        root = transaction._root or (None if watched is None or transaction.parent is not None else watched.at_large)
        if root is not None and root is not current:
            transaction._doom_by(ended_past_us())

    def _commit(self, transaction: Transaction | None, leaving: BaseException | None) -> None:
        """Commit an outermost transaction, or, if it is None, one that is there tacitly."""
        watched = self._watched
        unanswered: BaseException | None = None

        try:
            if watched is not None and watched.session._transaction is not None:
                watched.commit() if transaction is None else self._send(transaction, watched)
        except _NotFit:
            self.end(transaction or self._come_forward(), COMMIT, leaving)
            return
        except BaseException as error:
            transaction = transaction or self._come_forward()
            if not self._is_unanswered(transaction, watched, error):
                raise
            unanswered = error

        if transaction is None:
            if self._tacit is not None and self._was_stored and not self._has_listeners():
                return
            transaction = self._come_forward()
        if unanswered is not None and watched is not None:
            self._find_out(transaction, watched, unanswered)
        self._committed(transaction, leaving)

    def _is_unanswered(self, transaction: Transaction, watched: WatchedSession | None, error: BaseException) -> bool:
        """Return whether nobody knows what became of a COMMIT that has failed; else, end the transaction."""
        if transaction not in self._stack:
            return False
        if watched is not None and transaction._stored:
            # COMMIT has returned, and a listener of the user's has not: the work is stored, and is told so.
            watched.recover()
            self._committed(transaction, error)
            return False
        if watched is None or not watched.is_unanswered:
            self._fail(transaction, error)
            return False
        return True

    def _send(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Ask those who have a say, and COMMIT."""
        if transaction._started is None:
            self._start(transaction)
        notify = self._runtime.notify
        if (notify.audience[BeforeCommit] or notify.observers) and notify.wants(BeforeCommit):
            self._ask_receivers(transaction, watched)
        if self._runtime.recorders:
            self._let_recorders_look(transaction, watched)
        self._committing = transaction
        try:
            watched.commit()
        finally:
            self._committing = None
            if self._runtime.recorders:
                self._seen = {}

    def _find_out(self, transaction: Transaction, watched: WatchedSession, error: BaseException) -> None:
        """Learn what became of a COMMIT whose answer was lost. Return if its work is stored, or else end it.

        Raises:
            CommitOutcomeUnknownError: Nobody knows.
        """
        engine = watched.lose_connection()
        interrupt = None if isinstance(error, Exception) else error
        about = self._runtime.journal.about(transaction)
        fate, reason = Fate.UNKNOWN, "it was interrupted"
        if interrupt is None:
            try:
                fate, reason = self._ask(transaction, watched, engine, about)
            except BaseException as other:  # noqa: BLE001 - raised below; nobody must believe that it was rolled back
                interrupt = other
        if fate is Fate.COMMITTED:
            commit_logger.warning("The answer to COMMIT of %s was lost; its work is stored.", transaction, extra=about)
            watched.complete()
            return
        if fate is Fate.ROLLED_BACK:
            commit_logger.warning(
                "The answer to COMMIT of %s was lost; nothing of it is stored.", transaction, extra=about
            )
            error.add_note("The answer to COMMIT was lost; nothing of the transaction is stored.")
            self._roll_back(transaction, error)
            raise error

        self._note_commit()
        watched.rollback()
        ticket = transaction._ticket
        unknown = CommitOutcomeUnknownError(
            transaction._label,
            transaction.id,
            # A password can be in the query as well.
            engine.url.set(password=None, query={}).render_as_string(),
            None if ticket is None or fate is Fate.FORGOTTEN else ticket.xact_id,
            datetime.fromtimestamp(transaction._sent_at, UTC).isoformat(timespec="milliseconds"),
            reason,
        )
        commit_logger.error("%s", unknown, exc_info=error, extra=about)
        self._leave_stack(transaction, Outcome.UNKNOWN)
        self._complete(transaction, Outcome.UNKNOWN, unknown)
        if interrupt is not None:
            raise interrupt
        raise unknown from error

    def _ask(self, transaction: Transaction, watched: WatchedSession, engine: Engine, about: dict[str, Any]) -> Answer:
        """Ask everybody who may know what became of a COMMIT."""
        runtime, ticket, verify = self._runtime, transaction._ticket, transaction._options.verify
        if watched.has_several_engines():
            return Fate.UNKNOWN, "its session has several engines, some of which may have committed, and some not"
        wrote_nothing = ticket is not None and ticket.xact_id is None
        if transaction.read_only or (wrote_nothing and verify is None and not transaction._hooks):
            # There was nothing to store. Hooks would not be there for nothing.
            return Fate.COMMITTED, ""
        end = monotonic() + runtime.patience
        fate, reason = Fate.UNKNOWN, "nobody was asked what became of it: see the options resolve_commit and verify"
        if ticket is not None and ticket.xact_id is not None:
            fate, reason = ask_postgresql(ticket, engine, runtime.patience, runtime.sleep, about)
        elif ticket is not None:
            reason = "PostgreSQL had no id for it: it has written to no table, and yet there are hooks for what it did"
        if verify is None or fate in (Fate.COMMITTED, Fate.ROLLED_BACK):
            return fate, reason

        session, is_over = transaction._session, None
        if fate is Fate.IN_PROGRESS or watched.session.twophase:
            # Whatever is not to be seen is still to come.
            is_over = _never
        elif watched.is_isolated:
            is_over = _at_once
        elif session is not None:
            is_over = partial(is_gone, session, engine)
        return ask_user(
            lambda: self._verify(verify, transaction._label), is_over, end - monotonic(), runtime.sleep, about
        )

    # Changes

    def wants_changes(self) -> bool:
        """Whether anybody wants to know what a transaction that begins now changes."""
        runtime = self._runtime
        return True if runtime.recorders else runtime.notify.wants_changes()

    def _has_listeners(self) -> bool:
        """Whether anybody may want to know of a transaction."""
        runtime = self._runtime
        return True if runtime.recorders else runtime.notify.has_listeners()

    def wants_time(self) -> bool:
        """Whether slow transactions are logged."""
        return self._runtime.slow_transaction is not None

    def wants_leftovers(self) -> bool:
        """Whether changes are told of that nobody has settled."""
        return self._runtime.uncommitted != "ignore"

    def tracked(self, record: Record) -> None:
        """Let the transactions know where it is written down what they change from now on."""
        self._marks.clear()
        for transaction in self._stack:
            transaction._span = Span(record)

    def _flush(self, watched: WatchedSession) -> None:
        """Flush what is there before the commit, for those who want to know what is changed."""
        root = watched.session.get_transaction()
        if watched.record is None and root is not None and self.wants_changes():
            # They have begun to listen since the session began.
            watched.track(root)
        watched.session.flush()

    def _let_recorders_look(self, transaction: Transaction, watched: WatchedSession) -> None:
        self._settling = True
        try:
            self._flush(watched)
            if transaction._span:
                self._seen = {recorder: recorder.look(transaction) for recorder in self._runtime.recorders}
        finally:
            self._settling = False
        self._check_fitness(transaction)

    def _record_changes(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Let the recorders write down what the transaction has changed, after all others have changed something."""
        record = watched.record
        if not self._runtime.recorders or not record or record.is_recorded:
            return
        record.is_recorded = True
        changes = record.fresh_changes()
        places = watched.places(record.connections)
        for recorder in self._runtime.recorders:
            # What a listener of the user's has changed, after nothing else was, comes after they were to look.
            seen = self._seen[recorder] if recorder in self._seen else recorder.look(transaction)
            recorder.write(changes, seen, places.connection_for)
        self._check_fitness(transaction)

    @abstractmethod
    def _note_commit(self) -> None:
        """Let attempts that this is a part of know that something is stored, or may be."""

    @abstractmethod
    def _verify(self, verify: Verify, label: str) -> object:
        """Return what the user's own function finds out, with a fresh session."""

    # Observers

    def has_observers(self) -> bool:
        """Whether anybody wants to know of more than signals have."""
        return bool(self._runtime.notify.observers)

    def is_observed(self) -> bool:
        """Whether anybody wants to know of each statement."""
        return self._runtime.notify.wants(Sending)

    def connected(self, connection: Connection) -> None:
        """Tell observers of a connection."""
        self._observed(Connected(self._outermost, connection))

    def sending(self, connection: Connection, statement: Statement) -> None:
        """Tell observers of a statement."""
        self._observed(Sending(self._outermost, connection, statement))

    def committing(self, connection: Connection) -> None:
        """Tell observers of a COMMIT."""
        self._observed(Committing(self._outermost, connection))

    def _observed(self, event: Event) -> None:
        if self._runtime.notify.wants(type(event)):
            self._runtime.notify(event)

    # Committing

    def about_to_commit(self) -> None:
        """Look once more at what is about to be committed: listeners may have swallowed an error of the last flush."""
        transaction, watched = self._committing, self._watched
        if watched is None or (transaction is None and not watched.is_committing):
            self._record_past_us(watched)
            return
        if transaction is None:
            if not self._stack and not watched.has_given_up():
                self._sent_at = time()
                return
            transaction = self._come_forward()
        if transaction._deadline is not None:
            self.check_time(transaction._deadline)
        if watched.stopwatch is not None:
            # What is sent from here on is ours.
            watched.stopwatch.counts = False
        self._ask_the_database(transaction, watched)
        self._check_fitness(transaction)
        if self._runtime.recorders:
            self._record_changes(transaction, watched)
        if transaction._attempts is not None:
            refuse_lost_changes(transaction._attempts.expelled)
        options = transaction._options
        resolve = self._runtime.resolve_commit if options.resolve_commit is None else options.resolve_commit
        if resolve or options.verify is not None:
            self._prepare_to_ask(transaction, watched.single_connection(), resolve=resolve)
        transaction._sent_at = time()

    def _record_past_us(self, watched: WatchedSession | None) -> None:
        """Let the recorders write down what somebody commits past the session's own methods."""
        # A connection that a session with two phases was on can be another's now.
        if watched is not None:
            self._record_changes(self._stack[0] if self._stack else outside_any_block(), watched)

    def _prepare_to_ask(self, transaction: Transaction, connection: Connection | None, *, resolve: bool) -> None:
        """Keep what can be asked for if the answer to COMMIT is lost, of a transaction that has something to lose."""
        if connection is None or transaction.read_only:
            return
        with quietly(connection):
            if resolve:
                transaction._ticket = take_ticket(connection)
            if transaction._options.verify is not None:
                transaction._session = session_of(connection)

    def commit_failed(self, error: BaseException, connection: Connection) -> None:
        """Remember what went wrong in a COMMIT of ours."""
        if self._watched is not None:
            self._watched.commit_failed(error, connection)

    def _check_fitness(self, transaction: Transaction) -> None:
        if transaction._must_roll_back:
            raise _NotFit

    def _ask_the_database(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Doom what the database has given up after an error that was caught; it would not say so at COMMIT."""
        for connection, error in transaction._suspects.items() if transaction._suspects else ():
            try:
                with quietly(connection):
                    connection.exec_driver_sql("SELECT 1")
            except DBAPIError:
                self.doom(transaction, f"the database refused a statement ({brief(error)}), and gave it up", error)
        if watched.has_given_up():
            reason = "the database has given it up, after an error that was caught where flask_uow did not see it"
            self.doom(transaction, reason, None)

    def _committed(self, transaction: Transaction, leaving: BaseException | None) -> None:
        """Tell of a commit, and run its hooks."""
        self._leave_stack(transaction, Outcome.COMMITTED)
        if not transaction._stored and transaction._hooks:
            # What they do is done.
            self._note_commit()
        failures: list[Failure] | None = None
        notify = self._runtime.notify
        try:
            if transaction._stored and (notify.audience[AfterCommit] or notify.observers) and notify.wants(AfterCommit):
                self._tell_of(AfterCommit(transaction, transaction.changes))
        finally:
            try:
                if transaction._hooks:
                    failures = self._drain(transaction, transaction._hooks, Moment.COMMIT)
            finally:
                self._complete(transaction, Outcome.COMMITTED, None)
        if failures:
            self._report(transaction, failures, committed=True, quietly=leaving is not None)

    def _tell_of(self, event: Event) -> None:
        """Send an event after the fact, to receivers who are outside the transaction."""
        outer, self._telling = self._telling, True
        try:
            with apart():
                self._runtime.notify(event)
        finally:
            self._telling = outer

    def _ask_receivers(self, transaction: Transaction, watched: WatchedSession) -> None:
        """Flush, ask the receivers of `BeforeCommit`, and make sure that they have left the transaction fit."""
        self._settling = True
        try:
            self._flush(watched)
            self._runtime.notify(BeforeCommit(transaction, watched.session, transaction.changes))
        finally:
            self._settling = False
        self._check_fitness(transaction)

    def _roll_back(self, transaction: Transaction, error: BaseException | None, *, others_follow: bool = False) -> None:
        savepoint = transaction._savepoint
        in_database = self._in_transaction()
        # Asked before the rollback, for that makes good what went wrong.
        attempts = transaction._attempts
        will_retry = attempts is not None and attempts.failed(error, transaction._caught(), transaction)
        if savepoint is None and in_database and transaction._started is None:
            self._start(transaction)

        if attempts is not None and will_retry and self._watched is not None:
            attempts.expelled.extend(state.obj for state in self._watched.states())
        places = self._places_to_record(transaction) if savepoint is None and in_database else None
        if savepoint is not None:
            self._roll_back_savepoint(transaction, savepoint)
        elif self._watched is not None:
            self._watched.rollback()

        self._leave_stack(transaction, Outcome.ROLLED_BACK)
        transaction.will_retry = will_retry
        hooks = transaction._drop_hooks_since(transaction._mark)
        if savepoint is not None:
            if transaction._span is not None:
                transaction._span.forget()
        elif in_database:
            self._tell_of_rollback(transaction, error, places)
        try:
            self._undo_hooks(transaction, hooks, error, others_follow=others_follow or will_retry)
            if attempts is not None and will_retry and transaction._started is not None:
                self._tell_of_another(transaction, error, attempts)
        finally:
            if savepoint is None:
                self._complete(transaction, Outcome.ROLLED_BACK, error)

    def _roll_back_tacitly(self, watched: WatchedSession, error: BaseException | None) -> None:
        """Roll back a transaction that is there tacitly: nobody is to be told."""
        watched.rollback()
        if self._stack:
            # Listeners of the user's have asked for it meanwhile.
            self._roll_back(self._stack[0], error)

    def _places_to_record(self, transaction: Transaction) -> Places | None:
        """Return where a transaction has written that is about to be rolled back, if somebody writes that down."""
        if not self._runtime.recorders or self._watched is None or not transaction._span:
            return None
        return self._watched.places(transaction._span.connections)

    def _tell_of_rollback(self, transaction: Transaction, error: BaseException | None, places: Places | None) -> None:
        if self._runtime.notify.wants(AfterRollback):
            self._tell_of(AfterRollback(transaction, error, transaction.changes))
        if places is None:
            return
        for recorder in self._runtime.recorders:
            try:
                with apart():
                    recorder.write_lost(transaction, transaction.changes, error, places.bind_for)
            except Exception:
                logger.exception(
                    "What %s had changed, and was rolled back, could not be written down",
                    transaction,
                    extra=self._runtime.journal.about(transaction),
                )

    def _tell_of_another(self, transaction: Transaction, error: BaseException | None, attempts: Attempts) -> None:
        if self._runtime.notify.wants(Retried):
            self._tell_of(Retried(transaction, error or attempts.cause, attempts.number, attempts.delay or 0.0))

    def _undo_hooks(
        self, transaction: Transaction, hooks: Hooks | None, error: BaseException | None, *, others_follow: bool = False
    ) -> None:
        """Run the hooks of a rollback; those of a commit are forgotten."""
        if not hooks:
            return
        failures = self._drain(transaction, hooks, Moment.ROLLBACK, error)
        if failures:
            self._report(transaction, failures, committed=False, quietly=error is not None or others_follow)

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
            self.end(transaction, COMMIT)
            return
        except BaseException as error:
            self._fail(transaction, error)
            raise

        self._stack.pop()
        transaction._released = True
        transaction._savepoint = None
        if transaction._span is not None:
            transaction._span.end()
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
            if self.restricted:
                self.restricted = False
            if self._marks:
                self._marks.clear()
        transaction._outcome = outcome
        if transaction.parent is None:
            if self._watched is not None and self._watched.stopwatch is not None:
                self._tell_if_slow(transaction, outcome, self._watched, self._watched.stopwatch)
            if transaction._span is not None:
                transaction._span.end()
        # Its errors have tracebacks, whose frames have it.
        transaction._savepoint = transaction._root = transaction._suspects = None
        transaction._doom = transaction._curable = transaction._attempts = None

    def _tell_if_slow(
        self, transaction: Transaction, outcome: Outcome, watched: WatchedSession, stopwatch: Stopwatch
    ) -> None:
        watched.stopwatch = None
        limit = self._runtime.slow_transaction
        assert limit is not None
        tell_if_slow(transaction, outcome, stopwatch, limit, self._runtime.journal)

    def _abandon(self, savepoints: list[Transaction]) -> None:
        """Roll back savepoints that nobody left."""
        for savepoint in reversed(savepoints):
            self._roll_back(savepoint, None, others_follow=True)

    def _roll_back_all(self, error: BaseException | None) -> None:
        """Roll back the outermost transaction, and every savepoint in it, for good."""
        self._stack[0]._take_attempts()
        self._abandon(self._stack[1:])
        self._roll_back(self._stack[0], error)

    def _complete(self, transaction: Transaction, outcome: Outcome, error: BaseException | None) -> None:
        if transaction._span is not None:
            transaction._span.close()
        notify = self._runtime.notify
        has_listeners = notify.audience[Completed] or notify.observers
        if has_listeners and transaction._started is not None and notify.wants(Completed):
            self._tell_of(Completed(transaction, outcome, error, transaction._duration()))

    def _drain(self, transaction: Transaction, hooks: Hooks, moment: Moment, *args: Any) -> list[Failure]:
        def tell(hook: Hook, error: BaseException | None) -> None:
            self._runtime.notify(HookRan(transaction._outermost, hook, error))

        outer, self._draining = self._draining, Drain(hooks, moment, len(self._stack))
        try:
            with apart():
                return hooks.run(moment, *args, tell=tell if self._runtime.notify.wants(HookRan) else None)
        finally:
            self._draining = outer

    def _report(self, transaction: Transaction, failures: list[Failure], *, committed: bool, quietly: bool) -> None:
        """Log or raise what hooks raised; *quietly* where an error is on its way already, or others must end too."""
        found = tuple(failures)
        # The frame that has collected them is in the traceback of each.
        failures.clear()
        if self._runtime.hook_errors() == "raise" and not quietly:
            what = "after the COMMIT: the work is stored" if committed else "after the ROLLBACK: the work is undone"
            errors = [failure.error for failure in found]
            del found
            raise HookError(f"Hooks failed {what}", errors, committed)

        for failure in found:
            hooks_logger.error(
                "The %s hook %s failed. The work is %s all the same.",
                failure.hook.moment.value,
                failure.hook.name,
                "stored" if committed else "undone",
                exc_info=failure.error,
                extra=self._runtime.journal.about(transaction),
            )


def _never() -> bool:
    return False


def _at_once() -> bool:
    return True
