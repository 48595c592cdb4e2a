"""What receivers are told of the rows that flushes insert, update and delete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, defer

from flask_uow import Change, UnitOfWork
from tests.databases.changes.conftest import Told, given, in_order, rows, so_far, transaction_of
from tests.databases.changes.models import (
    ADA,
    Animal,
    Dog,
    Lorry,
    Parcel,
    Person,
    Seat,
    Tag,
    Vehicle,
    ada,
)

# What a flush does


def test_insert(db: UnitOfWork, told: Told) -> None:
    """An insert has nothing before, and all columns after, those without a value as None."""
    with db.transaction() as session:
        session.add(Person(id=1, name="Ada"))

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, {"id": 1, "name": "Ada", "age": None})]


def test_update(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An update has the columns that have changed, and no others."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.get_one(Person, 1).age = 37

    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]


def test_delete(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deletion has all columns before, and nothing after."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1))

    assert told.changes == [Change("delete", "Person", "person", (1,), ADA, {})]


def test_nothing_is_changed(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What is only read is no change."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.get_one(Person, 1)
        session.execute(select(Person.__table__).with_for_update())
        session.execute(text("SELECT * FROM person"))
        session.query(Person).count()

    assert told.changes == []


# Several flushes


def test_insert_and_updates_are_one_insert(db: UnitOfWork, told: Told) -> None:
    """However many flushes it took, a new row is one insert with what it has in the end."""
    with db.transaction() as session:
        person = ada(age=None)
        session.add(person)
        session.flush()
        person.age = 1
        session.flush()
        person.age = 36

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


def test_insert_and_delete_are_nothing(db: UnitOfWork, told: Told) -> None:
    """A row that is gone before the end was never there."""
    with db.transaction() as session:
        person = ada()
        session.add(person)
        session.flush()
        person.age = 1
        session.flush()
        session.delete(person)

    assert told.changes == []


def test_updates_are_one_update(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Updates of one row in several flushes are one, from the first value to the last."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        person.age = 37
        session.flush()
        person.name = "Ada L."
        session.flush()
        person.age = 38

    assert told.changes == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "Ada L.", "age": 38})
    ]


def test_update_to_the_old_value_is_nothing(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A row that is in the end as it was has not changed; nor has a column of one that has."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        one.age = two.age = 1
        session.flush()
        one.age = two.age = 36
        two.name = "Eda"

    assert told.changes == [Change("update", "Person", "person", (2,), {"name": "Ada"}, {"name": "Eda"})]


def test_update_and_delete_are_one_deletion(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deleted row has before what it had at the beginning of the transaction."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        person.age = 37
        session.flush()
        session.delete(person)

    assert told.changes == [Change("delete", "Person", "person", (1,), ADA, {})]


def test_autoflush(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The flush before a query counts as any other."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.get_one(Person, 1).age = 37
        session.add(ada(id=2))
        assert session.scalars(select(Person.age).order_by(Person.id)).all() == [37, 36]
        assert len(so_far(db)) == 2

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2}),
    ]


def test_order(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows are in the order in which they were touched first, and statements between them."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.add(Person(id=3, name="Cid"))
        session.flush()
        session.execute(delete(Parcel).where(Parcel.id == 0))
        session.execute(insert(Parcel).values(label="x"))
        session.get_one(Person, 1).age = 37
        session.flush()
        session.get_one(Person, 3).age = 3

    assert [(change.operation, change.table) for change in told.changes] == [
        ("insert", "person"),
        ("insert", "parcel"),
        ("update", "person"),
    ]


def test_merge(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An object that is merged is an update of what is there, or an insert."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.merge(ada(age=37))
        session.merge(ada(id=2))

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2}),
    ]


def test_merge_without_loading(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A detached object that is added again brings what it has."""
    given(any_engine, ada())
    with Session(any_engine) as session:
        person = session.get_one(Person, 1)

    with db.transaction() as session:
        session.add(person)
        person.age = 37

    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]


# Savepoints


@pytest.mark.parametrize("way", ["uow", "session", "connection"])
def test_rolled_back_savepoint(db: UnitOfWork, any_engine: Engine, told: Told, way: str) -> None:
    """What was done in a savepoint that is rolled back is gone, and what was pending before it is not."""
    given(any_engine, ada())

    def savepoint(session: Session) -> Any:
        if way == "uow":
            return db.savepoint()
        if way == "session":
            return session.begin_nested()
        session.flush()
        return session.connection().begin_nested()

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        person.age = 37
        with pytest.raises(LookupError), savepoint(session):
            session.execute(update(Person).values(age=1))
            session.add(ada(id=2))
            session.flush()
            raise LookupError
        session.expire_all()
        person.name = "Ada L."

    assert told.changes == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "Ada L.", "age": 37})
    ]


def test_pending_object_is_flushed_before_a_savepoint(db: UnitOfWork, told: Told) -> None:
    """What was added before a savepoint is before it, and not rolled back with it."""
    with db.transaction() as session:
        session.add(ada())
        with pytest.raises(LookupError), db.savepoint():
            raise LookupError
        session.add(ada(id=2))
        with pytest.raises(LookupError), session.begin_nested():
            raise LookupError

    assert told.changes == [
        Change("insert", "Person", "person", (1,), {}, ADA),
        Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2}),
    ]


@pytest.mark.parametrize("way", ["uow", "session", "connection"])
def test_released_savepoint(db: UnitOfWork, told: Told, way: str) -> None:
    """What was done in a savepoint that is released counts as if there were none."""
    with db.transaction() as session:
        person = ada(age=None)
        session.add(person)
        session.flush()
        savepoints: dict[str, Callable[[], Any]] = {
            "uow": db.savepoint,
            "session": session.begin_nested,
            "connection": session.connection().begin_nested,
        }
        with savepoints[way]():
            person.age = 36
            session.flush()

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


@pytest.mark.parametrize("way", ["rollback", "close"])
def test_savepoint_that_is_ended_by_hand(db: UnitOfWork, told: Told, way: str) -> None:
    """It does not matter how a savepoint is rolled back."""
    with db.transaction() as session:
        savepoint = session.begin_nested()
        session.add(ada())
        session.execute(insert(Person).values(id=2, name="Bob"))
        getattr(savepoint, way)()
        session.add(ada(id=3))

    assert told.changes == [Change("insert", "Person", "person", (3,), {}, {**ADA, "id": 3})]


def test_nested_savepoints(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Each level of savepoints is kept or gone by itself."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        with db.savepoint():
            person.age = 1
            with pytest.raises(LookupError), db.savepoint():
                person.age = 2
                session.add(ada(id=2))
                session.flush()
                raise LookupError
            with session.begin_nested():
                person.name = "Eda"
        with pytest.raises(LookupError), db.savepoint():
            with db.savepoint():
                person.age = 3
            raise LookupError

    assert told.changes == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "Eda", "age": 1})
    ]


def test_delete_in_a_savepoint_that_is_rolled_back(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A row whose deletion was rolled back can be updated, or deleted again."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        with pytest.raises(LookupError), db.savepoint():
            session.delete(one)
            session.delete(two)
            session.flush()
            raise LookupError
        one.age = 37
        session.delete(two)

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("delete", "Person", "person", (2,), {**ADA, "id": 2}, {}),
    ]


def test_changes_of_a_savepoint(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A savepoint has the changes that were made in it; after its rollback it has none."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        person.age = 37
        with db.savepoint():
            released = transaction_of(db)
            person.age = 38
            session.flush()
            inside = released.changes
        with pytest.raises(LookupError), db.savepoint():
            undone = transaction_of(db)
            person.age = 39
            session.flush()
            assert len(undone.changes) == 1
            raise LookupError
        person.age = 40

    assert inside == released.changes == [Change("update", "Person", "person", (1,), {"age": 37}, {"age": 38})]
    assert undone.changes == []
    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 40})]


@pytest.mark.parametrize("way", ["uow", "session"])
def test_flush_that_fails_in_a_savepoint(db: UnitOfWork, told: Told, way: str) -> None:
    """Nothing is told of a flush that fails, and of what else was done in its savepoint."""
    with db.transaction() as session:
        session.add(ada())
        savepoint = db.savepoint if way == "uow" else session.begin_nested
        with pytest.raises(IntegrityError), savepoint():
            session.add(ada(id=2))
            session.flush()
            session.add_all([ada(id=3), Person(id=4)])
            session.flush()
        session.add(ada(id=5))

    assert told.changes == [
        Change("insert", "Person", "person", (1,), {}, ADA),
        Change("insert", "Person", "person", (5,), {}, {**ADA, "id": 5}),
    ]


def test_flush_that_fails_in_a_transaction(db: UnitOfWork, told: Told) -> None:
    """What was lost is what was written before, and nothing of the flush that failed."""
    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(ada())
        session.flush()
        session.add_all([ada(id=3), Person(id=4)])
        session.flush()

    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, ADA)]]
    assert told.committed == []


# Inheritance


def test_joined_inheritance(db: UnitOfWork, told: Told) -> None:
    """An object in two tables is two changes with the name of its own class, and one key, which the one generates."""
    with db.transaction() as session:
        dog = Dog(name="Rex", tricks=3)
        session.add(dog)
        session.flush()
        key = dog.id

    assert told.changes == [
        Change("insert", "Dog", "animal", (key,), {}, {"id": key, "kind": "dog", "name": "Rex"}),
        Change("insert", "Dog", "dog", (key,), {}, {"id": key, "tricks": 3}),
    ]


def test_joined_inheritance_updates_one_table(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The table in which nothing changes is not told of."""
    given(any_engine, Dog(id=1, name="Rex", tricks=3), Dog(id=2, name="Max", tricks=4))

    with db.transaction() as session:
        session.get_one(Dog, 1).name = "Roy"
        session.get_one(Animal, 2, options=[]).tricks = 5  # type: ignore[attr-defined] # it is a Dog

    assert in_order(told.changes) == [
        Change("update", "Dog", "animal", (1,), {"name": "Rex"}, {"name": "Roy"}),
        Change("update", "Dog", "dog", (2,), {"tricks": 4}, {"tricks": 5}),
    ]


def test_joined_inheritance_deletes_what_was_loaded_in_part(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A polymorphic query loads the columns of one table, and the deletion has those of both."""
    given(any_engine, Dog(id=1, name="Rex", tricks=3), Animal(id=2, name="Tom"))

    with db.transaction() as session:
        for animal in session.scalars(select(Animal)):
            session.delete(animal)

    assert in_order(told.changes) == [
        Change("delete", "Dog", "animal", (1,), {"id": 1, "kind": "dog", "name": "Rex"}, {}),
        Change("delete", "Animal", "animal", (2,), {"id": 2, "kind": "animal", "name": "Tom"}, {}),
        Change("delete", "Dog", "dog", (1,), {"id": 1, "tricks": 3}, {}),
    ]


def test_single_table_inheritance(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A class without a table of its own is told by its name, and the columns that it has."""
    given(any_engine, Lorry(id=1, wheels=6, load=7), Lorry(id=2, wheels=8, load=9))

    with db.transaction() as session:
        session.add(Vehicle(id=3, wheels=4))
        session.add(Lorry(id=4, wheels=10))
        session.get_one(Lorry, 1).load = 8
        session.delete(session.get_one(Vehicle, 2))

    assert in_order(told.changes) == [
        Change("update", "Lorry", "vehicle", (1,), {"load": 7}, {"load": 8}),
        Change("delete", "Lorry", "vehicle", (2,), {"id": 2, "kind": "lorry", "wheels": 8, "load": 9}, {}),
        Change("insert", "Vehicle", "vehicle", (3,), {}, {"id": 3, "kind": "vehicle", "wheels": 4}),
        Change("insert", "Lorry", "vehicle", (4,), {}, {"id": 4, "kind": "lorry", "wheels": 10, "load": None}),
    ]


# Keys


def test_composite_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The identity has all columns of the key, in their order."""
    given(any_engine, Seat(hall="A", number=1, guest="Ada"), Seat(hall="A", number=2, guest="Bob"))

    with db.transaction() as session:
        session.get_one(Seat, ("A", 1)).guest = "Eda"
        two = session.get_one(Seat, ("A", 2))
        session.expire(two)
        session.delete(two)
        session.add(Seat(hall="B", number=1, guest="Cid"))

    assert in_order(told.changes) == [
        Change("update", "Seat", "seat", ("A", 1), {"guest": "Ada"}, {"guest": "Eda"}),
        Change("delete", "Seat", "seat", ("A", 2), {"hall": "A", "number": 2, "guest": "Bob"}, {}),
        Change("insert", "Seat", "seat", ("B", 1), {}, {"hall": "B", "number": 1, "guest": "Cid"}),
    ]


def test_expressions_with_a_composite_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What only the database knows is found by all columns of the key."""
    given(any_engine, *(Seat(hall=hall, number=number, guest="Ada") for hall in "AB" for number in (1, 2)))

    with db.transaction() as session:
        for seat in session.scalars(select(Seat)):
            seat.guest = func.upper(f"in {seat.hall}{seat.number}")

    assert in_order(told.changes) == [
        Change("update", "Seat", "seat", (hall, number), {"guest": "Ada"}, {"guest": f"IN {hall}{number}"})
        for hall in "AB"
        for number in (1, 2)
    ]


def test_changed_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The identity is the key after the change, loaded or not; the one before is in *before*."""
    given(any_engine, Tag(name="new", colour="red"), Tag(name="young", colour="green"))

    with db.transaction() as session:
        loaded, expired = session.get_one(Tag, "new"), session.get_one(Tag, "young")
        session.expire(expired)
        loaded.name, expired.name = "old", "aged"
        expired.colour = func.lower("BLUE")
        session.flush()
        loaded.colour = "blue"

    assert in_order(told.changes) == [
        Change(
            "update", "Tag", "tag", ("aged",), {"name": "young", "colour": "green"}, {"name": "aged", "colour": "blue"}
        ),
        Change("update", "Tag", "tag", ("old",), {"name": "new", "colour": "red"}, {"name": "old", "colour": "blue"}),
    ]


def test_key_to_and_fro(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A key that has its old value in the end has not changed."""
    given(any_engine, Tag(name="new", colour="red"))

    with db.transaction() as session:
        tag = session.get_one(Tag, "new")
        tag.name = "old"
        session.flush()
        tag.name = "new"

    assert told.changes == []


def test_keys_that_are_exchanged(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Two rows that have changed their keys are told apart."""
    given(any_engine, Tag(name="a", colour="red"), Tag(name="b", colour="blue"))

    with db.transaction() as session:
        a, b = session.get_one(Tag, "a"), session.get_one(Tag, "b")
        for tag, name in ((a, "c"), (b, "a"), (a, "b")):
            tag.name = name
            session.flush()

    assert told.changes == [
        Change("update", "Tag", "tag", ("b",), {"name": "a"}, {"name": "b"}),
        Change("update", "Tag", "tag", ("a",), {"name": "b"}, {"name": "a"}),
    ]


def test_delete_after_a_changed_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The identity of a deletion is the key that the row had before the transaction."""
    given(any_engine, Tag(name="new", colour="red"))

    with db.transaction() as session:
        tag = session.get_one(Tag, "new")
        tag.name = "old"
        session.flush()
        session.delete(tag)

    assert told.changes == [Change("delete", "Tag", "tag", ("new",), {"name": "new", "colour": "red"}, {})]


def test_changed_key_of_a_new_row(db: UnitOfWork, told: Told) -> None:
    """A new row has the key that it has in the end."""
    with db.transaction() as session:
        tag = Tag(name="new", colour="red")
        session.add(tag)
        session.flush()
        tag.name = "old"
        session.flush()
        session.add(Tag(name="new", colour="blue"))

    assert told.changes == [
        Change("insert", "Tag", "tag", ("old",), {}, {"name": "old", "colour": "red"}),
        Change("insert", "Tag", "tag", ("new",), {}, {"name": "new", "colour": "blue"}),
    ]


# Rows that are replaced


@pytest.mark.parametrize("flushes", [1, 2])
def test_row_that_is_replaced(db: UnitOfWork, any_engine: Engine, told: Told, flushes: int) -> None:
    """A row that is deleted and added again, in one flush or in two, is an update, and nothing if it is as it was."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        for person in session.scalars(select(Person)):
            session.delete(person)
        if flushes == 2:
            session.flush()
        session.add_all([ada(name="Eda"), ada(id=2)])

    assert told.changes == [Change("update", "Person", "person", (1,), {"name": "Ada"}, {"name": "Eda"})]


@pytest.mark.parametrize("flushes", [1, 2])
def test_row_that_is_replaced_and_was_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told, flushes: int) -> None:
    """What was expired of the old row is told, and what a query was told not to load is written over blindly."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        expired, partial = session.get_one(Person, 1), session.get_one(Person, 2, options=[defer(Person.age)])
        session.expire(expired)
        session.delete(expired)
        session.delete(partial)
        if flushes == 2:
            session.flush()
        session.add_all([ada(age=37), ada(id=2, age=37)])

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("update", "Person", "person", (2,), {}, {"age": 37}),
    ]


def test_row_that_is_replaced_without_some_columns(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """In one flush SQLAlchemy leaves alone what the new object does not have; in two it is gone."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1))
        session.add(Person(id=1, name="Eda"))
        session.flush()
        session.delete(session.get_one(Person, 2))
        session.flush()
        session.add(Person(id=2, name="Eda"))

    assert rows(any_engine, Person.__table__) == [(1, "Eda", 36), (2, "Eda", None)]
    assert told.changes == [
        Change("update", "Person", "person", (1,), {"name": "Ada"}, {"name": "Eda"}),
        Change("update", "Person", "person", (2,), {"name": "Ada", "age": 36}, {"name": "Eda", "age": None}),
    ]


def test_row_that_is_replaced_and_deleted(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deletion has what was there in the beginning, whatever came between."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1))
        session.flush()
        session.add(ada(name="Eda"))
        session.flush()
        session.delete(session.get_one(Person, 1))

    assert told.changes == [Change("delete", "Person", "person", (1,), ADA, {})]


def test_row_that_is_replaced_by_another_class(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The change is told by the class that the row has in the end."""
    given(any_engine, Vehicle(id=1, wheels=4))

    with db.transaction() as session:
        session.delete(session.get_one(Vehicle, 1))
        session.flush()
        session.add(Lorry(id=1, wheels=4, load=7))

    (change,) = told.changes
    assert isinstance(change, Change)
    assert change[:4] == ("update", "Lorry", "vehicle", (1,))
    assert change.after == {"kind": "lorry", "load": 7}


@pytest.mark.parametrize("flushes", [1, 2])
def test_dog_that_is_replaced(db: UnitOfWork, any_engine: Engine, told: Told, flushes: int) -> None:
    """An object in two tables that takes the place of another is an update of both."""
    given(any_engine, Dog(id=1, name="Rex", tricks=3))

    with db.transaction() as session:
        session.delete(session.get_one(Dog, 1))
        if flushes == 2:
            session.flush()
        session.add(Dog(id=1, name="Roy", tricks=4))

    assert in_order(told.changes) == [
        Change("update", "Dog", "animal", (1,), {"name": "Rex"}, {"name": "Roy"}),
        Change("update", "Dog", "dog", (1,), {"tricks": 3}, {"tricks": 4}),
    ]
