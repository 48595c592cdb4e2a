from __future__ import annotations

from typing import Any

import pytest

from flask_uow import Backoff, ConfigurationError


def test_bounds_without_jitter() -> None:
    """Each wait is twice the one before it, up to the cap."""
    backoff = Backoff(base=0.05, cap=1, jitter=False)

    assert [backoff.delay(number) for number in range(1, 8)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1, 1]
    assert backoff.delay(10_000) == 1


def test_full_jitter() -> None:
    """A wait is anywhere between nothing and its bound, and not the same each time."""
    backoff = Backoff(base=1, cap=8)
    waits = [backoff.delay(3) for _ in range(200)]

    assert all(0 <= wait <= 4 for wait in waits)
    assert min(waits) < 1
    assert max(waits) > 3


def test_no_wait() -> None:
    """A base of 0 is at once, always."""
    assert [Backoff(base=0).delay(number) for number in (1, 2, 5000)] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": -1}, r"^base of a Backoff is -1; it must be a number of seconds, 0 or above"),
        ({"base": "1"}, r"^base of a Backoff is '1'; it must be a number"),
        ({"base": True}, r"^base of a Backoff is True; it must be a number"),
        ({"cap": float("inf")}, r"^cap of a Backoff is inf; it must be a number"),
        ({"cap": float("nan")}, r"^cap of a Backoff is nan; it must be a number"),
        ({"jitter": 0.5}, r"^jitter of a Backoff is 0\.5; it must be True or False"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    """They are checked when it is made."""
    with pytest.raises(ConfigurationError, match=message):
        Backoff(**arguments)
