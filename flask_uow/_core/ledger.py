"""An ordered record that can be cut back to a mark."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Ledger(Generic[T]):
    """What happened in a transaction, in order, and cut back when a savepoint is rolled back."""

    __slots__ = ("_entries",)

    def __init__(self) -> None:
        self._entries: list[T] = []

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: T) -> None:
        """Write *entry* below the others."""
        self._entries.append(entry)

    def extend(self, entries: Iterable[T]) -> None:
        """Write *entries* below the others, in order."""
        self._entries.extend(entries)

    def mark(self) -> int:
        """Return a mark for *forget_since*."""
        return len(self._entries)

    def forget_since(self, mark: int) -> list[T]:
        """Take out what was written since *mark*, and return it in order."""
        forgotten = self._entries[mark:]
        del self._entries[mark:]
        return forgotten
