from __future__ import annotations

from typing import Any

import pytest

from flask_uow._core.backoff import Backoff
from flask_uow._core.options import Options, check_options, unknown_name
from flask_uow._core.propagation import Propagation
from flask_uow.errors import ConfigurationError, HookError, PartialCommitError


async def is_late(_response: object) -> bool:
    return True


def is_fine(_response: object) -> bool:
    return True


def test_defaults() -> None:
    """Without options a block joins or begins, and rolls back on every exception."""
    options = check_options({}, decorator=True)

    assert options == Options()
    assert (options.propagation, options.rollback_for, options.no_rollback_for) == (Propagation.REQUIRED, (), ())
    assert {getattr(options, name) for name in Options.__dataclass_fields__} == {Propagation.REQUIRED, (), None}


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("propagation", Propagation.REQUIRED, Propagation.REQUIRED),
        ("propagation", Propagation.NESTED, Propagation.NESTED),
        ("propagation", Propagation.MANDATORY, Propagation.MANDATORY),
        ("propagation", Propagation.NEVER, Propagation.NEVER),
        ("isolation_level", None, None),
        ("isolation_level", "SERIALIZABLE", "SERIALIZABLE"),
        ("isolation_level", "repeatable read", "REPEATABLE READ"),
        ("isolation_level", "Read_Committed", "READ COMMITTED"),
        ("isolation_level", "SNAPSHOT", "SNAPSHOT"),
        ("read_only", True, True),
        ("read_only", False, False),
        ("read_only", None, None),
        ("timeout", 5, 5),
        ("timeout", 0.25, 0.25),
        ("timeout", None, None),
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
        ("verify", is_fine, is_fine),
        ("retry_on", getattr, getattr),
        ("verify", None, None),
        ("resolve_commit", True, True),
        ("attempts", 1, 1),
        ("attempts", None, None),
        ("retry_on", KeyError, KeyError),
        ("retry_on", (KeyError, ValueError), (KeyError, ValueError)),
        ("retry_on", is_fine, is_fine),
        ("backoff", Backoff(base=1), Backoff(base=1)),
        ("backoff", None, None),
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
        ("isolation_level", "AUTOCOMMIT", r"^isolation_level is 'AUTOCOMMIT'; it must be one of READ UNCOMMITTED, "),
        ("isolation_level", "SERIALISABLE", r"^isolation_level is 'SERIALISABLE'; it must be one of .*SERIALIZABLE"),
        ("isolation_level", 3, r"^isolation_level is 3; it must be one of"),
        ("read_only", 1, r"^read_only is 1; it must be True, False or None"),
        ("timeout", 0, r"^timeout is 0; it must be a number of seconds above 0, or None"),
        ("timeout", -1, r"^timeout is -1; it must be a number of seconds above 0"),
        ("timeout", True, r"^timeout is True; it must be a number"),
        ("timeout", "5", r"^timeout is '5'; it must be a number"),
        ("timeout", float("inf"), r"^timeout is inf; it must be a number"),
        ("timeout", float("nan"), r"^timeout is nan; it must be a number"),
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
        ("verify", 1, r"^verify is 1; it must be a plain function that takes a session"),
        ("verify", bool, r"^verify is <class 'bool'>; it must be a plain function"),
        ("verify", lambda: True, r"^verify is .*; it must be a plain function that takes a session"),
        ("retry_on", lambda: True, r"^retry_on is .*; it must be a subclass of Exception"),
        ("verify", is_late, r"^verify is .*; it must be a plain function"),
        ("resolve_commit", 1, r"^resolve_commit is 1; it must be True, False or None"),
        ("attempts", 0, r"^attempts is 0; it must be a whole number, 1 or above"),
        ("attempts", -1, r"^attempts is -1; it must be a whole number"),
        ("attempts", True, r"^attempts is True; it must be a whole number"),
        ("attempts", "3", r"^attempts is '3'; it must be a whole number"),
        ("attempts", 2.5, r"^attempts is 2\.5; it must be a whole number.*or None for the setting"),
        (
            "retry_on",
            int,
            r"^retry_on is <class 'int'>; it must be a subclass of Exception, a tuple of them, or",
        ),
        (
            "retry_on",
            KeyboardInterrupt,
            r"^retry_on is <class 'KeyboardInterrupt'>; it must be a subclass of Exception",
        ),
        ("retry_on", HookError, r"^retry_on names HookError, after which some work is stored"),
        ("retry_on", (KeyError, PartialCommitError), r"^retry_on names PartialCommitError"),
        ("retry_on", [KeyError], r"^retry_on is \[.*\]; it must be a subclass of"),
        ("retry_on", (KeyError, is_fine), r"^retry_on is \(.*\); it must be a subclass of"),
        ("retry_on", is_late, r"^retry_on is .*; it must be a subclass of"),
        ("retry_on", None, r"^retry_on is None; it must be a subclass of"),
        ("backoff", 0.1, r"^backoff is 0\.1; it must be a Backoff, such as Backoff\(base=0\.1\), or None"),
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
        ("commit_if", "about a response, which only a view has"),
        ("attempts", "can be run again"),
        ("retry_on", "can be run again"),
        ("backoff", "can be run again"),
        ("using", "has its UnitOfWork already"),
    ],
)
def test_options_of_the_decorator_alone(name: str, why: str) -> None:
    """A with block refuses what only a decorator can do, and says why."""
    with pytest.raises(ConfigurationError, match=rf"^{name} is not an option of transaction\(\).*{why}"):
        check_options({name: None}, decorator=False)


@pytest.mark.parametrize("mode", ["NOT_SUPPORTED", "NEVER"])
@pytest.mark.parametrize(("name", "value"), [("isolation_level", "SERIALIZABLE"), ("read_only", True), ("timeout", 5)])
def test_options_of_a_transaction_that_never_is(mode: str, name: str, value: object) -> None:
    """What holds for a transaction contradicts a mode that has none."""
    with pytest.raises(
        ConfigurationError, match=rf"^{name} is about a transaction, and with Propagation\.{mode} there"
    ):
        check_options({"propagation": Propagation[mode], name: value}, decorator=False)


@pytest.mark.parametrize("mode", ["MANDATORY", "SUPPORTS", "NOT_SUPPORTED", "NEVER"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("commit_if", is_fine),
        ("verify", is_fine),
        ("resolve_commit", False),
        ("attempts", 3),
        ("retry_on", KeyError),
        ("backoff", Backoff()),
    ],
)
def test_options_of_a_block_that_never_begins(mode: str, name: str, value: object) -> None:
    """Who cannot begin a transaction cannot say how it commits, nor run it again."""
    with pytest.raises(
        ConfigurationError, match=rf"^{name} is for the block that begins .*Propagation\.{mode} that is"
    ):
        check_options({"propagation": Propagation[mode], name: value}, decorator=True)


@pytest.mark.parametrize("mode", ["MANDATORY", "SUPPORTS"])
def test_demands_of_a_block_that_only_joins(mode: str) -> None:
    """Who joins may say what the transaction has to be."""
    options = check_options({"propagation": Propagation[mode], "read_only": True}, decorator=False)

    assert options.read_only is True


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
        ("zzz", r"Known are: propagation, isolation_level, .*using\.$"),
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
