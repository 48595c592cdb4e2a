"""When a block is to be done."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Self

__all__ = ["Deadline"]


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a block is to be done."""

    at: float
    """By the monotonic clock, in seconds."""

    seconds: float
    """What the block was given."""

    label: str

    @classmethod
    def after(cls, seconds: float, label: str) -> Self:
        """Return the deadline of a block that begins now."""
        return cls(monotonic() + seconds, seconds, label)

    @property
    def is_over(self) -> bool:
        """Whether it has passed."""
        return monotonic() >= self.at
