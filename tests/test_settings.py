from __future__ import annotations

from dataclasses import FrozenInstanceError
from http import HTTPMethod
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session

from flask_uow import ConfigurationError, UnitOfWork
from flask_uow.settings import KNOWN_METHODS, Settings, check_name, from_arguments, from_config

RIGHT: list[tuple[str, object, object]] = [
    ("auto_commit", True, True),
    ("auto_commit", False, False),
    ("auto_commit", {"POST", "PUT"}, frozenset({"POST", "PUT"})),
    ("auto_commit", frozenset({"delete"}), frozenset({"DELETE"})),
    ("auto_commit", ["Post"], frozenset({"POST"})),
    ("auto_commit", ("POST", "POST"), frozenset({"POST"})),
    ("auto_commit", {HTTPMethod.PATCH}, frozenset({"PATCH"})),
    ("auto_commit", {"PROPFIND"}, frozenset({"PROPFIND"})),
    ("auto_commit", set(), frozenset()),
    ("commit_if", None, None),
    ("commit_if", bool, bool),
    ("manual_commit", "error", "error"),
    ("manual_commit", "flush", "flush"),
    ("manual_commit", "allow", "allow"),
    ("hook_errors", None, None),
    ("hook_errors", "log", "log"),
    ("hook_errors", "raise", "raise"),
    ("uncommitted", "warn", "warn"),
    ("uncommitted", "raise", "raise"),
    ("uncommitted", "ignore", "ignore"),
    ("strict", True, True),
    ("strict", False, False),
    ("isolation_level", None, None),
    ("isolation_level", "repeatable_read", "REPEATABLE READ"),
    ("timeout", None, None),
    ("timeout", 2.5, 2.5),
    ("slow_transaction", None, None),
    ("slow_transaction", 1, 1),
    ("slow_transaction", 0.25, 0.25),
    ("read_only_methods", {"get", "HEAD"}, frozenset({"GET", "HEAD"})),
    ("read_only_methods", (), frozenset()),
    ("attempts", 1, 1),
    ("attempts", 3, 3),
    ("resolve_commit", True, True),
    ("resolve_commit", False, False),
]

_METHODS = r"it must be True, False, or a set of HTTP methods such as"

WRONG: list[tuple[str, object, str]] = [
    ("auto_commit", "POST", _METHODS),
    ("auto_commit", b"POST", _METHODS),
    ("auto_commit", 1, _METHODS),
    ("auto_commit", None, _METHODS),
    ("auto_commit", {"POST", "PSOT"}, _METHODS),
    ("auto_commit", {"POST": True}, _METHODS),
    ("auto_commit", [405], _METHODS),
    ("auto_commit", iter(["POST"]), _METHODS),
    ("commit_if", 200, "it must be a plain function that takes the response"),
    ("manual_commit", None, 'it must be "error", "flush" or "allow"'),
    ("manual_commit", "ignore", 'it must be "error", "flush" or "allow"'),
    ("manual_commit", ["flush"], 'it must be "error", "flush" or "allow"'),
    ("hook_errors", "ignore", 'it must be "log", "raise" or None'),
    ("hook_errors", True, 'it must be "log", "raise" or None'),
    ("uncommitted", None, 'it must be "warn", "raise" or "ignore"'),
    ("uncommitted", "log", 'it must be "warn", "raise" or "ignore"'),
    ("uncommitted", ["warn"], 'it must be "warn", "raise" or "ignore"'),
    ("strict", None, "it must be True or False"),
    ("isolation_level", "AUTOCOMMIT", "it must be one of READ UNCOMMITTED, "),
    ("timeout", 0, "it must be a number of seconds above 0, or None"),
    *(
        ("slow_transaction", value, "it must be a number of seconds above 0, or None")
        for value in (0, -1.5, True, "1", float("nan"), float("inf"))
    ),
    ("read_only_methods", True, "it must be a set of HTTP methods such as"),
    ("read_only_methods", "GET", "it must be a set of HTTP methods such as"),
    ("attempts", 0, "it must be a whole number, 1 or above"),
    ("attempts", None, "it must be a whole number, 1 or above"),
    ("attempts", True, "it must be a whole number"),
    ("resolve_commit", None, "it must be True or False"),
    ("resolve_commit", "yes", "it must be True or False"),
]


def unit(name: Any = "default", /, **settings: Any) -> UnitOfWork:
    return UnitOfWork(Session, name=name, **settings)


def settings_in(app: Flask, uow: UnitOfWork) -> Settings:
    with app.app_context():
        managed = uow._managed()
    assert managed is not None
    return managed.settings


def test_defaults(app: Flask) -> None:
    """Without configuration nothing is committed by itself, and a commit by hand inside a block is an error."""
    uow = unit()

    uow.init_app(app)

    assert settings_in(app, uow) == Settings(auto_commit=False, commit_if=None, manual_commit="error", hook_errors=None)


@pytest.mark.parametrize(("name", "value", "stored"), RIGHT)
def test_right_arguments(app: Flask, name: str, value: object, stored: object) -> None:
    """A setting can be given to the constructor in lower case, and counts for every app and for none."""
    uow = unit(**{name: value})

    uow.init_app(app)

    assert getattr(uow._settings, name) == stored
    assert getattr(settings_in(app, uow), name) == stored


@pytest.mark.parametrize(("name", "value", "stored"), RIGHT)
def test_right_configuration(app: Flask, name: str, value: object, stored: object) -> None:
    """A setting can be given in the app's configuration."""
    app.config[f"UOW_{name.upper()}"] = value
    uow = unit()

    uow.init_app(app)

    assert getattr(settings_in(app, uow), name) == stored


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_arguments(name: str, value: object, message: str) -> None:
    """A wrong value is refused by the constructor, with what is allowed."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is .*; {message}") as caught:
        unit(**{name: value})

    assert caught.value.name == name


@pytest.mark.parametrize(("name", "value", "message"), WRONG)
def test_wrong_configuration(app: Flask, name: str, value: object, message: str) -> None:
    """A wrong value is refused by init_app() under its full name, and nothing is installed."""
    key = f"UOW_{name.upper()}"
    app.config[key] = value
    uow = unit()

    with pytest.raises(ConfigurationError, match=rf"^{key} is .*; {message}") as caught:
        uow.init_app(app)

    assert caught.value.name == key
    assert "uow" not in app.extensions
    assert "full_dispatch_request" not in vars(app)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("autocommit", r"Did you mean auto_commit\?"),
        ("manual_comit", r"Did you mean manual_commit\?"),
        ("hook_error", r"Did you mean hook_errors\?"),
        ("zzz", r"Known are: auto_commit, commit_if, manual_commit, hook_errors, .*resolve_commit\."),
    ],
)
def test_unknown_arguments(name: str, advice: str) -> None:
    """An unknown argument is refused with the nearest known one, or all there are."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is not a setting of UnitOfWork\. {advice}$"):
        unit(**{name: True})


@pytest.mark.parametrize(
    ("key", "advice"),
    [
        ("UOW_AUTOCOMMIT", r"Did you mean UOW_AUTO_COMMIT\?"),
        ("UOW_HOOK_ERROR", r"Did you mean UOW_HOOK_ERRORS\?"),
        ("UOW_", r"Known are: UOW_AUTO_COMMIT, .*UOW_RESOLVE_COMMIT\."),
        ("UOW_REPORTS_AUTO_COMIT", r"Did you mean UOW_AUTO_COMMIT\?"),
    ],
)
def test_unknown_keys(app: Flask, key: str, advice: str) -> None:
    """An unknown key is refused with the nearest known one, or all there are."""
    app.config[key] = True

    with pytest.raises(ConfigurationError, match=rf"^{key} is not a setting of flask_uow\. {advice}$"):
        unit().init_app(app)


def test_unknown_key_of_a_named_object(app: Flask) -> None:
    """A named object proposes the keys that it reads."""
    app.config["UOW_REPORTS_AUTO_COMIT"] = True

    with pytest.raises(ConfigurationError, match=r"Did you mean UOW_REPORTS_AUTO_COMMIT\?$"):
        unit("reports").init_app(app)


@pytest.mark.parametrize("key", ["UOWAUTOCOMMIT", "SQLALCHEMY_UOW_X", "uow_auto_comit"])
def test_keys_of_others(app: Flask, key: str) -> None:
    """Keys without the prefix are nobody's business."""
    app.config[key] = object()

    unit().init_app(app)

    assert "uow" in app.extensions


def test_named_object(app: Flask) -> None:
    """A named object reads the keys with its name, and the default one those without."""
    app.config.update(UOW_AUTO_COMMIT=True, UOW_REPORTS_AUTO_COMMIT={"POST"}, UOW_REPORTS_HOOK_ERRORS="log")
    default, reports = unit(), unit("reports")

    default.init_app(app)
    reports.init_app(app)

    assert settings_in(app, default) == Settings(auto_commit=True)
    assert settings_in(app, reports) == Settings(auto_commit=frozenset({"POST"}), hook_errors="log")


def test_wrong_value_of_a_named_object(app: Flask) -> None:
    """A wrong value is refused by the object that it is meant for, under its full name."""
    app.config["UOW_REPORTS_MANUAL_COMMIT"] = "never"
    unit().init_app(app)

    with pytest.raises(ConfigurationError, match=r"^UOW_REPORTS_MANUAL_COMMIT is 'never'; it must be"):
        unit("reports").init_app(app)


def test_configuration_wins_over_arguments(app: Flask) -> None:
    """Arguments are defaults, which the app's configuration overrides one by one."""
    app.config["UOW_AUTO_COMMIT"] = False
    uow = unit(auto_commit=True, manual_commit="flush")

    uow.init_app(app)

    assert settings_in(app, uow) == Settings(auto_commit=False, manual_commit="flush")
    assert uow._settings.auto_commit is True


def test_configuration_is_read_once(app: Flask) -> None:
    """What is changed after init_app() has no effect."""
    uow = unit()
    uow.init_app(app)

    app.config["UOW_AUTO_COMMIT"] = True

    assert settings_in(app, uow).auto_commit is False


def test_apps_have_settings_of_their_own() -> None:
    """One object follows each app's configuration."""
    first, second = Flask("first"), Flask("second")
    first.config["UOW_AUTO_COMMIT"] = True
    uow = unit()

    uow.init_app(first)
    uow.init_app(second)

    assert [settings_in(app, uow).auto_commit for app in (first, second)] == [True, False]


def test_settings_are_frozen() -> None:
    """Nobody changes settings after they were checked."""
    settings = from_arguments({"auto_commit": True})

    with pytest.raises(FrozenInstanceError):
        settings.auto_commit = False  # type: ignore[misc] # this is the point


def test_silent_configuration() -> None:
    """A configuration that says nothing leaves the defaults."""
    defaults = Settings(auto_commit=True, hook_errors="raise")

    settings = from_config({"TESTING": True}, "default", defaults)

    assert settings == defaults


@pytest.mark.parametrize(
    ("auto_commit", "method", "matches"),
    [
        (True, "GET", True),
        (True, "BREW", True),
        (False, "POST", False),
        (frozenset({"POST"}), "POST", True),
        (frozenset({"POST"}), "GET", False),
        (frozenset({"POST"}), "HEAD", False),
        (frozenset({"GET"}), "HEAD", True),
        (frozenset({"HEAD"}), "HEAD", True),
        (frozenset({"HEAD"}), "GET", False),
        (frozenset(), "POST", False),
    ],
)
def test_methods(auto_commit: bool | frozenset[str], method: str, matches: bool) -> None:
    """The policy covers all requests, none, or those with its methods, and HEAD goes where GET goes."""
    settings = Settings(auto_commit=auto_commit)

    assert settings.matches(method) is matches


def test_known_methods() -> None:
    """Every method of the standard library can be named."""
    assert {str(method) for method in HTTPMethod} <= KNOWN_METHODS


@pytest.mark.parametrize("name", ["default", "reports", "Reports2", "_x"])
def test_right_names(name: str) -> None:
    """What can be part of a configuration key can be a name."""
    checked = check_name(name)

    assert checked == name
    assert unit(name).name == name


@pytest.mark.parametrize("name", ["", "my reports", "a-b", "2nd", None, 7])
def test_wrong_names(name: Any) -> None:
    """What cannot be part of a configuration key is refused as a name."""
    with pytest.raises(ConfigurationError, match=r"^name is .*; it must be a string of letters, digits and underscore"):
        unit(name)


@pytest.mark.parametrize(
    ("setting", "testing", "hook_errors"),
    [(None, False, "log"), (None, True, "raise"), ("log", True, "log"), ("raise", False, "raise")],
)
def test_hook_errors(app: Flask, setting: str | None, testing: bool, hook_errors: str) -> None:
    """Hooks' errors are raised in an app that is testing and logged elsewhere, unless the setting says which."""
    app.testing = testing
    uow = unit(hook_errors=setting)
    uow.init_app(app)

    with app.app_context():
        runtime, _ = uow._home()

    assert runtime.hook_errors() == hook_errors


@pytest.mark.parametrize(("setting", "hook_errors"), [(None, "log"), ("raise", "raise")])
def test_hook_errors_without_an_app(setting: str | None, hook_errors: str) -> None:
    """Where there is no app hooks' errors are logged, unless the setting says otherwise."""
    uow = unit(hook_errors=setting)

    runtime, _ = uow._home()

    assert runtime.hook_errors() == hook_errors
