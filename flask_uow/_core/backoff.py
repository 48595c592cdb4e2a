"""How long to wait before the next attempt."""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import isfinite

from flask_uow.errors import ConfigurationError

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait between two attempts: capped exponential back-off with full jitter.

    The n-th wait is drawn from 0 to ``min(cap, base * 2 ** (n - 1))`` seconds, so that those who were in each other's
    way do not meet again. See "Exponential Backoff And Jitter" in the AWS Architecture Blog (2015).

    Args:
        base: The bound of the first wait, in seconds.
        cap: The bound of any wait, in seconds.
        jitter: Whether to draw. Without it a wait is as long as its bound.

    Raises:
        ConfigurationError: An argument is not a number of seconds, 0 or above, or not a bool.
    """

    base: float = 0.05
    cap: float = 2.0
    jitter: bool = True

    def __post_init__(self) -> None:
        for name in ("base", "cap"):
            seconds = getattr(self, name)
            is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            if not is_number or seconds < 0 or not isfinite(seconds):
                raise ConfigurationError(
                    name, f"of a Backoff is {seconds!r}; it must be a number of seconds, 0 or above."
                )
        if not isinstance(self.jitter, bool):
            raise ConfigurationError("jitter", f"of a Backoff is {self.jitter!r}; it must be True or False.")

    def delay(self, number: int) -> float:
        """Return how many seconds to wait after the attempt with this number, from 1."""
        # A power of two that is beyond any cap would not fit into a float.
        bound = min(self.cap, self.base * 2.0 ** min(number - 1, 1000)) if self.base else 0.0
        return random.uniform(0, bound) if self.jitter else bound  # noqa: S311 - it spreads, and hides nothing
