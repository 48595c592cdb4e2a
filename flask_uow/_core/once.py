"""What is done once in a program, whichever thread comes first."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Lock

__all__ = ["once"]


def once(function: Callable[[], None]) -> Callable[[], None]:
    """Let *function* run at the first call, and let nobody go on before it has returned.

    With ``functools.cache`` two threads run it at a time. SQLAlchemy takes a listener of the second for one that it has
    already, and the second goes on while the first has not put it there yet.
    """
    lock = Lock()
    is_done = False

    @wraps(function)
    def run() -> None:
        nonlocal is_done
        if not is_done:
            with lock:
                while not is_done:
                    function()
                    is_done = True

    return run
