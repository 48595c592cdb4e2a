"""What the scopes of one UnitOfWork need from outside, as values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flask_uow._core.events import Notify
from flask_uow._core.journal import Journal
from flask_uow._core.options import ManualCommit, Options
from flask_uow._core.policy import Judge
from flask_uow._core.recording import Recorder
from flask_uow._core.retry import Retry
from flask_uow._core.session import SessionSource

__all__ = ["HookErrors", "Plan", "Runtime", "Uncommitted"]

HookErrors = Literal["log", "raise"]
Uncommitted = Literal["warn", "raise", "ignore"]


def _sleep(seconds: float) -> None:
    # Looked up at each call, for gevent replaces it.
    time.sleep(seconds)


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """What the scopes of one UnitOfWork need from outside."""

    source: SessionSource
    notify: Notify
    judge: Judge
    manual_commit: ManualCommit
    hook_errors: Callable[[], HookErrors]
    strict: bool = True
    """Whether an error of the database dooms its transaction on every database alike."""

    isolation_level: str | None = None
    timeout: float | None = None
    """In seconds. This and the level are those of transactions whose options do not say."""

    slow_transaction: float | None = None
    """In seconds. A transaction that takes longer is logged; None is that none is, nor is any measured."""

    uncommitted: Uncommitted = "warn"
    """What becomes of changes that nobody has settled. Where nobody can raise, "raise" is an error in the log."""

    attempts: int = 1
    """How often what can run again is run at most, where its options do not say."""

    resolve_commit: bool = False
    """Whether PostgreSQL is asked what became of a COMMIT without an answer, where the options do not say."""

    recorders: Sequence[Recorder] = ()
    """Who writes down what is changed. There can be more of them later."""

    journal: Journal = field(default_factory=Journal)
    """Says what a message in the log is about."""

    sleep: Callable[[float], None] = _sleep
    """Waits for some seconds."""

    patience: float = 5.0
    """For how many seconds the fate of a COMMIT is asked for, before it counts as unknown."""

    is_plain: bool = field(init=False)
    """Whether the settings ask for nothing but a COMMIT at the end of a transaction."""

    def __post_init__(self) -> None:
        """Look at the settings, once for all transactions."""
        asks = self.resolve_commit or (self.isolation_level, self.timeout, self.slow_transaction)
        object.__setattr__(self, "is_plain", asks == (None, None, None))


@dataclass(frozen=True, slots=True)
class Plan:
    """A transaction that is there without a block: that of a request under a policy."""

    options: Options
    label: str
    by_block: bool
    """Whether a decorator asked for it, and not the app-wide policy alone: then nobody else may settle it."""

    retry: Retry | None = None
    """How often what it is for is run, where that can be more than once."""

    is_plain: bool = field(init=False)
    """Whether it asks for nothing but a COMMIT at its end."""

    def __post_init__(self) -> None:
        """Look at what it asks for, once for all transactions of the plan."""
        options = self.options
        asks = options.read_only or options.resolve_commit or (options.isolation_level, options.timeout, options.verify)
        object.__setattr__(self, "is_plain", self.retry is None and asks == (None, None, None))
