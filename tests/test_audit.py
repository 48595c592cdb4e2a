"""The audit trail: a row is there if and only if its change is, and says who changed what, from what, to what."""

from __future__ import annotations

import enum
import io
import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from flask import Flask, g, has_app_context
from sqlalchemy import (
    JSON,
    BindParameter,
    Column,
    Delete,
    Engine,
    ForeignKey,
    Insert,
    Integer,
    MetaData,
    PickleType,
    PrimaryKeyConstraint,
    String,
    Table,
    Update,
    bindparam,
    create_engine,
    event,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column, relationship, sessionmaker

from flask_uow import BulkChange, ConfigurationError, Outcome, Propagation, UnitOfWork, signals
from flask_uow._core.statements import described
from flask_uow.audit import MASK, AuditEntry, AuditTrail
from flask_uow.audit_table import Rule, _plain, key_text, table_in
from tests.conftest import assert_nothing_checked_out, conflict


class Base(DeclarativeBase):
    """The models of these tests; each trail gets the table in a copy of their metadata."""


shelved = Table(
    "shelved",
    Base.metadata,
    Column("book_id", ForeignKey("audited_book.id"), primary_key=True),
    Column("shelf_id", ForeignKey("shelf.id"), primary_key=True),
)


class Shelf(Base):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)


class Book(Base):
    __tablename__ = "audited_book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100), unique=True)
    price: Mapped[int | None]
    pin: Mapped[str | None] = mapped_column(String(100), info={"audit": "mask"})
    noise: Mapped[str | None] = mapped_column(String(100), info={"audit": False})
    shelves: Mapped[list[Shelf]] = relationship(secondary=shelved)


class Secret(Base):
    __tablename__ = "secret"
    __table_args__ = {"info": {"audit": False}}

    id: Mapped[int] = mapped_column(primary_key=True)


class OddSecret(Base):
    __tablename__ = "odd-secret"
    __table_args__ = {"info": {"audit": False}}

    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "audited_order"
    __table_args__ = {"info": {"audit": True}}

    id: Mapped[int] = mapped_column(primary_key=True)


class Person(Base):
    __tablename__ = "person"
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    kind: Mapped[str] = mapped_column(String(20))


class Author(Person):
    __tablename__ = "author"
    __mapper_args__ = {"polymorphic_identity": "author"}

    id: Mapped[int] = mapped_column(ForeignKey("person.id", onupdate="CASCADE"), primary_key=True)
    genre: Mapped[str | None] = mapped_column(String(100))


Actor = Callable[[], object] | None

TABLE = table_in(Base.metadata, "audit_log")


def with_tables(engine: Engine) -> Iterator[Engine]:
    Base.metadata.create_all(engine)
    yield engine
    assert_nothing_checked_out(engine)
    Base.metadata.drop_all(engine)


@pytest.fixture(autouse=True)
def tables(engine: Engine) -> Iterator[Engine]:
    """The tables, the trail's own included, in a SQLite file."""
    yield from with_tables(engine)


@pytest.fixture
def server(request: pytest.FixtureRequest, any_engine: Engine) -> Iterator[Engine]:
    """The same on each kind of database in turn."""
    if any_engine.dialect.name == "sqlite":
        yield any_engine
    else:
        yield from with_tables(any_engine)


@pytest.fixture
def trail(uow: UnitOfWork) -> AuditTrail:
    return AuditTrail(uow, Base, actor=lambda: g.get("actor") if has_app_context() else None)


def written(engine: Engine) -> list[Any]:
    """The rows of the trail, seen from another connection."""
    with engine.connect() as connection:
        return list(connection.execute(select(TABLE).order_by(TABLE.c.id)))


def told(engine: Engine) -> list[tuple[str, str, str | None]]:
    return [(row.operation, row.table_name, row.primary_key) for row in written(engine)]


def books(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return sorted(session.scalars(select(Book.title)))


# What is written


def test_row_says_everything(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """A row has the time, the transaction, the request, the endpoint, the actor, and the change."""
    uow.init_app(app)
    ids: list[str] = []

    @app.post("/books")
    @uow.transactional
    def add_book() -> str:
        g.actor = "jane"
        uow.session.add(Book(id=1, title="Emma", price=5))
        assert uow.current_transaction is not None
        ids.append(uow.current_transaction.id)
        return ""

    before = datetime.now(UTC)
    app.test_client().post("/books", headers={"X-Request-ID": "r-1"})

    with uow.transaction():
        [entry] = trail.entries()
    assert before <= entry.recorded_at <= datetime.now(UTC)
    assert entry == AuditEntry(
        id=1,
        recorded_at=entry.recorded_at,
        transaction_id=ids[0],
        request_id="r-1",
        endpoint="add_book",
        actor="jane",
        operation="insert",
        entity="Book",
        table="audited_book",
        primary_key=(1,),
        before=None,
        after={"id": 1, "title": "Emma", "price": 5, "pin": None},
        rowcount=None,
        statement=None,
        outcome="committed",
        error=None,
    )


def test_update_and_delete(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """An update has the columns that have changed, before and after; a deletion has what was there."""
    with uow.transaction() as session:
        session.add(Book(id=1, title="Emma", price=5))
    with uow.transaction() as session:
        session.get_one(Book, 1).price = 6
    with uow.transaction() as session:
        session.delete(session.get_one(Book, 1))

    _, changed, deleted = written(engine)
    assert (changed.operation, changed.before, changed.after) == ("update", {"price": 5}, {"price": 6})
    assert (deleted.operation, deleted.after) == ("delete", None)
    assert deleted.before == {"id": 1, "title": "Emma", "price": 6, "pin": None}


def test_net_change_is_written(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """What a transaction has undone itself is not in the trail, and what it changed twice is there once."""
    with uow.transaction() as session:
        book, other = Book(id=1, title="Emma"), Book(id=2, title="Persuasion")
        session.add_all([book, other])
        session.flush()
        book.title = "Sanditon"
        session.delete(other)
        with suppress(LookupError), uow.savepoint():
            session.add(Book(id=3, title="Ivanhoe"))
            session.flush()
            raise LookupError

    [row] = written(engine)
    assert (row.operation, row.after["title"]) == ("insert", "Sanditon")


def test_reading_writes_nothing(uow: UnitOfWork, engine: Engine) -> None:
    """A transaction that changes nothing asks for no actor, and writes nothing."""

    def actor() -> object:
        raise AssertionError

    AuditTrail(uow, Base, actor=actor)

    with uow.transaction() as session:
        session.scalars(select(Book)).all()

    assert written(engine) == []


def test_association_rows(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """Rows of association tables are written as well, and their history is found by the name of the table."""
    with uow.transaction() as session:
        session.add(Book(id=1, title="Emma", shelves=[Shelf(id=7)]))
    with uow.transaction() as session:
        book = session.get_one(Book, 1)
        book.shelves.clear()

    with uow.transaction():
        history = trail.history("shelved", (1, 7))
    assert [(entry.operation, entry.entity) for entry in history] == [("insert", None), ("delete", None)]


def test_statements(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """A statement that changes many rows is one row, with how many, and the SQL without its values."""
    with uow.transaction() as session:
        session.add_all([Book(title="Emma", price=1), Book(title="Persuasion", price=2)])
    with uow.transaction() as session:
        session.execute(update(Book).values(price=9))
        session.execute(text("DELETE FROM audited_book"))
        session.execute(text("DELETE FROM secret"))

    changed, deleted = written(engine)[2:]
    assert (changed.operation, changed.table_name, changed.rowcount) == ("update", "audited_book", 2)
    assert changed.statement == "UPDATE audited_book SET price=?"
    assert (deleted.operation, deleted.table_name, deleted.rowcount) == ("delete", "audited_book", 2)
    assert changed.primary_key is changed.before is changed.after is None


def test_values_of_every_kind() -> None:
    """Values that JSON has no form for are strings that a person can read."""

    class Colour(enum.Enum):
        RED = 1

    class Thing:
        def __str__(self) -> str:
            return "a thing"

    values = {
        "none": None,
        "flag": True,
        "number": 7,
        "ratio": 0.5,
        "infinite": math.inf,
        "nothing": math.nan,
        "text": "é",
        "odd": "a\x00b\ud800",
        "money": Decimal("1.10"),
        "uuid": UUID(int=1),
        "day": date(2026, 1, 2),
        "moment": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        "hour": time(3, 4),
        "span": timedelta(minutes=1),
        "enum": Colour.RED,
        "bytes": b"\x00\xff",
        "view": memoryview(b"\x00"),
        "nested": {1: [Decimal(1), (2,)]},
        "set": {"b", "a"},
        "other": Thing(),
    }

    plain = json.loads(json.dumps(_plain(values), allow_nan=False))

    assert plain == {
        "none": None,
        "flag": True,
        "number": 7,
        "ratio": 0.5,
        "infinite": "inf",
        "nothing": "nan",
        "text": "é",
        "odd": "a\\x00b\\ud800",
        "money": "1.10",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "day": "2026-01-02",
        "moment": "2026-01-02T03:04:05.000006+00:00",
        "hour": "03:04:00",
        "span": 60.0,
        "enum": "RED",
        "bytes": "AP8=",
        "view": "AA==",
        "nested": {"1": ["1", [2]]},
        "set": ["a", "b"],
        "other": "a thing",
    }


def test_long_keys() -> None:
    """A key that no index could have is written as its hash, and found by that."""
    assert key_text((1, "a")) == '[1,"a"]'
    assert key_text(("x" * 1000,)).startswith('["sha256:')
    assert key_text(("x" * 1000,)) != key_text(("y" * 1000,))
    assert key_text((1,), is_hidden=True).startswith('["sha256:')


def test_history_of_long_keys(uow: UnitOfWork, engine: Engine) -> None:
    """The history of a row with a long key ends where the key was changed, for nobody knows what it was."""

    class Own(DeclarativeBase):
        pass

    class Pair(Own):
        __tablename__ = "pair"

        one: Mapped[str] = mapped_column(String(1000), primary_key=True)
        two: Mapped[str] = mapped_column(String(1000), primary_key=True)

    trail = AuditTrail(uow, Own, table_name="pair_log")
    Own.metadata.create_all(engine)
    with uow.transaction() as session:
        session.add(Pair(one="x" * 700, two="a"))
    with uow.transaction() as session:
        session.get_one(Pair, ("x" * 700, "a")).two = "b"

    with uow.transaction():
        history = trail.history(Pair, ("x" * 700, "b"))
    assert [entry.operation for entry in history] == ["update"]


# What is not to be seen


def test_masked_and_left_out(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """A masked column shows that it was changed and not to what, and one that is left out shows nothing."""
    with uow.transaction() as session:
        session.add(Book(id=1, title="Emma", pin="1234", noise="x"))
        session.add(Secret())
    with uow.transaction() as session:
        book = session.get_one(Book, 1)
        book.pin, book.noise = "5678", "y"
    with uow.transaction() as session:
        session.get_one(Book, 1).noise = "z"

    inserted, changed = written(engine)
    assert inserted.after == {"id": 1, "title": "Emma", "price": None, "pin": MASK}
    assert (changed.before, changed.after) == ({"pin": MASK}, {"pin": MASK})


def test_opt_in(uow: UnitOfWork, engine: Engine) -> None:
    """With opt_in the tables alone are written that ask for it, and statements on others are not, either."""
    AuditTrail(uow, Base, opt_in=True)

    with uow.transaction() as session:
        session.add_all([Book(title="Emma"), Order(id=1), Secret()])
        session.flush()
        session.execute(update(Book).values(price=1))
        session.execute(text("UPDATE audited_order SET id = 2"))
        session.execute(text("CREATE TEMP TABLE scratch (id INTEGER)"))
        session.execute(text("INSERT INTO scratch VALUES (1)"))

    assert told(engine) == [("insert", "audited_order", "[1]"), ("update", "audited_order", None)]


def test_statement_on_an_unknown_table(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """A statement on a table that the metadata does not have is written: it shows no values."""
    with uow.transaction() as session:
        session.execute(text("CREATE TEMP TABLE scratch (id INTEGER)"))
        session.execute(text("INSERT INTO scratch VALUES (1)"))
        session.execute(text("INSERT INTO 'scratch' VALUES (1)"))

    assert told(engine) == [("insert", "scratch", None), ("insert", None, None)]


def test_unknown_table_is_refused(uow: UnitOfWork, engine: Engine) -> None:
    """A row of a table of which nobody has said what may be written is not committed; with its metadata it is."""

    class Other(DeclarativeBase):
        pass

    class Note(Other):
        __tablename__ = "note"

        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(String(20), info={"audit": False})

    Other.metadata.create_all(engine)
    AuditTrail(uow, Base)

    with (
        pytest.raises(ConfigurationError, match=r"does not have the table 'note', .* AuditTrail\(uow, \[Base, another"),
        uow.transaction() as session,
    ):
        session.add(Note(id=1, text="x"))
    with Session(engine) as session:
        assert session.get(Note, 1) is None

    both = UnitOfWork(sessionmaker(engine))
    AuditTrail(both, [Base, Other.metadata])
    with both.transaction() as session:
        session.add(Note(id=1, text="x"))
    assert [row.after for row in written(engine)] == [{"id": 1}]


@pytest.mark.parametrize(
    ("info", "on_column", "message"),
    [
        ({"audit": "mask"}, False, r"The table 't' has info=\{\"audit\": 'mask'\}; it can be one of"),
        ({"audit": 0}, True, r"The column t.id has info=\{\"audit\": 0\}; it can be one of"),
        ({"audit": "hide"}, True, r"The column t.id has info=\{\"audit\": 'hide'\}; it can be one of"),
    ],
)
def test_wrong_info(info: dict[str, Any], message: str, *, on_column: bool) -> None:
    """What is said of a table or a column in a way that is not understood is an error, and not a leak."""
    column = Column("id", Integer, info=info if on_column else {})
    table = Table("t", MetaData(), column, info={} if on_column else info)

    with pytest.raises(ConfigurationError, match=message):
        Rule(table, opt_in=False)


def test_key_that_is_not_to_be_seen(uow: UnitOfWork, engine: Engine) -> None:
    """A primary key that is masked or left out is a hash in the trail, by which its history is still found."""

    class Own(DeclarativeBase):
        pass

    class Token(Own):
        __tablename__ = "token"

        token: Mapped[str] = mapped_column(String(20), primary_key=True, info={"audit": "mask"})
        uses: Mapped[int]

    trail = AuditTrail(uow, Own, table_name="token_log")
    Own.metadata.create_all(engine)
    with uow.transaction() as session:
        session.add(Token(token="s3cr3t", uses=0))
    with uow.transaction() as session:
        session.get_one(Token, "s3cr3t").token = "other"

    with uow.transaction():
        [inserted] = trail.history(Token, "s3cr3t")
        [changed] = trail.history(Token, "other")
    assert "s3cr3t" not in str(inserted)
    assert inserted.after == {"token": MASK, "uses": 0}
    assert (changed.before, changed.after) == ({"token": MASK}, {"token": MASK})


@pytest.mark.parametrize(
    "statement",
    [
        text("UPDATE SECRET SET id = 4711"),
        text("UPDATE main.secret SET id = 4711"),
        text('UPDATE "secret" SET id = 4711'),
        update(aliased(Secret, name="other")).values(id=4711),
    ],
    ids=str,
)
def test_spelling_is_no_way_around(uow: UnitOfWork, trail: AuditTrail, engine: Engine, statement: Any) -> None:
    """A table that is left out is left out however a statement writes its name."""
    with uow.transaction() as session:
        session.add(Secret(id=1))
    with uow.transaction() as session:
        session.execute(statement)

    assert written(engine) == []


def test_values_in_statements(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """Parameters that SQLAlchemy writes into the SQL when it is sent are not in the trail, and long SQL is cut."""
    pin: BindParameter[str] = bindparam("pin", "4711", literal_execute=True)
    with uow.transaction() as session:
        session.add(Book(id=1, title="Emma"))
    with uow.transaction() as session:
        session.execute(update(Book).where(Book.id.in_([1, 2, 3])).values(pin=pin))
        session.execute(text(f"UPDATE audited_book SET price = 1 /* {'x' * 70_000} */"))

    _, changed, cut = written(engine)
    assert changed.statement == "UPDATE audited_book SET pin=... WHERE audited_book.id IN (...)"
    assert len(cut.statement) == 10_000


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE s FROM secret AS s WHERE s.pin = '4711'",
        "WITH gone AS (SELECT '4711' FROM secret) UPDATE audited_book SET price = 1",
        "WITH gone AS (SELECT '4711' FROM \"odd-secret\") UPDATE audited_book SET price = 1",
    ],
)
def test_statements_that_name_what_is_left_out(trail: AuditTrail, statement: str) -> None:
    """The text of a statement that names a table that is left out is not in the trail, whatever else it names."""
    what = described(text(statement))
    assert what is not None

    row = trail._row(BulkChange(*what, 1, statement))

    assert row is None or (row["table_name"], row["statement"]) == (
        "audited_book",
        "(withheld: it names a table that is left out)",
    )
    assert "4711" not in str(row)


class Colour(enum.StrEnum):
    RED = "r"
    CRIMSON = "r"
    BLUE = "b"


def values_of(kind: type[enum.Enum]) -> list[str]:
    return [each.value for each in kind]


def test_members_of_enums_as_they_are_stored(uow: UnitOfWork, engine: Engine) -> None:
    """A member of an Enum is written as it is stored, by its name, its value, or what the column's type says."""

    class Own(DeclarativeBase):
        pass

    class Paint(Own):
        __tablename__ = "paint"

        id: Mapped[int] = mapped_column(primary_key=True)
        by_name: Mapped[Colour] = mapped_column(SqlEnum(Colour))
        by_value: Mapped[Colour] = mapped_column(
            SqlEnum(Colour, values_callable=lambda kind: [each.value for each in kind])
        )
        by_alias: Mapped[Colour] = mapped_column(SqlEnum(Colour, omit_aliases=False))
        word: Mapped[str] = mapped_column(SqlEnum("r", "b"))
        plain: Mapped[str]

    trail = AuditTrail(uow, Own, table_name="paint_log")
    Own.metadata.create_all(engine)
    with uow.transaction() as session:
        for key, colour in enumerate(Colour):
            values = dict.fromkeys(("by_name", "by_value", "by_alias", "plain"), colour)
            session.add(Paint(id=key, **values, word=colour.value))

    with uow.transaction() as session:
        told = [entry.after for entry in trail.entries()]
        stored = [dict(row._mapping) for row in session.execute(text("SELECT * FROM paint"))]
    assert told == stored
    assert stored[0] == {
        "id": 0,
        "by_name": "RED",
        "by_value": "r",
        "by_alias": "RED",
        "word": "r",
        "plain": "r",
    }


def test_value_that_is_too_deep(uow: UnitOfWork, engine: Engine) -> None:
    """A value that contains itself is no reason not to commit."""

    class Own(DeclarativeBase):
        pass

    class Pickled(Own):
        __tablename__ = "pickled"

        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[Any] = mapped_column(PickleType)

    trail = AuditTrail(uow, Own, table_name="pickled_log")
    Own.metadata.create_all(engine)
    ring: list[Any] = []
    ring.append(ring)
    with uow.transaction() as session:
        session.add(Pickled(id=1, data=ring))

    with uow.transaction():
        [entry] = trail.history(Pickled, 1)
    assert entry.after == {"id": 1, "data": "(too deep)"}


def test_receivers_cannot_change_the_trail(uow: UnitOfWork, engine: Engine) -> None:
    """What a receiver does to the values that it was given is not done to those that are written."""

    class Own(DeclarativeBase):
        pass

    class Note(Own):
        __tablename__ = "own_note"

        id: Mapped[int] = mapped_column(primary_key=True)
        data: Mapped[dict[str, Any]] = mapped_column(JSON)

    def forge(_sender: object, changes: Any, **_extra: object) -> None:
        changes[0].after["data"].pop("token")

    AuditTrail(uow, Own, table_name="note_log")
    Own.metadata.create_all(engine)
    with signals.before_commit.connected_to(forge), uow.transaction() as session:
        session.add(Note(id=1, data={"token": 1}))

    with engine.connect() as connection:
        [row] = connection.execute(select(Own.metadata.tables["note_log"]))
    assert row.after == {"id": 1, "data": {"token": 1}}


def test_column_that_comes_later(uow: UnitOfWork, engine: Engine) -> None:
    """A class that is mapped to the table of another later can add columns to it, and say what may be written."""

    class Own(DeclarativeBase):
        pass

    class Staff(Own):
        __tablename__ = "staff"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "staff"}

        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(20))

    trail = AuditTrail(uow, Own, table_name="staff_log")
    trail.table.create(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE staff (id INTEGER PRIMARY KEY, kind TEXT, pay INTEGER)"))
    with uow.transaction() as session:
        session.add(Staff(id=1))

    class Manager(Staff):
        __mapper_args__ = {"polymorphic_identity": "manager"}

        pay: Mapped[int | None] = mapped_column(info={"audit": "mask"})

    with uow.transaction() as session:
        session.add(Manager(id=2, pay=100))
        session.get_one(Staff, 1).kind = "manager"

    with engine.connect() as connection:
        rows = [row.after for row in connection.execute(select(trail.table).order_by(trail.table.c.id))]
    assert len(rows) == 3
    assert {"id": 2, "kind": "manager", "pay": MASK} in rows
    assert {"kind": "manager"} in rows


# If and only if


def test_rolled_back_with_its_change(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """What is rolled back is not in the trail."""
    with suppress(LookupError), uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        raise LookupError

    assert (books(engine), written(engine)) == ([], [])


def test_failing_insert_keeps_everything_from_committing(
    app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine
) -> None:
    """When the row cannot be written nothing is committed, and the error handler sees why."""
    uow.init_app(app)
    seen: list[str] = []

    @app.post("/")
    @uow.transactional
    def add() -> str:
        uow.session.add(Book(title="Emma"))
        return ""

    @app.errorhandler(DBAPIError)
    def handle(error: DBAPIError) -> tuple[str, int]:
        seen.append(str(error.orig))
        assert uow.session.scalars(select(Book)).all() == []
        return "", 409

    with engine.begin() as connection:
        connection.execute(text("CREATE TRIGGER no BEFORE INSERT ON audit_log BEGIN SELECT RAISE(ABORT, 'full'); END"))
    response = app.test_client().post("/")

    assert (response.status_code, seen) == (409, ["full"])
    assert (books(engine), written(engine)) == ([], [])


def test_raising_actor_keeps_everything_from_committing(uow: UnitOfWork, engine: Engine) -> None:
    """When it cannot be said who it was nothing is committed."""

    def actor() -> object:
        raise LookupError("who?")

    AuditTrail(uow, Base, actor=actor)

    with pytest.raises(LookupError, match="who") as caught, uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert books(engine) == []
    assert caught.value.__notes__ == [
        "It was raised by the actor of the audit trail, without whom nothing is committed."
    ]


def test_actor_may_use_the_session(uow: UnitOfWork, engine: Engine) -> None:
    """Who it was can be looked up in the same session, as by a lazy current_user."""
    AuditTrail(uow, Base, actor=lambda: uow.session.scalar(select(Person.name)))
    with uow.transaction() as session:
        session.add(Person(name="Jane", kind="person"))

    assert [row.actor for row in written(engine)] == ["Jane"]


def test_actor_cannot_commit(uow: UnitOfWork, engine: Engine) -> None:
    """The transaction is about to commit, and nobody may do that by hand meanwhile."""
    AuditTrail(uow, Base, actor=lambda: uow.session.commit())  # noqa: PLW0108 - there is no session yet

    with pytest.raises(Exception, match=r"commit\(\)"), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert books(engine) == []


def test_actor_may_ask_for_a_rollback(uow: UnitOfWork, engine: Engine) -> None:
    """What is asked for at the last moment holds."""
    AuditTrail(uow, Base, actor=uow.set_rollback_only)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert (books(engine), written(engine)) == ([], [])


def test_actor_of_a_failed_transaction_is_forgotten(uow: UnitOfWork, engine: Engine) -> None:
    """Who was asked for in a transaction that has failed is not named in the next one."""
    actors = iter(["alice", "bob"])
    AuditTrail(uow, Base, actor=lambda: next(actors))

    def fail(_session: Session) -> None:
        raise LookupError

    app = Flask("shop")
    uow.init_app(app)
    with app.app_context():
        with pytest.raises(LookupError), uow.transaction() as session:
            event.listen(session, "before_commit", fail)
            session.add(Book(title="lost"))
        event.remove(session, "before_commit", fail)
        with uow.transaction() as session:
            event.listen(session, "before_commit", add_shelf)
            session.scalars(select(Book)).all()

    assert [row.actor for row in written(engine)] == ["bob"]


def add_shelf(session: Session) -> None:
    session.add(Shelf(id=1))


def test_what_comes_late_is_written(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """The trail is written when all receivers and listeners have added what they add."""

    def receiver(_sender: object, session: Session, **_extra: object) -> None:
        session.add(Book(title="by a receiver"))

    def listener(session: Session) -> None:
        session.add(Shelf(id=1))

    with signals.before_commit.connected_to(receiver), uow.transaction() as session:
        event.listen(session, "before_commit", listener)
        session.add(Book(title="by the block"))

    assert told(engine) == [
        ("insert", "audited_book", "[1]"),
        ("insert", "audited_book", "[2]"),
        ("insert", "shelf", "[1]"),
    ]


def test_listener_alone(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """What a listener adds where nothing else was changed is written as well."""
    with uow.transaction() as session:
        event.listen(session, "before_commit", lambda session: session.add(Shelf(id=1)))
        session.scalars(select(Book)).all()

    assert told(engine) == [("insert", "shelf", "[1]")]


def test_commits_by_hand(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """Where a commit by hand is allowed it is written, with what it has committed."""
    uow.init_app(app)

    with app.app_context():
        g.actor = "a script"
        uow.session.add(Book(title="Emma"))
        uow.session.commit()
        uow.session.add(Book(title="Persuasion"))
        uow.session.commit()
        uow.session.add(Book(title="lost"))
        uow.session.flush()

    assert told(engine) == [("insert", "audited_book", "[1]"), ("insert", "audited_book", "[2]")]
    assert {row.actor for row in written(engine)} == {"a script"}


def test_commit_past_the_session(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """Even who commits past the session's own methods is written down."""
    uow.init_app(app)

    with app.app_context():
        uow.session.add(Book(title="Emma"))
        root = uow.session.get_transaction()
        assert root is not None
        root.commit()

    assert told(engine) == [("insert", "audited_book", "[1]")]


def test_suspended_transactions(uow: UnitOfWork, engine: Engine) -> None:
    """A transaction of its own is written with its own changes, and before the one around it."""
    trail = AuditTrail(uow, Base)

    @uow.transactional(propagation=Propagation.REQUIRES_NEW)
    def inner() -> None:
        uow.session.add(Shelf(id=1))

    with uow.transaction() as session:
        inner()
        session.add(Book(title="Emma"))

    assert told(engine) == [("insert", "shelf", "[1]"), ("insert", "audited_book", "[1]")]
    assert len({row.transaction_id for row in written(engine)}) == 2
    assert repr(trail).startswith("<AuditTrail 'audit_log' of <UnitOfWork")


def test_retries(server: Engine) -> None:
    """Of several attempts the one that commits is written; with independent the others are, too."""
    uow = UnitOfWork(sessionmaker(server))
    AuditTrail(uow, Base, independent=True)
    attempts: list[int] = []

    @uow.transactional(attempts=2)
    def add() -> None:
        attempts.append(1)
        uow.session.add(Book(id=1, title="Emma"))
        uow.session.flush()
        if len(attempts) == 1:
            conflict(uow.session) if server.dialect.name != "sqlite" else raise_locked()

    add()

    assert [(row.outcome, row.primary_key) for row in written(server)] == [("rolled_back", "[1]"), ("committed", "[1]")]
    assert len({row.transaction_id for row in written(server)}) == 2


def raise_locked() -> None:
    """What SQLite says when somebody else writes; nobody can while this transaction does."""
    import sqlite3

    from sqlalchemy.exc import OperationalError

    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    raise OperationalError("UPDATE", {}, error)


# Where it is written


def test_on_every_database(server: Engine) -> None:
    """Every database stores the rows, and gives back what was stored."""
    uow = UnitOfWork(sessionmaker(server))
    trail = AuditTrail(uow, Base)
    with uow.transaction() as session:
        session.add(Book(id=1, title="Émma", price=None, pin="1"))
    with uow.transaction() as session:
        session.get_one(Book, 1).price = 5

    with uow.transaction() as session:
        book = session.get_one(Book, 1)
        inserted, changed = trail.history(book)

    assert inserted.after == {"id": 1, "title": "Émma", "price": None, "pin": MASK}
    assert (changed.before, changed.after, changed.primary_key) == ({"price": None}, {"price": 5}, (1,))
    assert changed.recorded_at.utcoffset() == timedelta(0)
    assert inserted.recorded_at < changed.recorded_at
    assert inserted.before is None


def test_alembic_sees_the_table(server: Engine) -> None:
    """Alembic's autogenerate adds the table where it is missing, and finds no difference where it is."""
    TABLE.drop(server)
    with server.connect() as connection:
        context = MigrationContext.configure(connection)
        missing = [change for change in compare_metadata(context, Base.metadata) if change[0] == "add_table"]
    TABLE.create(server)
    with server.connect() as connection:
        context = MigrationContext.configure(connection)
        own = [change for change in compare_metadata(context, Base.metadata) if "audit_log" in str(change)]

    assert [table.name for _, table in missing] == ["audit_log"]
    assert own == []


ENV = """
from alembic import context

with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=context.config.attributes["metadata"],
        # The database has tables of other tests.
        include_object=lambda _object, name, kind, *rest: kind != "table" or name == "audit_log",
    )
    with context.begin_transaction():
        context.run_migrations()
"""


def test_alembic_writes_a_migration_that_runs(server: Engine, tmp_path: Path) -> None:
    """The migration that autogenerate writes makes the table, and leaves nothing to be done."""
    TABLE.drop(server)
    config = Config(str(tmp_path / "alembic.ini"), stdout=io.StringIO())
    config.attributes.update(engine=server, metadata=Base.metadata)
    command.init(config, str(tmp_path / "migrations"))
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    try:
        command.revision(config, "Add the audit log", autogenerate=True)
        command.upgrade(config, "head")
        with server.connect() as connection:
            context = MigrationContext.configure(connection)
            own = [change for change in compare_metadata(context, Base.metadata) if "audit_log" in str(change)]
            there = inspect(connection).has_table("audit_log")
    finally:
        with server.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS alembic_version"))

    assert (there, own) == (True, [])


def test_two_phase_commit(postgresql: Engine) -> None:
    """With a two-phase commit the rows are written before the first phase."""
    Base.metadata.create_all(postgresql)
    try:
        uow = UnitOfWork(sessionmaker(postgresql, twophase=True))
        AuditTrail(uow, Base)

        with uow.transaction() as session:
            session.add(Book(id=1, title="Emma"))

        assert told(postgresql) == [("insert", "audited_book", "[1]")]
    finally:
        Base.metadata.drop_all(postgresql)


def test_rows_go_where_the_changes_are(engine: Engine, postgresql: Engine) -> None:
    """The rows are written in the database that was changed, wherever else the table is bound to."""
    uow = UnitOfWork(sessionmaker(binds={Book: engine, TABLE: postgresql}))
    AuditTrail(uow, Base)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
    with uow.transaction() as session:
        session.execute(update(Book).values(price=1))

    assert told(engine) == [("insert", "audited_book", "[1]"), ("update", "audited_book", None)]


def test_rows_go_to_the_leader(engine: Engine, tmp_path: Path) -> None:
    """With a session that reads from another database than it writes to, the rows are where it writes."""
    follower = create_engine(f"sqlite:///{tmp_path / 'follower.db'}")
    Base.metadata.create_all(follower)

    class Routing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_extra: Any) -> Engine:
            return engine if self._flushing or isinstance(clause, Update | Delete | Insert) else follower

    uow = UnitOfWork(sessionmaker(class_=Routing))
    AuditTrail(uow, Base)

    with uow.transaction() as session:
        session.scalars(select(Book)).all()
        session.add(Book(title="Emma"))
    follower.dispose()

    assert told(engine) == [("insert", "audited_book", "[1]")]


@pytest.mark.parametrize("independent", [False, True])
def test_several_databases_are_refused(
    engine: Engine, postgresql: Engine, caplog: pytest.LogCaptureFixture, *, independent: bool
) -> None:
    """What is changed in several databases cannot be told in one transaction: nothing is kept."""
    Base.metadata.create_all(postgresql)
    try:
        uow = UnitOfWork(sessionmaker(binds={Book: engine, Shelf: postgresql}))
        AuditTrail(uow, Base, independent=independent)

        with (
            pytest.raises(
                ConfigurationError, match=r"The table 'audit_log' cannot be written .* 2 databases were changed"
            ),
            uow.transaction() as session,
        ):
            session.add_all([Book(title="Emma"), Shelf(id=1)])

        assert (books(engine), told(engine), told(postgresql)) == ([], [], [])
        assert ("could not be written down" in caplog.text) is independent
    finally:
        Base.metadata.drop_all(postgresql)


def test_two_phases_in_several_databases(postgresql: Engine, mariadb: Engine) -> None:
    """With a two-phase commit the rows of all databases are in the one that the table is bound to, and there once."""
    for each in (postgresql, mariadb):
        Base.metadata.create_all(each)
    try:
        binds: dict[Any, Engine] = {Book: mariadb, Shelf: postgresql}
        uow = UnitOfWork(sessionmaker(binds={**binds, TABLE: postgresql}, twophase=True))
        AuditTrail(uow, Base)

        with uow.transaction() as session:
            session.add_all([Book(id=1, title="Emma"), Shelf(id=1)])

        assert sorted(told(postgresql)) == [("insert", "audited_book", "[1]"), ("insert", "shelf", "[1]")]
        assert told(mariadb) == []

        unbound = UnitOfWork(sessionmaker(binds=binds, twophase=True))
        AuditTrail(unbound, Base)
        with pytest.raises(ConfigurationError, match="2 databases were changed"), unbound.transaction() as session:
            session.add_all([Book(id=2, title="Persuasion"), Shelf(id=2)])
    finally:
        for each in (postgresql, mariadb):
            Base.metadata.drop_all(each)


def test_several_objects_share_the_table(engine: Engine) -> None:
    """Several UnitOfWork objects can have trails in one table."""
    trails = [AuditTrail(UnitOfWork(sessionmaker(engine), name=name), Base) for name in ("one", "two")]

    assert trails[0].table is trails[1].table is TABLE


# Surviving a rollback


@pytest.fixture
def survivor(uow: UnitOfWork) -> AuditTrail:
    return AuditTrail(uow, Base, actor=lambda: "jane", independent=True)


def test_rolled_back_work_is_written(app: Flask, uow: UnitOfWork, survivor: AuditTrail, engine: Engine) -> None:
    """An independent trail has what was flushed and rolled back, with the name of the error, in its own transaction."""
    uow.init_app(app)

    @app.post("/")
    @uow.transactional
    def add() -> tuple[str, int]:
        uow.session.add(Book(id=1, title="Emma"))
        uow.session.flush()
        raise LookupError

    app.test_client().post("/")

    [row] = written(engine)
    assert books(engine) == []
    assert (row.outcome, row.error, row.actor, row.endpoint) == ("rolled_back", "LookupError", "jane", "add")
    assert row.after["title"] == "Emma"


def test_quiet_rollback_is_written(uow: UnitOfWork, survivor: AuditTrail, engine: Engine) -> None:
    """A rollback without an error is written without one."""
    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        uow.set_rollback_only()

    assert [(row.outcome, row.error) for row in written(engine)] == [(str(Outcome.ROLLED_BACK), None)]


def test_failed_commit_is_written(uow: UnitOfWork, survivor: AuditTrail, engine: Engine) -> None:
    """A COMMIT that fails leaves a trail of what was to be committed."""

    def veto(_sender: object, **_extra: object) -> None:
        raise LookupError

    with signals.before_commit.connected_to(veto), pytest.raises(LookupError), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert [(row.outcome, row.error) for row in written(engine)] == [("rolled_back", "LookupError")]


def test_forgotten_work_is_written(app: Flask, uow: UnitOfWork, survivor: AuditTrail, engine: Engine) -> None:
    """What nobody has committed is rolled back at teardown, and told and written like any rollback."""
    uow.init_app(app)
    lost: list[int] = []

    def listen(_sender: object, changes: Any, **_extra: object) -> None:
        lost.append(len(changes))

    with signals.after_rollback.connected_to(listen), app.app_context():
        uow.session.add(Book(title="Emma"))
        uow.session.flush()

    assert (books(engine), lost) == ([], [1])
    assert [row.outcome for row in written(engine)] == ["rolled_back"]


@pytest.mark.parametrize("way", ["receiver", "actor"])
def test_session_that_is_used_after_the_rollback(uow: UnitOfWork, engine: Engine, way: str) -> None:
    """Who uses the session before the rows are written does not keep them from being written."""

    def look(*_sender: object, **_extra: object) -> str:
        with uow.transaction() as session:
            session.scalars(select(Book)).all()
        return "jane"

    AuditTrail(uow, Base, actor=look if way == "actor" else None, independent=True)

    with (
        signals.after_rollback.connected_to(look) if way == "receiver" else nullcontext(),
        pytest.raises(LookupError),
        uow.transaction() as session,
    ):
        session.add(Book(title="Emma"))
        session.flush()
        raise LookupError

    assert [row.outcome for row in written(engine)] == ["rolled_back"]


def test_schema_of_a_tenant(postgresql: Engine) -> None:
    """What was rolled back is written in the schema where it would have been stored."""
    tenant = postgresql.execution_options(schema_translate_map={None: "tenant"})
    with postgresql.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    Base.metadata.create_all(tenant)
    try:
        uow = UnitOfWork(sessionmaker(postgresql))
        AuditTrail(uow, Base, independent=True)

        with pytest.raises(LookupError), uow.transaction() as session:
            session.connection(execution_options={"schema_translate_map": {None: "tenant"}})
            session.add(Shelf(id=1))
            session.flush()
            raise LookupError

        assert told(tenant) == [("insert", "shelf", "[1]")]
    finally:
        with postgresql.begin() as connection:
            connection.execute(text("DROP SCHEMA tenant CASCADE"))


def test_another_session_on_the_connection(postgresql: Engine) -> None:
    """A connection that a session with two phases was on can be another's, which nobody looks after."""
    Base.metadata.create_all(postgresql)
    try:
        with postgresql.connect() as connection:
            uow = UnitOfWork(sessionmaker(connection, twophase=True))
            AuditTrail(uow, Base)
            with uow.transaction() as session:
                session.add(Shelf(id=1))
            with Session(connection, twophase=True) as other:
                other.add(Shelf(id=2))
                other.commit()

        assert told(postgresql) == [("insert", "shelf", "[1]")]
    finally:
        Base.metadata.drop_all(postgresql)


def test_changes_of_a_savepoint_that_is_gone(engine: Engine, postgresql: Engine) -> None:
    """What was changed in another database, and rolled back with a savepoint, is no obstacle."""
    Base.metadata.create_all(postgresql)
    try:
        uow = UnitOfWork(sessionmaker(binds={Book: engine, Shelf: postgresql}))
        AuditTrail(uow, Base)

        with uow.transaction() as session:
            session.add(Book(title="Emma"))
            with suppress(LookupError), uow.savepoint():
                session.add(Shelf(id=1))
                session.flush()
                raise LookupError

        assert told(engine) == [("insert", "audited_book", "[1]")]
    finally:
        Base.metadata.drop_all(postgresql)


def test_unflushed_and_left_out_work_is_not_written(uow: UnitOfWork, survivor: AuditTrail, engine: Engine) -> None:
    """What never came to the database, or is left out, leaves no trail."""
    with uow.transaction() as session:
        session.add(Secret())
        session.flush()
        session.add(Book(title="Emma"))
        uow.set_rollback_only()

    assert written(engine) == []


def test_failing_actor_of_a_rollback(uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What is known is written when it cannot be said who it was, and that is logged; the error goes on."""

    def actor() -> object:
        raise RuntimeError("who?")

    AuditTrail(uow, Base, actor=actor, independent=True)

    with pytest.raises(LookupError), uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        raise LookupError

    assert [(row.outcome, row.actor) for row in written(engine)] == [("rolled_back", None)]
    assert "could not be written down" in caplog.text
    assert "who?" in caplog.text


def test_session_of_a_connection(engine: Engine) -> None:
    """Where a test has bound the sessions to its own connection, all is written there, and gone with it."""
    with engine.connect() as connection, connection.begin() as outer:
        uow = UnitOfWork(sessionmaker(connection, join_transaction_mode="create_savepoint"))
        AuditTrail(uow, Base, independent=True)

        with uow.transaction() as session:
            session.add(Book(id=1, title="Emma"))
        with suppress(LookupError), uow.transaction() as session:
            session.add(Book(id=2, title="Persuasion"))
            session.flush()
            raise LookupError

        rows = list(connection.execute(select(TABLE.c.outcome, TABLE.c.primary_key).order_by(TABLE.c.id)))
        outer.rollback()

    assert rows == [("committed", "[1]"), ("rolled_back", "[2]")]
    assert written(engine) == []


def test_session_of_a_connection_outside_any_transaction(engine: Engine) -> None:
    """On a connection that has not begun, what was rolled back has a transaction of its own."""
    with engine.connect() as connection:
        uow = UnitOfWork(sessionmaker(connection))
        AuditTrail(uow, Base, independent=True)

        with suppress(LookupError), uow.transaction() as session:
            session.add(Book(id=2, title="Persuasion"))
            session.flush()
            raise LookupError

    assert [row.outcome for row in written(engine)] == ["rolled_back"]


# History


def test_history_of_joined_tables(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """The history of an object has the rows of all of its tables, also when it is asked for by a base class."""
    with uow.transaction() as session:
        session.add(Author(id=1, name="Jane", genre="novels"))
    with uow.transaction() as session:
        session.get_one(Author, 1).genre = "letters"

    with uow.transaction() as session:
        histories = [trail.history(session.get_one(Author, 1)), trail.history(Author, 1), trail.history(Person, (1,))]
    assert [[(entry.operation, entry.table) for entry in history] for history in histories] == [
        [("insert", "person"), ("insert", "author"), ("update", "author")]
    ] * 3


def test_history_follows_a_key_that_changes(uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """The history of a row whose key has changed goes back before that, and not to another's that had the key."""
    with uow.transaction() as session:
        session.add_all([Shelf(id=1), Shelf(id=2)])
    with uow.transaction() as session:
        session.delete(session.get_one(Shelf, 2))
    with uow.transaction() as session:
        session.get_one(Shelf, 1).id = 2
    with uow.transaction() as session:
        session.add(Shelf(id=1))

    with uow.transaction() as session:
        history = trail.history(session.get_one(Shelf, 2))
    assert [(entry.operation, entry.primary_key) for entry in history] == [("insert", (1,)), ("update", (2,))]


def test_history_by_other_keys(uow: UnitOfWork, engine: Engine) -> None:
    """The history is found by the key as the mapper has it, in whatever order the columns stand in the table."""

    class Own(DeclarativeBase):
        pass

    class Pair(Own):
        __tablename__ = "pair"
        __table_args__ = (PrimaryKeyConstraint("two", "one"),)

        one: Mapped[int]
        two: Mapped[int]
        name: Mapped[str]

    class Coded(Own):
        __table__ = Table(
            "coded", Own.metadata, Column("id", Integer, primary_key=True), Column("code", String(10), unique=True)
        )
        __mapper_args__ = {"primary_key": [__table__.c.code]}

    class Place(Own):
        __tablename__ = "place"

        id: Mapped[int] = mapped_column(primary_key=True)

    class Town(Place):
        __tablename__ = "town"
        __mapper_args__ = {"concrete": True}

        id: Mapped[int] = mapped_column(primary_key=True)

    trail = AuditTrail(uow, Own, table_name="pair_log")
    Own.metadata.create_all(engine)
    with uow.transaction() as session:
        session.add_all([Pair(one=1, two=2, name="a"), Coded(id=5, code="x"), Place(id=1), Town(id=1)])
    with uow.transaction() as session:
        session.get_one(Pair, (2, 1)).two = 3

    with uow.transaction() as session:
        pairs = [trail.history(session.get_one(Pair, (3, 1))), trail.history(Pair, (3, 1))]
        coded = trail.history(session.get_one(Coded, "x"))
        places = trail.history(Place, 1)
    assert [[entry.operation for entry in history] for history in pairs] == [["insert", "update"]] * 2
    assert [entry.primary_key for entry in coded] == [(5,)]
    assert [entry.table for entry in places] == ["place"]


def test_history_without_attempts(uow: UnitOfWork, survivor: AuditTrail) -> None:
    """What was rolled back has not become of it."""
    with uow.transaction() as session:
        session.add(Shelf(id=1))
        session.flush()
        uow.set_rollback_only()
    with uow.transaction() as session:
        session.add(Shelf(id=1))

    with uow.transaction():
        assert [entry.outcome for entry in survivor.history(Shelf, 1)] == ["committed"]
        assert [entry.outcome for entry in survivor.entries()] == ["rolled_back", "committed"]


def test_history_of_what_is_gone(uow: UnitOfWork, trail: AuditTrail) -> None:
    """A deleted object still says what became of it."""
    with uow.transaction() as session:
        session.add(Shelf(id=1))
    with uow.transaction() as session:
        shelf = session.get_one(Shelf, 1)
        session.delete(shelf)

    with uow.transaction():
        assert [entry.operation for entry in trail.history(shelf)] == ["insert", "delete"]


@pytest.mark.parametrize(
    ("target", "identity", "message"),
    [
        (Book(title="new"), None, "has no primary key yet. Flush it first"),
        (Book, None, r"takes a mapped object, or a mapped class or the name of a table and a primary key"),
        (7, 1, r"was given 7; it takes a mapped object"),
        ("shelf", None, "was given 'shelf'"),
    ],
)
def test_history_of_nothing(trail: AuditTrail, target: object, identity: object, message: str) -> None:
    """What is no object is refused."""
    with pytest.raises(ConfigurationError, match=message):
        trail.history(target, identity)


def test_history_of_a_table_outside_the_metadata(uow: UnitOfWork, trail: AuditTrail) -> None:
    """A table that the metadata does not have has no history, and that is no error."""
    with uow.transaction():
        assert trail.history("elsewhere", 1) == []


# Making one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, Base), r"^uow is None; it must be a UnitOfWork"),
        ((UnitOfWork(sessionmaker()), object()), r"^metadata is <object .*; it must be a MetaData, a declarative base"),
        ((UnitOfWork(sessionmaker()), []), r"^metadata is \[\]; it must be"),
    ],
)
def test_wrong_arguments(arguments: tuple[Any, Any], message: str) -> None:
    """Arguments that cannot be what was meant are refused, and nothing is installed."""
    with pytest.raises(ConfigurationError, match=message):
        AuditTrail(*arguments)


async def find_user() -> str:
    return "jane"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actor": "jane"}, r"^actor is 'jane'; it must be a function without arguments"),
        ({"actor": find_user}, r"^actor is the coroutine function .* which nobody would await"),
        ({"request_id": None}, r"^request_id is None; it must be a function without arguments"),
        ({"table_name": "shelf"}, r"^table_name is 'shelf', and the metadata has another table of that name"),
    ],
)
def test_wrong_options(uow: UnitOfWork, engine: Engine, options: dict[str, Any], message: str) -> None:
    """Options that cannot be what was meant are refused, and nothing is installed."""
    with pytest.raises(ConfigurationError, match=message):
        AuditTrail(uow, Base, **options)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
    assert written(engine) == []


def test_wrong_info_is_told_at_once(uow: UnitOfWork, engine: Engine) -> None:
    """What cannot be understood in the metadata is an error where the trail is made."""
    metadata = MetaData()
    Table("t", metadata, Column("id", Integer, primary_key=True, info={"audit": "masked"}))

    with pytest.raises(ConfigurationError, match=r"The column t.id has info="):
        AuditTrail(uow, metadata)


def test_twice(uow: UnitOfWork, trail: AuditTrail) -> None:
    """A second trail of the same table would write each row twice."""
    with pytest.raises(ConfigurationError, match=r"AuditTrail\(\) was called before .* each row would be twice"):
        AuditTrail(uow, Base)


def test_schema_of_the_metadata() -> None:
    """The table is in the schema of the metadata, and made once."""
    metadata = MetaData(schema="archive")

    assert table_in(metadata, "audit_log").fullname == "archive.audit_log"
    assert table_in(metadata, "audit_log") is table_in(metadata, "audit_log")


def test_long_strings_are_cut(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A header or a name that is too long for its column is cut, and is no reason not to commit."""
    AuditTrail(uow, Base, actor=lambda: "x" * 1000)
    uow.init_app(app)

    @app.post("/")
    @uow.transactional
    def add() -> str:
        uow.session.add(Book(title="Emma"))
        return ""

    assert app.test_client().post("/", headers={"X-Request-ID": "y" * 1000}).status_code == 200
    [row] = written(engine)
    assert (row.actor, row.request_id) == ("x" * 255, "y" * 255)


def test_incomplete_trail_is_told(uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A trail that is begun in the middle of a transaction says that it may miss something."""
    with uow.transaction() as session:
        session.add(Book(id=1, title="Emma"))
        session.flush()
        AuditTrail(uow, Base)
        session.add(Book(id=2, title="Persuasion"))

    assert told(engine) == [("insert", "audited_book", "[2]")]
    assert "may not have all" in caplog.text
