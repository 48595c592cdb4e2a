"""The options of a block, checked when they are given."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from inspect import iscoroutinefunction, signature
from math import isfinite
from typing import Any, Final, Literal, TypedDict

from sqlalchemy.orm import Session

from flask_uow._core.backoff import Backoff
from flask_uow._core.propagation import Propagation, can_begin, can_have
from flask_uow.errors import CommitOutcomeUnknownError, ConfigurationError, HookError, PartialCommitError

__all__ = [
    "ATTEMPTS",
    "COMMIT_IF",
    "ISOLATION_LEVEL",
    "NEVER_RETRIED",
    "TIMEOUT",
    "CommitIf",
    "ManualCommit",
    "Options",
    "RetryOn",
    "Rule",
    "StreamOptions",
    "TransactionOptions",
    "TransactionalOptions",
    "Verify",
    "check_options",
    "is_attempts",
    "is_commit_if",
    "is_isolation_level",
    "is_plain_function",
    "is_timeout",
    "level_name",
    "name_of",
    "unknown_name",
]

ErrorClasses = type[BaseException] | tuple[type[BaseException], ...]
CommitIf = Callable[[Any], bool]
ManualCommit = Literal["error", "flush", "allow"]
RetryOn = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
Verify = Callable[[Session], bool]


class StreamOptions(TypedDict, total=False):
    """What ``uow.stream()`` takes: its transaction is always one of its own."""

    isolation_level: str | None
    read_only: bool | None
    timeout: float | None
    rollback_for: ErrorClasses
    no_rollback_for: ErrorClasses
    manual_commit: ManualCommit | None
    verify: Verify | None
    resolve_commit: bool | None
    name: str | None


class TransactionOptions(StreamOptions, total=False):
    """What ``uow.transaction()`` takes."""

    propagation: Propagation


class TransactionalOptions(TransactionOptions, total=False):
    """What ``transactional()`` takes: it can run again, see a response, and look for its UnitOfWork when called."""

    attempts: int | None
    retry_on: RetryOn
    backoff: Backoff | None
    commit_if: CommitIf | None
    using: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """A block's options, checked."""

    propagation: Propagation = Propagation.REQUIRED
    isolation_level: str | None = None
    read_only: bool | None = None
    timeout: float | None = None
    rollback_for: tuple[type[BaseException], ...] = ()
    no_rollback_for: tuple[type[BaseException], ...] = ()
    manual_commit: ManualCommit | None = None
    verify: Verify | None = None
    resolve_commit: bool | None = None
    name: str | None = None
    attempts: int | None = None
    retry_on: RetryOn = ()
    backoff: Backoff | None = None
    commit_if: CommitIf | None = None
    using: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value must be: a test, and the words for it."""

    holds: Callable[[Any], bool]
    allowed: str


def _is_error_classes(value: object) -> bool:
    classes = value if isinstance(value, tuple) else (value,)
    return all(isinstance(cls, type) and issubclass(cls, BaseException) for cls in classes)


def name_of(function: object) -> str:
    """Return what to call a function in a message."""
    return getattr(function, "__qualname__", None) or repr(function)


def is_plain_function(value: object) -> bool:
    """Whether *value* can be called, and answers at once: nobody would await a coroutine, which is always true."""
    return callable(value) and not iscoroutinefunction(value) and not iscoroutinefunction(type(value).__call__)


def _takes_one_argument(value: object) -> bool:
    """Whether *value* is a function that can be called with one argument, as far as it says."""
    if not callable(value) or isinstance(value, type) or not is_plain_function(value):
        return False
    try:
        signature(value).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not say
        return True
    return True


def is_commit_if(value: object) -> bool:
    """Whether *value* can be asked about a response."""
    return value is None or is_plain_function(value)


def is_attempts(value: object) -> bool:
    """Whether *value* can be how often a block is run."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_retry_on(value: object) -> bool:
    if not isinstance(value, (type, tuple)):
        return _takes_one_argument(value)
    classes = value if isinstance(value, tuple) else (value,)
    return all(isinstance(cls, type) and issubclass(cls, Exception) for cls in classes)


def _is_name(value: object) -> bool:
    return value is None or (isinstance(value, str) and bool(value.strip()))


NEVER_RETRIED: Final = (CommitOutcomeUnknownError, PartialCommitError, HookError)
"""Errors after which some work is stored, or may be, so that another attempt would do it twice."""

_LEVELS: Final = ("READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT")
"""Those of the SQL standard (ISO/IEC 9075-2, 4.41.4), and that of SQL Server."""


def level_name(level: str) -> str:
    """Return the name of an isolation level as SQLAlchemy writes it."""
    return level.replace("_", " ").upper()


def is_isolation_level(value: object) -> bool:
    """Whether *value* can be the isolation level of a transaction. AUTOCOMMIT cannot: it is the lack of one."""
    return value is None or (isinstance(value, str) and level_name(value) in _LEVELS)


def is_timeout(value: object) -> bool:
    """Whether *value* is a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value is None
    return value > 0 and isfinite(value)


ISOLATION_LEVEL: Final = f"must be one of {', '.join(_LEVELS)}, or None for the engine's own"

ATTEMPTS: Final = "must be a whole number, 1 or above: how often it is run at most"

TIMEOUT: Final = "must be a number of seconds above 0, or None"

COMMIT_IF: Final = "must be a plain function that takes the response and returns a bool, or None"

_ERROR_CLASSES: Final = "must be an exception class, or a tuple of them"

_RULES: Final[Mapping[str, Rule]] = {
    "propagation": Rule(
        lambda value: isinstance(value, Propagation),
        "must be a member of Propagation, such as Propagation.NESTED",
    ),
    "isolation_level": Rule(is_isolation_level, ISOLATION_LEVEL),
    "read_only": Rule(lambda value: value is None or isinstance(value, bool), "must be True, False or None"),
    "timeout": Rule(is_timeout, TIMEOUT),
    "rollback_for": Rule(_is_error_classes, _ERROR_CLASSES),
    "no_rollback_for": Rule(_is_error_classes, _ERROR_CLASSES),
    "manual_commit": Rule(
        lambda value: value is None or value in ("error", "flush", "allow"),
        'must be None, "error", "flush" or "allow"',
    ),
    "verify": Rule(
        lambda value: value is None or _takes_one_argument(value),
        "must be a plain function that takes a session and returns whether the work is stored, or None",
    ),
    "resolve_commit": Rule(lambda value: value is None or isinstance(value, bool), "must be True, False or None"),
    "name": Rule(_is_name, "must be a string that is not empty, or None"),
    "attempts": Rule(lambda value: value is None or is_attempts(value), f"{ATTEMPTS}, or None for the setting"),
    "retry_on": Rule(
        _is_retry_on,
        "must be a subclass of Exception, a tuple of them, or a plain function that takes an exception and returns a "
        "bool",
    ),
    "backoff": Rule(
        lambda value: value is None or isinstance(value, Backoff),
        "must be a Backoff, such as Backoff(base=0.1), or None",
    ),
    "commit_if": Rule(is_commit_if, COMMIT_IF),
    "using": Rule(_is_name, "must be the name of a UnitOfWork, or None"),
}

_OF_DECORATORS_ALONE: Final = {
    "commit_if": "It is asked about a response, which only a view has",
    "attempts": "Only a decorated function can be run again",
    "retry_on": "Only a decorated function can be run again",
    "backoff": "Only a decorated function can be run again",
    "using": "A method of a UnitOfWork has its UnitOfWork already",
}

assert set(_RULES) == {field.name for field in fields(Options)}


def check_options(given: Mapping[str, Any], *, decorator: bool, called: str = "transaction()") -> Options:
    """Check what a user wrote, and return it as one value.

    Args:
        given: The options by name.
        decorator: Whether they were given to ``transactional`` and not to ``transaction()``.
        called: What they were given to otherwise, for messages.

    Raises:
        ConfigurationError: An option is unknown, not available here, of a wrong type, or contradicts another.
    """
    known = [name for name in _RULES if decorator or name not in _OF_DECORATORS_ALONE]
    for name, value in given.items():
        if name in _OF_DECORATORS_ALONE and not decorator:
            raise ConfigurationError(
                name, f"is not an option of {called}. {_OF_DECORATORS_ALONE[name]}: it is for transactional()."
            )
        if name not in _RULES:
            raise ConfigurationError(name, f"is not an option of a transaction. {unknown_name(name, known)}")
        if not _RULES[name].holds(value):
            raise ConfigurationError(name, f"is {value!r}; it {_RULES[name].allowed}.")

    options = Options(**{name: _normalised(name, value) for name, value in given.items()})
    _check_together(options)
    return options


def _check_together(options: Options) -> None:
    """Refuse options that contradict each other."""
    mode = options.propagation
    for name in ("isolation_level", "read_only", "timeout"):
        if getattr(options, name) is not None and not can_have(mode):
            raise ConfigurationError(
                name, f"is about a transaction, and with Propagation.{mode.name} there is none. Leave one of them out."
            )
    for name in ("verify", "resolve_commit", "attempts", "retry_on", "backoff", "commit_if"):
        if getattr(options, name) not in (None, ()) and not can_begin(mode):
            raise ConfigurationError(
                name,
                f"is for the block that begins the transaction, and with Propagation.{mode.name} that is another. "
                "Leave it out.",
            )
    for retried in options.retry_on if isinstance(options.retry_on, tuple) else (options.retry_on,):
        if isinstance(retried, type) and issubclass(retried, NEVER_RETRIED):
            raise ConfigurationError(
                "retry_on",
                f"names {retried.__name__}, after which some work is stored, or may be, so that nothing is run again. "
                "Leave it out.",
            )
    for cls in options.rollback_for:
        if cls in options.no_rollback_for:
            raise ConfigurationError(
                "rollback_for", f"and no_rollback_for both name {cls.__name__}; a class can be in one of them."
            )


def _normalised(name: str, value: Any) -> Any:
    if name == "isolation_level" and value is not None:
        return level_name(value)
    if name in ("rollback_for", "no_rollback_for") and not isinstance(value, tuple):
        return (value,)
    return value


def unknown_name(name: str, known: Collection[str]) -> str:
    """Say which known name was perhaps meant by *name*, or which there are."""
    nearest = get_close_matches(name, known, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(known)}."
