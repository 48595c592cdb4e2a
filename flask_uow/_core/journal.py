"""What stands beside each message in the log: which transaction it is about, and where that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, Self

__all__ = ["Journal", "Named"]


class Named(Protocol):
    """What can be looked up in the log."""

    @property
    def id(self) -> str:
        """A unique name."""
        ...

    @property
    def _outermost(self) -> Self:
        """The one that it is a savepoint in, or itself."""
        ...


def _nowhere() -> str | None:
    """Know no endpoints."""
    return None


class Journal:
    """Says what a message is about, for the *extra* of the logging calls of one UnitOfWork.

    Args:
        endpoint: Returns the name of the place that is being served, or None. It must not raise.
    """

    __slots__ = ("_endpoint",)

    def __init__(self, endpoint: Callable[[], str | None] = _nowhere) -> None:
        self._endpoint = endpoint

    def about(self, transaction: Named | None, **more: Any) -> dict[str, Any]:
        """Return the *extra* of a message about *transaction*, or about none.

        A savepoint goes by the id of the outermost transaction, as signals and audit trails do.

        Args:
            transaction: What it is about.
            more: What else belongs to it.
        """
        named = None if transaction is None else transaction._outermost.id
        return {"transaction_id": named, "endpoint": self._endpoint(), **more}
