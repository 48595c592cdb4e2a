"""The options of a block, checked when they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from inspect import iscoroutinefunction
from typing import Any, Final, Literal, TypedDict

from flask_uow._core.propagation import AVAILABLE, Propagation
from flask_uow.errors import ConfigurationError

__all__ = [
    "COMMIT_IF",
    "CommitIf",
    "ManualCommit",
    "Options",
    "Rule",
    "TransactionOptions",
    "TransactionalOptions",
    "check_options",
    "is_commit_if",
    "unknown_name",
]

ErrorClasses = type[BaseException] | tuple[type[BaseException], ...]
CommitIf = Callable[[Any], bool]
ManualCommit = Literal["error", "flush", "allow"]


class TransactionOptions(TypedDict, total=False):
    """What ``uow.transaction()`` takes."""

    propagation: Propagation
    rollback_for: ErrorClasses
    no_rollback_for: ErrorClasses
    manual_commit: ManualCommit | None
    name: str | None


class TransactionalOptions(TransactionOptions, total=False):
    """What ``transactional()`` takes: it can see a response, and look for its UnitOfWork when it is called."""

    commit_if: CommitIf | None
    using: str | None


@dataclass(frozen=True, slots=True)
class Options:
    """A block's options, checked."""

    propagation: Propagation = Propagation.REQUIRED
    rollback_for: tuple[type[BaseException], ...] = ()
    no_rollback_for: tuple[type[BaseException], ...] = ()
    manual_commit: ManualCommit | None = None
    name: str | None = None
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


def is_commit_if(value: object) -> bool:
    """Whether *value* can be asked about a response. A coroutine would always be true."""
    return value is None or (
        callable(value) and not iscoroutinefunction(value) and not iscoroutinefunction(type(value).__call__)
    )


def _is_name(value: object) -> bool:
    return value is None or (isinstance(value, str) and bool(value.strip()))


COMMIT_IF: Final = "must be a plain function that takes the response and returns a bool, or None"

_ERROR_CLASSES: Final = "must be an exception class, or a tuple of them"

_RULES: Final[Mapping[str, Rule]] = {
    "propagation": Rule(
        lambda value: isinstance(value, Propagation),
        "must be a member of Propagation, such as Propagation.NESTED",
    ),
    "rollback_for": Rule(_is_error_classes, _ERROR_CLASSES),
    "no_rollback_for": Rule(_is_error_classes, _ERROR_CLASSES),
    "manual_commit": Rule(
        lambda value: value is None or value in ("error", "flush", "allow"),
        'must be None, "error", "flush" or "allow"',
    ),
    "name": Rule(_is_name, "must be a string that is not empty, or None"),
    "commit_if": Rule(is_commit_if, COMMIT_IF),
    "using": Rule(_is_name, "must be the name of a UnitOfWork, or None"),
}

_OF_DECORATORS_ALONE: Final = {
    "commit_if": "A with block does not see a response",
    "attempts": "A with block cannot be run again",
    "retry_on": "A with block cannot be run again",
    "backoff": "A with block cannot be run again",
    "using": "uow.transaction() has its UnitOfWork already",
}

_TO_COME: Final = frozenset(
    {
        "isolation_level",
        "read_only",
        "timeout",
        "verify",
        "resolve_commit",
        "attempts",
        "retry_on",
        "backoff",
    }
)

assert set(_RULES) == {field.name for field in fields(Options)}


def check_options(given: Mapping[str, Any], *, decorator: bool) -> Options:
    """Check what a user wrote, and return it as one value.

    Args:
        given: The options by name.
        decorator: Whether they were given to ``transactional`` and not to ``transaction()``.

    Raises:
        ConfigurationError: An option is unknown, not available here, of a wrong type, or contradicts another.
    """
    for name, value in given.items():
        if name in _OF_DECORATORS_ALONE and not decorator:
            raise ConfigurationError(
                name, f"is not an option of transaction(). {_OF_DECORATORS_ALONE[name]}: give it to transactional()."
            )
        if name in _TO_COME:
            raise ConfigurationError(
                name, "is not available in this version of flask_uow, and would have no effect. Leave it out."
            )
        if name not in _RULES:
            raise ConfigurationError(name, f"is not an option of a transaction. {unknown_name(name, _RULES)}")
        if not _RULES[name].holds(value):
            raise ConfigurationError(name, f"is {value!r}; it {_RULES[name].allowed}.")

    options = Options(**{name: _normalised(name, value) for name, value in given.items()})

    if options.propagation not in AVAILABLE:
        modes = ", ".join(f"Propagation.{mode.name}" for mode in AVAILABLE)
        raise ConfigurationError(
            "propagation",
            f"is Propagation.{options.propagation.name}, which is not available in this version of flask_uow; it "
            f"can be {modes}.",
        )

    for cls in options.rollback_for:
        if cls in options.no_rollback_for:
            raise ConfigurationError(
                "rollback_for", f"and no_rollback_for both name {cls.__name__}; a class can be in one of them."
            )

    return options


def _normalised(name: str, value: Any) -> Any:
    if name in ("rollback_for", "no_rollback_for") and not isinstance(value, tuple):
        return (value,)
    return value


def unknown_name(name: str, known: Mapping[str, object]) -> str:
    """Say which known name was perhaps meant by *name*, or which there are."""
    nearest = get_close_matches(name, known, n=1)
    return f"Did you mean {nearest[0]}?" if nearest else f"Known are: {', '.join(known)}."
