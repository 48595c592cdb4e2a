"""How long the database works for a transaction, and how often it is asked."""

from __future__ import annotations

from time import perf_counter

__all__ = ["Stopwatch"]


class Stopwatch:
    """Measures the work of the database for one transaction, from when it has a connection."""

    __slots__ = ("_since", "began", "counts", "in_database", "statements")

    def __init__(self) -> None:
        self.began = perf_counter()
        self._since: float | None = None
        self.in_database = 0.0
        """In seconds."""

        self.statements = 0
        self.counts = True
        """Whether what is sent now is the user's, and not ours."""

    def start(self) -> None:
        """Learn that something is sent to the database. What was sent before, and has no end, does not count."""
        self._since = perf_counter()

    def stop(self) -> None:
        """Learn that the database has answered, if it was asked."""
        if self._since is not None:
            self.in_database += perf_counter() - self._since
            self._since = None
