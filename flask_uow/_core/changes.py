"""What a transaction has changed, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import compress
from operator import is_not, itemgetter
from typing import Any, Final, Literal, NamedTuple, Self, overload
from uuid import UUID

from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import LoaderCallableStatus
from sqlalchemy.util import immutabledict

__all__ = [
    "NO_VALUE",
    "UNLOADED",
    "BulkChange",
    "Change",
    "ChangeSet",
    "Entry",
    "Layout",
    "Operation",
    "Row",
    "RowChange",
    "copy_of",
    "net",
    "tuple_getter",
]

Operation = Literal["insert", "update", "delete"]


class Change(NamedTuple):
    """What has become of one row.

    It holds plain values: no instance, no session. It is a tuple, and can be kept, compared and pickled.
    """

    operation: Operation
    """``"insert"``, ``"update"`` or ``"delete"``."""

    entity: str | None
    """The name of the mapped class, or None for a row of an association table."""

    table: str
    """The name of the table, after that of its schema and a dot if it has one."""

    identity: tuple[Any, ...]
    """The row's primary key, after the change; of a deleted row, the one that it had."""

    before: Mapping[str, Any]
    """What was there, by the names of columns: nothing for an insert, the columns that have changed for an update."""

    after: Mapping[str, Any]
    """What is there now, likewise: nothing for a deletion.

    A column that is here and not in *before* was written without having been loaded.
    """


class BulkChange(NamedTuple):
    """What one INSERT, UPDATE or DELETE has changed that went through the session, and past its objects."""

    operation: Operation
    """``"insert"``, ``"update"`` or ``"delete"``."""

    table: str | None
    """The name of the table, or None where a textual statement does not say it in a way that is understood."""

    rowcount: int
    """How many rows it has touched, or -1 where the driver does not say."""

    statement: str
    """The SQL, with placeholders where its parameters were."""


class _Unloaded(Enum):
    UNLOADED = "unloaded"


UNLOADED: Final = _Unloaded.UNLOADED
"""A column that the session has neither loaded nor written."""

NO_VALUE: Final = LoaderCallableStatus.NO_VALUE
"""What a column had that was written without having been loaded. It is SQLAlchemy's own marker."""

Row = tuple[Any, ...]
"""The values of one row, in the order of its layout."""


class Layout:
    """The columns of one table, in order.

    Args:
        table: What the table is called.
        names: The columns.
        key: Which of them, by their places, are the primary key.
        equal: For each column, whether two of its values are the same to the database.
        numbers: The places of those that are integers: a key may have been given as a string.
        copied: The places of those whose values somebody may change in place.
    """

    __slots__ = ("_copied", "_equal", "_places", "identity", "names", "table")

    def __init__(
        self,
        table: str,
        names: Sequence[str],
        key: Sequence[int],
        equal: Sequence[Callable[[Any, Any], Any]],
        *,
        numbers: Collection[int] = (),
        copied: Iterable[int] = (),
    ) -> None:
        self.table = table
        self.names = tuple(names)
        self._places = range(len(self.names))
        self._equal = tuple(equal)
        self._copied = frozenset(self.names[place] for place in copied)
        self.identity: Callable[[Row], tuple[Any, ...]] = _key_getter(key, numbers)
        """Returns the primary key of a row."""

    def known(self, row: Row) -> Mapping[str, Any]:
        """Return what is known of *row*, by the names of its columns."""
        known = {
            name: value
            for name, value in zip(self.names, row, strict=True)
            if value is not UNLOADED and value is not NO_VALUE
        }
        return self._told(known)

    def difference(self, before: Row, after: Row) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """Return what two versions of a row differ in, or None if they do not."""
        old: dict[str, Any] = {}
        new: dict[str, Any] = {}
        for place in compress(self._places, map(is_not, before, after)):
            was, now = before[place], after[place]
            if was is UNLOADED or now is UNLOADED:
                continue
            name = self.names[place]
            if was is NO_VALUE:
                new[name] = now
            elif _differ(self._equal[place], was, now):
                old[name], new[name] = was, now
        return (self._told(old), self._told(new)) if new else None

    def _told(self, values: dict[str, Any]) -> Mapping[str, Any]:
        """Return *values* as somebody can have them who may change them in place."""
        for name in self._copied.intersection(values):
            values[name] = copy_of(values[name])
        return immutabledict(values)


def _differ(equal: Callable[[Any, Any], Any], one: Any, other: Any) -> bool:
    try:
        # As SQLAlchemy asks: those of arrays are arrays.
        return equal(one, other) is not True
    except Exception:  # noqa: BLE001 - values that cannot be compared are no reason not to commit
        return True


def copy_of(value: Any) -> Any:
    """Return a value that nobody else can change, or the same if nobody can, or it cannot be copied."""
    if type(value) in _IMMUTABLE:
        return value
    try:
        return _copy(value)
    except Exception:  # noqa: BLE001 - no reason for a flush to fail: not even that it contains itself
        return value


def _copy(value: Any) -> Any:
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    # Those of SQLAlchemy's that know their owners become plain ones.
    if kind is dict or isinstance(value, MutableDict):
        return {key: _copy(each) for key, each in value.items()}
    if kind is list or isinstance(value, MutableList):
        return [_copy(each) for each in value]
    return deepcopy(value)


_IMMUTABLE: Final = frozenset(
    (type(None), bool, bytes, date, datetime, Decimal, float, int, str, time, timedelta, UUID)
)


def tuple_getter(places: Sequence[Any]) -> Callable[[Any], tuple[Any, ...]]:
    """Return a function that takes what something has at *places*, as a tuple."""
    if len(places) == 1:
        (place,) = places
        return lambda values: (values[place],)
    return itemgetter(*places)


def _key_getter(places: Sequence[int], numbers: Collection[int]) -> Callable[[Row], tuple[Any, ...]]:
    """Return a function that takes the primary key of a row, as the database has it."""
    take = tuple_getter(places)
    if not any(place in numbers for place in places):
        return take
    if len(places) == 1:
        (place,) = places
        return lambda row: (row[place],) if type(row[place]) is int else (_number(row[place]),)
    are_numbers = [place in numbers for place in places]

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(
            _number(value) if is_number else value for value, is_number in zip(take(row), are_numbers, strict=True)
        )

    return key


def _number(value: Any) -> Any:
    if isinstance(value, str):
        with suppress(ValueError):
            return int(value)
    return value


RowChange = tuple[Layout, str | None, Row | None, Row | None]
"""What one flush has done to one row: layout, entity, before and after. None before is an insert, after a deletion.

It is a plain tuple, because there are as many as there are rows.
"""

Entry = RowChange | BulkChange


_Key = tuple[Layout, tuple[Any, ...]]


class _Fate:
    """What has become of one row over all flushes."""

    __slots__ = ("after", "before", "entity", "layout", "was")

    def __init__(self, layout: Layout, entity: str | None, before: Row | None, after: Row | None) -> None:
        self.layout = layout
        self.was = self.entity = entity
        """What it was mapped to at first, and is now: another class can have inserted it again."""

        self.before = before
        self.after = after

    @property
    def old_key(self) -> _Key:
        """The table, and the primary key that the row had."""
        assert self.before is not None
        return self.layout, self.layout.identity(self.before)

    @property
    def new_key(self) -> _Key:
        """The table, and the primary key that it has."""
        assert self.after is not None
        return self.layout, self.layout.identity(self.after)

    @property
    def has_moved(self) -> bool:
        """Whether its primary key is another."""
        return self.before is not None and self.after is not None and self.old_key != self.new_key

    def goes_on(self, entity: str | None, before: Row, after: Row | None) -> None:
        """Let another flush change the row, or delete it; what it knows of columns that none has touched is old."""
        self.entity = entity
        assert self.after is not None
        if self.before is not None:
            self.before = tuple(
                was if was is not UNLOADED else known if now is UNLOADED else now
                for was, now, known in zip(self.before, self.after, before, strict=True)
            )
        self.after = after and tuple(
            was if now is UNLOADED or now is NO_VALUE else now for was, now in zip(self.after, after, strict=True)
        )

    def comes_back(self, entity: str | None, after: Row) -> None:
        """Let the row be inserted again that was deleted; what had not been loaded of it was written, then."""
        self.entity, self.after = entity, after
        assert self.before is not None
        self.before = tuple(NO_VALUE if was is UNLOADED else was for was in self.before)


def _change(fate: _Fate) -> Change | None:
    """Return the net change of a row, if there is any."""
    layout, entity, before, after = fate.layout, fate.entity, fate.before, fate.after
    if before is None:
        if after is None:
            return None
        return Change("insert", entity, layout.table, layout.identity(after), _NOTHING, layout.known(after))
    if after is None:
        return Change("delete", fate.was, layout.table, layout.identity(before), layout.known(before), _NOTHING)
    difference = layout.difference(before, after)
    return difference and Change("update", entity, layout.table, layout.identity(after), *difference)


_NOTHING: Final[Mapping[str, Any]] = immutabledict()


def net(entries: Iterable[Entry]) -> Iterator[Change | BulkChange]:
    """Yield what *entries* come to, each row once, in the order in which they were touched first.

    An insert and its updates are one insert, an insert and its deletion are nothing, and so is an update back to the
    old values.
    """
    for each in _fates(entries):
        change = each if isinstance(each, BulkChange) else _change(each)
        if change is not None:
            yield change


def _fates(entries: Iterable[Entry]) -> list[_Fate | BulkChange]:
    fates: list[_Fate | BulkChange] = []
    alive: defaultdict[Layout, dict[tuple[Any, ...], _Fate]] = defaultdict(dict)
    gone: defaultdict[Layout, dict[tuple[Any, ...], _Fate]] = defaultdict(dict)
    any_moved = False

    for entry in entries:
        if isinstance(entry, BulkChange):
            fates.append(entry)
            continue
        layout, entity, before, after = entry
        rows = alive[layout]
        fate: _Fate | None
        if before is None:
            assert after is not None
            identity = layout.identity(after)
            fate = gone[layout].pop(identity, None)
            if fate is None:
                fate = _Fate(layout, entity, None, after)
                fates.append(fate)
            else:
                fate.comes_back(entity, after)
            rows[identity] = fate
            continue
        identity = layout.identity(before)
        fate = rows.pop(identity, None)
        if fate is None:
            fate = _Fate(layout, entity, before, after)
            fates.append(fate)
        else:
            fate.goes_on(entity, before, after)
        if after is not None:
            key = layout.identity(after)
            any_moved = any_moved or key != identity
            rows[key] = fate
        elif fate.before is not None:
            gone[layout][layout.identity(fate.before)] = fate
    return _settled(fates) if any_moved else fates


def _settled(fates: list[_Fate | BulkChange]) -> list[_Fate | BulkChange]:
    """Let a row that has moved to the key of another be that one, so that no key is told twice."""
    rows = [each for each in fates if isinstance(each, _Fate)]
    moved = {fate.new_key: fate for fate in rows if fate.has_moved}
    removed = [fate.old_key for fate in rows if fate.after is None and fate.before is not None]
    while removed:
        fate = moved.pop(removed.pop(), None)
        if fate is not None:
            other = _Fate(fate.layout, fate.entity, None, fate.after)
            fate.after = None
            # Another may have moved to where it was.
            removed.append(fate.old_key)
            rows.append(other)
            fates.append(other)

    inserted = {fate.new_key: fate for fate in rows if fate.before is None and fate.after is not None}
    for fate in rows:
        if fate.before is not None and fate.after is None and (other_row := inserted.get(fate.old_key)) is not None:
            assert other_row.after is not None
            fate.comes_back(other_row.entity, other_row.after)
            other_row.after = None
    return fates


class ChangeSet(Sequence["Change | BulkChange"]):
    """What a transaction has changed in all, as an immutable sequence of `Change` and `BulkChange`.

    It is the net change: each row is in it once at most, however many flushes it took, in the order in which the rows
    were touched first. It is made of the entries when somebody looks at it.

    Args:
        changes: The changes.
        is_complete: Whether it was followed from the beginning of the transaction.
    """

    __slots__ = ("_changes", "_entries", "_is_complete")

    def __init__(self, changes: Iterable[Change | BulkChange] = (), *, is_complete: bool = True) -> None:
        self._changes: tuple[Change | BulkChange, ...] | None = tuple(changes)
        self._entries: Sequence[Entry] = ()
        self._is_complete = is_complete

    @classmethod
    def of(cls, entries: Sequence[Entry], *, is_complete: bool) -> Self:
        """Return the net change of *entries*, which nobody changes any more."""
        changes = cls(is_complete=is_complete)
        changes._changes, changes._entries = None, entries
        return changes

    @property
    def is_complete(self) -> bool:
        """False if nobody listened when the transaction began, so that some of its changes may be missing."""
        return self._is_complete

    def _made(self) -> tuple[Change | BulkChange, ...]:
        entries, changes = self._entries, self._changes
        if changes is None:
            # Two threads may do so at once, and come to the same.
            changes = self._changes = tuple(net(entries))
            self._entries = ()
        return changes

    def __len__(self) -> int:
        return len(self._made())

    def __iter__(self) -> Iterator[Change | BulkChange]:
        return iter(self._made())

    @overload
    def __getitem__(self, index: int) -> Change | BulkChange: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Change | BulkChange, ...]: ...
    def __getitem__(self, index: int | slice) -> Change | BulkChange | tuple[Change | BulkChange, ...]:
        return self._made()[index]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ChangeSet):
            return self._made() == other._made()
        if isinstance(other, (list, tuple)):
            return self._made() == tuple(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment] # as of a list: what is in it need not be hashable

    def __repr__(self) -> str:
        return f"ChangeSet({list(self._made())!r}{'' if self.is_complete else ', is_complete=False'})"

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (self._made(), self.is_complete)


def _restored(changes: tuple[Change | BulkChange, ...], is_complete: bool) -> ChangeSet:  # noqa: FBT001 - pickle
    return ChangeSet(changes, is_complete=is_complete)
