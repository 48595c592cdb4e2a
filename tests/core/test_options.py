from __future__ import annotations

from typing import Any

import pytest

from flask_uow._core.options import Options, check_options, unknown_name
from flask_uow._core.propagation import Propagation
from flask_uow.errors import ConfigurationError


def is_fine(_response: object) -> bool:
    return True


def test_defaults() -> None:
    """Without options a block joins or begins, and rolls back on every exception."""
    options = check_options({}, decorator=True)

    assert options == Options(Propagation.REQUIRED, (), (), None, None, None, None)


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("propagation", Propagation.REQUIRED, Propagation.REQUIRED),
        ("propagation", Propagation.NESTED, Propagation.NESTED),
        ("propagation", Propagation.MANDATORY, Propagation.MANDATORY),
        ("rollback_for", ValueError, (ValueError,)),
        ("rollback_for", (ValueError, KeyboardInterrupt), (ValueError, KeyboardInterrupt)),
        ("no_rollback_for", LookupError, (LookupError,)),
        ("no_rollback_for", (), ()),
        ("manual_commit", None, None),
        ("manual_commit", "error", "error"),
        ("manual_commit", "flush", "flush"),
        ("manual_commit", "allow", "allow"),
        ("name", None, None),
        ("name", "transfer", "transfer"),
        ("commit_if", None, None),
        ("commit_if", is_fine, is_fine),
        ("using", None, None),
        ("using", "reports", "reports"),
    ],
)
def test_right_values(name: str, value: object, stored: object) -> None:
    """Each option takes what it says it takes, and a single class counts as a tuple."""
    options = check_options({name: value}, decorator=True)

    assert getattr(options, name) == stored


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("propagation", "nested", r"^propagation is 'nested'; it must be a member of Propagation"),
        ("propagation", None, r"^propagation is None; it must be a member"),
        ("rollback_for", "ValueError", r"^rollback_for is 'ValueError'; it must be an exception class, or a tuple"),
        ("rollback_for", int, r"^rollback_for is <class 'int'>; it must be an exception class"),
        ("rollback_for", [ValueError], r"^rollback_for is \[.*\]; it must be an exception class, or a tuple"),
        ("no_rollback_for", (ValueError, "KeyError"), r"^no_rollback_for is .*; it must be an exception class"),
        ("no_rollback_for", ValueError(), r"^no_rollback_for is ValueError\(\); it must be an exception class"),
        ("manual_commit", "ignore", r'^manual_commit is \'ignore\'; it must be None, "error", "flush" or "allow"'),
        ("manual_commit", True, r"^manual_commit is True; it must be None"),
        ("name", "", r"^name is ''; it must be a string that is not empty"),
        ("name", "  ", r"^name is '  '; it must be a string that is not empty"),
        ("name", 7, r"^name is 7; it must be a string"),
        ("commit_if", 200, r"^commit_if is 200; it must be a plain function that takes the response"),
        ("using", object, r"^using is <class 'object'>; it must be the name of a UnitOfWork"),
    ],
)
def test_wrong_values(name: str, value: object, message: str) -> None:
    """A wrong value is refused when it is given, with the option's name and what it can be."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        check_options({name: value}, decorator=True)

    assert caught.value.name == name


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("commit_if", "does not see a response"),
        ("attempts", "cannot be run again"),
        ("retry_on", "cannot be run again"),
        ("backoff", "cannot be run again"),
        ("using", "has its UnitOfWork already"),
    ],
)
def test_options_of_the_decorator_alone(name: str, why: str) -> None:
    """A with block refuses what only a decorator can do, and says why."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is not an option of transaction\(\).*{why}"):
        check_options({name: None}, decorator=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("isolation_level", "SERIALIZABLE"),
        ("read_only", True),
        ("timeout", 5),
        ("verify", is_fine),
        ("resolve_commit", True),
        ("attempts", 3),
        ("retry_on", KeyError),
        ("backoff", None),
    ],
)
def test_options_to_come(name: str, value: object) -> None:
    """An option that this version does not carry out is refused and not ignored."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is not available in this version of flask_uow"):
        check_options({name: value}, decorator=True)


@pytest.mark.parametrize("mode", ["REQUIRES_NEW", "SUPPORTS", "NOT_SUPPORTED", "NEVER"])
def test_propagation_to_come(mode: str) -> None:
    """A mode that this version does not carry out is refused, with those that it does."""
    with pytest.raises(ConfigurationError, match=rf"Propagation\.{mode}, .*Propagation\.REQUIRED, .*MANDATORY\."):
        check_options({"propagation": Propagation[mode]}, decorator=False)


@pytest.mark.parametrize(
    "given",
    [
        {"rollback_for": ValueError, "no_rollback_for": ValueError},
        {"rollback_for": (KeyError, ValueError), "no_rollback_for": (OSError, ValueError)},
    ],
)
def test_contradiction(given: dict[str, Any]) -> None:
    """A class cannot both roll back and not."""
    with pytest.raises(ConfigurationError, match=r"^rollback_for and no_rollback_for both name ValueError"):
        check_options(given, decorator=True)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("no_rolback_for", r"Did you mean no_rollback_for\?$"),
        ("zzz", r"Known are: propagation, rollback_for, .*using\.$"),
    ],
)
def test_unknown_option(name: str, advice: str) -> None:
    """An unknown option is refused with the nearest known one, or all there are."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is not an option of a transaction\. {advice}"):
        check_options({name: 1}, decorator=True)


@pytest.mark.parametrize(("name", "said"), [("colour", "Did you mean color?"), ("x", "Known are: color, shape.")])
def test_unknown_name(name: str, said: str) -> None:
    """What was perhaps meant is said, and what there is where nothing is near."""
    advice = unknown_name(name, {"color": 1, "shape": 2})

    assert advice == said
