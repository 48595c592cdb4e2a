"""What the commands of the benchmarks have in common."""

from __future__ import annotations

import signal
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable

__all__ = ["at_least", "end_in_order"]


def at_least(least: int) -> Callable[[str], int]:
    """Return what reads a number from a command line, and refuses one that is smaller."""

    def number(text: str) -> int:
        if (value := int(text)) < least:
            raise ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number


def end_in_order() -> None:
    """Let SIGTERM end the program as Ctrl-C does: databases are dropped, and processes are ended."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
