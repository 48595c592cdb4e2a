"""What the scopes of one UnitOfWork need from outside, as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from flask_uow._core.events import Notify
from flask_uow._core.options import ManualCommit, Options
from flask_uow._core.policy import Judge
from flask_uow._core.session import SessionSource

__all__ = ["HookErrors", "Plan", "Runtime"]

HookErrors = Literal["log", "raise"]


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


@dataclass(frozen=True, slots=True)
class Plan:
    """A transaction that is there without a block: that of a request under a policy."""

    options: Options
    label: str
    by_block: bool
    """Whether a decorator asked for it, and not the app-wide policy alone: then nobody else may settle it."""
