"""Whether a block that failed is run again, and when."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from flask_uow._core.backoff import Backoff
from flask_uow._core.deadline import Deadline
from flask_uow._core.faults import asks_for_another_attempt
from flask_uow._core.journal import Journal, Named
from flask_uow._core.options import NEVER_RETRIED, Options, RetryOn

__all__ = ["NOTHING_BEFORE", "Attempt", "Attempts", "Baseline", "Retry", "apart", "note_commit", "retry_of"]

logger = logging.getLogger("flask_uow.retry")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often a block is run, after which errors again, and with what time in between."""

    attempts: int
    on: RetryOn
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class Baseline:
    """What there was in a session before the first attempt."""

    states: Collection[Any]
    """Of its objects."""

    has_changes: bool
    """Whether there was work that a rollback undoes, and another attempt does not do."""

    def obstacle(self) -> str | None:
        """Return why there can be no other attempt from there."""
        if self.has_changes:
            return (
                "its transaction had changes from before it began, such as those of a before_request function, which "
                "are undone and would be missing"
            )
        return None


NOTHING_BEFORE: Final = Baseline((), has_changes=False)


def retry_of(options: Options, attempts: int) -> Retry | None:
    """Return how what has *options* is run again, or None where it is not.

    Args:
        options: The options.
        attempts: How often it is run where they do not say.
    """
    attempts = options.attempts or attempts
    return Retry(attempts, options.retry_on, options.backoff or Backoff()) if attempts > 1 else None


_running: ContextVar[tuple[Attempts, ...]] = ContextVar("flask_uow.running", default=())
"""The attempts that are being made, the innermost last."""


@contextmanager
def apart() -> Generator[None, None, None]:
    """Let what happens inside, such as hooks, be no part of any attempt."""
    outer = _running.get()
    _running.set(())
    try:
        yield
    finally:
        _running.set(outer)


def note_commit() -> None:
    """Let the attempts that are being made know that something is stored, or may be."""
    for attempts in _running.get():
        attempts.commits += 1


class Attempts:
    """The attempts at one block or view: how many there were, and whether another follows.

    That is decided once in each attempt, where it fails first, so that all hooks and receivers are told the same.

    Args:
        retry: How often and when.
        label: What to call the block.
        sleep: Waits for some seconds.
        journal: Says what a message in the log is about.
    """

    __slots__ = (
        "_journal",
        "_label",
        "_obstacles",
        "_outside",
        "_retry",
        "_sleep",
        "_transaction",
        "baseline",
        "cause",
        "commits",
        "deadlines",
        "delay",
        "expelled",
        "is_decided",
        "number",
        "spent",
    )

    def __init__(self, retry: Retry, label: str, sleep: Callable[[float], None], journal: Journal) -> None:
        self._retry = retry
        self._label = label
        self._sleep = sleep
        self._obstacles: list[Callable[[], str | None]] = []
        self._journal = journal
        self._transaction: Named | None = None
        """The transaction that has failed."""

        self._outside = sys.exception()
        """What somebody is handling by this block, and Python will make the context of each error in it."""

        self.spent: list[BaseException] = []
        """Errors at which inner blocks have given up."""

        self.number = 1
        """That of the current attempt."""

        self.commits = 0
        """How much of it is stored already."""

        self.is_decided = False
        """Whether the current attempt has failed, and it is known what follows."""

        self.delay: float | None = None
        """How long to wait before the next one, in seconds; None is that there is none."""

        self.cause: BaseException | None = None
        """What asks for the next one."""

        self.baseline = NOTHING_BEFORE
        self.deadlines: dict[object, Deadline | None] = {}
        """By when all of them have to be done, by what they are about."""

        self.expelled: list[Callable[[], object | None]] = []
        """Objects of attempts that have failed, if anybody has kept them."""

    @property
    def follows(self) -> bool:
        """Whether the current attempt has failed, and another follows."""
        return self.delay is not None

    def add_obstacle(self, obstacle: Callable[[], str | None]) -> None:
        """Ask *obstacle* why there can be no other attempt, before there is one."""
        self._obstacles.append(obstacle)

    def begun(self, place: object, deadline: Deadline | None) -> Deadline | None:
        """Learn that the transaction of an attempt has begun, and return the deadline that holds: that of the first.

        Args:
            place: Where it has begun; a view can have several.
            deadline: Its own.
        """
        return self.deadlines.setdefault(place, deadline)

    def failed(
        self, error: BaseException | None, caught: Iterable[BaseException] = (), transaction: Named | None = None
    ) -> bool:
        """Learn that the current attempt cannot succeed, and return whether another follows.

        Args:
            error: What leaves the block, if anything does.
            caught: Errors that have doomed its transaction, and were caught.
            transaction: Its transaction.
        """
        if not self.is_decided:
            self.is_decided = True
            self._transaction = transaction
            cause = None if error is not None and not isinstance(error, Exception) else self._find_cause(error, caught)
            if cause is not None:
                self._decide(error, cause)
        return self.follows

    def goes_on(self, error: Exception | None) -> bool:
        """Whether the current attempt, which has ended, is to be followed by another one.

        Args:
            error: What has left the block, if anything has.
        """
        if not self.failed(error):
            return False
        # What is outside a view's decorator has run since it was decided.
        reason = f"{type(error).__name__} came after it" if isinstance(error, NEVER_RETRIED) else self._obstacle()
        if reason is not None:
            self._tell_of(reason)
            self.delay = None
        return self.follows

    def reopen(self) -> None:
        """Forget what was decided, for somebody runs the block again by himself."""
        self.delay, self.cause, self.is_decided = None, None, False

    def wait(self) -> None:
        """Wait before the next attempt, and count it."""
        self._sleep(self.count())

    def count(self) -> float:
        """Count the next attempt, and return how many seconds to wait before it."""
        delay = self.delay or 0.0
        self.reopen()
        self.number += 1
        self.commits = 0
        return delay

    def _decide(self, error: BaseException | None, cause: BaseException) -> None:
        retry = self._retry
        delay = retry.backoff.delay(self.number)
        if self.number >= retry.attempts:
            self._give_up(error, "there are no more")
        elif (deadline := self._nearest_deadline()) is not None and monotonic() + delay >= deadline.at:
            self._give_up(error, f"the timeout of {deadline.seconds:g} s leaves no time for another")
        elif (reason := self._obstacle()) is not None:
            self._tell_of(reason)
            self._give_up(error, f"there is no other, because {reason}")
        else:
            self.delay, self.cause = delay, cause
            logger.info(
                "Attempt %d of %d of %s failed with %s; the next one follows in %.3f s.",
                self.number,
                retry.attempts,
                self._label,
                type(cause).__name__,
                delay,
                extra=self._journal.about(self._transaction),
            )

    def _nearest_deadline(self) -> Deadline | None:
        deadlines = (deadline for deadline in self.deadlines.values() if deadline is not None)
        return min(deadlines, key=lambda deadline: deadline.at, default=None)

    def _obstacle(self) -> str | None:
        if self.commits:
            return "a part of its work was committed on the way, and would be done twice"
        return self.baseline.obstacle() or next((reason for each in self._obstacles if (reason := each())), None)

    def _tell_of(self, obstacle: str) -> None:
        logger.warning(
            "%s is not run again, although attempt %d of %d has failed: %s.",
            self._label,
            self.number,
            self._retry.attempts,
            obstacle,
            extra=self._journal.about(self._transaction),
        )

    def _give_up(self, error: BaseException | None, reason: str) -> None:
        if error is not None:
            note = f"This was attempt {self.number} of {self._retry.attempts} of {self._label}; {reason}."
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            for outer in _running.get():
                if outer is not self:
                    outer.spent.append(error)

    def _find_cause(self, error: BaseException | None, caught: Iterable[BaseException]) -> BaseException | None:
        """Return the error that asks for another attempt."""
        found = None
        for candidate in (*(() if error is None else (error,)), *caught):
            # An inner block has given up at what was spent, and others have caused that.
            for each in _with_causes(candidate, (self._outside, *self.spent)):
                if isinstance(each, NEVER_RETRIED):
                    return None
                if found is None and self._asks(each):
                    found = each
        return found

    def _asks(self, error: BaseException) -> bool:
        if not isinstance(error, Exception):
            return False
        on = self._retry.on
        if isinstance(on, (type, tuple)):
            return isinstance(error, on) or asks_for_another_attempt(error)
        try:
            return asks_for_another_attempt(error) or bool(on(error))
        except Exception:
            logger.exception(
                "The function retry_on of %s failed, and counts as no",
                self._label,
                extra=self._journal.about(self._transaction),
            )
            return False


class Attempt:
    """One of several attempts: what is raised in it is swallowed, if another one follows.

    Args:
        attempts: Those of which it is one. Inner blocks know of them, so that theirs do not multiply with these.
    """

    __slots__ = ("_attempts", "_outer", "is_last", "value")

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._outer: tuple[Attempts, ...] = ()
        self.is_last = True
        """Whether there is no other one; known at its end."""

        self.value: Any = None
        """What was returned, for whoever has run it."""

    def __enter__(self) -> Self:
        self._outer = _running.get()
        _running.set((*self._outer, self._attempts))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        attempts = self._attempts
        try:
            self.is_last = not (error is None or isinstance(error, Exception)) or not attempts.goes_on(error)
        finally:
            # A coroutine can be closed in another context than it ran in.
            if _running.get()[-1:] == (attempts,):
                _running.set(self._outer)
            # Their tracebacks have the frames that have the attempts.
            attempts.cause = attempts._transaction = None
            attempts.spent.clear()
        return not self.is_last


def _with_causes(error: BaseException, ends: Iterable[BaseException | None]) -> Iterator[BaseException]:
    """Yield an error, what has caused it, and what is in it, if it is a group; nothing from any of *ends* on."""
    waiting, seen = [error], set(map(id, ends))
    while waiting:
        each = waiting.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if isinstance(each, BaseExceptionGroup):
            waiting.extend(each.exceptions)
        before = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        # SQLAlchemy's has the driver's own as its cause, and one that was never raised only here.
        waiting.extend(other for other in (before, getattr(each, "orig", None)) if isinstance(other, BaseException))
