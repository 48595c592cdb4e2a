"""The models and tables whose changes are told, and rows of them."""

from __future__ import annotations

import enum
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    Column,
    Computed,
    DateTime,
    Enum,
    ForeignKey,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Uuid,
    literal_column,
    text,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, WriteOnlyMapped, mapped_column, relationship


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


def ada(**values: Any) -> Person:
    return Person(**{"id": 1, "name": "Ada", "age": 36, **values})


ADA = {"id": 1, "name": "Ada", "age": 36}

SAMPLE: dict[str, Any] = {
    "id": UUID(int=1),
    "price": Decimal("9.90"),
    "made": datetime(2024, 2, 29, 12, 30),  # noqa: DTZ001 - as the column has it
    "colour": Colour.RED,
    "data": b"\x00x",
}
