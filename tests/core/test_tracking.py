from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    String,
    Table,
    TypeDecorator,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.exc import IntegrityError, SAWarning
from sqlalchemy.orm import (
    DeclarativeBase,
    InstanceState,
    Mapped,
    Mapper,
    Session,
    UOWTransaction,
    mapped_column,
    relationship,
)

from flask_uow._core.changes import BulkChange, Change, ChangeSet
from flask_uow._core.events import AfterCommit, AfterRollback
from flask_uow._core.options import Options
from flask_uow._core.scope import Scope
from flask_uow._core.tracking import _records
from flask_uow._core.transaction import Transaction
from tests.core.conftest import NESTED, Book, Deaf, Events, block, make_runtime


@pytest.fixture
def notify(events: Events) -> Events:
    """Who listens: changes are followed for nobody else."""
    return events


class Base(DeclarativeBase):
    pass


class Array:
    """What cannot be copied."""

    def __init__(self, numbers: str) -> None:
        self.numbers = numbers

    def __deepcopy__(self, _memo: object) -> Array:
        raise TypeError


class Arrays(TypeDecorator[Array]):
    impl = String
    cache_ok = True

    def process_bind_param(self, value: Array | None, dialect: object) -> str | None:
        return None if value is None else value.numbers

    def process_result_value(self, value: str | None, dialect: object) -> Array | None:
        return None if value is None else Array(value)


tagged = Table(
    "tagged",
    Base.metadata,
    Column("sheet_id", ForeignKey("sheet.id"), primary_key=True),
    Column("tag_id", ForeignKey("sheet_tag.id"), primary_key=True),
)


class SheetTag(Base):
    __tablename__ = "sheet_tag"

    id: Mapped[int] = mapped_column(primary_key=True)


class Sheet(Base):
    __tablename__ = "sheet"

    id: Mapped[int] = mapped_column(primary_key=True)
    cells: Mapped[Array | None] = mapped_column(Arrays)
    editor: Mapped[str | None] = mapped_column(onupdate="somebody", deferred=True)
    tags: Mapped[list[SheetTag]] = relationship(secondary=tagged, cascade="")


@pytest.fixture
def tables(engine: Engine) -> Engine:
    Base.metadata.create_all(engine)
    return engine


def changes_of(scope: Scope) -> ChangeSet:
    return scope.active("the test").changes


def test_nobody_is_followed_who_need_not_be(engine: Engine, scope: Scope) -> None:
    """A session is followed while it is watched, and others never are."""
    with block(scope) as session:
        session.add(Book(title="Sanditon"))
        followed = dict(_records)
        with Session(engine) as other:
            book = Book(title="Emma")
            other.add(book)
            other.flush()
            book.title = "Sanditon II"
            other.flush()
            other.delete(book)
            other.flush()
            other.execute(insert(Book).values(title="Persuasion"))
            others = changes_of(scope)
            other.rollback()
    scope.close()

    assert session.hash_key in followed
    assert others == ()
    assert session.hash_key not in _records


def test_nothing_is_followed_for_nobody(engine: Engine) -> None:
    """Where nobody listens there are no changes, in a savepoint either, and that is said."""
    scope = Scope(make_runtime(engine, Deaf()))

    with block(scope) as session:
        before = changes_of(scope)
        session.add(Book(title="Emma"))
        session.flush()
        outer = changes_of(scope)
        with block(scope, propagation=NESTED):
            inner = changes_of(scope)
        assert session.hash_key not in _records
    scope.close()

    assert before == outer == inner == ()
    assert (before.is_complete, outer.is_complete, inner.is_complete) == (True, False, False)


def test_savepoints_have_their_own_changes(scope: Scope) -> None:
    """A savepoint has what was changed in it: while it is open, when it is released, and nothing when it is undone."""
    with block(scope) as session:
        session.add(Book(id=1, title="before"))
        with block(scope, propagation=NESTED):
            released = scope.active("the test")
            session.add(Book(id=2, title="released"))
            session.flush()
            open_changes = released.changes
        with suppress(LookupError), block(scope, propagation=NESTED):
            undone = scope.active("the test")
            session.add(Book(id=3, title="undone"))
            session.flush()
            raise LookupError
        session.add(Book(id=4, title="after"))
        session.flush()
        outermost = scope.active("the test")

    assert [change.identity for change in open_changes if isinstance(change, Change)] == [(2,)]
    assert released.changes == open_changes
    assert undone.changes == ()
    assert [change.identity for change in outermost.changes if isinstance(change, Change)] == [(1,), (2,), (4,)]


def test_changes_are_made_once(scope: Scope) -> None:
    """Who asks twice is given the same, as long as nothing is written in between."""
    with block(scope) as session:
        session.add(Book(title="Emma"))
        session.flush()
        first, second = changes_of(scope), changes_of(scope)
        session.add(Book(title="Persuasion"))
        session.flush()
        third = changes_of(scope)

    assert first is second
    assert (len(second), len(third)) == (1, 2)


def test_flush_that_fails(scope: Scope, events: Events) -> None:
    """A flush that fails has written nothing, and nothing of it is kept."""
    with suppress(IntegrityError), block(scope) as session:
        session.add(Book(id=1, title="Emma"))
        session.flush()
        session.add_all([Book(id=2, title="Persuasion"), Book(id=3, title="Emma")])
        record = _records[session.hash_key]
        session.flush()

    [rollback] = [event for event in events if isinstance(event, AfterRollback)]
    assert [change.identity for change in rollback.changes if isinstance(change, Change)] == [(1,)]
    assert (record._writes, record._flush) == ([], None)


def test_flush_that_fails_in_a_savepoint(scope: Scope) -> None:
    """What goes on after the savepoint is told as if the flush had not been."""
    with block(scope) as session:
        session.add(Book(id=1, title="Emma"))
        with suppress(IntegrityError), block(scope, propagation=NESTED):
            session.add_all([Book(id=2, title="Persuasion"), Book(id=3, title="Emma")])
            session.flush()
        session.add(Book(id=2, title="Sanditon"))
        session.flush()
        changes = changes_of(scope)

    assert [change.after["title"] for change in changes if isinstance(change, Change)] == ["Emma", "Sanditon"]


@pytest.mark.usefixtures("tables")
def test_values_that_cannot_be_copied(scope: Scope) -> None:
    """A value that cannot be copied is told as it is, and no flush fails because of it."""
    one, other = Array("1"), Array("2")
    with block(scope) as session:
        session.add(Sheet(id=1, cells=one))
    with block(scope) as session:
        sheet = session.get_one(Sheet, 1)
        old = sheet.cells
        sheet.cells = other
        session.flush()
        [change] = changes_of(scope)

    assert isinstance(change, Change)
    assert change.before["cells"] is old
    assert change.after["cells"] is other


@pytest.mark.usefixtures("tables")
def test_deferred_column_that_changes_by_itself(scope: Scope) -> None:
    """A deferred column that each UPDATE sets is told where the session knows it, and set by hand once."""
    with block(scope) as session:
        session.add(Sheet(id=1, cells=Array("1"), editor="Jane"))
    with block(scope) as session:
        session.get_one(Sheet, 1).cells = Array("2")
        session.flush()
        [alone] = changes_of(scope)
    with block(scope) as session:
        sheet = session.get_one(Sheet, 1)
        sheet.editor, sheet.cells = "Mary", Array("3")
        session.flush()
        [by_hand] = changes_of(scope)

    assert isinstance(alone, Change)
    assert isinstance(by_hand, Change)
    assert (set(alone.before), set(alone.after)) == ({"cells"}, {"cells", "editor"})
    assert by_hand.after["editor"] == "Mary"


@pytest.mark.usefixtures("tables")
def test_links_that_are_not_written(scope: Scope) -> None:
    """A link to an object that is not in the session is not written, and not told."""
    with block(scope) as session:
        sheet = Sheet(id=1, tags=[SheetTag(id=1)])
        session.add(sheet)
        with pytest.warns(SAWarning, match="operation along 'Sheet.tags' won't proceed"):
            session.flush()
        changes = changes_of(scope)
        stored = session.execute(select(tagged)).all()

    assert stored == []
    assert [change.table for change in changes] == ["sheet"]


@pytest.mark.usefixtures("tables")
def test_links_that_are_not_removed(scope: Scope) -> None:
    """Neither is the removal of one to an object that has left the session."""
    with block(scope) as session:
        tag = SheetTag(id=1)
        session.add_all([tag, Sheet(id=1, tags=[tag])])
    with block(scope) as session:
        sheet = session.get_one(Sheet, 1)
        [tag] = sheet.tags
        sheet.tags.remove(tag)
        session.expunge(tag)
        with pytest.warns(SAWarning, match="operation along 'Sheet.tags' won't proceed"):
            session.flush()
        changes = changes_of(scope)
        stored = session.execute(select(tagged)).all()

    assert stored == [(1, 1)]
    assert changes == ()


def test_receivers_that_come_late(engine: Engine) -> None:
    """Who begins to listen before anything is sent is told all, and afterwards what comes then, as incomplete."""
    listens = False

    class Late(Events):
        def wants(self, kind: type[Any], /) -> bool:
            return listens

    events = Late()
    scope = Scope(make_runtime(engine, events))
    with block(scope) as session:
        session.add(Book(id=1, title="Emma"))
        listens = True
        session.flush()
        in_time = changes_of(scope)
        listens = False
    with block(scope) as session:
        session.execute(select(Book))
        session.add(Book(id=2, title="Persuasion"))
        listens = True
        session.flush()
        nothing = changes_of(scope)
    [*_, late] = [each.changes for each in events if isinstance(each, AfterCommit)]
    scope.close()

    assert [change.identity for change in in_time if isinstance(change, Change)] == [(1,)]
    assert (in_time.is_complete, nothing.is_complete, late.is_complete) == (True, False, False)


@pytest.mark.parametrize("pending", [True, False])
def test_statement_after_receivers_have_come(engine: Engine, *, pending: bool) -> None:
    """The statement with which a session begins is told of, whatever it flushes before, and however old it is."""
    listens = False

    class Late(Events):
        def wants(self, kind: type[Any], /) -> bool:
            return listens

    scope = Scope(make_runtime(engine, Late()))
    session = scope.session
    if pending:
        session.add(Book(id=1, title="Emma"))
    listens = True
    with block(scope):
        session.execute(insert(Book).values(id=2, title="Persuasion"))
        changes = changes_of(scope)
    scope.close()

    assert changes.is_complete
    assert [type(change) for change in changes] == ([Change, BulkChange] if pending else [BulkChange])


def test_listener_that_writes_beside_an_expression(engine: Engine) -> None:
    """What a listener writes to an object is told, also where the flush expires as much as the listener adds."""

    class Own(DeclarativeBase):
        pass

    class Page(Own):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        hits: Mapped[int]
        updated: Mapped[int]

    Own.metadata.create_all(engine)
    event.listen(Page, "before_update", lambda _mapper, _connection, page: setattr(page, "updated", 99))
    events = Events()
    scope = Scope(make_runtime(engine, events))
    with block(scope) as session:
        session.add(Page(id=1, hits=1, updated=1))
    with block(scope) as session:
        page = session.get_one(Page, 1)
        page.hits = Page.hits + 1
    scope.close()

    [*_, changes] = [each.changes for each in events if isinstance(each, AfterCommit)]
    [change] = changes
    assert isinstance(change, Change)
    assert (change.before, change.after) == ({"hits": 1, "updated": 1}, {"hits": 2, "updated": 99})


def test_column_that_is_mapped_later(engine: Engine) -> None:
    """A column that a class is given when it has been used is told like others."""

    class Own(DeclarativeBase):
        pass

    class Note(Own):
        __tablename__ = "note"

        id: Mapped[int] = mapped_column(primary_key=True)

    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE note (id INTEGER PRIMARY KEY, late INTEGER)")
    scope = Scope(make_runtime(engine, Events()))
    with block(scope) as session:
        session.add(Note(id=1))
    Note.late = mapped_column("late", Integer)
    with block(scope) as session:
        session.get_one(Note, 1).late = 5  # type: ignore[attr-defined]
        session.flush()
        changes = changes_of(scope)
    scope.close()

    assert changes == [Change("update", "Note", "note", (1,), {"late": None}, {"late": 5})]


def test_transaction_without_a_session() -> None:
    """A transaction in which nothing was done has changed nothing, and that is all there is to know."""
    changes = Transaction(Options(), "nothing").changes

    assert (list(changes), changes.is_complete) == ([], True)


def test_what_is_used_of_sqlalchemy(engine: Engine) -> None:
    """Parts of SQLAlchemy that are not public are there, and do what is relied on."""
    told: list[tuple[str, Any]] = []

    def before_flush(session: Session, flush: UOWTransaction, _objects: object) -> None:
        told.append(("before", dict(flush.states)))

    def before_update(_mapper: Mapper[Any], _connection: object, state: InstanceState[Any]) -> None:
        told.append(("update", (dict(state.committed_state), state.session_id)))

    def after_flush(session: Session, flush: UOWTransaction) -> None:
        book: InstanceState[Any] = inspect(session.identity_map[Book, (1,), None])
        is_deleted = flush.is_deleted(book)  # type: ignore[no-untyped-call]
        told.append(("after", (flush.states[book], is_deleted, dict(book.committed_state))))
        told.append(("history", flush.get_attribute_history(book, "title")))  # type: ignore[no-untyped-call]

    with Session(engine) as session:
        session.add(Book(id=1, title="Emma"))
        session.flush()
        for name, listener in (("before_flush", before_flush), ("after_flush", after_flush)):
            event.listen(session, name, listener)
        event.listen(Book, "before_update", before_update, raw=True)
        book = session.get_one(Book, 1)
        book.title = "Persuasion"
        session.flush()
        event.remove(Book, "before_update", before_update)
        session.expire(book)
        assert "title" in inspect(book).expired_attributes
        book.title = "Sanditon"
        assert inspect(book).committed_state["title"].name == "NO_VALUE"
        number = session.hash_key
        session.rollback()

    assert told == [
        ("before", {}),
        ("update", ({"title": "Emma"}, number)),
        ("after", ((False, False), False, {"title": "Emma"})),
        ("history", (["Persuasion"], (), ["Emma"])),
    ]
