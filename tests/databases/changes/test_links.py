"""What receivers are told of relationships: foreign keys, and rows of association tables."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, select, update

from flask_uow import Change, UnitOfWork
from tests.databases.changes.conftest import Told, given, in_order, rows
from tests.databases.changes.models import (
    Album,
    Article,
    Ball,
    Box,
    Club,
    Course,
    Item,
    Node,
    Shelf,
    Student,
    Tag,
    Track,
    enrolment,
    tagging,
)

# Foreign keys


def test_reparenting(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What changes with a relationship is the foreign key, from the one side or the other."""
    given(any_engine, Shelf(id=1), Shelf(id=2), *(Item(id=key, shelf_id=1) for key in (1, 2, 3)))

    with db.transaction() as session:
        one, two = session.get_one(Shelf, 1), session.get_one(Shelf, 2)
        session.get_one(Item, 1).shelf = two
        two.items.append(session.get_one(Item, 2))
        one.items.remove(session.get_one(Item, 3))
        two.items.append(Item(id=4))
        session.add(Item(id=5, shelf=Shelf(id=3)))

    assert in_order(told.changes) == [
        Change("update", "Item", "item", (1,), {"shelf_id": 1}, {"shelf_id": 2}),
        Change("update", "Item", "item", (2,), {"shelf_id": 1}, {"shelf_id": 2}),
        Change("update", "Item", "item", (3,), {"shelf_id": 1}, {"shelf_id": None}),
        Change("insert", "Item", "item", (4,), {}, {"id": 4, "shelf_id": 2}),
        Change("insert", "Item", "item", (5,), {}, {"id": 5, "shelf_id": 3}),
        Change("insert", "Shelf", "shelf", (3,), {}, {"id": 3}),
    ]


def test_reparenting_an_expired_child(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A foreign key that was not loaded is told with what it had."""
    given(any_engine, Shelf(id=1), Shelf(id=2), Item(id=1, shelf_id=1))

    with db.transaction() as session:
        item = session.get_one(Item, 1)
        shelf = session.get_one(Shelf, 2)
        session.expire(item)
        item.shelf = shelf

    assert told.changes == [Change("update", "Item", "item", (1,), {"shelf_id": 1}, {"shelf_id": 2})]


@pytest.mark.parametrize("expired", [False, True])
def test_deleted_parent_leaves_its_children(db: UnitOfWork, any_engine: Engine, told: Told, expired: bool) -> None:
    """The children of a parent that is deleted have no foreign key any more."""
    given(any_engine, Shelf(id=1), Item(id=1, shelf_id=1), Item(id=2, shelf_id=1))

    with db.transaction() as session:
        shelf = session.get_one(Shelf, 1)
        assert len(shelf.items) == 2
        if expired:
            session.expire_all()
        session.delete(shelf)

    assert in_order(told.changes) == [
        Change("update", "Item", "item", (1,), {"shelf_id": 1}, {"shelf_id": None}),
        Change("update", "Item", "item", (2,), {"shelf_id": 1}, {"shelf_id": None}),
        Change("delete", "Shelf", "shelf", (1,), {"id": 1}, {}),
    ]


def test_orphans_are_deleted(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A child that is taken from its parent, or whose parent is deleted, is a deletion."""
    given(
        any_engine,
        Album(id=1, tracks=[Track(number=1, title="a"), Track(number=2, title="b")]),
        Album(id=2, tracks=[Track(number=1, title="c")]),
    )

    with db.transaction() as session:
        album = session.get_one(Album, 1)
        album.tracks.pop()
        session.delete(session.get_one(Album, 2))

    assert in_order(told.changes) == [
        Change("delete", "Album", "album", (2,), {"id": 2}, {}),
        Change("delete", "Track", "track", (1, 2), {"album_id": 1, "number": 2, "title": "b"}, {}),
        Change("delete", "Track", "track", (2, 1), {"album_id": 2, "number": 1, "title": "c"}, {}),
    ]


def test_children_that_are_all_exchanged(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """New children that have the keys of the orphans that they replace are updates of those."""
    given(any_engine, Album(id=1, tracks=[Track(number=1, title="a"), Track(number=2, title="b")]))

    with db.transaction() as session:
        album = session.get_one(Album, 1)
        album.tracks = [Track(number=1, title="A"), Track(number=3, title="c")]

    assert rows(any_engine, Track.__table__) == [(1, 1, "A"), (1, 3, "c")]
    assert in_order(told.changes) == [
        Change("update", "Track", "track", (1, 1), {"title": "a"}, {"title": "A"}),
        Change("delete", "Track", "track", (1, 2), {"album_id": 1, "number": 2, "title": "b"}, {}),
        Change("insert", "Track", "track", (1, 3), {}, {"album_id": 1, "number": 3, "title": "c"}),
    ]


def test_what_the_database_does_by_itself(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows that ON DELETE CASCADE deletes, and nobody has loaded, are not told of."""
    given(any_engine, Box(id=1, balls=[Ball(id=1), Ball(id=2)]))

    with db.transaction() as session:
        session.delete(session.get_one(Box, 1))

    assert rows(any_engine, Ball.__table__) == []
    assert told.changes == [Change("delete", "Box", "box", (1,), {"id": 1}, {})]


def test_post_update(db: UnitOfWork, told: Told) -> None:
    """The UPDATEs by which a ring is closed belong to the inserts."""
    with db.transaction() as session:
        one, two = Node(id=1, name="one"), Node(id=2, name="two")
        one.next, two.next = two, one
        session.add_all([one, two])

    assert told.changes == [
        Change("insert", "Node", "node", (1,), {}, {"id": 1, "name": "one", "next_id": 2}),
        Change("insert", "Node", "node", (2,), {}, {"id": 2, "name": "two", "next_id": 1}),
    ]


@pytest.mark.parametrize("expired", [False, True])
def test_post_update_of_what_is_there(db: UnitOfWork, any_engine: Engine, told: Told, expired: bool) -> None:
    """A link that is written after all others is told with what it was, loaded or not."""
    given(any_engine, Node(id=1, name="one"), Node(id=2, name="two"), Node(id=3, name="three", next_id=1))

    with db.transaction() as session:
        one, two, three = (session.get_one(Node, key) for key in (1, 2, 3))
        if expired:
            session.expire_all()
        one.next = two
        three.next = two
        three.name = "drei"

    assert in_order(told.changes) == [
        Change("update", "Node", "node", (1,), {"next_id": None}, {"next_id": 2}),
        Change("update", "Node", "node", (3,), {"name": "three", "next_id": 1}, {"name": "drei", "next_id": 2}),
    ]


def test_post_update_of_what_is_deleted(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A ring that is deleted was a ring, although it was opened first."""
    given(any_engine, Node(id=1, name="one"), Node(id=2, name="two", next_id=1))
    with any_engine.begin() as connection:
        connection.execute(update(Node).where(Node.id == 1).values(next_id=2))

    with db.transaction() as session:
        for node in session.scalars(select(Node)):
            session.delete(node)

    assert in_order(told.changes) == [
        Change("delete", "Node", "node", (1,), {"id": 1, "name": "one", "next_id": 2}, {}),
        Change("delete", "Node", "node", (2,), {"id": 2, "name": "two", "next_id": 1}, {}),
    ]


# Many to many


def link(operation: Any, student: int, course: int) -> Change:
    """The change of a row of the enrolment."""
    row = {"student_id": student, "course_id": course}
    return Change(operation, None, "enrolment", (student, course), *(({}, row) if operation == "insert" else (row, {})))


@pytest.mark.parametrize("side", ["student", "course", "both"])
def test_link(db: UnitOfWork, any_engine: Engine, told: Told, side: str) -> None:
    """A row of an association table is a change without an entity, told once whichever side it was made from."""
    given(any_engine, Student(id=1), Course(id=2))

    with db.transaction() as session:
        student, course = session.get_one(Student, 1), session.get_one(Course, 2)
        if side == "student":
            student.courses.append(course)
        elif side == "course":
            course.students.append(student)
        else:
            assert (student.courses, course.students) == ([], [])
            student.courses = [course]
            assert course.students == [student]

    assert rows(any_engine, enrolment) == [(1, 2, None)]
    assert told.changes == [
        Change("insert", None, "enrolment", (1, 2), {}, {"student_id": 1, "course_id": 2}),
    ]


def test_link_of_new_objects(db: UnitOfWork, told: Told) -> None:
    """Rows that link new objects have the keys that were generated for those."""
    with db.transaction() as session:
        student = Student(courses=[Course(), Course()])
        session.add(student)
        session.flush()
        links = [link("insert", student.id, course.id) for course in student.courses]

    assert [change for change in in_order(told.changes) if change.table == "enrolment"] == links
    assert len(told.changes) == 5


def test_link_of_what_was_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A collection that is not loaded, and that a backref adds to and takes from, tells what was added and removed."""
    given(any_engine, Student(id=1, courses=[Course(id=1), Course(id=2)]), Course(id=3))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        gone, new, old = session.get_one(Course, 2), Course(id=4), session.get_one(Course, 3)
        gone.students.remove(student)
        session.add(new)
        new.students.append(student)
        old.students.append(student)
        assert "courses" not in vars(student)

    assert rows(any_engine, enrolment) == [(1, 1, None), (1, 3, None), (1, 4, None)]
    assert in_order(told.changes) == [
        Change("insert", "Course", "course", (4,), {}, {"id": 4}),
        link("delete", 1, 2),
        link("insert", 1, 3),
        link("insert", 1, 4),
    ]


def test_unlink(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A link that is removed, from either side, is a deletion; of columns the objects have none of, nobody knows."""
    courses = [Course(id=key) for key in (1, 2, 3)]
    given(any_engine, Student(id=1, courses=courses), Student(id=2, courses=courses[:1]))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        one, two = session.get_one(Course, 1), session.get_one(Course, 2)
        student.courses.remove(one)
        two.students.remove(student)

    assert rows(any_engine, enrolment) == [(1, 3, None), (2, 1, None)]
    assert in_order(told.changes) == [link("delete", 1, 1), link("delete", 1, 2)]


def test_links_that_are_exchanged(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A collection that is set anew is told by what has come and what has gone."""
    given(any_engine, Student(id=1, courses=[Course(id=1), Course(id=2)]), Course(id=3))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        student.courses = [session.get_one(Course, 2), session.get_one(Course, 3)]

    assert in_order(told.changes) == [link("delete", 1, 1), link("insert", 1, 3)]


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("sides", [("student",), ("course",), ("student", "course")])
def test_linked_object_is_deleted(
    db: UnitOfWork, any_engine: Engine, told: Told, loaded: bool, sides: tuple[str, ...]
) -> None:
    """The links of an object that is deleted go with it, once, also where both ends do."""
    given(any_engine, Student(id=1, courses=[Course(id=2)]))

    with db.transaction() as session:
        student, course = session.get_one(Student, 1), session.get_one(Course, 2)
        if loaded:
            assert (student.courses, course.students) == ([course], [student])
        for side in sides:
            session.delete({"student": student, "course": course}[side])

    gone = {"student": [Change("delete", "Student", "student", (1,), {"id": 1}, {})]}
    gone["course"] = [Change("delete", "Course", "course", (2,), {"id": 2}, {})]
    expected = [link("delete", 1, 2)] + [change for side in sides for change in gone[side]]
    assert in_order(told.changes) == in_order(expected)


def test_links_to_and_fro(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A link that is there in the end as it was, or that has come and gone, is nothing."""
    given(any_engine, Student(id=1, courses=[Course(id=1)]), Course(id=2))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        one, two = session.get_one(Course, 1), session.get_one(Course, 2)
        student.courses.remove(one)
        student.courses.append(two)
        session.flush()
        student.courses.append(one)
        session.flush()
        student.courses.remove(two)

    assert told.changes == []


def test_link_in_a_savepoint(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Links go with the savepoint in which they were made."""
    given(any_engine, Student(id=1), Course(id=1), Course(id=2))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        one, two = session.get_one(Course, 1), session.get_one(Course, 2)
        with pytest.raises(LookupError), db.savepoint():
            student.courses.append(one)
            session.flush()
            raise LookupError
        with db.savepoint():
            student.courses.append(two)

    assert told.changes == [link("insert", 1, 2)]


def test_links_of_an_expired_object(db: UnitOfWork, app: Flask, told: Told) -> None:
    """Links of objects whose keys the last commit has expired are told with their keys."""
    with app.app_context():
        student, course = Student(id=1), Course(id=2)
        db.session.add_all([student, course])
        db.session.commit()
        student.courses.append(course)
        db.session.commit()
        course.students.remove(student)
        db.session.commit()

    assert told.committed[1:] == [[link("insert", 1, 2)], [link("delete", 1, 2)]]


def test_links_without_a_primary_key(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A row of an association table that has no primary key is known by all that it has."""
    given(any_engine, Student(id=1, friends=[Student(id=2), Student(id=3)]))

    with db.transaction() as session:
        one, two, three = (session.get_one(Student, key) for key in (1, 2, 3))
        one.friends.remove(two)
        three.friends.append(one)

    assert in_order(told.changes) == [
        Change("delete", None, "friendship", (1, 2), {"student_id": 1, "friend_id": 2}, {}),
        Change("insert", None, "friendship", (3, 1), {}, {"student_id": 3, "friend_id": 1}),
    ]


def test_links_with_a_key_that_nobody_is_told(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows of an association table with a generated key are told apart by what they link."""
    given(any_engine, Club(id=1), Student(id=1), Student(id=2), Student(id=3))

    with db.transaction() as session:
        club = session.get_one(Club, 1)
        one, two, three = (session.get_one(Student, key) for key in (1, 2, 3))
        club.members.extend([one, two])
        session.flush()
        club.members.remove(one)
        session.flush()
        club.members.append(three)

    assert [
        (change.operation, change.table, change.after) for change in told.changes if isinstance(change, Change)
    ] == [
        ("insert", "membership", {"club_id": 1, "student_id": 2}),
        ("insert", "membership", {"club_id": 1, "student_id": 3}),
    ]
    identities = [change.identity for change in told.changes if isinstance(change, Change)]
    assert pickle.loads(pickle.dumps(identities)) == identities
    assert len(set(identities)) == 2


def test_links_of_a_collection_that_is_only_written(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A collection that is never loaded tells what was added and removed."""
    given(any_engine, Club(id=1), Student(id=1), Student(id=2))

    with db.transaction() as session:
        club = session.get_one(Club, 1)
        one, two = session.get_one(Student, 1), session.get_one(Student, 2)
        club.visitors.add_all([one, two])
        session.flush()
        club.visitors.remove(one)

    assert told.changes == [Change("insert", None, "visit", (1, 2), {}, {"club_id": 1, "student_id": 2})]


@pytest.mark.parametrize("loaded", [False, True])
def test_links_follow_a_changed_key(db: UnitOfWork, any_engine: Engine, told: Told, loaded: bool) -> None:
    """Where SQLAlchemy writes a changed key to the association table, the rows are updates."""
    given(any_engine, Tag(name="new", colour="red", articles=[Article(id=1)]), Article(id=2))

    with db.transaction() as session:
        tag = session.get_one(Tag, "new")
        if loaded:
            assert len(tag.articles) == 1
        tag.name = "old"
        tag.articles.append(session.get_one(Article, 2))

    assert rows(any_engine, tagging) == [(1, "old"), (2, "old")]
    assert in_order(told.changes) == [
        Change("update", "Tag", "tag", ("old",), {"name": "new"}, {"name": "old"}),
        Change("update", None, "tagging", (1, "old"), {"tag_name": "new"}, {"tag_name": "old"}),
        Change("insert", None, "tagging", (2, "old"), {}, {"article_id": 2, "tag_name": "old"}),
    ]


def test_links_of_an_object_that_is_replaced(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Where a new object takes the place of another in one flush, what is told of links is what is stored of them."""
    given(any_engine, Student(id=1, courses=[Course(id=1)]), Course(id=2))

    with db.transaction() as session:
        session.delete(session.get_one(Student, 1))
        session.add(Student(id=1, courses=[session.get_one(Course, 2)]))

    before, after = {(1, 1)}, {row[:2] for row in rows(any_engine, enrolment)}
    gone = [link("delete", *row) for row in before - after]
    come = [link("insert", *row) for row in after - before]
    assert in_order(told.changes) == in_order(gone + come)
