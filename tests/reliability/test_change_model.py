"""Random work with the ORM, on real databases, against what the tables say.

A program is plain data. `Work` does it with the library, in one transaction. What the library says has changed is laid
over what was in the tables before, and must give what is in them afterwards: nothing is left out, nothing is made up,
and no row is told of twice. `RULES` has each rule once, with its changes written out.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, dataclass
from functools import cache, partial
from itertools import chain, cycle, islice, product, repeat
from typing import Any, Final, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    URL,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    String,
    Table,
    create_engine,
    delete,
    event,
    insert,
    inspect,
    literal_column,
    make_url,
    select,
)
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Mapper,
    Session,
    backref,
    mapped_column,
    relationship,
    sessionmaker,
)

from flask_uow import BulkChange, Change, ChangeSet, UnitOfWork, signals
from tests.reliability.programs import PROGRAMS, Short

# A document can be linked to, and then be thrown out of its folder before it is stored.
pytestmark = pytest.mark.filterwarnings("ignore:Object of type <Document> not in session")


# Models


class Base(DeclarativeBase):
    """Models of all kinds, in tables of their own."""


friendship = Table(
    "friendship",
    Base.metadata,
    Column("one_id", ForeignKey("party.id"), primary_key=True),
    Column("other_id", ForeignKey("party.id"), primary_key=True),
)
document_label = Table(
    "document_label",
    Base.metadata,
    Column("document_id", ForeignKey("document.id"), primary_key=True),
    Column("label_id", ForeignKey("label.id"), primary_key=True),
    # No relationship knows of this one.
    Column("origin", String(20), server_default="somewhere"),
)


class Party(Base):
    """Is in a table that others join, and counts its versions."""

    __tablename__ = "party"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None] = mapped_column(String(100))
    version: Mapped[int] = mapped_column()
    friends: Mapped[set[Party]] = relationship(
        secondary=friendship,
        primaryjoin=lambda: Party.id == friendship.c.one_id,
        secondaryjoin=lambda: Party.id == friendship.c.other_id,
        backref=backref("friend_of", collection_class=set),
    )

    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_abstract": True, "version_id_col": version}


class Guest(Party):
    """Has no table of its own."""

    __mapper_args__ = {"polymorphic_identity": "guest"}


class Person(Party):
    """Has an attribute whose column is called otherwise."""

    __tablename__ = "person"

    id: Mapped[int] = mapped_column(ForeignKey("party.id"), primary_key=True)
    born: Mapped[int | None] = mapped_column("birth_year")

    __mapper_args__ = {"polymorphic_identity": "person"}


class Vip(Person):
    """Has a column in the table of persons, of which those know nothing."""

    perk: Mapped[str | None] = mapped_column(String(100))

    __mapper_args__ = {"polymorphic_identity": "vip"}


class Company(Party):
    """Has a column that changes by itself if another one in its own table does."""

    __tablename__ = "company"

    id: Mapped[int] = mapped_column(ForeignKey("party.id"), primary_key=True)
    size: Mapped[int | None]
    edits: Mapped[int] = mapped_column(default=0, onupdate=literal_column("edits") + 1)

    __mapper_args__ = {"polymorphic_identity": "company"}


class Folder(Base):
    """Deletes its documents with itself, and lets its subfolders go."""

    __tablename__ = "folder"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str | None] = mapped_column(String(100))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("folder.id"))
    parent: Mapped[Folder | None] = relationship(remote_side="Folder.id", back_populates="children")
    children: Mapped[list[Folder]] = relationship(back_populates="parent")
    documents: Mapped[list[Document]] = relationship(back_populates="folder", cascade="all, delete-orphan")


class Document(Base):
    """Has a column that is not loaded unless somebody asks, and one whose value is changed in place."""

    __tablename__ = "document"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str | None] = mapped_column(String(100))
    body: Mapped[str | None] = mapped_column(String(100), deferred=True)
    tags: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(JSON))
    folder_id: Mapped[int | None] = mapped_column(ForeignKey("folder.id"))
    folder: Mapped[Folder | None] = relationship(back_populates="documents")
    labels: Mapped[set[Label]] = relationship(
        secondary=document_label, backref=backref("documents", collection_class=set)
    )


class Label(Base):
    """Has its key from the database."""

    __tablename__ = "label"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(100))


class Seat(Base):
    """Has a key of two columns, which may change."""

    __tablename__ = "seat"

    row: Mapped[str] = mapped_column(String(1), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    guest: Mapped[str | None] = mapped_column(String(100))


class Stamp(Base):
    """Has columns that the database fills, or that change by themselves."""

    __tablename__ = "stamp"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    n: Mapped[int | None] = mapped_column(Integer, default=5)
    status: Mapped[str | None] = mapped_column(String(20), server_default="new")
    edited: Mapped[str | None] = mapped_column(String(20), onupdate=lambda: "edited")
    revision: Mapped[int] = mapped_column(default=0, onupdate=literal_column("revision") + 1)


TABLES: Final = tuple(Base.metadata.sorted_tables)

KEYS: Final = {table.name: tuple(column.name for column in table.primary_key) for table in TABLES}

UNKNOWN: Final = {"document": {"body"}, "person": {"perk"}}
"""The columns that need not be known before they are written or deleted: one is deferred, the other not everybody's."""

UNMAPPED: Final = {(None, "document_label"): {"origin"}, ("Person", "person"): {"perk"}}
"""The columns that an entity knows nothing of. What becomes of them is not told."""

ENTITIES: Final = {
    "friendship": None,
    "document_label": None,
    "folder": "Folder",
    "document": "Document",
    "label": "Label",
    "seat": "Seat",
    "stamp": "Stamp",
    "guest": "Guest",
    "person": "Person",
    "vip": "Vip",
    "company": "Company",
}
"""Whose rows are in a table, or those of a party's kind."""

STORED: Final[dict[str, list[dict[str, Any]]]] = {
    "party": [
        {"id": 1, "kind": "person", "name": "a", "version": 1},
        {"id": 2, "kind": "company", "name": None, "version": 1},
        {"id": 3, "kind": "vip", "name": "b", "version": 1},
    ],
    "person": [{"id": 1, "birth_year": 1, "perk": None}, {"id": 3, "birth_year": None, "perk": "a"}],
    "company": [{"id": 2, "size": 1, "edits": 0}],
    "friendship": [{"one_id": 1, "other_id": 2}, {"one_id": 3, "other_id": 1}],
    "folder": [{"id": 1, "name": "a", "parent_id": None}, {"id": 2, "name": "b", "parent_id": 1}],
    "document": [
        {"id": 1, "title": "a", "body": "a", "tags": {"a": 1}, "folder_id": 1},
        {"id": 2, "title": None, "body": None, "tags": None, "folder_id": 2},
    ],
    "label": [{"id": -1, "name": "a"}, {"id": -2, "name": None}],
    "document_label": [
        {"document_id": 1, "label_id": -1, "origin": "a"},
        {"document_id": 1, "label_id": -2, "origin": None},
        {"document_id": 2, "label_id": -1, "origin": "b"},
    ],
    "seat": [{"row": "A", "number": 1, "guest": "a"}, {"row": "A", "number": 2, "guest": None}],
    "stamp": [
        {"id": 1, "n": 1, "status": "new", "edited": None, "revision": 0},
        {"id": 2, "n": None, "status": None, "edited": "edited", "revision": 1},
    ],
}
"""What is in the tables before every program."""


# Programs

Family = Literal["party", "folder", "document", "label", "seat", "stamp"]
"""What is told apart by keys: a party's key is that of a guest, a person or a company."""

Kind = Literal["Guest", "Person", "Vip", "Company", "Folder", "Document", "Label", "Seat", "Stamp"]

ROOTS: Final[dict[Family, type[Base]]] = {
    "party": Party,
    "folder": Folder,
    "document": Document,
    "label": Label,
    "seat": Seat,
    "stamp": Stamp,
}
KINDS: Final[dict[Kind, tuple[type[Base], Family]]] = {
    "Guest": (Guest, "party"),
    "Person": (Person, "party"),
    "Vip": (Vip, "party"),
    "Company": (Company, "party"),
    "Folder": (Folder, "folder"),
    "Document": (Document, "document"),
    "Label": (Label, "label"),
    "Seat": (Seat, "seat"),
    "Stamp": (Stamp, "stamp"),
}
FILLED: Final[dict[Kind, dict[str, Any]]] = {
    "Guest": {"name": "n"},
    "Person": {"name": "n", "born": 9},
    "Vip": {"name": "n", "born": 9, "perk": "p"},
    "Company": {"name": "n", "size": 9},
    "Folder": {"name": "n"},
    "Document": {"title": "n", "body": "n", "tags": {"n": 9}},
    "Label": {"name": "n"},
    "Seat": {"guest": "n"},
    "Stamp": {"n": 9, "status": None},
}
"""What a new object is given, unless it is bare."""


class Operation(Short, ABC):
    """One thing to do. Where it cannot be done, because what it is about is not there, nothing is."""

    @abstractmethod
    def do(self, work: Work) -> None: ...


@dataclass(frozen=True, repr=False)
class Insert(Operation):
    """Add an object; in place of one that is deleted in the same flush, if need be."""

    kind: Kind
    slot: int
    bare: bool = False

    def do(self, work: Work) -> None:
        model, family = KINDS[self.kind]
        if work.is_free(family, self.slot, model):
            # Of a Person whose row it takes in the same flush nobody knows what is in the column of a Vip alone.
            values = ({"perk": None} if self.kind == "Vip" else {}) if self.bare else _filled(self.kind)
            instance = model(**_named_key(family, self.slot), **values)
            # It may have the row of one that is deleted, with all that this refers to.
            work.session.info[LINKED] |= bool(work.session.deleted)
            work.session.add(instance)
            work.held[family, self.slot] = instance


@dataclass(frozen=True, repr=False)
class Set(Operation):
    """Set an attribute."""

    family: Family
    slot: int
    attribute: str
    value: Any

    def do(self, work: Work) -> None:
        instance = work.find(self.family, self.slot)
        if hasattr(type(instance), self.attribute):
            setattr(instance, self.attribute, self.value)


@dataclass(frozen=True, repr=False)
class Append(Operation):
    """Let the database compute a new value from the old one."""

    family: Family
    slot: int
    attribute: str

    def do(self, work: Work) -> None:
        instance = work.find_stored(self.family, self.slot)
        if hasattr(type(instance), self.attribute):
            column = getattr(type(instance), self.attribute)
            setattr(instance, self.attribute, column + (1 if isinstance(column.type, Integer) else "!"))


@dataclass(frozen=True, repr=False)
class Tag(Operation):
    """Change the JSON of a document in place."""

    slot: int
    key: str
    value: int | None

    def do(self, work: Work) -> None:
        document = work.find("document", self.slot)
        if document is None:
            return
        if document.tags is None:
            document.tags = {}
        if self.value is None:
            document.tags.pop(self.key, None)
        else:
            document.tags[self.key] = self.value


@dataclass(frozen=True, repr=False)
class Load(Operation):
    """Load the deferred column of a document."""

    slot: int

    def do(self, work: Work) -> None:
        document = work.find("document", self.slot)
        if document is not None:
            document.body  # noqa: B018 - it is loaded


@dataclass(frozen=True, repr=False)
class Delete(Operation):
    """Delete an object, without what was linked to it in the same flush: the database would refuse."""

    family: Family
    slot: int

    def do(self, work: Work) -> None:
        if work.session.info[LINKED]:
            work.session.flush()
        instance = work.find_stored(self.family, self.slot)
        if instance is not None:
            work.session.delete(instance)


@dataclass(frozen=True, repr=False)
class Rekey(Operation):
    """Change the key of a seat."""

    slot: int
    number: int

    def do(self, work: Work) -> None:
        seat = work.find("seat", self.slot)
        if seat is not None and work.is_free("seat", self.number):
            seat.number = self.number


@dataclass(frozen=True, repr=False)
class Move(Operation):
    """Move a document to another folder, or out of all of them, which deletes it."""

    slot: int
    folder: int | None
    by_folder: bool = False
    """Whether the folder's list is changed, and not the document's attribute."""

    def do(self, work: Work) -> None:
        document = work.find("document", self.slot)
        folder = None if self.folder is None else work.find("folder", self.folder)
        if document is not None and (folder is None) == (self.folder is None):
            work.put(document, folder, ("folder", "documents"), by_list=self.by_folder)


@dataclass(frozen=True, repr=False)
class Nest(Operation):
    """Move a folder into another one with a lower number, or out of all of them."""

    slot: int
    parent: int | None
    by_parent: bool = False

    def do(self, work: Work) -> None:
        folder = work.find("folder", self.slot)
        parent = None if self.parent is None else work.find("folder", self.parent)
        if folder is not None and (parent is None) == (self.parent is None):
            work.put(folder, parent, ("parent", "children"), by_list=self.by_parent)


@dataclass(frozen=True, repr=False)
class Link(Operation):
    """Link a document to a label, or a party to another, or take the link away."""

    family: Literal["document", "party"]
    slot: int
    other: int
    is_there: bool = True
    by_other: bool = False
    """Whether the other one's set is changed."""

    def do(self, work: Work) -> None:
        one = work.find(self.family, self.slot)
        other = work.find("label" if self.family == "document" else "party", self.other)
        if one is None or other is None:
            return
        here, there = ("labels", "documents") if self.family == "document" else ("friends", "friend_of")
        if self.by_other:
            one, other, here = other, one, there
        linked = getattr(one, here)
        if self.is_there:
            linked.add(other)
        else:
            linked.discard(other)
        # Afterwards, for reading the set may flush.
        work.session.info[LINKED] = True


@dataclass(frozen=True, repr=False)
class Merge(Operation):
    """Merge a copy from elsewhere, which may be there or not."""

    kind: Kind
    slot: int
    bare: bool = False

    def do(self, work: Work) -> None:
        model, family = KINDS[self.kind]
        work.session.flush()
        instance = work.find(family, self.slot)
        if instance is not None:
            model = type(instance)
            key = dict(zip(KEYS[family], inspect(instance).identity, strict=True))
        elif family == "label":
            return
        else:
            key = _named_key(family, self.slot)
        values = {} if self.bare else _filled(model.__name__)  # type: ignore[arg-type] # the kinds are called so
        work.held[family, self.slot] = work.session.merge(model(**key, **values))


@dataclass(frozen=True, repr=False)
class Expire(Operation):
    """Forget what is loaded of an object, and what has changed."""

    family: Family
    slot: int

    def do(self, work: Work) -> None:
        instance = work.find(self.family, self.slot)
        if instance is not None and inspect(instance).persistent:
            work.session.expire(instance)


@dataclass(frozen=True, repr=False)
class ExpireAll(Operation):
    """Do so with all objects."""

    def do(self, work: Work) -> None:
        work.session.expire_all()


@dataclass(frozen=True, repr=False)
class Refresh(Operation):
    """Load an object again."""

    family: Family
    slot: int

    def do(self, work: Work) -> None:
        if work.session.autoflush:
            work.session.flush()
        instance = work.find(self.family, self.slot)
        if instance is not None and inspect(instance).persistent:
            work.session.refresh(instance)


@dataclass(frozen=True, repr=False)
class Forget(Operation):
    """Let go of all objects, so that the session may do so as well."""

    def do(self, work: Work) -> None:
        work.forget()


@dataclass(frozen=True, repr=False)
class Flush(Operation):
    """Write everything."""

    def do(self, work: Work) -> None:
        work.session.flush()


@dataclass(frozen=True, repr=False)
class Look(Operation):
    """Ask what has changed so far, in the innermost transaction of the library's."""

    def do(self, work: Work) -> None:
        work.look()


@dataclass(frozen=True, repr=False)
class Savepoint(Operation):
    """Work in a savepoint of one of the kinds there are, and perhaps undo it."""

    maker: Literal["uow", "session", "connection"]
    body: tuple[Operation, ...]
    undone: bool = False

    def do(self, work: Work) -> None:
        work.nest(self)


@dataclass(frozen=True, repr=False)
class Program(Short):
    """What is done in one transaction."""

    body: tuple[Operation, ...]
    undone: bool = False
    autoflush: bool = True


def _key(family: Family, slot: int) -> tuple[Any, ...]:
    return {"seat": ("A", slot), "label": (-slot,)}.get(family, (slot,))


def _named_key(family: Family, slot: int) -> dict[str, Any]:
    """Return the key that a new object is given."""
    return {} if family == "label" else dict(zip(KEYS[family], _key(family, slot), strict=True))


def _filled(kind: Kind) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in FILLED[kind].items()}


# What is done with them

LINKED: Final = "linked"
"""In ``session.info``: whether objects were linked or moved since the last flush."""


class Undo(Exception):  # noqa: N818 - it is no error
    """Rolls back what is around."""


class Work:
    """Does what a program says, in a transaction that has begun."""

    def __init__(self, uow: UnitOfWork, session: Session, before: Snapshot) -> None:
        self._uow = uow
        self.session = session
        self._befores: list[Snapshot] = [before]
        """What was stored when the transaction began, and each of the library's savepoints that are open."""

        self.held: dict[tuple[Family, int], Any] = {}
        """The objects, which the session would not keep alive."""

        self.faults: list[str] = []
        self._kept: list[tuple[ChangeSet, bytes]] = []
        """What was told so far, and what it was then."""

        self._surprises = 0
        """How often something was done that the session does not know how to undo."""

    def do(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            operation.do(self)

    def find(self, family: Family, slot: int) -> Any:
        """Return an object that is in the session, and not about to be deleted, or None."""
        instance = self.held.get((family, slot))
        if instance is None or instance not in self.session:
            instance = self.session.get(ROOTS[family], _key(family, slot))
            if instance is None:
                return None
            self.held[family, slot] = instance
        return None if instance in self.session.deleted else instance

    def find_stored(self, family: Family, slot: int) -> Any:
        """Return such an object that has a row already."""
        instance = self.find(family, slot)
        if instance is not None and inspect(instance).pending:
            self.session.flush()
            instance = self.find(family, slot)
        return instance

    def is_free(self, family: Family, slot: int, model: type[Base] | None = None) -> bool:
        """Whether the key is, or becomes so if a new object of *model* is inserted."""
        if family == "label":
            return self.find(family, slot) is None
        root, key = ROOTS[family], _key(family, slot)
        mapper = inspect(root)
        for other in (*self.session.new, *self.session.dirty):
            if isinstance(other, root) and tuple(mapper.primary_key_from_instance(other)) == key:
                return False
        existing: Any = self.session.identity_map.get(mapper.identity_key_from_primary_key(key))
        if existing is None:
            table = mapper.local_table
            query = select(*table.primary_key).where(
                *(column == value for column, value in zip(table.primary_key, key, strict=True))
            )
            return self.session.connection().execute(query).first() is None
        # SQLAlchemy updates a folder's row for the new one, and deletes it all the same: the table refers to itself.
        if existing not in self.session.deleted or model is Folder:
            return False
        # The new one gets all of the row that it says nothing of: what is in it of another kind cannot be there, nor
        # what refers to another row that is deleted.
        kinds = {type(existing), model}
        with self.session.no_autoflush:
            folder = getattr(existing, "folder", None)
        return (len(kinds) == 1 or kinds == {Person, Vip}) and folder not in self.session.deleted

    def forget(self) -> None:
        self.held.clear()
        # In a savepoint, SQLAlchemy no longer knows of those that are gone that they were new.
        self._surprises += 1

    def put(self, child: Any, parent: Any, names: tuple[str, str], *, by_list: bool) -> None:
        """Move a child to another parent, or away from the one that it has."""
        to_parent, to_children = names
        if not by_list:
            setattr(child, to_parent, parent)
        elif parent is not None:
            if child not in (children := getattr(parent, to_children)):
                children.append(child)
        elif (parent := getattr(child, to_parent)) is not None and child in (children := getattr(parent, to_children)):
            children.remove(child)
        # Afterwards, for reading the list may flush.
        self.session.info[LINKED] = True

    def look(self) -> None:
        self.session.flush()
        transaction = self._uow.current_transaction
        assert transaction is not None
        changes = transaction.changes
        self.faults += faults(changes, self._befores[-1], snapshot(self.session.connection()))
        self._kept.append((changes, pickle.dumps(changes)))

    def look_again(self) -> None:
        """What was told once stays as it was, whatever is done afterwards."""
        self.faults += [f"It was otherwise: {told}" for told, pickled in self._kept if told != pickle.loads(pickled)]

    def nest(self, savepoint: Savepoint) -> None:
        surprises = self._surprises
        with suppress(Undo):
            if savepoint.maker == "uow":
                with self._uow.savepoint():
                    self._befores.append(snapshot(self.session.connection()) if _looks(savepoint) else {})
                    try:
                        self._inside(savepoint)
                    finally:
                        self._befores.pop()
            elif savepoint.maker == "session":
                with self.session.begin_nested():
                    self._inside(savepoint)
            else:
                # What is pending would be lost with it.
                self.session.flush()
                with self.session.connection().begin_nested():
                    self._inside(savepoint)
        if savepoint.undone and savepoint.maker == "connection":
            self._surprises += 1
        if savepoint.undone and self._surprises > surprises:
            # The session may take for stored what is not.
            self.session.expunge_all()
            self.session.info[LINKED] = False

    def _inside(self, savepoint: Savepoint) -> None:
        self.do(savepoint.body)
        if savepoint.undone:
            # What is not written is not lost either.
            self.session.flush()
            raise Undo


def _looks(savepoint: Savepoint) -> bool:
    return any(isinstance(each, Look) or (isinstance(each, Savepoint) and _looks(each)) for each in savepoint.body)


def _flushed(session: Session, _flush: object) -> None:
    """Load relationships again: those of other objects still know those that are deleted."""
    session.info[LINKED] = False
    for instance in session.identity_map.values():
        session.expire(instance, _relationships(inspect(instance).mapper))


@cache
def _relationships(mapper: Mapper[Any]) -> list[str]:
    return list(mapper.relationships.keys())


# What has changed

Key = tuple[Any, ...]
Values = dict[str, Any]
Snapshot = dict[str, dict[Key, Values]]
"""The rows of each table, by their keys."""


def snapshot(connection: Connection) -> Snapshot:
    """Return what *connection* sees."""
    return {
        table: {tuple(row[name] for name in KEYS[table]): dict(row) for row in connection.execute(query).mappings()}
        for table, query in QUERIES.items()
    }


QUERIES: Final = {table.name: select(table) for table in TABLES}


def faults(changes: ChangeSet, before: Snapshot, after: Snapshot) -> list[str]:
    """Return what is wrong with *changes*, where *before* became *after*."""
    found = [] if changes.is_complete else ["It is not complete."]
    if pickle.loads(pickle.dumps(changes)) != changes:
        found.append("It does not survive pickling.")
    told: dict[str, list[Change]] = {table.name: [] for table in TABLES}
    for change in changes:
        if isinstance(change, BulkChange):
            found.append(f"Nobody has done this: {change}")
        else:
            told[change.table].append(change)
    for table, its_changes in told.items():
        found += Comparison(table, before, after).faults(its_changes)
    return found


class Comparison:
    """Compares what was told of one table with what has become of it."""

    def __init__(self, table: str, before: Snapshot, after: Snapshot) -> None:
        self._table = table
        self._before, self._after = before, after

    def faults(self, changes: list[Change]) -> list[str]:
        """Return what is wrong with *changes*."""
        rows = dict(self._before[self._table])
        found = [f"Wrong on its own: {change}" for change in changes if not self._is_sound(change)]
        # All rows go first, for one may have the key that another one had.
        found += [
            f"There was no such row, or it was told of before: {change}"
            for change in changes
            if change.operation != "insert" and rows.pop(self._old_key(change), None) is None
        ]
        for change in changes:
            if change.operation != "delete":
                if change.identity in rows:
                    found.append(f"There is such a row already: {change}")
                rows[change.identity] = {**self._old_row(change), **change.after}
        inserted, deleted = (
            {change.identity for change in changes if change.operation == operation}
            for operation in ("insert", "delete")
        )
        found += [f"It is deleted and inserted, and not updated: {self._table} {key}" for key in inserted & deleted]

        real = self._after[self._table]
        for key in rows.keys() | real.keys():
            told, is_ = self._mapped(key, rows), self._mapped(key, real)
            if told != is_:
                found.append(f"Row {key} of {self._table} is {is_}, and was told to be {told}.")
        return found

    def _is_sound(self, change: Change) -> bool:
        """Whether a change has the columns that its kind has, the old values are those, and its entity is right."""
        before, after = change.before.keys(), change.after.keys()
        columns = {column.name for column in Base.metadata.tables[self._table].columns}
        columns -= UNMAPPED.get((change.entity, self._table), set())
        unknown = UNKNOWN.get(self._table, set())
        if change.operation == "insert":
            has_columns = not before and after == columns
        elif change.operation == "delete":
            has_columns = not after and columns - unknown <= before <= columns
        else:
            has_columns = bool(after) and before <= after <= before | unknown
        old = self._old_row(change)
        return (
            has_columns
            and all(name in old and old[name] == value for name, value in change.before.items())
            and all(value != change.after.get(name, MISSING) for name, value in change.before.items())
            and change.entity == self._entity(change.identity, is_gone=change.operation == "delete")
        )

    def _old_key(self, change: Change) -> Key:
        names = KEYS[self._table]
        return tuple(change.before.get(name, value) for name, value in zip(names, change.identity, strict=True))

    def _old_row(self, change: Change) -> Values:
        rows = self._before[self._table]
        return {} if change.operation == "insert" else rows.get(self._old_key(change), {})

    def _mapped(self, key: Key, rows: dict[Key, Values]) -> Values | None:
        """Return a row, without the columns that nobody knows of whose it is."""
        unmapped = UNMAPPED.get((self._entity(key), self._table), set())
        row = rows.get(key)
        return row and {name: value for name, value in row.items() if name not in unmapped}

    def _entity(self, key: Key, *, is_gone: bool = False) -> str | None:
        """Return whose row it is, or was."""
        if self._table not in ("party", "person", "company"):
            return ENTITIES[self._table]
        party = (self._before if is_gone else self._after)["party"].get(key)
        return ENTITIES[party["kind"]] if party else "nobody"


# One against the other


class Arena:
    """A database, and a connection that looks at it from outside."""

    def __init__(self, engine: Engine, observer: Connection) -> None:
        self._observer = observer
        make_session = sessionmaker(engine, info={LINKED: False})
        event.listen(make_session, "after_flush_postexec", _flushed)
        self._uow = UnitOfWork(make_session)
        self._heard: dict[str, ChangeSet] = {}
        self._stored: Snapshot = {table.name: {} for table in TABLES}
        self._restore(TABLES)
        self._stored = snapshot(observer)

    def run(self, program: Program) -> tuple[ChangeSet, list[str]]:
        """Run a program, and return what has changed in the end, and all that is wrong with that or was before."""
        heard = self._heard = {}
        with suppress(Undo), self._uow.transaction() as session:
            session.autoflush = program.autoflush
            work = Work(self._uow, session, self._stored)
            work.do(program.body)
            work.look_again()
            if program.undone:
                session.flush()
                after = snapshot(session.connection())
                raise Undo
        if program.undone:
            changes = heard.pop("after_rollback")
        else:
            after = snapshot(self._observer)
            # A transaction that has not reached the database does not commit.
            changes = heard.pop("after_commit", ChangeSet())
            heard.setdefault("before_commit", changes)
        found = work.faults + faults(changes, self._stored, after)
        if heard != ({} if program.undone else {"before_commit": changes}):
            found.append(f"Others were told otherwise: {heard}")
        if not program.undone:
            self._restore([table for table in TABLES if after[table.name] != self._stored[table.name]])
        return changes, found

    def _restore(self, tables: Sequence[Table]) -> None:
        """Put into some tables what is to be there."""
        for table in reversed(tables):
            self._observer.execute(delete(table))
        for table in tables:
            self._observer.execute(insert(table), STORED[table.name])

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hear what the signals say of changes."""

        def before_commit(_sender: object, *, changes: ChangeSet, **_extra: object) -> None:
            self._heard["before_commit"] = changes

        def after_commit(_sender: object, *, changes: ChangeSet, **_extra: object) -> None:
            self._heard["after_commit"] = changes

        def after_rollback(_sender: object, *, changes: ChangeSet, **_extra: object) -> None:
            self._heard["after_rollback"] = changes

        with (
            signals.before_commit.connected_to(before_commit, self._uow),
            signals.after_commit.connected_to(after_commit, self._uow),
            signals.after_rollback.connected_to(after_rollback, self._uow),
        ):
            yield


def _arena(url: URL, *, prelude: Sequence[str] = (), observers_prelude: Sequence[str]) -> Iterator[Arena]:
    """Make an arena of a database, and its tables."""
    engine, observing = create_engine(url), create_engine(url, isolation_level="AUTOCOMMIT")
    for each, statements in ((engine, prelude), (observing, observers_prelude)):
        event.listen(each, "connect", partial(_say, statements))
    Base.metadata.create_all(engine)
    with observing.connect() as observer:
        arena = Arena(engine, observer)
        with arena.listening():
            yield arena
    Base.metadata.drop_all(engine)
    engine.dispose()
    observing.dispose()


def _say(statements: Sequence[str], connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """A SQLite file that does not wait for its disk."""
    path = tmp_path_factory.mktemp("changes") / "test.db"
    fast = ("PRAGMA synchronous = OFF", "PRAGMA journal_mode = MEMORY")
    url = make_url(f"sqlite:///{path}")
    # The observer puts back some tables, without regard to others.
    yield from _arena(url, prelude=(*fast, "PRAGMA foreign_keys = ON"), observers_prelude=fast)


@pytest.fixture(scope="module")
def postgresql(postgresql_database: Engine) -> Iterator[Arena]:
    """A PostgreSQL database that does not either."""
    yield from _arena(postgresql_database.url, observers_prelude=["SET session_replication_role = replica"])


@pytest.fixture(params=["sqlite", "postgresql"])
def arena(request: pytest.FixtureRequest) -> Arena:
    """Each database in turn."""
    arena: Arena = request.getfixturevalue(request.param)
    return arena


# Each rule once


@dataclass(frozen=True)
class Rule:
    """A rule, a program that it decides, and what has changed in the end."""

    says: str
    program: Program
    changes: list[Change]
    """By table and key, whatever the order in which they are told."""


RULES: Final = (
    Rule(
        "An insert has all columns, with what the database has filled in",
        Program((Insert("Stamp", 3, bare=True),)),
        [
            Change(
                "insert", "Stamp", "stamp", (3,), {}, {"id": 3, "n": 5, "status": "new", "edited": None, "revision": 0}
            )
        ],
    ),
    Rule(
        "A delete has what was there",
        Program((Delete("seat", 1),)),
        [Change("delete", "Seat", "seat", ("A", 1), {"row": "A", "number": 1, "guest": "a"}, {})],
    ),
    Rule(
        "An update has the columns that have changed",
        Program((Set("stamp", 2, "n", None), Set("seat", 2, "guest", "b"))),
        [Change("update", "Seat", "seat", ("A", 2), {"guest": None}, {"guest": "b"})],
    ),
    Rule(
        "It has those that change by themselves",
        Program((Set("stamp", 1, "n", 2),)),
        [
            Change(
                "update",
                "Stamp",
                "stamp",
                (1,),
                {"n": 1, "edited": None, "revision": 0},
                {"n": 2, "edited": "edited", "revision": 1},
            )
        ],
    ),
    Rule(
        "It has what the database has computed",
        Program((Append("seat", 1, "guest"),)),
        [Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "a!"})],
    ),
    Rule(
        "It has what was changed in place",
        Program((Tag(1, "b", 2), Flush(), Tag(1, "a", None))),
        [Change("update", "Document", "document", (1,), {"tags": {"a": 1}}, {"tags": {"b": 2}})],
    ),
    Rule(
        "It has what that was, whatever becomes of the value",
        Program((Tag(1, "b", 2), Look(), Savepoint("session", (Tag(1, "b", 1), Flush()), undone=True))),
        [Change("update", "Document", "document", (1,), {"tags": {"a": 1}}, {"tags": {"a": 1, "b": 2}})],
    ),
    Rule(
        "It has the old value though the session has forgotten that",
        Program((Set("seat", 1, "guest", "b"), ExpireAll(), Set("seat", 1, "guest", "c"))),
        [Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "c"})],
    ),
    Rule(
        "A deferred column that was written and not loaded has no old value",
        Program((Set("document", 1, "body", "b"),)),
        [Change("update", "Document", "document", (1,), {}, {"body": "b"})],
    ),
    Rule(
        "One that was loaded has",
        Program((Load(1), Set("document", 1, "body", "b"))),
        [Change("update", "Document", "document", (1,), {"body": "a"}, {"body": "b"})],
    ),
    Rule(
        "A merged copy changes what it has",
        Program((Merge("Seat", 2),)),
        [Change("update", "Seat", "seat", ("A", 2), {"guest": None}, {"guest": "n"})],
    ),
    Rule(
        "There is a change for each table that a class is in, by the names of its columns",
        Program((Set("party", 1, "born", 2), Set("party", 2, "size", 2))),
        [
            Change("update", "Company", "company", (2,), {"size": 1, "edits": 0}, {"size": 2, "edits": 1}),
            Change("update", "Person", "party", (1,), {"version": 1}, {"version": 2}),
            Change("update", "Company", "party", (2,), {"version": 1}, {"version": 2}),
            Change("update", "Person", "person", (1,), {"birth_year": 1}, {"birth_year": 2}),
        ],
    ),
    Rule(
        "An insert and its updates are one insert",
        Program((Insert("Seat", 3), Flush(), Set("seat", 3, "guest", "a"), Flush(), Rekey(3, 4))),
        [Change("insert", "Seat", "seat", ("A", 4), {}, {"row": "A", "number": 4, "guest": "a"})],
    ),
    Rule(
        "Two updates are one",
        Program((Set("seat", 1, "guest", "b"), Flush(), Set("seat", 1, "guest", "c"))),
        [Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "c"})],
    ),
    Rule(
        "An update and a deletion are a deletion",
        Program((Set("seat", 1, "guest", "b"), Rekey(1, 3), Flush(), Delete("seat", 1))),
        [Change("delete", "Seat", "seat", ("A", 1), {"row": "A", "number": 1, "guest": "a"}, {})],
    ),
    Rule(
        "An insert and its deletion are nothing, nor is an update and the way back, nor a deletion and the same again",
        Program(
            (
                Insert("Seat", 3),
                Set("seat", 1, "guest", "b"),
                Flush(),
                Delete("seat", 3),
                Set("seat", 1, "guest", "a"),
                Delete("seat", 2),
                Flush(),
                Insert("Seat", 2, bare=True),
            )
        ),
        [],
    ),
    Rule(
        "An object in the place of one that was deleted is an update",
        Program((Delete("seat", 1), Insert("Seat", 1), Delete("seat", 2), Flush(), Insert("Seat", 2))),
        [
            Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "n"}),
            Change("update", "Seat", "seat", ("A", 2), {"guest": None}, {"guest": "n"}),
        ],
    ),
    Rule(
        "What was not loaded of a row that is deleted and comes back was written",
        Program(
            (Delete("document", 1), Flush(), Insert("Document", 1), Link("document", 1, 1), Link("document", 1, 2))
        ),
        [
            Change(
                "update",
                "Document",
                "document",
                (1,),
                {"title": "a", "tags": {"a": 1}, "folder_id": 1},
                {"title": "n", "body": "n", "tags": {"n": 9}, "folder_id": None},
            )
        ],
    ),
    Rule(
        "One of another class has other tables",
        Program((Delete("party", 3), Flush(), Insert("Guest", 3))),
        [
            Change("delete", None, "friendship", (3, 1), {"one_id": 3, "other_id": 1}, {}),
            Change("update", "Guest", "party", (3,), {"kind": "vip", "name": "b"}, {"kind": "guest", "name": "n"}),
            Change("delete", "Vip", "person", (3,), {"id": 3, "birth_year": None, "perk": "a"}, {}),
        ],
    ),
    Rule(
        "If it is deleted as well, the row was of the first",
        Program((Delete("party", 3), Flush(), Insert("Guest", 3), Flush(), Delete("party", 3))),
        [
            Change("delete", None, "friendship", (3, 1), {"one_id": 3, "other_id": 1}, {}),
            Change("delete", "Vip", "party", (3,), {"id": 3, "kind": "vip", "name": "b", "version": 1}, {}),
            Change("delete", "Vip", "person", (3,), {"id": 3, "birth_year": None, "perk": "a"}, {}),
        ],
    ),
    Rule(
        "A new key is a column that has changed, and the identity",
        Program((Rekey(1, 3), Flush(), Insert("Seat", 1))),
        [
            Change("insert", "Seat", "seat", ("A", 1), {}, {"row": "A", "number": 1, "guest": "n"}),
            Change("update", "Seat", "seat", ("A", 3), {"number": 1}, {"number": 3}),
        ],
    ),
    Rule(
        "Links are rows of nobody's",
        Program((Link("document", 2, 2), Link("document", 1, 1, is_there=False, by_other=True))),
        [
            Change("delete", None, "document_label", (1, -1), {"document_id": 1, "label_id": -1}, {}),
            Change("insert", None, "document_label", (2, -2), {}, {"document_id": 2, "label_id": -2}),
        ],
    ),
    Rule(
        "What is deleted or let go with another object is told as well",
        Program((Delete("folder", 1),)),
        [
            Change(
                "delete", "Document", "document", (1,), {"id": 1, "title": "a", "tags": {"a": 1}, "folder_id": 1}, {}
            ),
            Change("delete", None, "document_label", (1, -2), {"document_id": 1, "label_id": -2}, {}),
            Change("delete", None, "document_label", (1, -1), {"document_id": 1, "label_id": -1}, {}),
            Change("delete", "Folder", "folder", (1,), {"id": 1, "name": "a", "parent_id": None}, {}),
            Change("update", "Folder", "folder", (2,), {"parent_id": 1}, {"parent_id": None}),
        ],
    ),
    Rule(
        "What was done in a savepoint that is undone is not told, whoever has made it",
        Program(
            (
                Set("seat", 1, "guest", "b"),
                Savepoint("uow", (Delete("seat", 1), Look()), undone=True),
                Savepoint("session", (Set("seat", 1, "guest", "c"), Insert("Seat", 3), Flush()), undone=True),
                Savepoint("connection", (Set("seat", 2, "guest", "c"), Savepoint("uow", (Rekey(1, 4),))), undone=True),
            )
        ),
        [Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "b"})],
    ),
    Rule(
        "What was done in one that is released is",
        Program(
            (
                Savepoint("uow", (Insert("Seat", 3), Savepoint("session", (Set("seat", 3, "guest", "b"),)))),
                Savepoint("connection", (Insert("Seat", 4), Flush())),
            )
        ),
        [
            Change("insert", "Seat", "seat", ("A", 3), {}, {"row": "A", "number": 3, "guest": "b"}),
            Change("insert", "Seat", "seat", ("A", 4), {}, {"row": "A", "number": 4, "guest": "n"}),
        ],
    ),
    Rule(
        "Of a transaction that is rolled back one is told what is lost",
        Program((Set("seat", 1, "guest", "b"), Flush(), Set("seat", 2, "guest", "b")), undone=True),
        [
            Change("update", "Seat", "seat", ("A", 1), {"guest": "a"}, {"guest": "b"}),
            Change("update", "Seat", "seat", ("A", 2), {"guest": None}, {"guest": "b"}),
        ],
    ),
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.says)
def test_rule(arena: Arena, rule: Rule) -> None:
    """Each rule holds on either database."""
    changes, found = arena.run(rule.program)

    told = [change for change in changes if isinstance(change, Change)]
    assert sorted(told, key=lambda change: (change.table, change.identity)) == rule.changes
    assert found == []


# Random programs

SLOTS: Final[dict[Family, tuple[int, ...]]] = {
    "party": (1, 2, 3, 4),
    "folder": (1, 2, 3),
    "document": (1, 2, 3),
    "label": (1, 2, 3),
    "seat": (1, 2, 3, 4),
    "stamp": (1, 2, 3),
}
"""The keys that programs use. Objects with the lower ones are stored already."""

VALUES: Final[dict[Family, dict[str, tuple[Any, ...]]]] = {
    "party": {"name": ("a", "b", None), "born": (1, 2, None), "perk": ("a", "b", None), "size": (1, 2, None)},
    "folder": {"name": ("a", "b", None)},
    "document": {"title": ("a", "b", None), "body": ("a", "b", None), "tags": (None,)},
    "label": {"name": ("a", "b", None)},
    "seat": {"guest": ("a", "b", None)},
    "stamp": {"n": (1, 2, None), "status": ("new", "old", None), "edited": ("edited", "by hand", None)},
}
"""What attributes are set to, which they may have been before."""

COMPUTED: Final[tuple[tuple[Family, str], ...]] = (
    ("party", "name"),
    ("party", "born"),
    ("party", "size"),
    ("folder", "name"),
    ("document", "title"),
    ("document", "body"),
    ("label", "name"),
    ("seat", "guest"),
    ("stamp", "n"),
    ("stamp", "status"),
)
"""The attributes that are set to SQL expressions."""

THEMES: Final[tuple[tuple[Family, ...], ...]] = (
    ("party",),
    ("seat",),
    ("stamp",),
    ("document",),
    ("folder", "document"),
    ("document", "label"),
    ("folder", "document", "label"),
    ("party", "folder", "document", "label", "seat", "stamp"),
)
"""What a program is about: the fewer objects there are, the more happens to each."""

Choices = tuple[int, tuple[Operation, ...]]
"""Some operations, and how often one of them is drawn."""

GENERAL: Final[tuple[Choices, ...]] = (
    (4, (Flush(),)),
    (2, (ExpireAll(),)),
    (1, (Forget(),)),
    (2, (Look(),)),
)


def _about(family: Family) -> Iterator[Choices]:
    """Yield the operations on objects of a family, with their weights."""
    slots = SLOTS[family]
    kinds = [kind for kind, (_, its_family) in KINDS.items() if its_family == family]
    yield 4, tuple(Insert(kind, slot, bare) for kind, slot, bare in product(kinds, slots, (False, True)))
    yield (
        6,
        tuple(
            Set(family, slot, attribute, value)
            for attribute, values in VALUES[family].items()
            for value, slot in product(values, slots)
        ),
    )
    yield (
        2,
        tuple(Append(family, slot, attribute) for its, attribute in COMPUTED if its == family for slot in slots),
    )
    yield 4, tuple(Delete(family, slot) for slot in slots)
    yield 1, tuple(Merge(kind, slot, bare) for kind, slot, bare in product(kinds, slots, (False, True)))
    yield 1, (*(Expire(family, slot) for slot in slots), *(Refresh(family, slot) for slot in slots))


def _between(families: tuple[Family, ...]) -> Iterator[Choices]:
    """Yield the operations that only some families have."""
    yes_or_no = (True, False)
    if "party" in families:
        yield 3, tuple(Link("party", *each) for each in product(SLOTS["party"], SLOTS["party"], yes_or_no, yes_or_no))
    if "seat" in families:
        yield 5, tuple(Rekey(*each) for each in product(SLOTS["seat"], SLOTS["seat"]))
    if "document" in families:
        yield 4, tuple(Tag(*each) for each in product(SLOTS["document"], "ab", (1, 2, None)))
        yield 1, tuple(Load(slot) for slot in SLOTS["document"])
    if "folder" in families:
        yield 3, tuple(Move(*each) for each in product(SLOTS["document"], (*SLOTS["folder"], None), yes_or_no))
        yield (
            3,
            tuple(
                Nest(slot, parent, by_parent)
                for slot, parent, by_parent in product(SLOTS["folder"], (*SLOTS["folder"], None), yes_or_no)
                if parent is None or parent < slot
            ),
        )
    if "label" in families:
        yield (
            6,
            tuple(Link("document", *each) for each in product(SLOTS["document"], SLOTS["label"], yes_or_no, yes_or_no)),
        )


@cache
def operations(families: tuple[Family, ...], depth: int) -> st.SearchStrategy[Operation]:
    """Draw an operation, with savepoints inside one another up to some depth."""
    weights = [*GENERAL, *chain.from_iterable(map(_about, families)), *_between(families)]
    simple = [st.just(choice) for weight, choices in weights for choice in islice(cycle(choices), 60 * weight)]
    sack: list[st.SearchStrategy[Operation]] = [*simple]
    if depth:
        bodies = st.lists(operations(families, depth - 1), max_size=4).map(tuple)
        savepoints = st.builds(Savepoint, st.sampled_from(("uow", "session", "connection")), bodies, st.booleans())
        sack += repeat(savepoints, len(simple) // 5)
    # One draw is faster than two.
    return st.sampled_from(range(len(sack))).flatmap(lambda place: sack[place])


@cache
def programs() -> st.SearchStrategy[Program]:
    """Draw up to twelve operations, and what is in their savepoints."""
    return st.sampled_from(THEMES).flatmap(
        lambda families: st.builds(
            Program,
            st.lists(operations(families, 3), min_size=1, max_size=12).map(tuple),
            undone=st.booleans(),
            autoflush=st.booleans(),
        )
    )


def check(arena: Arena, program: Program) -> None:
    changes, found = arena.run(program)

    note("\n".join(map(str, changes)))
    assert found == []


def budget(programs: int) -> settings:
    return settings(
        max_examples=programs,
        derandomize=False,
        database=None,
        deadline=None,
        print_blob=True,
        # Without the phase that explains: it would name lines of SQLAlchemy.
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.mark.usefixtures("unmeasured")
@budget(PROGRAMS)
@given(program=programs())
def test_random_programs(sqlite: Arena, program: Program) -> None:
    """Whatever is done in a transaction, its changes are the difference between the tables before and after it.

    So they are at any moment, in any savepoint, and of what is rolled back in the end.
    """
    check(sqlite, program)


@pytest.mark.usefixtures("unmeasured")
@budget(max(1, PROGRAMS // 10))
@given(program=programs())
def test_random_programs_on_postgresql(postgresql: Arena, program: Program) -> None:
    """So they are there."""
    check(postgresql, program)
