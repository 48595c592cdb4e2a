"""What receivers are told of the changes of a transaction, on every kind of database."""

from __future__ import annotations

import copy
import enum
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import (
    JSON,
    Column,
    Computed,
    DateTime,
    Engine,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Uuid,
    bindparam,
    delete,
    event,
    func,
    insert,
    lambda_stmt,
    literal_column,
    null,
    select,
    text,
    update,
)
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    WriteOnlyMapped,
    defer,
    load_only,
    mapped_column,
    relationship,
    undefer,
)
from sqlalchemy.orm.attributes import flag_modified

from flask_uow import Backoff, BulkChange, Change, ChangeSet, Propagation, Transaction, UnitOfWork, signals
from tests.conftest import assert_nothing_checked_out, sqlite_engine

# Models


class Model(DeclarativeBase):
    """The models of these tests."""


class Person(Model):
    __tablename__ = "person"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    age: Mapped[int | None]


class Parcel(Model):
    """Its key and its other columns are the database's to fill."""

    __tablename__ = "parcel"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(50))
    state: Mapped[str | None] = mapped_column(String(50), server_default="new")
    weight: Mapped[int] = mapped_column(server_default=text("7"))


class Letter(Model):
    """As a parcel, but its session does not ask for what the database has filled in."""

    __tablename__ = "letter"
    __mapper_args__ = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str] = mapped_column(String(50))
    state: Mapped[str | None] = mapped_column(String(50), server_default="new")


class Memo(Model):
    """Columns that change along with others."""

    __tablename__ = "memo"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50))
    mood: Mapped[str] = mapped_column(String(50), default="calm")
    editor: Mapped[str] = mapped_column(String(50), default=lambda: "nobody", onupdate=lambda: "somebody")
    edits: Mapped[int] = mapped_column(default=0, onupdate=literal_column("edits + 1"))


class Square(Model):
    __tablename__ = "square"

    id: Mapped[int] = mapped_column(primary_key=True)
    side: Mapped[int]
    area: Mapped[int | None] = mapped_column(Computed("side * side", persisted=True))


class Page(Model):
    __tablename__ = "page"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(50))
    version: Mapped[int] = mapped_column()

    __mapper_args__ = {"version_id_col": version}


class Animal(Model):
    __tablename__ = "animal"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(50))
    name: Mapped[str] = mapped_column(String(50))


class Dog(Animal):
    __tablename__ = "dog"
    __mapper_args__ = {"polymorphic_identity": "dog"}

    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    tricks: Mapped[int]


class Vehicle(Model):
    __tablename__ = "vehicle"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "vehicle"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(50))
    wheels: Mapped[int]


class Lorry(Vehicle):
    __mapper_args__ = {"polymorphic_identity": "lorry"}

    load: Mapped[int | None]


class Seat(Model):
    __tablename__ = "seat"

    hall: Mapped[str] = mapped_column(String(20), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    guest: Mapped[str] = mapped_column(String(50))


class Shelf(Model):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)
    items: Mapped[list[Item]] = relationship(back_populates="shelf", order_by="Item.id")


class Item(Model):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))
    shelf: Mapped[Shelf | None] = relationship(back_populates="items")


class Album(Model):
    __tablename__ = "album"

    id: Mapped[int] = mapped_column(primary_key=True)
    tracks: Mapped[list[Track]] = relationship(
        back_populates="album", cascade="all, delete-orphan", order_by="Track.number"
    )


class Track(Model):
    """Its key is made of its place."""

    __tablename__ = "track"

    album_id: Mapped[int] = mapped_column(ForeignKey("album.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(50))
    album: Mapped[Album] = relationship(back_populates="tracks")


class Box(Model):
    __tablename__ = "box"

    id: Mapped[int] = mapped_column(primary_key=True)
    balls: Mapped[list[Ball]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class Ball(Model):
    __tablename__ = "ball"

    id: Mapped[int] = mapped_column(primary_key=True)
    box_id: Mapped[int] = mapped_column(ForeignKey("box.id", ondelete="CASCADE"))


class Node(Model):
    """Nodes can stand in a ring, which takes UPDATEs of its own."""

    __tablename__ = "node"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    next_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    next: Mapped[Node | None] = relationship(remote_side="Node.id", post_update=True)


enrolment = Table(
    "enrolment",
    Model.metadata,
    Column("student_id", ForeignKey("student.id"), primary_key=True),
    Column("course_id", ForeignKey("course.id"), primary_key=True),
    Column("grade", Integer),
)

friendship = Table(
    "friendship",
    Model.metadata,
    Column("student_id", ForeignKey("student.id"), nullable=False),
    Column("friend_id", ForeignKey("student.id"), nullable=False),
)
"""It has no primary key."""

membership = Table(
    "membership",
    Model.metadata,
    Column("id", Integer, primary_key=True),
    Column("club_id", ForeignKey("club.id"), nullable=False),
    Column("student_id", ForeignKey("student.id"), nullable=False),
)
"""Its primary key is a number that nobody is told."""

visit = Table(
    "visit",
    Model.metadata,
    Column("club_id", ForeignKey("club.id"), primary_key=True),
    Column("student_id", ForeignKey("student.id"), primary_key=True),
)

tagging = Table(
    "tagging",
    Model.metadata,
    Column("article_id", Integer, primary_key=True, autoincrement=False),
    Column("tag_name", String(50), primary_key=True),
)
"""The database does not check it, so that keys can change."""


class Student(Model):
    __tablename__ = "student"

    id: Mapped[int] = mapped_column(primary_key=True)
    courses: Mapped[list[Course]] = relationship(secondary=enrolment, back_populates="students", order_by="Course.id")
    friends: Mapped[list[Student]] = relationship(
        secondary=friendship,
        primaryjoin="Student.id == friendship.c.student_id",
        secondaryjoin="Student.id == friendship.c.friend_id",
    )


class Course(Model):
    __tablename__ = "course"

    id: Mapped[int] = mapped_column(primary_key=True)
    students: Mapped[list[Student]] = relationship(secondary=enrolment, back_populates="courses", order_by="Student.id")


class Club(Model):
    __tablename__ = "club"

    id: Mapped[int] = mapped_column(primary_key=True)
    members: Mapped[list[Student]] = relationship(secondary=membership, order_by="Student.id")
    visitors: WriteOnlyMapped[Student] = relationship(secondary=visit)


class Article(Model):
    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)


class Tag(Model):
    """Its primary key is a word, which can change."""

    __tablename__ = "tag"

    name: Mapped[str] = mapped_column(String(50), primary_key=True)
    colour: Mapped[str] = mapped_column(String(50))
    articles: Mapped[list[Article]] = relationship(
        secondary=tagging,
        primaryjoin="Tag.name == foreign(tagging.c.tag_name)",
        secondaryjoin="Article.id == foreign(tagging.c.article_id)",
        passive_updates=False,
    )


class Document(Model):
    __tablename__ = "document"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    body: Mapped[str | None] = mapped_column(String(50), deferred=True)
    summary: Mapped[str | None] = mapped_column(String(50), deferred=True, active_history=True)


class Setting(Model):
    __tablename__ = "setting"

    id: Mapped[int] = mapped_column(primary_key=True)
    plain: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    tracked: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(JSON()))


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Sample(Model):
    __tablename__ = "sample"

    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    made: Mapped[datetime] = mapped_column(DateTime)
    colour: Mapped[Colour] = mapped_column(Enum(Colour, name="colour_of_sample"))
    data: Mapped[bytes] = mapped_column(LargeBinary)


class Legacy(Model):
    """Its attributes are not called as its columns are."""

    __tablename__ = "legacy"

    ident: Mapped[int] = mapped_column("id", primary_key=True)
    given: Mapped[str] = mapped_column("first_name", String(50))
    remark: Mapped[str | None] = mapped_column("legacy_note", String(50), key="note")


class Line(Model):
    """Its table has no primary key."""

    __table__ = Table(
        "line",
        Model.metadata,
        Column("number", Integer, nullable=False),
        Column("text", String(50), nullable=False),
    )
    __mapper_args__ = {"primary_key": [__table__.c.number]}

    number: Mapped[int]
    text: Mapped[str]


class Attic(DeclarativeBase):
    """What is in a schema, where the database has them."""


class Chest(Attic):
    __tablename__ = "chest"
    __table_args__ = {"schema": "attic"}

    id: Mapped[int] = mapped_column(primary_key=True)
    content: Mapped[str] = mapped_column(String(50))


# Fixtures


class Told:
    """What receivers were given."""

    def __init__(self) -> None:
        self.before: list[ChangeSet] = []
        self.committed: list[ChangeSet] = []
        self.lost: list[ChangeSet] = []

    @property
    def changes(self) -> ChangeSet:
        """Those of the only commit."""
        (changes,) = self.committed
        assert changes.is_complete
        return changes

    @property
    def bulk(self) -> list[tuple[str, str | None, int]]:
        """Those of the only commit, all of which are of statements, without their SQL."""
        assert all(isinstance(change, BulkChange) for change in self.changes)
        return [(change[0], change.table, change.rowcount) for change in self.changes if isinstance(change, BulkChange)]


def receiver(changes_of: list[ChangeSet]) -> Callable[..., None]:
    def receive(_sender: object, changes: ChangeSet, **_extra: object) -> None:
        changes_of.append(changes)

    return receive


@pytest.fixture
def told(db: UnitOfWork) -> Iterator[Told]:
    """Receivers of all signals that tell of changes."""
    told = Told()
    with (
        signals.before_commit.connected_to(receiver(told.before)),
        signals.after_commit.connected_to(receiver(told.committed)),
        signals.after_rollback.connected_to(receiver(told.lost)),
    ):
        yield told


@pytest.fixture(scope="module")
def sqlite_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A SQLite file for all of these tests."""
    engine = sqlite_engine(tmp_path_factory.mktemp("changes") / "test.db")
    event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def engines() -> Iterator[set[Engine]]:
    """Those on which the tables are."""
    engines: set[Engine] = set()
    yield engines
    for engine in engines:
        drop(engine)


@pytest.fixture(params=["sqlite", "postgresql", "postgresql_server", "mariadb"])
def any_engine(request: pytest.FixtureRequest, engines: set[Engine]) -> Iterator[Engine]:
    """Each kind of database in turn, with the tables of these tests alone: made once, and empty."""
    engine: Engine = request.getfixturevalue(f"{request.param}_database")
    if engine not in engines:
        engines.add(engine)
        Model.metadata.create_all(engine)
    empty(engine)
    yield engine
    assert_nothing_checked_out(engine)


def drop(engine: Engine) -> None:
    """Drop the tables; MariaDB takes its time for each statement."""
    with engine.begin() as connection:
        if engine.dialect.name == "mysql":
            connection.exec_driver_sql("SET foreign_key_checks = 0")
            connection.exec_driver_sql(f"DROP TABLE {', '.join(Model.metadata.tables)}")
            connection.exec_driver_sql("SET foreign_key_checks = 1")
        else:
            Model.metadata.drop_all(connection)


FULL = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT 1 FROM {table})" for table in Model.metadata.tables)
"""Asks for the tables that have rows."""


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        full = {name for (name,) in connection.exec_driver_sql(FULL)}
        if "node" in full:
            connection.execute(update(Node).values(next_id=None))
        for table in reversed(Model.metadata.sorted_tables if full else []):
            if table.name in full:
                connection.execute(table.delete())


@pytest.fixture
def app(app: Flask, db: UnitOfWork) -> Flask:
    db.init_app(app)
    return app


def given(engine: Engine, *objects: object) -> None:
    """Store objects past the UnitOfWork."""
    with Session(engine) as session, session.begin():
        session.add_all(objects)


def rows(engine: Engine, table: Any) -> list[tuple[Any, ...]]:
    """What is stored, seen from another connection."""
    with engine.connect() as connection:
        return sorted(tuple(row) for row in connection.execute(select(table)))


def transaction_of(db: UnitOfWork) -> Transaction:
    transaction = db.current_transaction
    assert transaction is not None
    return transaction


def so_far(db: UnitOfWork) -> ChangeSet:
    """What has changed in the transaction that is current."""
    return transaction_of(db).changes


def in_order(changes: Iterable[Change | BulkChange]) -> list[Change]:
    """Changes of rows by table and key, where SQLAlchemy promises no order."""
    return sorted(
        (change for change in changes if isinstance(change, Change)),
        key=lambda change: (change.table, [str(part) for part in change.identity]),
    )


def ada(**values: Any) -> Person:
    return Person(**{"id": 1, "name": "Ada", "age": 36, **values})


ADA = {"id": 1, "name": "Ada", "age": 36}


# Rows: what a flush does


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


def test_all_receivers_are_told(db: UnitOfWork, told: Told) -> None:
    """Receivers of before_commit and after_commit are told the same, and those of after_rollback what was lost."""
    with db.transaction() as session:
        session.add(ada())
    with pytest.raises(LookupError), db.transaction() as session:
        session.add(ada(id=2))
        session.flush()
        raise LookupError

    assert told.before == told.committed == [[Change("insert", "Person", "person", (1,), {}, ADA)]]
    assert told.lost == [[Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]]
    assert all(changes.is_complete for changes in (*told.before, *told.committed, *told.lost))


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


def test_transaction_has_its_changes_at_any_time(db: UnitOfWork, told: Told) -> None:
    """The transaction says what was written so far, and has its changes after its end as well."""
    with db.transaction() as session:
        transaction = transaction_of(db)
        seen = [list(transaction.changes)]
        person = ada()
        session.add(person)
        seen.append(list(transaction.changes))
        session.flush()
        early = transaction.changes
        person.age = 37
        session.flush()
        seen.append(list(transaction.changes))

    assert seen == [[], [], [Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 37})]]
    assert early == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert transaction.changes == told.changes == seen[-1]


def test_what_receivers_add_is_told_as_well(db: UnitOfWork, told: Told) -> None:
    """What a receiver of before_commit changes is in what is told after the commit."""

    def add(_sender: object, session: Session, changes: ChangeSet, **_extra: object) -> None:
        session.add(Memo(id=1, text=f"{len(changes)} change"))

    with signals.before_commit.connected_to(add), db.transaction() as session:
        session.add(ada())

    assert told.changes == [
        Change("insert", "Person", "person", (1,), {}, ADA),
        Change(
            "insert",
            "Memo",
            "memo",
            (1,),
            {},
            {"id": 1, "text": "1 change", "mood": "calm", "editor": "nobody", "edits": 0},
        ),
    ]
    assert all(changes == told.changes[:1] for changes in told.before)


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


def test_flush_that_fails_in_a_savepoint(db: UnitOfWork, told: Told) -> None:
    """Nothing is told of a flush that fails, and of what else was done in its savepoint."""
    with db.transaction() as session:
        session.add(ada())
        with pytest.raises(IntegrityError), db.savepoint():
            session.add(ada(id=2))
            session.flush()
            session.add_all([ada(id=3), Person(id=4)])
            session.flush()
        session.add(ada(id=5))

    assert told.changes == [
        Change("insert", "Person", "person", (1,), {}, ADA),
        Change("insert", "Person", "person", (5,), {}, {**ADA, "id": 5}),
    ]


def test_flush_that_fails_in_a_savepoint_of_ones_own(db: UnitOfWork, told: Told) -> None:
    """It is the same with a savepoint of the session."""
    with db.transaction() as session:
        session.add(ada())
        with pytest.raises(IntegrityError), session.begin_nested():
            session.add_all([ada(id=3), Person(id=4)])
            session.flush()
        session.add(ada(id=5))

    assert [change.identity for change in in_order(told.changes)] == [(1,), (5,)]


def test_flush_that_fails_in_a_transaction(db: UnitOfWork, told: Told) -> None:
    """What was lost is what was written before, and nothing of the flush that failed."""
    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(ada())
        session.flush()
        session.add_all([ada(id=3), Person(id=4)])
        session.flush()

    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, ADA)]]
    assert told.committed == []


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


def test_blind_write_of_the_same_value(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A blind write of what was there is no change, although there is an UPDATE."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.expire(person)
        person.age = 36

    assert told.changes == []


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


@pytest.mark.parametrize("names", [None, ["age"], ["name", "age"]])
def test_delete_of_an_expired_object(db: UnitOfWork, any_engine: Engine, told: Told, names: list[str] | None) -> None:
    """A deletion has all columns, whether or not the session has them."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.expire(person, names)
        session.delete(person)

    assert told.changes == [Change("delete", "Person", "person", (1,), ADA, {})]


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


def test_expressions_on_insert(db: UnitOfWork, told: Told) -> None:
    """What the database has made of an expression is told, not the expression."""
    with db.transaction() as session:
        session.add(Person(id=1, name=func.lower("ADA"), age=text("30 + 6")))

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, {**ADA, "name": "ada"})]


def test_expressions_on_update(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same with an update, loaded or not."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        session.expire(two)
        one.age = Person.age + 1
        one.name = func.lower("EDA")
        two.age = Person.age + 1
        session.flush()
        two.age = Person.age + 1

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "eda", "age": 37}),
        Change("update", "Person", "person", (2,), {"age": 36}, {"age": 38}),
    ]


def test_expression_of_the_old_value(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An expression that comes to what was there is no change, and null() is None."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.get_one(Person, 1).name = func.trim(" Ada ")
        session.get_one(Person, 2).age = null()

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
    """What SQLAlchemy and the database write along with other columns is told, as values."""
    given(any_engine, Memo(id=1, text="a"))

    with db.transaction() as session:
        session.add(Memo(id=2, text="b", mood="wild"))
        session.get_one(Memo, 1).text = "A"

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
            "insert", "Memo", "memo", (2,), {}, {"id": 2, "text": "b", "mood": "wild", "editor": "nobody", "edits": 0}
        ),
    ]


def test_onupdate_of_what_was_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same with an expired object, of which nothing but a blind write is known."""
    given(any_engine, Memo(id=1, text="a"))

    with db.transaction() as session:
        memo = session.get_one(Memo, 1)
        session.expire(memo)
        memo.text = "A"
        session.flush()
        memo.text = "AA"

    assert told.changes == [
        Change(
            "update",
            "Memo",
            "memo",
            (1,),
            {"text": "a", "editor": "nobody", "edits": 0},
            {"text": "AA", "editor": "somebody", "edits": 2},
        )
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
    given(any_engine, Page(id=1, text="a"), Page(id=2, text="b"))

    with db.transaction() as session:
        one, two = session.get_one(Page, 1), session.get_one(Page, 2)
        one.text = "A"
        session.flush()
        one.text = "AA"
        session.delete(two)
        session.add(Page(id=3, text="c"))

    assert in_order(told.changes) == [
        Change("update", "Page", "page", (1,), {"text": "a", "version": 1}, {"text": "AA", "version": 3}),
        Change("delete", "Page", "page", (2,), {"id": 2, "text": "b", "version": 1}, {}),
        Change("insert", "Page", "page", (3,), {}, {"id": 3, "text": "c", "version": 1}),
    ]


def test_version_of_an_expired_object(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same after a blind write."""
    given(any_engine, Page(id=1, text="a"))

    with db.transaction() as session:
        page = session.get_one(Page, 1)
        session.expire(page)
        page.text = "A"

    assert told.changes == [
        Change("update", "Page", "page", (1,), {"text": "a", "version": 1}, {"text": "A", "version": 2})
    ]


def test_flag_modified_without_a_change(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An attribute that is said to have changed, and cannot have in place, is told as one that was not loaded."""
    given(any_engine, ada())

    with db.transaction() as session:
        flag_modified(session.get_one(Person, 1), "name")

    assert told.changes == [Change("update", "Person", "person", (1,), {}, {"name": "Ada"})]


# Deferred columns


def test_deferred_columns_that_are_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A deferred column is not fetched merely to be told: it is absent, or in *after* alone where it is written."""
    given(any_engine, *(Document(id=key, title="a", body="x") for key in (1, 2, 3)))

    with db.transaction() as session:
        one, two, three = (session.get_one(Document, key) for key in (1, 2, 3))
        one.title = "A"
        two.body = "X"
        session.delete(three)
        session.flush()
        assert "body" not in vars(one)

    assert in_order(told.changes)[:2] == [
        Change("update", "Document", "document", (1,), {"title": "a"}, {"title": "A"}),
        Change("update", "Document", "document", (2,), {}, {"body": "X"}),
    ]
    assert "body" not in in_order(told.changes)[2].before


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


def test_deferred_column_written_with_an_expression(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What an expression has come to is told, of a deferred column as well."""
    given(any_engine, Document(id=1, title="a", body="x"))

    with db.transaction() as session:
        session.get_one(Document, 1).body = func.upper("y")

    assert told.changes == [Change("update", "Document", "document", (1,), {}, {"body": "Y"})]


@pytest.mark.parametrize("flushes", [1, 2])
def test_row_that_is_replaced_and_was_loaded_in_part(
    db: UnitOfWork, any_engine: Engine, told: Told, flushes: int
) -> None:
    """What takes the place of a row writes blindly over what was not loaded of it, in one flush or in two."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1, options=[defer(Person.age)]))
        if flushes == 2:
            session.flush()
        session.add(ada(age=37))

    assert told.changes == [Change("update", "Person", "person", (1,), {}, {"age": 37})]


# Inheritance and keys


def test_joined_inheritance(db: UnitOfWork, told: Told) -> None:
    """An object in two tables is two changes, both with the name of its own class."""
    with db.transaction() as session:
        session.add(Dog(id=1, name="Rex", tricks=3))

    assert told.changes == [
        Change("insert", "Dog", "animal", (1,), {}, {"id": 1, "kind": "dog", "name": "Rex"}),
        Change("insert", "Dog", "dog", (1,), {}, {"id": 1, "tricks": 3}),
    ]


def test_joined_inheritance_with_a_generated_key(db: UnitOfWork, told: Told) -> None:
    """The key that the one table has generated is in the other as well."""
    with db.transaction() as session:
        dog = Dog(name="Rex", tricks=3)
        session.add(dog)
        session.flush()
        key = dog.id

    assert [(change.table, change.identity) for change in in_order(told.changes)] == [
        ("animal", (key,)),
        ("dog", (key,)),
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
    """The identity is the key after the change; the one before is in *before*."""
    given(any_engine, Tag(name="new", colour="red"))

    with db.transaction() as session:
        tag = session.get_one(Tag, "new")
        tag.name = "old"
        session.flush()
        tag.colour = "blue"

    assert told.changes == [
        Change("update", "Tag", "tag", ("old",), {"name": "new", "colour": "red"}, {"name": "old", "colour": "blue"})
    ]


def test_changed_key_of_an_expired_object(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same with a blind write."""
    given(any_engine, Tag(name="new", colour="red"))

    with db.transaction() as session:
        tag = session.get_one(Tag, "new")
        session.expire(tag)
        tag.name = "old"
        tag.colour = func.lower("BLUE")

    assert told.changes == [
        Change("update", "Tag", "tag", ("old",), {"name": "new", "colour": "red"}, {"name": "old", "colour": "blue"})
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


@pytest.mark.parametrize("flushes", [1, 2])
def test_row_that_is_replaced(db: UnitOfWork, any_engine: Engine, told: Told, flushes: int) -> None:
    """A row that is deleted and added again, in one flush or in two, is an update."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1))
        if flushes == 2:
            session.flush()
        session.add(ada(name="Eda"))

    assert told.changes == [Change("update", "Person", "person", (1,), {"name": "Ada"}, {"name": "Eda"})]


@pytest.mark.parametrize("flushes", [1, 2])
def test_row_that_is_replaced_by_its_like(db: UnitOfWork, any_engine: Engine, told: Told, flushes: int) -> None:
    """A row that is deleted and added again as it was has not changed."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.delete(session.get_one(Person, 1))
        if flushes == 2:
            session.flush()
        session.add(ada())

    assert told.changes == []


def test_expired_row_that_is_replaced(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same where nothing of the old row was loaded."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.expire(person)
        session.delete(person)
        session.add(ada(age=37))

    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]


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


# Relationships


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
    """A collection that is not loaded, and that a backref adds to, tells what was added."""
    given(any_engine, Student(id=1, courses=[Course(id=1)]), Course(id=2))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        new, old = Course(id=3), session.get_one(Course, 2)
        session.add(new)
        new.students.append(student)
        old.students.append(student)
        assert "courses" not in vars(student)

    assert in_order(told.changes) == [
        Change("insert", "Course", "course", (3,), {}, {"id": 3}),
        link("insert", 1, 2),
        link("insert", 1, 3),
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


def test_unlink_what_was_not_loaded(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same where the collection on the other side is not loaded."""
    given(any_engine, Student(id=1, courses=[Course(id=1), Course(id=2)]))

    with db.transaction() as session:
        student = session.get_one(Student, 1)
        course = session.get_one(Course, 2)
        course.students.remove(student)
        assert "courses" not in vars(student)

    assert rows(any_engine, enrolment) == [(1, 1, None)]
    assert told.changes == [link("delete", 1, 2)]


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


# Statements


def test_bulk_update_and_delete(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """UPDATE and DELETE through the session are told with the rows that they have touched, and their SQL."""
    given(any_engine, *(ada(id=key) for key in (1, 2, 3)))

    with db.transaction() as session:
        session.execute(update(Person).where(Person.id > 1).values(age=1))
        session.execute(delete(Person).where(Person.id == 3))

    form = {"sqlite": "?", "mysql": "%({})s", "postgresql": "%({})s::INTEGER"}[any_engine.dialect.name]
    age, key = form.format("age"), form.format("id_1")
    assert told.changes == [
        BulkChange("update", "person", 2, f"UPDATE person SET age={age} WHERE person.id > {key}"),
        BulkChange("delete", "person", 1, f"DELETE FROM person WHERE person.id = {key}"),
    ]


def test_core_statements(db: UnitOfWork, told: Told) -> None:
    """It is the same with the tables of the Core."""
    people = Person.metadata.tables["person"]

    with db.transaction() as session:
        session.execute(insert(people).values(id=1, name="Ada"))
        session.execute(insert(people), {"id": 2, "name": "Bob"})
        session.execute(insert(people).values([{"id": 3, "name": "Cid"}, {"id": 4, "name": "Dee"}]))
        session.execute(insert(people).from_select(["id", "name"], select(people.c.id + 10, people.c.name)))
        session.execute(people.update().where(people.c.id < 3), {"age": 1})
        session.execute(people.delete().where(people.c.id == 1))

    assert told.bulk == [
        ("insert", "person", 1),
        ("insert", "person", 1),
        ("insert", "person", 2),
        ("insert", "person", 4),
        ("update", "person", 2),
        ("delete", "person", 1),
    ]


def test_executemany(db: UnitOfWork, told: Told) -> None:
    """A statement with many sets of parameters is one change, of all rows that the driver counts."""
    people = Person.metadata.tables["person"]

    with db.transaction() as session:
        session.execute(insert(people), [{"id": key, "name": "Ada"} for key in (1, 2, 3)])
        session.execute(
            update(people).where(people.c.id == bindparam("key")),
            [{"key": 1, "age": 1}, {"key": 2, "age": 2}],
        )
        session.execute(
            text("UPDATE person SET age = :age WHERE id = :key"), [{"key": 1, "age": 3}, {"key": 2, "age": 4}]
        )

    assert told.bulk == [("insert", "person", 3), ("update", "person", 2), ("update", "person", 2)]


def test_bulk_insert_of_the_orm(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows that the ORM inserts without objects are a statement, and nobody says how many there are."""
    with db.transaction() as session:
        session.execute(insert(Person), [{"id": key, "name": "Ada"} for key in (1, 2, 3)])
        session.execute(insert(Dog), [{"name": "Rex", "tricks": 3}])
        session.execute(update(Person), [{"id": 1, "age": 1}, {"id": 2, "age": 2}])

    assert [change[:2] for change in told.bulk] == [("insert", "person"), ("insert", "dog"), ("update", "person")]
    assert all(rowcount in (-1, number) for (_, _, rowcount), number in zip(told.bulk, (3, 1, 2), strict=True))
    statements = [change.statement.split()[:2] for change in told.changes if isinstance(change, BulkChange)]
    assert statements == [["INSERT", "INTO"], ["INSERT", "INTO"], ["UPDATE", "person"]]


def test_returning(db: UnitOfWork, told: Told) -> None:
    """What a statement returns is the user's, and its rows are counted, or the driver does not say."""
    with db.transaction() as session:
        one = session.execute(insert(Person).values(id=1, name="Ada").returning(Person.id, Person.name)).one()
        many = session.scalars(insert(Person).returning(Person), [{"id": key, "name": "Bob"} for key in (2, 3)])
        keys = sorted(person.id for person in many)
        gone = session.scalars(delete(Person).where(Person.id == 3).returning(Person.id)).all()

    assert (tuple(one), keys, gone) == ((1, "Ada"), [2, 3], [3])
    assert [change[:2] for change in told.bulk] == [("insert", "person"), ("insert", "person"), ("delete", "person")]
    assert all(rowcount in (-1, number) for (_, _, rowcount), number in zip(told.bulk, (1, 2, 1), strict=True))


def test_update_returning(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same with UPDATE, where the database has that."""
    if not any_engine.dialect.update_returning:
        pytest.skip("MariaDB has no UPDATE ... RETURNING")
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        found = session.scalars(update(Person).values(age=1).returning(Person.id)).all()

    assert sorted(found) == [1, 2]
    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("update", "person")
    assert rowcount in (-1, 2)


def test_returning_one_value(db: UnitOfWork, told: Told) -> None:
    """session.scalar() with RETURNING is told of as well."""
    with db.transaction() as session:
        key = session.scalar(insert(Parcel).values(label="a").returning(Parcel.id))
        gone = session.scalar(delete(Parcel).where(Parcel.id == key).returning(Parcel.id))

    assert gone == key
    assert [change[:2] for change in told.bulk] == [("insert", "parcel"), ("delete", "parcel")]
    assert all(rowcount in (-1, 1) for _, _, rowcount in told.bulk)


def test_returning_in_batches(db: UnitOfWork, told: Told) -> None:
    """An insert that SQLAlchemy sends in batches does not claim the rows of one of them for all."""
    with db.transaction() as session:
        session.execute(
            insert(Person.__table__).returning(Person.id),  # type: ignore[arg-type] # it is a Table
            [{"id": key, "name": "Ada"} for key in range(1, 6)],
            execution_options={"insertmanyvalues_page_size": 2},
        )

    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("insert", "person")
    assert rowcount in (-1, 5)


def test_returning_from_a_select(db: UnitOfWork, told: Told) -> None:
    """An INSERT whose rows are loaded as objects is an INSERT, as a construct or as text."""
    with db.transaction() as session:
        one = session.scalars(
            select(Person).from_statement(insert(Person).values(id=1, name="Ada").returning(Person))
        ).one()
        two = session.scalars(
            select(Person).from_statement(text("INSERT INTO person (id, name) VALUES (2, 'Bob') RETURNING *"))
        ).one()
        three = session.execute(
            text("INSERT INTO person (id, name) VALUES (3, 'Cid') RETURNING id").columns(Person.id)
        ).scalar_one()
        assert (one.name, two.name, three) == ("Ada", "Bob", 3)

    assert [change[:2] for change in told.bulk] == [("insert", "person")] * 3


def test_lambda(db: UnitOfWork, told: Told) -> None:
    """A statement that is made by a lambda is a statement."""
    with db.transaction() as session:
        session.execute(lambda_stmt(lambda: insert(Person).values(id=1, name="Ada")))
        session.execute(lambda_stmt(lambda: update(Person).values(age=1)))
        session.execute(lambda_stmt(lambda: select(Person)))

    assert told.bulk == [("insert", "person", 1), ("update", "person", 1)]


def test_bulk_update_of_inherited_classes(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A statement is told by the name of the table that it is about."""
    given(any_engine, Dog(id=1, name="Rex", tricks=3), Lorry(id=1, wheels=6), Vehicle(id=2, wheels=4))

    with db.transaction() as session:
        session.execute(update(Dog).values(tricks=4))
        session.execute(update(Animal).values(name="Roy"))
        session.execute(update(Lorry).values(load=5))

    assert told.bulk == [("update", "dog", 1), ("update", "animal", 1), ("update", "vehicle", 1)]


def test_query(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Query.update() and Query.delete() are statements as well."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.query(Person).update({"age": 1})
        session.query(Person).filter_by(id=2).delete()

    assert told.bulk == [("update", "person", 2), ("delete", "person", 1)]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE person SET age = 1", ("update", 2)),
        ("update person set age = 1 where id = 1", ("update", 1)),
        ("\n  DELETE\n  FROM person\n  WHERE id = 1", ("delete", 1)),
        ("INSERT INTO person(id, name) VALUES (3, 'Cid')", ("insert", 1)),
        ("-- why\nUPDATE person SET age = 1", ("update", 2)),
        ("/* why: UPDATE\n parcel */ UPDATE /* who */ person SET age = 1", ("update", 2)),
        ("UPDATE <person> SET age = 1", ("update", 2)),
        ("UPDATE<person>SET age = 1", ("update", 2)),
        ("INSERT INTO <person> (id, name) SELECT id + 10, name FROM person", ("insert", 2)),
        ("DELETE FROM person WHERE id IN (SELECT id FROM (SELECT id FROM person) p)", ("delete", 2)),
    ],
)
def test_text(db: UnitOfWork, any_engine: Engine, told: Told, statement: str, expected: tuple[Any, int]) -> None:
    """A textual statement is told by the name of the table in it, without quotes."""
    given(any_engine, ada(), ada(id=2))
    quote = any_engine.dialect.identifier_preparer.quote_identifier
    sql = statement.replace("<person>", quote("person"))

    with db.transaction() as session:
        session.execute(text(sql))

    assert told.changes == [BulkChange(expected[0], "person", expected[1], sql)]


def test_text_with_parameters(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The SQL that is told has placeholders, and none of the values."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.execute(text("UPDATE person SET name = :name"), {"name": "secret"})

    placeholder = "?" if any_engine.dialect.name == "sqlite" else "%(name)s"
    assert told.changes == [BulkChange("update", "person", 1, f"UPDATE person SET name = {placeholder}")]


def test_text_with_a_cte(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What WITH comes before is what is told of."""
    if any_engine.dialect.name == "mysql":
        pytest.skip("MariaDB has WITH before SELECT alone")
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.execute(
            text(
                "WITH old AS (SELECT id FROM person WHERE (age > 1)), one(id) AS (SELECT min(id) FROM old) "
                "UPDATE person SET age = 1 WHERE id IN (SELECT id FROM one)"
            )
        )
        session.execute(text("WITH old AS (SELECT 1) SELECT * FROM old"))
        session.execute(
            text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) DELETE FROM person")
        )

    # SQLite's driver counts nothing of a statement that does not begin with one of its words.
    counts = (-1, -1) if any_engine.dialect.name == "sqlite" else (1, 2)
    assert told.bulk == [("update", "person", counts[0]), ("delete", "person", counts[1])]


def test_text_that_selects(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A SELECT is no change, whatever words there are in it."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.execute(text("SELECT replace(name, 'UPDATE person', 'DELETE FROM person') FROM person"))
        session.execute(text("-- INSERT INTO person\nSELECT 1"))
        session.execute(text("/* DELETE FROM person */ SELECT 'UPDATE person SET age = 1' FROM person"))
        session.execute(text("WITH a AS (SELECT 1) SELECT (1) + (SELECT count(*) FROM person)"))

    assert told.changes == []


def test_text_that_selects_with_a_cte(db: UnitOfWork, told: Told) -> None:
    """It is the same after a WITH, in which there are words as well."""
    with db.transaction() as session:
        session.execute(text("WITH a AS (SELECT '(then) UPDATE person') SELECT * FROM a"))

    assert told.changes == []


def test_text_of_postgresql(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """PostgreSQL's own spellings, and its TRUNCATE, of which it does not say how many rows there were."""
    if any_engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's own")
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.execute(text('UPDATE ONLY public."person" AS p SET age = 1'))
        session.execute(text("INSERT INTO person (id, name) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET age = 7"))
        session.execute(text("TRUNCATE TABLE person"))

    assert told.bulk == [("update", "public.person", 2), ("insert", "person", 1), ("delete", "person", -1)]


def test_writing_cte(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An INSERT inside a WITH, whose rows a SELECT returns, is not seen; the documentation says so."""
    if any_engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's own")
    new = insert(Person).values(id=1, name="Ada").returning(Person.id).cte("new")

    with db.transaction() as session:
        assert session.scalars(select(new.c.id)).all() == [1]
        session.execute(
            text("WITH new AS (INSERT INTO person (id, name) VALUES (2, 'Bob') RETURNING id) SELECT id FROM new")
        )

    assert len(rows(any_engine, Person.__table__)) == 2
    assert told.bulk == []


def test_text_of_mariadb(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """MariaDB's own spellings."""
    if any_engine.dialect.name != "mysql":
        pytest.skip("MariaDB's own")
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.execute(text("INSERT IGNORE INTO `person` (id, name) VALUES (1, 'Ada'), (3, 'Cid')"))
        session.execute(text("UPDATE LOW_PRIORITY IGNORE person SET age = 1"))
        session.execute(text("REPLACE INTO person (id, name) VALUES (4, 'Dee')"))
        session.execute(text("DELETE QUICK FROM person WHERE id = 4"))

    assert told.bulk == [
        ("insert", "person", 1),
        ("update", "person", 3),
        ("insert", "person", 1),
        ("delete", "person", 1),
    ]


def test_text_of_sqlite(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """SQLite's own spellings."""
    if any_engine.dialect.name != "sqlite":
        pytest.skip("SQLite's own")
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.execute(text("INSERT OR IGNORE INTO main.[person] (id, name) VALUES (1, 'Ada'), (3, 'Cid')"))
        session.execute(text("REPLACE INTO person (id, name) VALUES (4, 'Dee')"))
        session.execute(text("UPDATE OR ROLLBACK `person` SET age = 1"))

    assert told.bulk == [("insert", "main.person", 1), ("insert", "person", 1), ("update", "person", 4)]


def test_upsert(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An INSERT that becomes an UPDATE is told as an INSERT, and one that does nothing is not told of."""
    given(any_engine, ada())
    values = {"id": 1, "name": "Eda"}

    with db.transaction() as session:
        if any_engine.dialect.name == "mysql":
            session.execute(mysql.insert(Person).values(values).on_duplicate_key_update(name="Eda"))
        else:
            insertion: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[any_engine.dialect.name]
            session.execute(insertion(Person).values(values).on_conflict_do_nothing())
            session.execute(
                insertion(Person).values(values).on_conflict_do_update(index_elements=["id"], set_={"name": "Eda"})
            )

    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("insert", "person")
    # MariaDB counts the old row and the new one.
    assert rowcount == (2 if any_engine.dialect.name == "mysql" else 1)


def test_statement_that_touches_nothing(db: UnitOfWork, told: Told) -> None:
    """Where no row was touched there is nothing to tell."""
    with db.transaction() as session:
        session.execute(update(Person).values(age=1))
        session.execute(delete(Person))
        session.query(Person).update({"age": 1})
        session.execute(text("UPDATE person SET age = 1"))
        session.execute(text("DELETE FROM person"))
        session.execute(insert(Person).from_select(["id", "name"], select(Person.id, Person.name)))

    assert told.changes == []


def test_statement_that_returns_nothing(db: UnitOfWork, told: Told) -> None:
    """It is the same with RETURNING, or else the driver does not say."""
    with db.transaction() as session:
        assert session.execute(delete(Person).returning(Person.id)).all() == []
        assert session.scalar(delete(Person).returning(Person.id)) is None

    assert all(rowcount == -1 for _, _, rowcount in told.bulk)


def test_statement_in_a_savepoint(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Statements go with the savepoint in which they were executed."""
    given(any_engine, ada())

    with db.transaction() as session:
        with pytest.raises(LookupError), db.savepoint():
            session.execute(update(Person).values(age=1))
            raise LookupError
        with db.savepoint():
            session.execute(text("UPDATE person SET age = 2"))

    assert told.changes == [BulkChange("update", "person", 1, "UPDATE person SET age = 2")]


def test_statement_that_fails(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A statement that the database refuses has changed nothing."""
    given(any_engine, ada())

    with db.transaction() as session:
        with pytest.raises(IntegrityError), db.savepoint():
            session.execute(insert(Person).values(id=1, name="same key"))
        session.execute(update(Person).values(age=1))

    assert told.bulk == [("update", "person", 1)]


def test_statement_and_objects(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An object's change goes on from what a statement has written, where the session knows that."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.execute(update(Person).values(age=1), execution_options={"synchronize_session": "fetch"})
        person.age = 2

    (bulk, change) = told.changes
    assert bulk[:3] == ("update", "person", 1)
    assert change == Change("update", "Person", "person", (1,), {"age": 1}, {"age": 2})


# What is not told


def test_what_goes_past_the_session(db: UnitOfWork, told: Told) -> None:
    """The old bulk methods, and a connection, are not followed."""
    with db.transaction() as session:
        session.bulk_save_objects([ada()])
        session.bulk_insert_mappings(Person, [{"id": 2, "name": "Bob"}])
        session.bulk_update_mappings(Person, [{"id": 2, "name": "Eda"}])
        session.connection().execute(insert(Person).values(id=3, name="Cid"))
        session.connection().exec_driver_sql("DELETE FROM person WHERE id = 3")

    assert told.changes == []
    assert told.changes.is_complete


def test_what_the_database_does_by_itself(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows that ON DELETE CASCADE deletes, and nobody has loaded, are not told of."""
    given(any_engine, Box(id=1, balls=[Ball(id=1), Ball(id=2)]))

    with db.transaction() as session:
        session.delete(session.get_one(Box, 1))

    assert rows(any_engine, Ball.__table__) == []
    assert told.changes == [Change("delete", "Box", "box", (1,), {"id": 1}, {})]


# Types and names


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


SAMPLE: dict[str, Any] = {
    "id": UUID(int=1),
    "price": Decimal("9.90"),
    "made": datetime(2024, 2, 29, 12, 30),  # noqa: DTZ001 - as the column has it
    "colour": Colour.RED,
    "data": b"\x00x",
}


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


def test_table_in_a_schema(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The name of a table comes after that of its schema, for objects and statements."""
    if any_engine.dialect.name != "postgresql":
        pytest.skip("PostgreSQL's own")
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


# Listeners of the user's


@pytest.fixture
def listen() -> Iterator[Callable[[Any, str, Callable[..., Any]], None]]:
    """Listens as long as the test runs."""
    listeners: list[tuple[Any, str, Callable[..., Any]]] = []

    def listen(target: Any, name: str, listener: Callable[..., Any]) -> None:
        event.listen(target, name, listener)
        listeners.append((target, name, listener))

    yield listen
    for target, name, listener in listeners:
        event.remove(target, name, listener)


Listen = Callable[[Any, str, Callable[..., Any]], None]


@pytest.mark.parametrize("expired", [False, True])
def test_listener_of_before_update(
    db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen, expired: bool
) -> None:
    """What a listener writes to an object that is about to be updated is told with what was there, loaded or not."""
    given(any_engine, ada(), ada(id=2, age=99))

    def write(_mapper: object, _connection: object, person: Person) -> None:
        person.age = 99

    listen(Person, "before_update", write)
    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        if expired:
            session.expire_all()
        one.name = two.name = "Eda"

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "Eda", "age": 99}),
        Change("update", "Person", "person", (2,), {"name": "Ada"}, {"name": "Eda"}),
    ]


def test_listener_of_before_insert(db: UnitOfWork, told: Told, listen: Listen) -> None:
    """What a listener writes to an object that is about to be inserted is told."""

    def write(_mapper: object, _connection: object, person: Person) -> None:
        person.age = 36

    listen(Person, "before_insert", write)
    with db.transaction() as session:
        session.add(Person(id=1, name="Ada"))

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec"])
def test_listener_of_flushes(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen, name: str) -> None:
    """What a listener adds to a flush, or after one, is told."""
    given(any_engine, ada())

    def add(session: Session, *_rest: object) -> None:
        if session.get(Parcel, 7) is None and not any(isinstance(each, Parcel) for each in session.new):
            session.add(Parcel(id=7, label="from a listener"))

    with db.transaction() as session:
        listen(session, name, add)
        session.get_one(Person, 1).age = 37

    assert in_order(told.changes) == [
        Change(
            "insert",
            "Parcel",
            "parcel",
            (7,),
            {},
            {"id": 7, "label": "from a listener", "state": "new", "weight": 7},
        ),
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
    ]


def test_listener_of_the_sessions_before_commit(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen) -> None:
    """What a listener changes at the last moment is told after the commit."""
    given(any_engine, ada())

    def write(session: Session) -> None:
        session.get_one(Person, 1).age = 37

    with db.transaction() as session:
        listen(session, "before_commit", write)
        session.add(ada(id=2))

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2}),
    ]


def test_listener_that_executes_statements(db: UnitOfWork, told: Told, listen: Listen) -> None:
    """What a listener executes through the session inside a flush is told as well."""

    def write(session: Session, *_rest: object) -> None:
        session.execute(insert(Person.__table__), {"id": 9, "name": "Eve"})  # type: ignore[arg-type]

    with db.transaction() as session:
        listen(session, "before_flush", write)
        session.add(ada())

    bulk, change = told.changes
    assert bulk[:3] == ("insert", "person", 1)
    assert change == Change("insert", "Person", "person", (1,), {}, ADA)


def test_listener_that_executes_instead(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen) -> None:
    """A statement that a listener of do_orm_execute hands on is told once."""
    given(any_engine, ada())

    def hand_on(state: Any) -> Any:
        return state.invoke_statement()

    with db.transaction() as session:
        listen(session, "do_orm_execute", hand_on)
        session.execute(update(Person).values(age=1))

    assert told.bulk == [("update", "person", 1)]


# Transactions


def test_requires_new_has_its_own(db: UnitOfWork, told: Told) -> None:
    """A transaction of its own has changes of its own, and the one around it is told without them."""
    with db.transaction() as outer:
        with db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            inner.add(ada())
            inner.flush()
            inside = so_far(db)
        outer.add(ada(id=2))
        outer.flush()
        outside = so_far(db)

    assert inside == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert outside == [Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]
    assert told.committed == [inside, outside]


def test_joined_block_adds_to_the_transaction(db: UnitOfWork, told: Told) -> None:
    """A block that joins has the changes of the transaction that it has joined."""
    with db.transaction() as session:
        session.add(ada())
        session.flush()
        with db.transaction():
            assert len(so_far(db)) == 1
            session.add(ada(id=2))

    assert [change.identity for change in in_order(told.changes)] == [(1,), (2,)]


def test_settling_by_hand(db: UnitOfWork, app: Flask, told: Told) -> None:
    """Commits and rollbacks by hand in one app context tell of their own changes each."""
    with app.app_context():
        person = ada()
        db.session.add(person)
        db.session.commit()
        person.age = 37
        db.session.execute(update(Person).values(name="Eda"))
        db.session.commit()
        db.session.delete(person)
        db.session.flush()
        db.session.rollback()
        person.age = 38
        db.session.commit()

    first, second, third = told.committed
    assert first == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert second[0] == Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})
    assert second[1][:3] == ("update", "person", 1)
    assert len(second) == 2
    assert told.lost == [[Change("delete", "Person", "person", (1,), {"id": 1, "name": "Eda", "age": 37}, {})]]
    assert third == [Change("update", "Person", "person", (1,), {"age": 37}, {"age": 38})]
    assert all(changes.is_complete for changes in (*told.committed, *told.lost))


def test_request(db: UnitOfWork, told: Told) -> None:
    """A request under a policy tells of its changes."""
    app = Flask("bookshop")
    app.config["UOW_AUTO_COMMIT"] = True
    db.init_app(app)

    @app.post("/")
    def view() -> str:
        db.session.add(ada())
        return ""

    app.test_client().post("/")

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


def test_block_after_a_query_by_hand(db: UnitOfWork, app: Flask, told: Told) -> None:
    """A block that takes up a session that has begun before it tells of all that it commits."""
    with app.app_context():
        db.session.add(ada())
        with db.transaction() as session:
            session.add(ada(id=2))

    assert [change.identity for changes in told.committed for change in in_order(changes)] == [(1,), (2,)]


def test_each_attempt_has_its_own(db: UnitOfWork, told: Told) -> None:
    """An attempt that has failed tells what was lost, and the next one begins with nothing."""
    attempts: list[int] = []

    @db.transactional(attempts=2, retry_on=LookupError, backoff=Backoff(base=0))
    def work() -> None:
        attempts.append(len(attempts) + 1)
        db.session.add(ada(age=attempts[-1]))
        db.session.flush()
        if len(attempts) == 1:
            raise LookupError

    work()

    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 1})]]
    assert told.changes == [Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 2})]


def test_veto_tells_what_is_lost(db: UnitOfWork, told: Told) -> None:
    """What a receiver keeps from being committed is told as lost."""

    def veto(_sender: object, changes: ChangeSet, **_extra: object) -> None:
        if any(change.table == "person" for change in changes):
            raise LookupError

    with (
        signals.before_commit.connected_to(veto),
        pytest.raises(LookupError),
        db.transaction() as session,
    ):
        session.add(ada())

    assert told.committed == []
    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, ADA)]]


# Who listens


def test_nobody_listens(db: UnitOfWork, any_engine: Engine) -> None:
    """Where nobody listens nothing is followed: there are no changes, and they say that they are not all."""
    given(any_engine, ada())

    with db.transaction() as session:
        transaction = transaction_of(db)
        idle = transaction.changes
        session.get_one(Person, 1).age = 37
        session.flush()
        session.execute(update(Person).values(age=1))
        seen = transaction.changes

    assert idle == seen == transaction.changes == []
    assert idle.is_complete
    assert not seen.is_complete
    assert not transaction.changes.is_complete


@pytest.mark.parametrize("name", ["before_commit", "after_commit", "after_rollback"])
def test_one_listens(db: UnitOfWork, name: str) -> None:
    """A receiver of any one of the signals is enough."""
    with getattr(signals, name).connected_to(receiver([])), db.transaction() as session:
        session.add(ada())
        session.flush()
        seen = so_far(db)

    assert seen == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert seen.is_complete


@pytest.mark.parametrize("name", ["transaction_started", "transaction_completed", "session_removed"])
def test_others_listen(db: UnitOfWork, name: str) -> None:
    """Receivers of the other signals are told of no changes, and nothing is followed for them."""
    with getattr(signals, name).connected_to(lambda *_arguments, **_extra: None), db.transaction() as session:
        session.add(ada())
        session.flush()
        seen = so_far(db)

    assert seen == []
    assert not seen.is_complete


def test_receiver_of_another_app(db: UnitOfWork, app: Flask) -> None:
    """A receiver that was connected for another app causes nothing to be followed for this one."""
    told: list[ChangeSet] = []

    with signals.after_commit.connected_to(receiver(told), Flask("another")), app.app_context():
        with db.transaction() as session:
            session.add(ada())
            session.flush()
            others = so_far(db)
        with signals.after_commit.connected_to(receiver(told), app), db.transaction() as session:
            session.add(ada(id=2))
            session.flush()
            own = so_far(db)

    assert others == []
    assert not others.is_complete
    assert own.is_complete
    assert told == [[Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]]


@pytest.mark.parametrize("signal", [signals.before_commit, signals.after_commit])
def test_receiver_that_connects_late(db: UnitOfWork, any_engine: Engine, signal: Any) -> None:
    """A receiver that connects after the first statement is told that something may be missing."""
    given(any_engine, ada())
    told: list[ChangeSet] = []

    with ExitStack() as connected, db.transaction() as session:
        session.get_one(Person, 1).age = 37
        session.flush()
        connected.enter_context(signal.connected_to(receiver(told)))
        session.add(ada(id=2))

    (changes,) = told
    assert not changes.is_complete
    assert Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}) not in changes


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("name", ["before_commit", "after_commit"])
def test_receiver_that_connects_in_time(db: UnitOfWork, name: str, flushed: bool) -> None:
    """A receiver that connects before anything was sent is told everything, although objects are in the session."""
    told: list[ChangeSet] = []

    with ExitStack() as connected, db.transaction() as session:
        session.add(ada())
        connected.enter_context(getattr(signals, name).connected_to(receiver(told)))
        if flushed:
            session.flush()

    (changes,) = told
    assert changes == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert changes.is_complete


def test_receiver_that_connects_between_transactions(db: UnitOfWork, app: Flask) -> None:
    """A receiver that connects after a commit by hand is told everything of the next one."""
    told: list[ChangeSet] = []

    with app.app_context():
        person = ada()
        db.session.add(person)
        db.session.commit()
        with signals.after_commit.connected_to(receiver(told)):
            person.age = 37
            db.session.commit()
        person.age = 38
        db.session.commit()

    assert told == [[Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]]
    assert told[0].is_complete


def test_receiver_that_leaves(db: UnitOfWork) -> None:
    """What was followed from the beginning is followed to the end, whoever still listens."""
    with ExitStack() as connected, db.transaction() as session:
        connected.enter_context(signals.after_commit.connected_to(receiver([])))
        session.add(ada())
        session.flush()
        connected.close()
        session.add(ada(id=2))
        transaction = transaction_of(db)

    assert [change.identity for change in in_order(transaction.changes)] == [(1,), (2,)]
    assert transaction.changes.is_complete


# The set of changes


CHANGES: list[Change | BulkChange] = [
    Change("insert", "Person", "person", (1,), {}, {"id": 1}),
    Change("update", "Person", "person", (2,), {"age": 1}, {"age": 2}),
    BulkChange("delete", "person", 3, "DELETE FROM person"),
]


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


def test_changes_are_immutable(db: UnitOfWork, told: Told) -> None:
    """Neither the set, nor a change, nor its columns can be changed."""
    with db.transaction() as session:
        session.add(ada())
    changes: Any = told.changes

    with pytest.raises(TypeError):
        changes[0] = None
    with pytest.raises(AttributeError):
        changes.append(None)
    with pytest.raises(AttributeError):
        changes.is_complete = False
    with pytest.raises(AttributeError):
        changes[0].operation = "delete"
    with pytest.raises(TypeError):
        changes[0].after["id"] = 2
    with pytest.raises(TypeError):
        changes[0].before["id"] = 2

    assert changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


def test_repr() -> None:
    """It shows its changes, and that they may not be all."""
    changes = ChangeSet(CHANGES[2:])
    incomplete = ChangeSet(is_complete=False)

    assert repr(changes) == (
        "ChangeSet([BulkChange(operation='delete', table='person', rowcount=3, statement='DELETE FROM person')])"
    )
    assert repr(incomplete) == "ChangeSet([], is_complete=False)"


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda changes: pickle.loads(pickle.dumps(changes))])
def test_copies(db: UnitOfWork, any_engine: Engine, told: Told, copied: Callable[[ChangeSet], ChangeSet]) -> None:
    """It can be copied and pickled, with all that is in it."""
    given(any_engine, Setting(id=1, tracked={"a": 1}), Student(id=1, courses=[Course(id=1)]))

    with db.transaction() as session:
        setting, student = session.get_one(Setting, 1), session.get_one(Student, 1)
        assert setting.tracked is not None
        setting.tracked["a"] = 2
        student.courses.clear()
        session.add(Sample(**SAMPLE))
        session.flush()
        session.execute(update(Setting).values(plain={}))
    changes = told.changes
    same, incomplete = copied(changes), copied(ChangeSet(is_complete=False))

    assert isinstance(same, ChangeSet)
    assert same == changes
    assert len(same) == 4
    assert (same.is_complete, incomplete.is_complete) == (True, False)


def test_changes_outlive_the_session(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """They can be looked at for the first time when the session is closed and the objects are gone."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.get_one(Person, 1).age = 37
        session.flush()

    assert told.changes == [Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]
