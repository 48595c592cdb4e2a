"""The set of changes itself. What is in it is tested on every kind of database, in tests/databases/changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from operator import eq as equal
from typing import Any

import pytest
from sqlalchemy import delete

from flask_uow._core.changes import BulkChange, Change, ChangeSet, Layout, Row, copy_of
from flask_uow._core.events import AfterCommit
from flask_uow._core.runtime import Runtime
from tests.core.conftest import Book, Events, block

CHANGES: list[Change | BulkChange] = [
    Change("insert", "Person", "person", (1,), {}, {"id": 1}),
    Change("update", "Person", "person", (2,), {"age": 1}, {"age": 2}),
    BulkChange("delete", "person", 3, "DELETE FROM person"),
]

EMMA = {"id": 1, "title": "Emma", "printed": None}
LADY_SUSAN = {"id": 2, "title": "Lady Susan", "printed": None}


@pytest.fixture
def notify(events: Events) -> Events:
    """Who listens: changes are followed for nobody else."""
    return events


@pytest.fixture
def told(runtime: Runtime, events: Events) -> ChangeSet:
    """The changes of a transaction that is over. Nobody has looked at them yet."""
    with block(runtime) as session:
        session.add_all([Book(**EMMA), Book(**LADY_SUSAN)])
    with block(runtime) as session:
        emma, lady_susan = session.get_one(Book, 1), session.get_one(Book, 2)
        emma.title = "Emma II"
        session.delete(lady_susan)
        session.add(Book(id=3, title="Sanditon"))
        session.flush()
        session.execute(delete(Book).where(Book.id == 1))

    return [event.changes for event in events if isinstance(event, AfterCommit)][-1]


def test_sequence() -> None:
    """It is a sequence of its changes."""
    changes = ChangeSet(CHANGES)

    assert len(changes) == 3
    assert bool(changes)
    assert not ChangeSet()
    assert list(changes) == CHANGES
    assert list(reversed(changes)) == CHANGES[::-1]
    assert changes[0] == CHANGES[0]
    assert changes[-1] == CHANGES[2]
    assert changes[1:] == tuple(CHANGES[1:])
    assert CHANGES[1] in changes
    assert changes.index(CHANGES[1]) == 1
    assert changes.count(CHANGES[1]) == 1
    with pytest.raises(IndexError):
        changes[3]


def test_equality() -> None:
    """It is equal to another, a list or a tuple of the same changes, and to nothing else."""
    changes = ChangeSet(CHANGES)

    assert changes == ChangeSet(CHANGES) == CHANGES
    assert changes == tuple(CHANGES)
    assert changes != CHANGES[:2]
    assert changes != ChangeSet(CHANGES[:2])
    assert changes != set()
    with pytest.raises(TypeError):
        hash(changes)


def test_immutable(told: ChangeSet) -> None:
    """Neither the set, nor a change, nor its columns can be changed."""
    changes: Any = told
    before = list(told)

    with pytest.raises(TypeError):
        changes[0] = None
    with pytest.raises(AttributeError):
        changes.append(None)
    with pytest.raises(AttributeError):
        changes.is_complete = False
    for change in changes:
        with pytest.raises(AttributeError):
            change.operation = "delete"
    for change in changes[:3]:
        with pytest.raises(TypeError):
            change.before["id"] = 7
        with pytest.raises(TypeError):
            change.after["id"] = 7

    assert changes == before


def test_repr() -> None:
    """It shows its changes, and that they may not be all."""
    changes = ChangeSet(CHANGES[2:])
    incomplete = ChangeSet(is_complete=False)

    assert repr(changes) == (
        "ChangeSet([BulkChange(operation='delete', table='person', rowcount=3, statement='DELETE FROM person')])"
    )
    assert repr(incomplete) == "ChangeSet([], is_complete=False)"


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda changes: pickle.loads(pickle.dumps(changes))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_copies(told: ChangeSet, copied: Callable[[ChangeSet], ChangeSet]) -> None:
    """It can be copied and pickled, with all that is in it, before and after somebody has looked at it."""
    early = copied(told)
    late = copied(told)
    incomplete = copied(ChangeSet(CHANGES, is_complete=False))

    assert isinstance(early, ChangeSet)
    assert early == told == late
    assert len(early) == 4
    assert incomplete == CHANGES
    assert (early.is_complete, incomplete.is_complete) == (True, False)


def test_outlives_the_session(told: ChangeSet) -> None:
    """It can be looked at for the first time when the session is closed and the objects are gone."""
    *rows, bulk = told

    assert sorted(rows) == [
        Change("delete", "Book", "book", (2,), LADY_SUSAN, {}),
        Change("insert", "Book", "book", (3,), {}, {"id": 3, "title": "Sanditon", "printed": None}),
        Change("update", "Book", "book", (1,), {"title": "Emma"}, {"title": "Emma II"}),
    ]
    assert bulk[:3] == ("delete", "book", 1)


# The net of several flushes

SEATS = Layout("seat", ("id", "guest"), (0,), (equal, equal), numbers=(0,))


def seat_changes(*entries: tuple[Row | None, Row | None]) -> list[Change | BulkChange]:
    return list(ChangeSet.of([(SEATS, "Seat", before, after) for before, after in entries], is_complete=True))


def test_row_that_moves_to_the_key_of_one_that_is_gone() -> None:
    """No key is told twice: a row that takes the key of one that is deleted is that one, and gone where it was."""
    deleted_first = seat_changes(((1, "a"), None), ((2, "b"), (1, "b")))
    moved_first = seat_changes(((1, "a"), (3, "a")), ((2, "b"), (1, "b")), ((3, "a"), None))

    assert deleted_first == [
        Change("update", "Seat", "seat", (1,), {"guest": "a"}, {"guest": "b"}),
        Change("delete", "Seat", "seat", (2,), {"id": 2, "guest": "b"}, {}),
    ]
    assert moved_first == deleted_first


def test_rows_that_change_places() -> None:
    """Rows that change places have changed their keys."""
    assert seat_changes(((1, "a"), (9, "a")), ((2, "b"), (1, "b")), ((9, "a"), (2, "a"))) == [
        Change("update", "Seat", "seat", (2,), {"id": 1}, {"id": 2}),
        Change("update", "Seat", "seat", (1,), {"id": 2}, {"id": 1}),
    ]


def test_many_rows_that_move() -> None:
    """A long line of rows each of which takes the key of the next is a deletion at its end."""
    count = 20_000

    changes = seat_changes(((0, "a"), None), *(((key, "a"), (key - 1, "a")) for key in range(1, count)))

    assert changes == [Change("delete", "Seat", "seat", (count - 1,), {"id": count - 1, "guest": "a"}, {})]


def test_key_that_was_given_as_a_string() -> None:
    """A number that was given as a string is the same row as that number, and told as the database has it."""
    assert seat_changes((None, ("7", "a")), ((7, "a"), (7, "b"))) == [
        Change("insert", "Seat", "seat", (7,), {}, {"id": 7, "guest": "b"})
    ]
    assert seat_changes((None, ("seven", "a"))) == [
        Change("insert", "Seat", "seat", ("seven",), {}, {"id": "seven", "guest": "a"})
    ]


def test_keys_of_several_columns() -> None:
    """In a key of several columns each is told as the database has it, and in the key's order."""
    layout = Layout("pair", ("one", "two"), (1, 0), (equal, equal), numbers=(0,))

    assert layout.identity(("1", "2")) == ("2", 1)


class Vector:
    """What compares to something that is no bool, as arrays do."""

    def __eq__(self, other: object) -> Any:
        return [True]

    __hash__ = object.__hash__


def refuse(_one: object, _other: object) -> bool:
    raise ValueError("cannot be compared")


@pytest.mark.parametrize("compare", [equal, refuse])
def test_values_that_cannot_be_compared(compare: Callable[[Any, Any], Any]) -> None:
    """Values that do not compare to a bool, or not at all, have changed."""
    layout = Layout("t", ("id", "value"), (0,), (equal, compare))
    one, other = Vector(), Vector()

    [change] = ChangeSet.of([(layout, "T", (1, one), (1, other))], is_complete=True)

    assert isinstance(change, Change)
    assert change.before["value"] is one
    assert change.after["value"] is other


def test_value_that_contains_itself() -> None:
    """A value that cannot be copied is told as it is."""
    ring: list[Any] = []
    ring.append(ring)

    assert copy_of(ring) is ring
