"""Configuration, read once into one frozen, checked object."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from http import HTTPMethod
from typing import Any, Final, cast

from flask_uow._core.options import (
    ATTEMPTS,
    COMMIT_IF,
    ISOLATION_LEVEL,
    TIMEOUT,
    CommitIf,
    ManualCommit,
    Rule,
    is_attempts,
    is_commit_if,
    is_isolation_level,
    is_timeout,
    level_name,
    unknown_name,
)
from flask_uow._core.runtime import HookErrors, Uncommitted
from flask_uow.errors import ConfigurationError

__all__ = ["Settings", "check_name"]

DEFAULT_NAME: Final = "default"

_WEBDAV: Final = ("COPY", "LOCK", "MKCOL", "MOVE", "PROPFIND", "PROPPATCH", "QUERY", "REPORT", "SEARCH", "UNLOCK")
"""Of the methods registered with IANA beside those in the standard library, those that Flask apps serve."""

KNOWN_METHODS: Final = frozenset((*(str(method) for method in HTTPMethod), *_WEBDAV))

AutoCommit = bool | frozenset[str]


@dataclass(frozen=True, slots=True)
class Settings:
    """What one UnitOfWork does in one app, or outside any. Each field is a setting without its prefix."""

    auto_commit: AutoCommit = False
    commit_if: CommitIf | None = None
    manual_commit: ManualCommit = "error"
    hook_errors: HookErrors | None = None
    """None is "raise" in an app that is testing, and "log" elsewhere."""

    uncommitted: Uncommitted = "warn"
    strict: bool = True
    isolation_level: str | None = None
    timeout: float | None = None
    read_only_methods: frozenset[str] = frozenset()
    slow_transaction: float | None = None
    attempts: int = 1
    resolve_commit: bool = False

    def matches(self, method: str) -> bool:
        """Whether the app-wide policy covers requests with *method*."""
        if isinstance(self.auto_commit, bool):
            return self.auto_commit
        return _is_among(self.auto_commit, method)

    def is_read_only(self, method: str) -> bool:
        """Whether managed requests with *method* are read-only where their policy says nothing."""
        return _is_among(self.read_only_methods, method)


def _is_among(methods: frozenset[str], method: str) -> bool:
    """Whether *method* is one of *methods*. HEAD goes where GET goes, as it does in Flask."""
    return method in methods or (method == "HEAD" and "GET" in methods)


def _is_auto_commit(value: object) -> bool:
    return isinstance(value, bool) or _are_methods(value)


def _are_methods(value: object) -> bool:
    return (
        isinstance(value, Collection)
        and not isinstance(value, (str, bytes, Mapping))
        and all(isinstance(method, str) and method.upper() in KNOWN_METHODS for method in value)
    )


_RULES: Final[Mapping[str, Rule]] = {
    "auto_commit": Rule(_is_auto_commit, 'must be True, False, or a set of HTTP methods such as {"POST", "PUT"}'),
    "commit_if": Rule(is_commit_if, COMMIT_IF),
    "manual_commit": Rule(
        lambda value: isinstance(value, str) and value in ("error", "flush", "allow"),
        'must be "error", "flush" or "allow"',
    ),
    "hook_errors": Rule(lambda value: value is None or value in ("log", "raise"), 'must be "log", "raise" or None'),
    "uncommitted": Rule(
        lambda value: isinstance(value, str) and value in ("warn", "raise", "ignore"),
        'must be "warn", "raise" or "ignore"',
    ),
    "strict": Rule(lambda value: isinstance(value, bool), "must be True or False"),
    "isolation_level": Rule(is_isolation_level, ISOLATION_LEVEL),
    "timeout": Rule(is_timeout, TIMEOUT),
    "read_only_methods": Rule(_are_methods, 'must be a set of HTTP methods such as {"GET"}'),
    "slow_transaction": Rule(is_timeout, TIMEOUT),
    "attempts": Rule(is_attempts, ATTEMPTS),
    "resolve_commit": Rule(lambda value: isinstance(value, bool), "must be True or False"),
}

assert set(_RULES) == {field.name for field in fields(Settings)}


def _check(label: str, name: str, value: Any) -> Any:
    """Return the value of a setting as it is stored; *label* is how the user wrote its name."""
    if not _RULES[name].holds(value):
        raise ConfigurationError(label, f"is {value!r}; it {_RULES[name].allowed}.")
    if name == "isolation_level" and value is not None:
        return level_name(value)
    if name in ("auto_commit", "read_only_methods") and not isinstance(value, bool):
        return frozenset(method.upper() for method in cast(Collection[str], value))
    return value


def from_arguments(given: Mapping[str, Any]) -> Settings:
    """Read the keyword arguments of ``UnitOfWork(…)``.

    Raises:
        ConfigurationError: One is unknown, or its value is wrong.
    """
    for name in given:
        if name not in _RULES:
            raise ConfigurationError(name, f"is not a setting of UnitOfWork. {unknown_name(name, _RULES)}")

    return Settings(**{name: _check(name, name, value) for name, value in given.items()})


def from_config(config: Mapping[str, Any], name: str, defaults: Settings) -> Settings:
    """Read ``app.config``.

    Args:
        config: The app's configuration.
        name: The name of the UnitOfWork: one called "reports" reads ``UOW_REPORTS_AUTO_COMMIT``.
        defaults: What holds where the configuration is silent.

    Raises:
        ConfigurationError: A value is wrong, or a key begins with ``UOW_`` and is none that anybody reads.
    """
    prefix = "UOW_" if name == DEFAULT_NAME else f"UOW_{name.upper()}_"
    keys = {f"{prefix}{known.upper()}": known for known in _RULES}

    for key in config:
        if key.startswith("UOW_") and key not in keys and not _is_anothers(key):
            raise ConfigurationError(
                key, f"is not a setting of flask_uow. {unknown_name(key, [prefix + known.upper() for known in _RULES])}"
            )

    given = {field.name: getattr(defaults, field.name) for field in fields(Settings)}
    given.update({known: _check(key, known, config[key]) for key, known in keys.items() if key in config})
    return Settings(**given)


def _is_anothers(key: str) -> bool:
    """Whether *key* is well formed for a UnitOfWork of some other name, which may be initialised later."""
    return any(key == f"UOW_{known.upper()}" or key.endswith(f"_{known.upper()}") for known in _RULES)


def check_name(name: object) -> str:
    """Return the name of a UnitOfWork, if it can be one.

    Raises:
        ConfigurationError: It is not a string that can be part of a configuration key.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigurationError(
            "name", f'is {name!r}; it must be a string of letters, digits and underscores, such as "reports".'
        )
    return name
