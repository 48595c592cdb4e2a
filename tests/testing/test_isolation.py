from __future__ import annotations

import gc
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import product
from pathlib import Path
from typing import Any, Self

import pytest
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as Lite
from sqlalchemy import Connection, Engine, Text, create_engine, event, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import StaticPool
from werkzeug.serving import make_server

from flask_uow import (
    ConfigurationError,
    IncompatibleTransactionError,
    ManualTransactionControlError,
    Propagation,
    ReadOnlyTransactionError,
    TransactionForbiddenError,
    TransactionRequiredError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UnitOfWork,
    current_transaction,
    flask_scoped_session,
)
from flask_uow._core.session import binds_of
from flask_uow.testing import inject, isolate, sharing
from tests.conftest import Base, Book, Loan, Log, sqlite_engine, titles
from tests.testing.conftest import Shop, make_shop


def books(connection: Connection) -> list[str]:
    """What is there inside, seen by a session of a test."""
    with Session(connection) as session:
        return sorted(session.scalars(select(Book.title)))


# What is committed is there, and gone afterwards


def test_committed_is_visible_and_then_gone(any_shop: Shop) -> None:
    """What requests commit is seen by others and by the test, and is not in the database afterwards."""
    with isolate(any_shop.uow) as connections:
        any_shop.client.post("/Emma")
        seen = any_shop.client.get("/").json
        inside = books(connections[0])

    assert (seen, inside) == (["Emma"], ["Emma"])
    assert titles(any_shop.engine) == []
    assert any_shop.done == ["stored Emma"]


def test_what_was_there_before_stays(any_shop: Shop) -> None:
    """What is changed or deleted inside is as it was afterwards."""
    any_shop.client.post("/Emma")
    any_shop.client.post("/Sanditon")

    with isolate(any_shop.uow) as [connection], any_shop.uow.transaction() as session:
        for book in session.scalars(select(Book)):
            if book.title == "Emma":
                session.delete(book)
            else:
                book.title = "Lady Susan"
        session.flush()
        inside = books(connection)

    assert inside == ["Lady Susan"]
    assert titles(any_shop.engine) == ["Emma", "Sanditon"]


def test_rolled_back_is_gone_at_once(any_shop: Shop) -> None:
    """What a request rolls back is not there, and what was committed before is."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        any_shop.client.post("/refused/Sanditon")
        inside = books(connection)

    assert inside == ["Emma"]
    assert any_shop.done == ["stored Emma", "lost Sanditon"]


def test_savepoints(any_shop: Shop) -> None:
    """A savepoint of the app's is undone alone."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/nested/Emma")
        inside = books(connection)

    assert inside == ["Emma"]


@pytest.mark.parametrize(("status", "kept"), [(200, ["Emma", "new Emma"]), (409, [])])
def test_requires_new_shares_the_connection(any_shop: Shop, status: int, kept: list[str]) -> None:
    """A transaction inside another is committed with it, and lost with it."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post(f"/new/Emma/{status}")
        inside = books(connection)

    assert inside == kept


def test_constraint_at_commit(any_shop: Shop) -> None:
    """A constraint that is checked at COMMIT is checked at the app's own, which fails as it does in production."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        with pytest.raises(IntegrityError) as caught:
            any_shop.client.post("/loan/77")
        any_shop.client.post("/Sanditon")
        inside = books(connection)
        loans = connection.execute(text("SELECT count(*) FROM loan")).scalar()

    assert (inside, loans) == (["Emma", "Sanditon"], 0)
    assert caught.value.statement is None or any_shop.engine.dialect.name == "mysql"


def test_constraints_stay_deferred(any_shop: Shop) -> None:
    """After the app's COMMIT a deferred constraint waits for the next one again."""
    if any_shop.engine.dialect.name == "mysql":
        pytest.skip("MariaDB defers nothing")
    with isolate(any_shop.uow) as [connection]:
        for number in (1, 2):
            with any_shop.uow.transaction() as session:
                session.execute(text(f"INSERT INTO loan (id, book_id) VALUES ({number}, {number})"))
                session.execute(text(f"INSERT INTO book (id, title) VALUES ({number}, 'Emma {number}')"))
        inside = books(connection)

    assert inside == ["Emma 1", "Emma 2"]


def test_foreign_keys_that_were_violated_before(shop: Shop) -> None:
    """What had been wrong in a database of SQLite keeps nobody from committing."""
    with sqlite3.connect(str(shop.engine.url.database)) as connection:
        connection.execute("INSERT INTO loan (id, book_id) VALUES (1, 77)")
    connection.close()

    with isolate(shop.uow):
        shop.client.post("/Emma")
        seen = shop.client.get("/").json

    assert seen == ["Emma"]


def test_error_in_a_statement(any_shop: Shop) -> None:
    """After a statement that fails the transaction is rolled back, and the next one works."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        with pytest.raises(SQLAlchemyError), any_shop.uow.transaction() as session:
            session.add(Book(title="Sanditon"))
            session.flush()
            session.execute(text("SELECT * FROM missing"))
        any_shop.client.post("/Persuasion")
        inside = books(connection)

    assert inside == ["Emma", "Persuasion"]


def test_swallowed_error(any_shop: Shop) -> None:
    """An error that was swallowed dooms the transaction inside as well."""
    with isolate(any_shop.uow) as [connection]:
        with pytest.raises(UnexpectedRollbackError), any_shop.uow.transaction() as session:
            session.add(Book(title="Sanditon"))
            session.flush()
            with suppress(SQLAlchemyError):
                session.execute(text("SELECT * FROM missing"))
        inside = books(connection)

    assert inside == []


def test_signals_and_hooks_are_those_of_production(any_shop: Shop, log: Log) -> None:
    """What is told inside is what is told outside, in the same order."""

    def run() -> list[str]:
        log.clear()
        any_shop.done.clear()
        client = any_shop.client
        client.post("/Emma")
        client.post("/refused/Sanditon")
        client.post("/nested/Persuasion")
        if any_shop.engine.dialect.name != "sqlite":
            # Outside, the suspended transaction has the one lock that there is.
            client.post("/new/Lodore/200")
        client.post("/again/Evelyn")
        return [*log, *any_shop.done]

    with isolate(any_shop.uow):
        inside = run()
    outside = run()

    assert inside == outside
    assert inside.count("after_commit") >= 3


def test_nothing_of_the_wrapper_shows(any_shop: Shop) -> None:
    """Outside the app's own transactions there is none, and inside it is the outermost one."""
    uow = any_shop.uow
    with isolate(uow):
        outside = uow.current_transaction
        with uow.transaction(propagation=Propagation.NEVER):
            pass
        with pytest.raises(TransactionRequiredError):
            uow.transaction(propagation=Propagation.MANDATORY).__enter__()
        with uow.transaction() as session:
            inner = uow.current_transaction
            assert inner is not None
            depth, parent, engine = inner.depth, inner.parent, session.get_bind().engine
            with pytest.raises(TransactionForbiddenError):
                uow.transaction(propagation=Propagation.NEVER).__enter__()
            with pytest.raises(ManualTransactionControlError):
                session.commit()

    assert not outside
    assert (depth, parent, engine) == (0, None, any_shop.engine)
    assert not current_transaction


def test_levels_are_accepted(any_shop: Shop) -> None:
    """An isolation level is told and not applied, also after a read, and refused where it is in production."""
    uow = any_shop.uow
    with isolate(uow) as [connection]:
        any_shop.client.post("/Emma")
        with any_shop.app.app_context():
            uow.session.scalars(select(Book)).all()
            with uow.transaction(isolation_level="SERIALIZABLE") as session:
                level = uow.current_transaction and uow.current_transaction.isolation_level
                session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
                session.add(Book(title="Sanditon"))
            uow.session.add(Book(title="Persuasion"))
            uow.session.flush()
            with pytest.raises(IncompatibleTransactionError):
                uow.transaction(isolation_level="SERIALIZABLE").__enter__()
        inside = books(connection)

    assert level == "SERIALIZABLE"
    assert inside == ["Emma", "Sanditon"]


def test_read_only(any_shop: Shop) -> None:
    """A read-only transaction refuses to write, and the next one writes."""
    with isolate(any_shop.uow) as [connection]:
        with pytest.raises(ReadOnlyTransactionError), any_shop.uow.transaction(read_only=True) as session:
            session.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        any_shop.client.post("/Sanditon")
        inside = books(connection)

    assert inside == ["Sanditon"]


def test_timeout(any_shop: Shop) -> None:
    """The deadline of a transaction holds between its statements."""
    with isolate(any_shop.uow):
        with pytest.raises(TransactionTimeoutError), any_shop.uow.transaction(timeout=1e-9) as session:
            session.scalars(select(Book)).all()
        any_shop.client.post("/Emma")
        seen = any_shop.client.get("/").json

    assert seen == ["Emma"]


def test_commit_by_hand(any_shop: Shop) -> None:
    """A commit by hand, outside any block, is one as well."""
    with isolate(any_shop.uow) as [connection]:
        with any_shop.app.app_context():
            any_shop.uow.session.add(Book(title="Emma"))
            any_shop.uow.session.commit()
            any_shop.uow.session.add(Book(title="Sanditon"))
            any_shop.uow.session.flush()
        inside = books(connection)

    assert inside == ["Emma"]


def test_execution_options_end_with_their_session(any_shop: Shop) -> None:
    """What a session has set on the connection is not there for the next one."""
    with isolate(any_shop.uow) as [connection], any_shop.app.app_context():
        any_shop.uow.session.connection(execution_options={"spoken": "yes"})
        during = connection.get_execution_options().get("spoken")
        any_shop.uow.session.rollback()
        after = connection.get_execution_options().get("spoken")

    assert (during, after) == ("yes", None)


# Sessions beside each other


def test_reader_around_a_request(any_shop: Shop) -> None:
    """A session of the test that has only read takes nothing along when it is rolled back or closed."""
    uow = any_shop.uow
    with isolate(uow) as [connection]:
        with any_shop.app.app_context():
            before = uow.session.scalars(select(Book)).all()
            any_shop.client.post("/Emma")
            uow.session.rollback()
            between = len(uow.session.scalars(select(Book)).all())
            any_shop.client.post("/Sanditon")
        inside = books(connection)

    assert (before, between, inside) == ([], 1, ["Emma", "Sanditon"])


def test_reader_that_writes_later(any_shop: Shop) -> None:
    """A session of the test that writes after a request was committed loses its own work alone."""
    uow = any_shop.uow
    with isolate(uow) as [connection]:
        with any_shop.app.app_context():
            uow.session.scalars(select(Book)).all()
            any_shop.client.post("/Emma")
            uow.session.add(Book(title="Sanditon"))
            uow.session.flush()
            both = books(connection)
        inside = books(connection)

    assert (both, inside) == (["Emma", "Sanditon"], ["Emma"])


def test_reader_with_savepoints(any_shop: Shop) -> None:
    """A session of the test that has only read keeps its savepoints too."""
    with isolate(any_shop.uow) as [connection], Session(connection) as session:
        session.scalars(select(Book)).all()
        with session.begin_nested() as savepoint:
            session.scalars(select(Book)).all()
            any_shop.client.post("/Emma")
            session.add(Book(title="Sanditon"))
            session.flush()
            savepoint.rollback()
        session.add(Book(title="Persuasion"))
        session.commit()
        inside = books(connection)

    assert inside == ["Emma", "Persuasion"]


@pytest.mark.parametrize(
    ("reading", "ends"),
    [
        (reading, ends)
        for reading in ("neither", "first", "second", "both")
        for ends in product(["commit", "rollback"], repeat=2)
        # If both have written, the rollback of the first takes the second along.
        if (reading, ends) != ("neither", ("rollback", "commit"))
    ],
)
@pytest.mark.parametrize("order", ["12", "21"])
def test_two_objects_on_one_engine(engine: Engine, ends: tuple[str, str], reading: str, order: str) -> None:
    """Two UnitOfWork objects with one engine, which both read before one or both write, end in either order."""
    first, second = UnitOfWork(sessionmaker(engine)), UnitOfWork(sessionmaker(engine), name="second")
    app = Flask("bookshop")
    for uow in (first, second):
        uow.init_app(app)

    with isolate(first, second) as connections, app.app_context():
        for uow in (first, second):
            uow.session.scalars(select(Book)).all()
        for uow, title, alone in ((first, "Emma", "first"), (second, "Sanditon", "second")):
            if reading not in (alone, "both"):
                uow.session.add(Book(title=title))
                uow.session.flush()
        for which in order:
            uow, end = (first, ends[0]) if which == "1" else (second, ends[1])
            getattr(uow.session, end)()
        inside = books(connections[0])

    kept = [
        title
        for title, end, alone in (("Emma", ends[0], "first"), ("Sanditon", ends[1], "second"))
        if end == "commit" and reading not in (alone, "both")
    ]
    assert inside == kept
    assert len(connections) == 1


def test_rollback_that_takes_another_along(any_engine: Engine) -> None:
    """A transaction whose work was undone with that of another does not commit."""
    first, second = UnitOfWork(sessionmaker(any_engine)), UnitOfWork(sessionmaker(any_engine), name="second")
    app = Flask("bookshop")
    for uow in (first, second):
        uow.init_app(app)

    with isolate(first, second) as connections, app.app_context():
        for uow, title in ((first, "Emma"), (second, "Sanditon")):
            uow.session.add(Book(title=title))
            uow.session.flush()
        first.session.rollback()
        with pytest.raises(ConfigurationError, match="another one on the same connection"):
            second.session.commit()
        second.session.rollback()
        inside = books(connections[0])

    assert inside == []


# Whatever a UnitOfWork has been given


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """A database of SQLite without Flask-SQLAlchemy's models."""
    engine = sqlite_engine(tmp_path / "shop.db")
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def test_factory_of_a_user(database: Engine) -> None:
    """A function that makes sessions is isolated, and what it binds them to is known at once."""
    shop = make_shop(database, UnitOfWork(lambda: Session(database)))

    with isolate(shop.uow) as [connection]:
        shop.client.post("/Emma")
        inside = books(connection)

    assert (inside, titles(database)) == (["Emma"], [])


def test_factory_that_needs_an_app(database: Engine) -> None:
    """An engine that is not known before there is an app context is added to the list when it is used."""
    shop = make_shop(database, UnitOfWork(lambda: Session(current_app.extensions["engine"])))
    shop.app.extensions["engine"] = database

    with isolate(shop.uow) as connections:
        at_first = list(connections)
        shop.client.post("/Emma")
        inside = books(connections[0])

    assert (at_first, inside, titles(database)) == ([], ["Emma"], [])


def test_engine(database: Engine) -> None:
    """An engine is isolated."""
    shop = make_shop(database, UnitOfWork(database))

    with isolate(shop.uow) as [connection]:
        shop.client.post("/Emma")
        inside = books(connection)

    assert (inside, titles(database)) == (["Emma"], [])


@pytest.mark.parametrize("by_context", [True, False])
def test_registry(database: Engine, by_context: bool) -> None:
    """A registry is isolated, for those as well who use it past the UnitOfWork."""
    sessions = sessionmaker(database)
    registry: scoped_session[Session] = flask_scoped_session(sessions) if by_context else scoped_session(sessions)
    shop = make_shop(database, UnitOfWork(registry))

    with isolate(shop.uow) as [connection]:
        shop.client.post("/Emma")
        with shop.app.app_context():
            registry.add(Book(title="Sanditon"))
            registry.commit()
        with sessions() as session:
            session.add(Book(title="Persuasion"))
            session.commit()
        inside = books(connection)

    assert (inside, titles(database)) == (["Emma", "Persuasion", "Sanditon"], [])


def test_factory_is_put_back(database: Engine) -> None:
    """The settings of a factory, and of a session that lives on, are afterwards what they were."""
    sessions = sessionmaker(database, twophase=True, expire_on_commit=False)
    before = dict(sessions.kw)
    shop = make_shop(database, UnitOfWork(sessions))

    with shop.app.app_context():
        session = shop.uow.session
        with isolate(shop.uow):
            session.add(Book(title="Emma"))
            session.commit()
            session.scalars(select(Book)).all()
        is_over, twophase, mode = not session.in_transaction(), session.twophase, session.join_transaction_mode

    assert sessions.kw == before
    assert (is_over, twophase, mode) == (True, True, "conditional_savepoint")
    assert titles(database) == []


class Other(DeclarativeBase):
    pass


class Note(Other):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Text)


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'notes.db'}")
    Other.metadata.create_all(engine)
    yield engine
    engine.dispose()


def count_notes(bind: Engine | Connection) -> int:
    with Session(bind) as session:
        return len(session.scalars(select(Note)).all())


def test_several_binds(database: Engine, notes: Engine) -> None:
    """Each database of a session is isolated, the default first."""
    uow = UnitOfWork(sessionmaker(database, binds={Other: notes}))
    app = Flask("bookshop")
    uow.init_app(app)

    with app.app_context():
        with isolate(uow) as connections:
            uow.session.add_all([Book(title="Emma"), Note(text="read it")])
            uow.session.commit()
            inside = books(connections[0]), count_notes(connections[1])
        binds = binds_of(uow.session)

    assert inside == (["Emma"], 1)
    assert (titles(database), count_notes(notes)) == ([], 0)
    assert binds == [database, notes]


def test_binds_that_are_chosen_late(database: Engine, notes: Engine) -> None:
    """A session that chooses its engine by itself is isolated on each that it chooses."""

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **kwargs: Any) -> Engine:
            return notes if mapper is not None and mapper.class_ is Note else database

    uow = UnitOfWork(sessionmaker(class_=Routing))

    with isolate(uow) as connections:
        with uow.transaction() as session:
            session.add_all([Book(title="Emma"), Note(text="read it")])
        seen = sorted(Path(str(connection.engine.url.database)).name for connection in connections)

    assert seen == ["notes.db", "shop.db"]
    assert (titles(database), count_notes(notes)) == ([], 0)


def test_named_objects(database: Engine, notes: Engine) -> None:
    """Several UnitOfWork objects of one app are isolated together."""
    uow, second = UnitOfWork(sessionmaker(database)), UnitOfWork(sessionmaker(notes), name="notes")
    app = Flask("bookshop")
    app.config.update(UOW_AUTO_COMMIT=True, UOW_NOTES_AUTO_COMMIT=True)
    uow.init_app(app)
    second.init_app(app)

    @app.post("/")
    def add() -> str:
        uow.session.add(Book(title="Emma"))
        second.session.add(Note(text="read it"))
        return ""

    with isolate(uow, second) as connections:
        app.test_client().post("/")
        inside = books(connections[0]), count_notes(connections[1])

    assert inside == (["Emma"], 1)
    assert (titles(database), count_notes(notes)) == ([], 0)


def test_engines_with_options_are_one_database(database: Engine) -> None:
    """An engine with other options shares the connection; in other schemas it has one of its own."""
    other = database.execution_options(spoken="yes")
    uow, second = UnitOfWork(sessionmaker(database)), UnitOfWork(sessionmaker(other), name="second")

    with isolate(uow, second) as connections:
        with uow.transaction() as session:
            session.add(Book(title="Emma"))
        with second.transaction() as session:
            seen = session.scalars(select(Book.title)).all()

    assert len(connections) == 1
    assert seen == ["Emma"]


def test_connection_of_a_user(database: Engine) -> None:
    """A session that is bound to a connection in a transaction keeps what was done before."""
    with database.connect() as connection:
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        uow = UnitOfWork(sessionmaker(connection))
        with isolate(uow) as [isolated]:
            with uow.transaction() as session:
                session.add(Book(title="Sanditon"))
            inside = books(connection)
        after = books(connection)
        is_same = isolated is connection

    assert (inside, after, is_same) == (["Emma", "Sanditon"], ["Emma"], True)
    assert titles(database) == []


def test_connection_of_a_user_outside_a_transaction(database: Engine) -> None:
    """A session that is bound to a connection outside any transaction leaves nothing behind."""
    with database.connect() as connection:
        uow = UnitOfWork(sessionmaker(connection))
        with isolate(uow), uow.transaction() as session:
            session.add(Book(title="Sanditon"))
        is_over = not connection.in_transaction()

    assert is_over
    assert titles(database) == []


def test_connection_of_a_user_is_let_go(database: Engine) -> None:
    """Nobody keeps a connection that was isolated once."""
    connection = database.connect()
    with isolate(UnitOfWork(sessionmaker(connection))):
        pass
    connection.close()
    reference = weakref.ref(connection)

    del connection
    gc.collect()

    assert reference() is None


def test_memory() -> None:
    """A database in memory is isolated, with REQUIRES_NEW, which it has no second connection for."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    shop = make_shop(engine)

    with isolate(shop.uow) as [connection]:
        shop.client.post("/new/Emma/200")
        inside = books(connection)

    assert inside == ["Emma", "new Emma"]
    assert titles(engine) == []
    engine.dispose()


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.LegacyAPIWarning")
def test_flask_sqlalchemy(tmp_path: Path) -> None:
    """The sessions of Flask-SQLAlchemy are isolated on each of its engines."""
    app = Flask("bookshop")
    app.testing = True
    app.config.update(
        SQLALCHEMY_DATABASE_URI=f"sqlite:///{tmp_path / 'shop.db'}",
        SQLALCHEMY_BINDS={"notes": f"sqlite:///{tmp_path / 'notes.db'}"},
        UOW_AUTO_COMMIT=True,
    )
    db = SQLAlchemy(app)

    class Shelf(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)

    class Memo(db.Model):  # type: ignore[name-defined, misc]
        __bind_key__ = "notes"
        id = db.Column(db.Integer, primary_key=True)

    uow = UnitOfWork(db, app)

    @app.post("/")
    def add() -> str:
        db.session.add_all([Shelf(), Memo()])
        return ""

    def count() -> tuple[int, int]:
        with app.app_context():
            return len(db.session.scalars(select(Shelf)).all()), len(db.session.scalars(select(Memo)).all())

    with app.app_context():
        db.create_all()
        isolation = isolate(uow)
        connections = isolation.__enter__()
    app.test_client().post("/")
    inside = count()
    isolation.__exit__(None, None, None)

    assert (len(connections), inside, count()) == (2, (1, 1), (0, 0))
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_flask_sqlalchemy_lite(database: Engine) -> None:
    """The sessions of Flask-SQLAlchemy-Lite are isolated, and those that its factory makes."""
    app = Flask("bookshop")
    app.config.update(SQLALCHEMY_ENGINES={"default": database.url}, UOW_AUTO_COMMIT=True)
    db = Lite(app)
    uow = UnitOfWork(db, app)

    @app.post("/")
    def add() -> str:
        db.session.add(Book(title="Emma"))
        return ""

    with app.app_context(), isolate(uow) as [connection]:
        app.test_client().post("/")
        with db.sessionmaker() as session:
            session.add(Book(title="Sanditon"))
            session.commit()
        inside = books(connection)

    assert (inside, titles(database)) == (["Emma", "Sanditon"], [])
    with app.app_context():
        db.engine.dispose()


# One inside another, and what is refused


def test_one_inside_another(any_shop: Shop) -> None:
    """What is done in the inner one is gone after it, and what was done before stays for the outer one."""
    with isolate(any_shop.uow) as [outer]:
        any_shop.client.post("/Emma")
        with isolate(any_shop.uow) as [inner]:
            any_shop.client.post("/Sanditon")
            inside = books(inner)
        between = books(outer)
        any_shop.client.post("/Persuasion")
        after = books(outer)

    assert outer is inner
    assert (inside, between, after) == (["Emma", "Sanditon"], ["Emma"], ["Emma", "Persuasion"])
    assert titles(any_shop.engine) == []


def test_one_after_another(any_shop: Shop) -> None:
    """Each begins with nothing of the one before, and the connection is given back."""
    seen = []
    for title in ("Emma", "Sanditon"):
        with isolate(any_shop.uow) as [connection]:
            any_shop.client.post(f"/{title}")
            seen.append(books(connection))

    assert seen == [["Emma"], ["Sanditon"]]


def test_session_that_is_left_open(any_shop: Shop) -> None:
    """A session that a test has left open at the end is rolled back, and can be used again."""
    with any_shop.app.app_context():
        with isolate(any_shop.uow):
            any_shop.uow.session.add(Book(title="Emma"))
            any_shop.uow.session.flush()
        any_shop.uow.session.add(Book(title="Sanditon"))
        any_shop.uow.session.commit()

    assert titles(any_shop.engine) == ["Sanditon"]


def test_error_in_a_test(shop: Shop) -> None:
    """An error inside goes on, and everything is undone."""
    with pytest.raises(LookupError, match="no book"), isolate(shop.uow):
        shop.client.post("/Emma")
        raise LookupError("no book")

    assert titles(shop.engine) == []


def test_commit_and_rollback_of_the_connection(shop: Shop) -> None:
    """Nobody stores anything with a commit of the connection, nor undoes what others have done with a rollback."""
    with isolate(shop.uow) as [connection]:
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        connection.commit()
        for end in (connection.rollback, connection.close):
            with pytest.raises(ConfigurationError, match="Use a session on it"):
                end()
        seen = shop.client.get("/").json

    assert seen == ["Emma"]
    assert titles(shop.engine) == []


@pytest.mark.parametrize("given", [(), (1,), (sessionmaker(),)])
def test_what_it_takes(given: tuple[Any, ...]) -> None:
    """It takes UnitOfWork objects, at least one."""
    with pytest.raises(ConfigurationError, match=r"isolate\(uow\)"):
        isolate(*given)


def test_in_a_transaction(shop: Shop) -> None:
    """It is refused where a transaction is active, which it could not undo."""
    with shop.uow.transaction(), pytest.raises(ConfigurationError, match="was active"):
        isolate(shop.uow).__enter__()
    with shop.app.app_context():
        shop.uow.session.scalars(select(Book)).all()
        with pytest.raises(ConfigurationError, match="was active"):
            isolate(shop.uow).__enter__()
        shop.uow.session.rollback()
        with isolate(shop.uow) as connections:
            pass

    assert connections[0].closed


def test_autocommit(database: Engine) -> None:
    """An engine that commits each statement cannot be isolated, and its connection is given back."""
    uow = UnitOfWork(sessionmaker(database.execution_options(isolation_level="AUTOCOMMIT")))

    with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
        isolate(uow).__enter__()

    assert database.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts


def test_database_that_nobody_has_tried() -> None:
    """A database that is not known is refused, before anything is sent."""
    uow = UnitOfWork(sessionmaker(create_engine("oracle+oracledb://nobody@127.0.0.1:1/none")))

    with pytest.raises(ConfigurationError, match="it knows SQLite, PostgreSQL, MySQL and MariaDB"):
        isolate(uow).__enter__()


def test_database_that_ends_the_transaction(mariadb: Engine) -> None:
    """Where the database has committed by itself, the test is told that something may have been stored."""
    shop = make_shop(mariadb)
    isolation = isolate(shop.uow)
    [connection] = isolation.__enter__()
    connection.execute(text("CREATE TABLE leftover (id INTEGER)"))

    with pytest.raises(ConfigurationError, match="The database has ended the transaction"):
        isolation.__exit__(None, None, None)

    with mariadb.begin() as connection:
        connection.execute(text("DROP TABLE leftover"))


# Threads


class Server(threading.Thread):
    """Serves an app to other threads."""

    def __init__(self, app: Flask) -> None:
        super().__init__()
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def run(self) -> None:
        self._server.serve_forever(poll_interval=0.01)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self.join()
        self._server.server_close()


def together(count: int, function: Callable[[int], object]) -> None:
    """Run a function in several threads at a time, and raise what it raises."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            function(number)
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_live_server(any_shop: Shop) -> None:
    """Requests of a server with threads are isolated, at the same time, and while the test has read."""
    from urllib.request import Request, urlopen

    with isolate(any_shop.uow) as [connection], Server(any_shop.app) as server, any_shop.app.app_context():
        any_shop.uow.session.scalars(select(Book)).all()

        def post(number: int) -> None:
            for part in range(3):
                urlopen(Request(f"{server.url}/{number}.{part}", method="POST"), timeout=20).close()

        together(4, post)
        seen = len(any_shop.uow.session.scalars(select(Book)).all())
        any_shop.uow.session.rollback()
        inside = len(books(connection))

    assert (seen, inside) == (12, 12)
    assert titles(any_shop.engine) == []
    assert len(any_shop.done) == 12


def test_thread_that_waits_in_vain(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that waits for a transaction that waits for it is told so."""
    monkeypatch.setattr(sharing, "_PATIENCE", 0.05)
    caught: list[BaseException] = []

    def post() -> None:
        with pytest.raises(ConfigurationError, match="one connection for all threads") as raised:
            shop.client.post("/Sanditon")
        caught.append(raised.value)

    def hold() -> None:
        with shop.uow.transaction() as session:
            session.add(Book(title="Emma"))
            session.flush()
            thread = threading.Thread(target=post)
            thread.start()
            thread.join()

    with isolate(shop.uow) as [connection]:
        together(1, lambda _: hold())
        inside = books(connection)

    assert (len(caught), inside) == (1, ["Emma"])


def test_async_view(any_shop: Shop) -> None:
    """A view that runs in another thread than the request is isolated."""
    shop = any_shop

    @shop.app.post("/async")
    async def add_later() -> str:
        shop.uow.session.add(Book(title="Emma"))
        shop.uow.session.flush()
        return ""

    with isolate(shop.uow) as [connection], shop.app.app_context():
        shop.uow.session.scalars(select(Book)).all()
        shop.client.post("/async")
        inside = books(connection)

    assert inside == ["Emma"]


def test_stream_beside_a_request(any_shop: Shop) -> None:
    """A streamed body goes on after another request was committed, and its end takes nothing along."""
    shop = any_shop

    @shop.app.get("/stream")
    @shop.uow.stream
    def stream() -> Iterator[str]:
        for number in range(2):
            yield f"{number} {len(shop.uow.session.scalars(select(Book)).all())} "

    with isolate(shop.uow) as [connection], ExitStack() as stack:
        response = stack.enter_context(shop.client.get("/stream", buffered=False))
        body = response.iter_encoded()
        parts = [next(body)]
        shop.client.post("/Emma")
        parts.append(next(body))
        response.close()
        inside = books(connection)

    assert parts == [b"0 0 ", b"1 1 "]
    assert inside == ["Emma"]


def test_error_of_a_driver_ends_the_turn(any_shop: Shop) -> None:
    """After a statement that fails another thread has its turn."""
    with isolate(any_shop.uow) as [connection]:
        with pytest.raises(SQLAlchemyError), Session(connection) as session:
            session.execute(text("SELECT * FROM missing"))
        together(1, lambda _: any_shop.client.post("/Emma"))
        inside = books(connection)

    assert inside == ["Emma"]


def test_database_that_is_not_there() -> None:
    """A database that cannot be reached is told by its driver, and nothing is isolated."""
    uow = UnitOfWork(sessionmaker(create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")))

    with pytest.raises(OperationalError):
        isolate(uow).__enter__()

    assert uow._source.detours == []


# What a test does to the connection by itself


def test_savepoints_of_a_test(any_shop: Shop) -> None:
    """A test can have savepoints of its own on the connection, made by SQLAlchemy or by hand."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        with connection.begin_nested():
            any_shop.client.post("/Sanditon")
        with connection.begin_nested() as savepoint:
            any_shop.client.post("/Persuasion")
            savepoint.rollback()
        connection.execute(text("SAVEPOINT mine"))
        any_shop.client.post("/Evelyn")
        for _ in range(2):
            connection.execute(text("ROLLBACK TO SAVEPOINT mine"))
        any_shop.client.post("/Lodore")
        inside = books(connection)

    assert inside == ["Emma", "Lodore", "Sanditon"]
    assert titles(any_shop.engine) == []


def test_session_that_shares_the_transaction(any_shop: Shop) -> None:
    """A session that joins what is there, without a savepoint, is a part of it."""
    with isolate(any_shop.uow) as [connection]:
        with Session(connection, join_transaction_mode="rollback_only") as session:
            session.add(Book(title="Emma"))
            session.commit()
        any_shop.client.post("/Sanditon")
        inside = books(connection)

    assert inside == ["Emma", "Sanditon"]


def test_connection_that_is_lost(shop: Shop) -> None:
    """If the connection itself is lost there is nothing left to undo."""
    with isolate(shop.uow) as [connection]:
        shop.client.post("/Emma")
        connection.invalidate()

    assert titles(shop.engine) == []


def test_foreign_key_that_is_mended(shop: Shop) -> None:
    """A violation that had been in a database of SQLite can be mended."""
    with sqlite3.connect(str(shop.engine.url.database)) as database:
        database.execute("INSERT INTO loan (id, book_id) VALUES (1, 77)")
    database.close()

    with isolate(shop.uow) as [connection]:
        with shop.uow.transaction() as session:
            session.execute(text("DELETE FROM loan"))
        shop.client.post("/Emma")
        inside = books(connection)

    assert inside == ["Emma"]


def test_foreign_keys_that_nobody_checks(tmp_path: Path) -> None:
    """Where SQLite does not check foreign keys, nothing is checked inside either."""
    engine = create_engine(f"sqlite:///{tmp_path / 'lax.db'}")
    Base.metadata.create_all(engine)
    shop = make_shop(engine)

    with isolate(shop.uow):
        status = shop.client.post("/loan/77").status_code

    assert status == 200
    engine.dispose()


@pytest.mark.parametrize("constraint", ["", "UNIQUE DEFERRABLE INITIALLY IMMEDIATE"])
def test_constraints_that_are_not_deferred(postgresql: Engine, constraint: str) -> None:
    """Where no constraint waits for COMMIT, there is nothing to check then."""
    shop = make_shop(postgresql)
    Loan.__table__.drop(postgresql)  # type: ignore[attr-defined] # a Table

    with isolate(shop.uow) as [connection]:
        connection.execute(text(f"CREATE TABLE shelf (id INTEGER {constraint})"))
        with shop.uow.transaction() as session:
            session.execute(text("INSERT INTO shelf (id) VALUES (1)"))
        count = connection.execute(text("SELECT count(*) FROM shelf")).scalar()

    assert count == 1


def test_transaction_inside_one_that_is_doomed(any_shop: Shop) -> None:
    """What is wrong with a suspended transaction is not the affair of the one inside, whose work goes with it."""
    uow = any_shop.uow
    with isolate(uow) as [connection]:
        with pytest.raises(UnexpectedRollbackError), uow.transaction() as session:
            with suppress(SQLAlchemyError), session.begin_nested():
                session.execute(text("SELECT * FROM missing"))
            session.scalars(select(Book)).all()
            with suppress(LookupError), uow.transaction():
                raise LookupError
            with uow.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
                inner.add(Book(title="Emma"))
                inner.flush()
                during = inner.scalars(select(Book.title)).all()
        inside = books(connection)

    assert during == ["Emma"]
    # The one around it had written nothing that would have to be undone.
    assert inside == ["Emma"]


def test_two_hundred_tests(postgresql: Engine) -> None:
    """However many tests write, each begins with what was there before, and nothing is left."""
    shop = make_shop(postgresql)
    shop.client.post("/Emma")
    before = titles(postgresql)

    seen = set()
    for number in range(200):
        with isolate(shop.uow) as [connection]:
            shop.client.post(f"/{number}")
            seen.add(tuple(book for book in books(connection) if book != str(number)))

    assert seen == {("Emma",)}
    assert titles(postgresql) == before == ["Emma"]


# Sessions that were there before, or are there afterwards


def test_registry_that_was_in_use(any_engine: Engine) -> None:
    """A registry's session from before is isolated, and goes back to its database; so does one from inside."""
    registry = scoped_session(sessionmaker(any_engine))
    uow = UnitOfWork(registry)
    registry.add(Book(title="Emma"))
    registry.commit()

    for _ in range(2):
        with isolate(uow) as [connection]:
            registry.add(Book(title="Sanditon"))
            registry.commit()
            inside = books(connection)
    after = sorted(registry.scalars(select(Book.title)))
    registry.remove()

    assert (inside, after) == (["Emma", "Sanditon"], ["Emma"])
    assert titles(any_engine) == ["Emma"]


def test_registry_that_was_not_in_use(database: Engine) -> None:
    """What a registry has opened inside, and keeps, goes back to its database."""
    registry = scoped_session(sessionmaker(database))
    uow = UnitOfWork(registry)

    for _ in range(2):
        with isolate(uow):
            registry.add(Book(title="Emma"))
            registry.commit()
    registry.add(Book(title="Sanditon"))
    registry.commit()
    registry.remove()

    assert titles(database) == ["Sanditon"]


def test_registry_in_a_transaction(database: Engine) -> None:
    """A registry whose session is in a transaction is told about, and nothing is isolated."""
    registry = scoped_session(sessionmaker(database))
    uow = UnitOfWork(registry)
    registry.scalars(select(Book)).all()

    with pytest.raises(ConfigurationError, match="a session of the registry was active"):
        isolate(uow).__enter__()
    registry.remove()

    assert uow._source.detours == []
    assert database.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts


def test_session_that_was_opened_and_not_used(any_shop: Shop) -> None:
    """A session that was opened inside, and is first used after it, uses the database."""
    with any_shop.app.app_context():
        with isolate(any_shop.uow):
            session = any_shop.uow.session
        with isolate(any_shop.uow) as [connection]:
            session.add(Book(title="Emma"))
            session.commit()
            inside = books(connection)
        session.add(Book(title="Sanditon"))
        session.commit()

    assert inside == ["Emma"]
    assert titles(any_shop.engine) == ["Sanditon"]


@pytest.mark.parametrize("error", [TimeoutError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("at", [1, "commit"])
def test_interrupt(any_shop: Shop, error: type[BaseException], at: Any) -> None:
    """What interrupts the app does not take along what the test has done."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        with inject(any_shop.uow, error, at=at), pytest.raises(error):
            any_shop.client.post("/Sanditon")
        any_shop.client.post("/Persuasion")
        inside = books(connection)

    assert inside == ["Emma", "Persuasion"]


def test_rollback_that_takes_along_what_was_committed(any_shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """Where a session that has written is rolled back, and a request was committed since, that is told."""
    with isolate(any_shop.uow) as [connection]:
        with Session(connection) as session:
            session.add(Book(title="Emma"))
            session.flush()
            with session.begin_nested():
                session.add(Book(title="Lodore"))
                session.flush()
                any_shop.client.post("/Sanditon")
            told_at_first = list(caplog.messages)
        inside = books(connection)

    assert told_at_first == []
    assert [message.partition(":")[0] for message in caplog.messages] == ["isolate() has one connection"]
    assert inside == []


def test_error_on_another_connection(any_shop: Shop) -> None:
    """What goes wrong on another connection of the engine is not the affair of the isolated one."""
    with isolate(any_shop.uow) as [connection]:
        with pytest.raises(SQLAlchemyError), any_shop.engine.connect() as other:
            other.execute(text("SELECT * FROM missing"))
        any_shop.client.post("/Emma")
        inside = books(connection)

    assert inside == ["Emma"]


def test_savepoint_that_cannot_be_released(any_shop: Shop) -> None:
    """A savepoint inside a transaction that cannot be released is rolled back with the transaction."""
    fails = [True]

    def fail(_connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
        if fails and statement.startswith("RELEASE SAVEPOINT"):
            fails.clear()
            raise LookupError

    with isolate(any_shop.uow) as [connection]:
        event.listen(connection, "before_cursor_execute", fail)
        with pytest.raises(LookupError), Session(connection) as session:
            session.add(Book(title="Emma"))
            with session.begin_nested():
                session.add(Book(title="Sanditon"))
        any_shop.client.post("/Persuasion")
        inside = books(connection)

    assert inside == ["Persuasion"]
