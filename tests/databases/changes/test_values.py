"""What receivers are told that columns had and have, which the session may not know, and in which types."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import Engine, func, null, text, update
from sqlalchemy.orm import defer, load_only, undefer
from sqlalchemy.orm.attributes import flag_modified

from flask_uow import Change, UnitOfWork
from tests.databases.changes.conftest import Told, given, in_order, rows, so_far
from tests.databases.changes.models import (
    ADA,
    SAMPLE,
    Attic,
    Chest,
    Colour,
    Course,
    Document,
    Legacy,
    Letter,
    Line,
    Memo,
    Page,
    Parcel,
    Person,
    Sample,
    Setting,
    Square,
    Student,
    ada,
)

# Values that the session does not have


def test_blind_write_to_an_expired_attribute(db: UnitOfWork, app: Flask, told: Told) -> None:
    """What was written over an attribute that the last commit has expired is told all the same."""
    with app.app_context():
        person = ada()
        db.session.add(person)
        db.session.commit()
        person.age = 37
        db.session.commit()

    assert told.committed[1:] == [[Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]]


def test_blind_write_between_flushes(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A blind write that follows a flush goes back to what was there before the transaction."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        person.age = 37
        session.flush()
        session.expire(person)
        person.age = 38
        person.name = "Eda"
        session.flush()
        session.expire(person)
        person.name = "Ada"

    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 38})]


def test_delete_of_expired_objects(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deletion has all columns, whether or not the session has them."""
    expired: dict[int, list[str] | None] = {1: None, 2: ["age"], 3: ["name", "age"]}
    given(any_engine, *(ada(id=key) for key in expired))

    with db.transaction() as session:
        people = [session.get_one(Person, key) for key in expired]
        for person, names in zip(people, expired.values(), strict=True):
            session.expire(person, names)
            session.delete(person)

    assert in_order(told.changes) == [
        Change("delete", "Person", "person", (key,), {**ADA, "id": key}, {}) for key in expired
    ]


def test_delete_of_an_object_that_was_written_to_blindly(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deletion has what was stored, and not what was about to be."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        session.expire(one)
        with session.no_autoflush:
            one.age = two.age = 99
            session.delete(one)
            session.delete(two)

    assert in_order(told.changes) == [
        Change("delete", "Person", "person", (1,), ADA, {}),
        Change("delete", "Person", "person", (2,), {**ADA, "id": 2}, {}),
    ]


def test_expressions(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What the database has made of an expression is told, not the expression; of an update as well, loaded or not."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        session.expire(two)
        one.age = Person.age + 1
        one.name = func.lower("EDA")
        two.age = Person.age + 1
        session.add(Person(id=3, name=func.lower("ADA"), age=text("30 + 6")))
        session.flush()
        two.age = Person.age + 1

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "eda", "age": 37}),
        Change("update", "Person", "person", (2,), {"age": 36}, {"age": 38}),
        Change("insert", "Person", "person", (3,), {}, {"id": 3, "name": "ada", "age": 36}),
    ]


def test_write_of_the_old_value(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What comes to what was there is no change, as an expression or a blind write; and null() is None."""
    given(any_engine, *(ada(id=key) for key in (1, 2, 3)))

    with db.transaction() as session:
        one, two, three = (session.get_one(Person, key) for key in (1, 2, 3))
        session.expire(three)
        one.name = func.trim(" Ada ")
        two.age = null()
        three.age = 36

    assert told.changes == [Change("update", "Person", "person", (2,), {"age": 36}, {"age": None})]


def test_generated_keys_and_server_defaults(db: UnitOfWork, told: Told) -> None:
    """What the database fills in is there, also where None was given, which SQLAlchemy leaves out."""
    with db.transaction() as session:
        parcels = [Parcel(label="a"), Parcel(label="b", state="old", weight=1), Parcel(label="c", state=None)]
        session.add_all(parcels)
        session.flush()
        keys = [parcel.id for parcel in parcels]

    assert told.changes == [
        Change(
            "insert", "Parcel", "parcel", (keys[0],), {}, {"id": keys[0], "label": "a", "state": "new", "weight": 7}
        ),
        Change(
            "insert", "Parcel", "parcel", (keys[1],), {}, {"id": keys[1], "label": "b", "state": "old", "weight": 1}
        ),
        Change(
            "insert", "Parcel", "parcel", (keys[2],), {}, {"id": keys[2], "label": "c", "state": "new", "weight": 7}
        ),
    ]


def test_server_defaults_that_are_not_eager(db: UnitOfWork, told: Told) -> None:
    """Server defaults are there with eager_defaults=False, and the object is none the wiser."""
    with db.transaction() as session:
        letters = [Letter(label="a"), Letter(label="b", state="old"), Letter(label="c", state=None)]
        session.add_all(letters)
        session.flush()
        assert "state" not in vars(letters[0])
        keys = [letter.id for letter in letters]

    assert told.changes == [
        Change("insert", "Letter", "letter", (keys[0],), {}, {"id": keys[0], "label": "a", "state": "new"}),
        Change("insert", "Letter", "letter", (keys[1],), {}, {"id": keys[1], "label": "b", "state": "old"}),
        Change("insert", "Letter", "letter", (keys[2],), {}, {"id": keys[2], "label": "c", "state": "new"}),
    ]


def test_server_default_that_is_updated_before_it_was_loaded(db: UnitOfWork, told: Told) -> None:
    """An insert has what the row has in the end, and an update afterwards what it had."""
    with db.transaction() as session:
        letter = Letter(id=1, label="a")
        session.add(letter)
        session.flush()
        letter.state = "sent"
        session.flush()
        with db.savepoint():
            session.expire(letter)
            letter.state = "lost"
            session.flush()
            inside = so_far(db)

    assert inside == [Change("update", "Letter", "letter", (1,), {"state": "sent"}, {"state": "lost"})]
    assert told.changes == [Change("insert", "Letter", "letter", (1,), {}, {"id": 1, "label": "a", "state": "lost"})]


def test_many_server_defaults(db: UnitOfWork, told: Told) -> None:
    """However many rows there are, each has its own."""
    with db.transaction() as session:
        session.add_all(Letter(id=number, label=f"{number}") for number in range(1, 451))

    assert told.changes == [
        Change("insert", "Letter", "letter", (n,), {}, {"id": n, "label": f"{n}", "state": "new"})
        for n in range(1, 451)
    ]


def test_defaults_and_onupdate(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What SQLAlchemy and the database write along with other columns is told, as values, loaded or not."""
    given(any_engine, Memo(id=1, text="a"), Memo(id=2, text="b"))

    with db.transaction() as session:
        loaded, expired = session.get_one(Memo, 1), session.get_one(Memo, 2)
        session.expire(expired)
        loaded.text, expired.text = "A", "B"
        session.add(Memo(id=3, text="c", mood="wild"))
        session.flush()
        expired.text = "BB"

    assert in_order(told.changes) == [
        Change(
            "update",
            "Memo",
            "memo",
            (1,),
            {"text": "a", "editor": "nobody", "edits": 0},
            {"text": "A", "editor": "somebody", "edits": 1},
        ),
        Change(
            "update",
            "Memo",
            "memo",
            (2,),
            {"text": "b", "editor": "nobody", "edits": 0},
            {"text": "BB", "editor": "somebody", "edits": 2},
        ),
        Change(
            "insert", "Memo", "memo", (3,), {}, {"id": 3, "text": "c", "mood": "wild", "editor": "nobody", "edits": 0}
        ),
    ]


def test_computed_column(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What the database computes from other columns is told when those are inserted, updated and deleted."""
    given(any_engine, Square(id=1, side=2), Square(id=2, side=3), Square(id=3, side=4))

    with db.transaction() as session:
        session.get_one(Square, 1).side = 5
        two = session.get_one(Square, 2)
        session.expire(two)
        two.side = 6
        session.delete(session.get_one(Square, 3))
        session.add(Square(id=4, side=7))

    assert in_order(told.changes) == [
        Change("update", "Square", "square", (1,), {"side": 2, "area": 4}, {"side": 5, "area": 25}),
        Change("update", "Square", "square", (2,), {"side": 3, "area": 9}, {"side": 6, "area": 36}),
        Change("delete", "Square", "square", (3,), {"id": 3, "side": 4, "area": 16}, {}),
        Change("insert", "Square", "square", (4,), {}, {"id": 4, "side": 7, "area": 49}),
    ]


def test_version(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The version that SQLAlchemy counts is told with each change, loaded or not."""
    given(any_engine, *(Page(id=key, text=name) for key, name in enumerate("abc", 1)))

    with db.transaction() as session:
        one, two, expired = (session.get_one(Page, key) for key in (1, 2, 3))
        session.expire(expired)
        one.text, expired.text = "A", "C"
        session.flush()
        one.text = "AA"
        session.delete(two)
        session.add(Page(id=4, text="d"))

    assert in_order(told.changes) == [
        Change("update", "Page", "page", (1,), {"text": "a", "version": 1}, {"text": "AA", "version": 3}),
        Change("delete", "Page", "page", (2,), {"id": 2, "text": "b", "version": 1}, {}),
        Change("update", "Page", "page", (3,), {"text": "c", "version": 1}, {"text": "C", "version": 2}),
        Change("insert", "Page", "page", (4,), {}, {"id": 4, "text": "d", "version": 1}),
    ]


def test_flag_modified_is_no_change(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An UPDATE that writes what was there changes nothing."""
    given(any_engine, ada())

    with db.transaction() as session:
        flag_modified(session.get_one(Person, 1), "name")

    assert told.changes == []


def test_written_before_the_rest_is_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What was expired and written has its old value, also when the other attributes are loaded after that."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.expire(person)
        person.name = "Grace"
        assert person.age == 36

    assert told.changes == [Change("update", "Person", "person", (1,), {"name": "Ada"}, {"name": "Grace"})]


# Deferred columns


def test_deferred_columns_that_are_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deferred column is not fetched merely to be told: it is absent, or in *after* alone where it is written."""
    given(any_engine, *(Document(id=key, title="a", body="x") for key in (1, 2, 3, 4)))

    with db.transaction() as session:
        one, two, three, four = (session.get_one(Document, key) for key in (1, 2, 3, 4))
        one.title = "A"
        two.body = "X"
        three.body = func.upper("y")
        session.delete(four)
        session.flush()
        assert "body" not in vars(one)

    assert in_order(told.changes)[:3] == [
        Change("update", "Document", "document", (1,), {"title": "a"}, {"title": "A"}),
        Change("update", "Document", "document", (2,), {}, {"body": "X"}),
        Change("update", "Document", "document", (3,), {}, {"body": "Y"}),
    ]
    assert "body" not in in_order(told.changes)[3].before


def test_deferred_columns_with_active_history(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """One with active_history=True is told as if it were not deferred."""
    given(any_engine, *(Document(id=key, title="a", summary="s") for key in (1, 2, 3)))

    with db.transaction() as session:
        one, two, three = (session.get_one(Document, key) for key in (1, 2, 3))
        one.summary = "S"
        two.summary = "s"
        session.delete(three)

    assert in_order(told.changes) == [
        Change("update", "Document", "document", (1,), {"summary": "s"}, {"summary": "S"}),
        Change("delete", "Document", "document", (3,), {"id": 3, "title": "a", "summary": "s"}, {}),
    ]


def test_deferred_columns_that_are_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deferred column that was loaded, or has just been inserted, is told as any other."""
    given(
        any_engine,
        Document(id=1, title="a", body="x", summary="s"),
        Document(id=2, title="b", body="y", summary="t"),
    )

    with db.transaction() as session:
        one = session.get_one(Document, 1, options=[undefer(Document.body)])
        two = session.get_one(Document, 2)
        assert (two.body, two.summary) == ("y", "t")
        one.body = "X"
        session.delete(two)
        session.add(Document(id=3, title="c", body="z"))

    assert in_order(told.changes) == [
        Change("update", "Document", "document", (1,), {"body": "x"}, {"body": "X"}),
        Change("delete", "Document", "document", (2,), {"id": 2, "title": "b", "body": "y", "summary": "t"}, {}),
        Change("insert", "Document", "document", (3,), {}, {"id": 3, "title": "c", "body": "z", "summary": None}),
    ]


def test_columns_that_a_query_has_deferred(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What a query was told not to load is not loaded to be told."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one = session.get_one(Person, 1, options=[defer(Person.age)])
        two = session.get_one(Person, 2, options=[load_only(Person.name)])
        one.age = 37
        session.delete(two)

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {}, {"age": 37}),
        Change("delete", "Person", "person", (2,), {"id": 2, "name": "Ada"}, {}),
    ]


# Types


def test_json(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A JSON value that is replaced is told, and one that is replaced by its like is not."""
    given(any_engine, *(Setting(id=key, plain={"a": [1]}, tracked={"b": 1}) for key in (1, 2)))

    with db.transaction() as session:
        one, two = session.get_one(Setting, 1), session.get_one(Setting, 2)
        one.plain, one.tracked = {"a": [1, 2]}, {"b": 1}
        two.plain = None
        session.add(Setting(id=3, plain={"c": {}}))

    assert in_order(told.changes) == [
        Change("update", "Setting", "setting", (1,), {"plain": {"a": [1]}}, {"plain": {"a": [1, 2]}}),
        Change("update", "Setting", "setting", (2,), {"plain": {"a": [1]}}, {"plain": None}),
        Change("insert", "Setting", "setting", (3,), {}, {"id": 3, "plain": {"c": {}}, "tracked": None}),
    ]


def test_json_that_is_changed_in_place(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A change in place is told with what was there, in each flush and over all of them."""
    given(any_engine, *(Setting(id=key, tracked={"a": 1, "b": [1]}) for key in (1, 2, 3)))

    with db.transaction() as session:
        settings = [session.get_one(Setting, key) for key in (1, 2, 3)]
        one, two, three = (setting.tracked for setting in settings)
        assert one is not None
        assert two is not None
        assert three is not None
        one["a"] = two["a"] = three["a"] = 2
        session.flush()
        one["c"] = 3
        two["a"] = 1
        session.flush()
        three["b"] = []
        session.delete(settings[2])

    assert in_order(told.changes) == [
        Change(
            "update",
            "Setting",
            "setting",
            (1,),
            {"tracked": {"a": 1, "b": [1]}},
            {"tracked": {"a": 2, "b": [1], "c": 3}},
        ),
        Change("delete", "Setting", "setting", (3,), {"id": 3, "plain": None, "tracked": {"a": 1, "b": [1]}}, {}),
    ]


def test_json_that_is_flagged(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A plain value that was changed in place, and flagged, is told with what was there."""
    given(any_engine, Setting(id=1, plain={"a": [1]}))

    with db.transaction() as session:
        setting = session.get_one(Setting, 1)
        assert setting.plain is not None
        setting.plain["a"].append(2)
        flag_modified(setting, "plain")

    assert told.changes == [
        Change("update", "Setting", "setting", (1,), {"plain": {"a": [1]}}, {"plain": {"a": [1, 2]}})
    ]


def test_json_that_is_changed_in_place_unseen(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A plain value that was changed in place, which SQLAlchemy does not see and store, is not told either."""
    given(any_engine, Setting(id=1, plain={"a": [1]}, tracked={"b": 1}))

    with db.transaction() as session:
        setting = session.get_one(Setting, 1)
        setting.tracked = {"b": 2}
        session.flush()
        assert setting.plain is not None
        setting.plain["a"].append(2)
        setting.tracked = {"b": 3}
        session.flush()
        new = Setting(id=2, plain={"c": []})
        session.add(new)
        session.flush()
        assert new.plain is not None
        new.plain["c"].append(1)
        new.tracked = {}

    assert [row[1:] for row in rows(any_engine, Setting.__table__)] == [({"a": [1]}, {"b": 3}), ({"c": []}, {})]
    assert in_order(told.changes) == [
        Change("update", "Setting", "setting", (1,), {"tracked": {"b": 1}}, {"tracked": {"b": 3}}),
        Change("insert", "Setting", "setting", (2,), {}, {"id": 2, "plain": {"c": []}, "tracked": {}}),
    ]


def test_values_are_detached(db: UnitOfWork, told: Told) -> None:
    """What is told is what was written, whatever is done to the object's values afterwards."""
    with db.transaction() as session:
        setting = Setting(id=1, plain={"a": [1]}, tracked={"b": 1})
        session.add(setting)
        session.flush()
        plain, tracked = setting.plain, setting.tracked
        assert plain is not None
        assert tracked is not None
        plain["a"].append(2)
        # Past the object, which would write it.
        dict.clear(tracked)

    plain["a"].append(3)
    assert told.changes == [
        Change("insert", "Setting", "setting", (1,), {}, {"id": 1, "plain": {"a": [1]}, "tracked": {"b": 1}})
    ]


def test_types(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Values are as Python has them: numbers, times, enums, UUIDs and bytes."""
    given(any_engine, Sample(**SAMPLE))
    new = {"price": Decimal("10.50"), "made": SAMPLE["made"].replace(year=2028), "colour": Colour.BLUE, "data": b"\xff"}

    with db.transaction() as session:
        sample = session.get_one(Sample, UUID(int=1))
        session.expire(sample, ["price", "data"])
        for name, value in new.items():
            setattr(sample, name, value)
        session.add(Sample(**{**SAMPLE, "id": UUID(int=2)}))

    old = {name: SAMPLE[name] for name in new}
    assert in_order(told.changes) == [
        Change("update", "Sample", "sample", (UUID(int=1),), old, new),
        Change("insert", "Sample", "sample", (UUID(int=2),), {}, {**SAMPLE, "id": UUID(int=2)}),
    ]


def test_bytes_that_are_changed_in_place(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A bytearray is told as it was written."""
    given(any_engine, Sample(**SAMPLE))

    with db.transaction() as session:
        sample = session.get_one(Sample, UUID(int=1))
        data: Any = bytearray(b"abc")
        sample.data = data
        session.flush()
        data.clear()

    assert told.changes == [Change("update", "Sample", "sample", (UUID(int=1),), {"data": b"\x00x"}, {"data": b"abc"})]


def test_numbers_that_are_equal(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A number that is written in another way is no change."""
    given(any_engine, Sample(**SAMPLE))

    with db.transaction() as session:
        sample = session.get_one(Sample, UUID(int=1))
        session.expire(sample)
        sample.price, sample.data = Decimal("9.9"), b"\x00x"

    assert told.changes == []


def test_copies(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Whatever values and keys there are, what is told can be copied and pickled."""
    given(any_engine, Setting(id=1, tracked={"a": 1}), Student(id=1, courses=[Course(id=1)]))

    with db.transaction() as session:
        setting, student = session.get_one(Setting, 1), session.get_one(Student, 1)
        assert setting.tracked is not None
        setting.tracked["a"] = 2
        student.courses.clear()
        session.add(Sample(**SAMPLE))
        session.flush()
        session.execute(update(Setting).values(plain={}))

    assert len(told.changes) == 4
    assert told.changes == copy(told.changes) == deepcopy(told.changes) == pickle.loads(pickle.dumps(told.changes))


# Names


def test_columns_by_their_names(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Columns are called as the table calls them, whatever the attributes are called."""
    given(any_engine, Legacy(ident=1, given="Ada", remark="x"), Legacy(ident=2, given="Bob"))

    with db.transaction() as session:
        one, two = session.get_one(Legacy, 1), session.get_one(Legacy, 2)
        session.expire(one)
        one.given, one.remark = func.upper("eda"), "y"
        session.delete(two)
        session.add(Legacy(ident=3, given="Cid"))

    assert in_order(told.changes) == [
        Change(
            "update",
            "Legacy",
            "legacy",
            (1,),
            {"first_name": "Ada", "legacy_note": "x"},
            {"first_name": "EDA", "legacy_note": "y"},
        ),
        Change("delete", "Legacy", "legacy", (2,), {"id": 2, "first_name": "Bob", "legacy_note": None}, {}),
        Change("insert", "Legacy", "legacy", (3,), {}, {"id": 3, "first_name": "Cid", "legacy_note": None}),
    ]


def test_table_without_a_primary_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The identity is what the mapper believes to be the key."""
    given(any_engine, Line(number=1, text="a"), Line(number=2, text="b"))

    with db.transaction() as session:
        one, two = session.get_one(Line, 1), session.get_one(Line, 2)
        session.expire_all()
        one.text = "A"
        session.delete(two)
        session.add(Line(number=3, text="c"))

    assert in_order(told.changes) == [
        Change("update", "Line", "line", (1,), {"text": "a"}, {"text": "A"}),
        Change("delete", "Line", "line", (2,), {"number": 2, "text": "b"}, {}),
        Change("insert", "Line", "line", (3,), {}, {"number": 3, "text": "c"}),
    ]


@pytest.mark.parametrize("any_engine", ["postgresql", "postgresql_server"], indirect=True)
def test_table_in_a_schema(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The name of a table comes after that of its schema, for objects and statements."""
    with any_engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA attic"))
        Attic.metadata.create_all(connection)

    try:
        with db.transaction() as session:
            session.add(Chest(id=1, content="gold"))
            session.flush()
            session.execute(update(Chest).values(content="silver"))
            session.execute(text('DELETE FROM "attic"."chest"'))
    finally:
        with any_engine.begin() as connection:
            connection.execute(text("DROP SCHEMA attic CASCADE"))

    assert told.changes[0] == Change("insert", "Chest", "attic.chest", (1,), {}, {"id": 1, "content": "gold"})
    assert [change[:3] for change in told.changes[1:]] == [("update", "attic.chest", 1), ("delete", "attic.chest", 1)]


@pytest.mark.parametrize("refreshed", [False, True])
def test_key_that_is_given_as_a_string(db: UnitOfWork, any_engine: Engine, told: Told, refreshed: bool) -> None:
    """A key that is given as a string, and is a number, is that row, whatever the database has to be asked for."""
    with db.transaction() as session:
        person = Person(id="7", name="Ada", age=1)
        session.add(person)
        session.flush()
        if refreshed:
            session.refresh(person)
        else:
            session.expire(person, ["name"])
            person.name = "Grace"
        person.age = Person.age + 1

    name = "Ada" if refreshed else "Grace"
    [change] = told.changes
    assert isinstance(change, Change)
    assert (change.operation, change.identity) == ("insert", (7,))
    assert (change.after["name"], change.after["age"]) == (name, 2)
