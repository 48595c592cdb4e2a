"""What reviews found to lose work, or to tell of kept work that was lost, in blocks; on the databases it was on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any

import pytest
from flask import Flask
from flask.sessions import SessionInterface
from sqlalchemy import Engine, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InternalError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, StaticPool

from flask_uow import (
    ConfigurationError,
    HookError,
    IncompatibleTransactionError,
    PartialCommitError,
    Propagation,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UnitOfWork,
    UnitOfWorkError,
    flask_scoped_session,
    transactional,
)
from flask_uow._core.connection import _watches_of
from flask_uow._core.scope import _places
from tests.conftest import Book, Loan, count, titles
from tests.databases.conftest import SLOW, fail_in
from tests.garbage import garbage_of

REQUIRES_NEW, NOT_SUPPORTED = Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED
DEMANDS: list[dict[str, Any]] = [{"isolation_level": "SERIALIZABLE"}, {"read_only": True}]


@contextmanager
def listening(target: Any, name: str, listener: Callable[..., object]) -> Iterator[None]:
    """Let somebody listen to an event of SQLAlchemy's for a while."""
    event.listen(target, name, listener)
    try:
        yield
    finally:
        event.remove(target, name, listener)


# Sessions that had begun before their transaction


@pytest.mark.parametrize("demands", DEMANDS)
def test_work_of_a_registry_from_before(any_engine: Engine, demands: dict[str, Any]) -> None:
    """What a thread's session holds from before a block is neither committed by a setting nor thrown away."""
    registry = scoped_session(sessionmaker(any_engine))
    db = UnitOfWork(registry)
    registry.add(Book(title="by hand"))
    registry.flush()

    with pytest.raises(IncompatibleTransactionError, match="before flask_uow knew of it"), db.transaction(**demands):
        pytest.fail("the body ran")
    during = count(any_engine) if any_engine.dialect.name != "sqlite" else 0
    registry.commit()
    registry.remove()

    assert during == 0
    assert titles(any_engine) == ["by hand"]


def test_factory_that_begins(any_engine: Engine) -> None:
    """A factory that sends a statement is no obstacle to an ordinary block."""

    def open_session() -> Session:
        session = Session(any_engine)
        session.execute(text("SELECT 1"))
        return session

    db = UnitOfWork(open_session)

    with db.transaction() as session:
        session.add(Book(title="kept"))
    with pytest.raises(LookupError), db.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        raise LookupError
    with pytest.raises(IncompatibleTransactionError), db.transaction(isolation_level="SERIALIZABLE"):
        pytest.fail("the body ran")

    assert titles(any_engine) == ["kept"]


@pytest.mark.parametrize("demands", DEMANDS)
def test_session_interface_that_reads(any_engine: Engine, db: UnitOfWork, app: Flask, demands: dict[str, Any]) -> None:
    """What reads before Flask dispatches, as sessions kept on the server do, does not take a view's options away."""

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: object) -> None:
            db.session.scalars(select(Book)).all()

    app.session_interface = Interface()
    db.init_app(app)
    seen: list[object] = []

    @app.post("/")
    @transactional(**demands)
    def view() -> str:
        seen.append(db.session.connection().get_isolation_level())
        db.session.execute(text("INSERT INTO book (title) VALUES ('lost')"))
        return "stored"

    answer = app.test_client().post("/")

    if "read_only" in demands:
        assert answer.status_code == 500
        assert titles(any_engine) == []
    else:
        assert seen == ["SERIALIZABLE"]
        assert titles(any_engine) == ["lost"]


def test_autocommit_engine_that_was_used_before(any_engine: Engine, app: Flask) -> None:
    """An engine that commits by itself is refused when the block begins, too, and not at its next connection."""
    engine = create_engine(any_engine.url, isolation_level="AUTOCOMMIT")
    db = UnitOfWork(sessionmaker(engine), app)

    with app.app_context():
        db.session.scalars(select(Book)).all()
        with pytest.raises(ConfigurationError, match="is AUTOCOMMIT"), db.transaction():
            pytest.fail("the body ran")

    assert count(any_engine) == 0
    engine.dispose()


@pytest.mark.parametrize("strict", [True, False])
def test_autocommit_that_is_caught(any_engine: Engine, strict: bool) -> None:
    """A refused connection is not used by the next statement, strict or not."""
    engine = create_engine(any_engine.url, isolation_level="AUTOCOMMIT")
    db = UnitOfWork(sessionmaker(engine), strict=strict)

    with pytest.raises(UnexpectedRollbackError, match="there was no connection for it"), db.transaction() as session:
        with pytest.raises(ConfigurationError, match="AUTOCOMMIT"):
            session.execute(insert(Book).values(title="first"))
        with pytest.raises(TransactionDoomedError):
            session.execute(insert(Book).values(title="second"))

    assert titles(any_engine) == []
    engine.dispose()


def test_functions_that_write_in_a_query(postgresql: Engine, app: Flask) -> None:
    """A query that calls a function that writes is a change, and is not thrown away for a block."""
    with postgresql.begin() as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION put() RETURNS int LANGUAGE sql AS "
            "$$ INSERT INTO book (title) VALUES ('by a function') RETURNING id $$"
        )
    db = UnitOfWork(sessionmaker(postgresql), app)

    with app.app_context():
        db.session.execute(select(func.put()))
        with pytest.raises(IncompatibleTransactionError), db.transaction(isolation_level="SERIALIZABLE"):
            pytest.fail("the body ran")
        db.session.commit()

    assert titles(postgresql) == ["by a function"]
    with postgresql.begin() as connection:
        connection.exec_driver_sql("DROP FUNCTION put")


def test_given_up_before_a_block(postgresql: Engine, app: Flask) -> None:
    """A transaction that PostgreSQL has given up holds nothing that could be lost, and a block begins anew."""
    db = UnitOfWork(sessionmaker(postgresql), app)

    with app.app_context():
        fail_in(db.session)
        with db.transaction(isolation_level="SERIALIZABLE") as session:
            session.add(Book(title="kept"))

    assert titles(postgresql) == ["kept"]


def test_listeners_to_the_beginning(any_engine: Engine, app: Flask) -> None:
    """What a listener sends whenever a session begins, such as a tenant's setting, is no change of the user's."""
    factory = sessionmaker(any_engine)

    @event.listens_for(factory, "after_begin")
    def _set_tenant(_session: Session, _transaction: object, connection: Any) -> None:
        if any_engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL work_mem = '5MB'")

    db = UnitOfWork(factory, app)

    with app.app_context():
        db.session.scalars(select(Book)).all()
        with db.transaction(isolation_level="SERIALIZABLE") as session:
            session.add(Book(title="kept"))

    assert titles(any_engine) == ["kept"]


# Errors that were not seen


def test_error_that_a_listener_has_replaced(any_engine: Engine, db: UnitOfWork) -> None:
    """A listener of the user's that raises an error of its own does not hide the database's."""

    class OwnError(Exception):
        """What an app makes of the database's errors."""

    def replace(context: Any) -> None:
        raise OwnError from context.original_exception

    with (
        listening(any_engine, "handle_error", replace),
        pytest.raises(UnexpectedRollbackError),
        db.transaction() as session,
    ):
        session.add(Book(title="lost"))
        session.flush()
        with pytest.raises(OwnError):
            session.execute(text("SELECT * FROM missing"))

    assert titles(any_engine) == []


@pytest.mark.parametrize("strict", [True, False])
def test_error_past_sqlalchemy(postgresql: Engine, strict: bool) -> None:
    """An error in the driver's own cursor, as with COPY, is seen at the latest at COMMIT."""
    db = UnitOfWork(sessionmaker(postgresql), strict=strict)

    with pytest.raises(UnexpectedRollbackError, match="where flask_uow did not see it"), db.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        cursor = session.connection().connection.cursor()
        with suppress(Exception):
            cursor.execute("SELECT * FROM missing")
        db.on_commit(pytest.fail, "nothing was committed")

    assert titles(postgresql) == []


def test_not_strict_and_rolled_back_by_sqlite(engine: Engine) -> None:
    """SQLite can end the whole transaction at an error; what follows is a second half, and not stored."""
    db = UnitOfWork(sessionmaker(engine), strict=False)

    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        session.execute(text("INSERT INTO book (id, title) VALUES (1, 'first')"))
        with pytest.raises(IntegrityError):
            session.execute(text("INSERT OR ROLLBACK INTO book (id, title) VALUES (1, 'again')"))
        with suppress(SQLAlchemyError):
            session.execute(text("INSERT INTO book (id, title) VALUES (2, 'second')"))

    assert titles(engine) == []


def test_not_strict_with_two_engines(postgresql: Engine, engine: Engine) -> None:
    """Each database is asked for itself whether it has given up."""
    other = create_engine(postgresql.url)
    db = UnitOfWork(sessionmaker(binds={Book: postgresql, Loan: other}), strict=False)

    def missing(session: Session, model: type[object]) -> None:
        session.execute(text("SELECT * FROM missing"), bind_arguments={"mapper": model})

    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        with pytest.raises(DBAPIError), session.connection({"mapper": Book}).begin_nested():
            missing(session, Book)
        with pytest.raises(DBAPIError):
            missing(session, Loan)

    assert titles(postgresql) == []
    other.dispose()
    assert engine is not other


# Suspension


@pytest.mark.parametrize("mode", [REQUIRES_NEW, NOT_SUPPORTED])
def test_stream_that_yields_inside_a_block(db: UnitOfWork, any_engine: Engine, app: Flask, mode: Propagation) -> None:
    """What is suspended inside a stream stays so from one item to the next."""
    db.init_app(app)

    @db.stream
    def body() -> Iterator[str]:
        with db.transaction(propagation=mode) as session:
            for title in ("first", "second"):
                assert db.session is session
                session.add(Book(title=title))
                session.flush()
                yield title
            if mode is NOT_SUPPORTED:
                session.commit()

    with app.app_context():
        assert list(body()) == ["first", "second"]

    assert titles(any_engine) == ["first", "second"]


def test_tasks_suspend_by_themselves(any_engine: Engine, app: Flask) -> None:
    """A task that suspends does so for itself; another of the same view is in the view's transaction all the while."""
    db = UnitOfWork(sessionmaker(any_engine), app)
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.post("/")
    @transactional
    async def view() -> str:
        suspended, written = asyncio.Event(), asyncio.Event()
        outer = db.session

        async def audit() -> None:
            with db.transaction(propagation=REQUIRES_NEW) as session:
                suspended.set()
                await written.wait()
                assert db.session is session
                session.add(Book(title="audit"))

        async def work() -> None:
            await suspended.wait()
            assert db.session is outer
            db.session.add(Book(title="lost"))
            written.set()

        await asyncio.gather(audit(), work())
        raise LookupError

    assert app.test_client().post("/").status_code == 500
    assert titles(any_engine) == ["audit"]


def test_many_tasks_that_suspend(any_engine: Engine, db: UnitOfWork) -> None:
    """Several tasks in one block can each have a transaction of their own."""

    async def store(number: int) -> None:
        with db.transaction(propagation=REQUIRES_NEW) as session:
            await asyncio.sleep(0)
            assert db.session is session
            session.add(Book(title=str(number)))
            await asyncio.sleep(0)

    async def main() -> None:
        with db.transaction() as outer:
            await asyncio.gather(*(store(number) for number in range(3)))
            assert db.session is outer

    asyncio.run(main())

    assert titles(any_engine) == ["0", "1", "2"]


def test_engine_that_is_shared_and_not_used_yet(engine: Engine) -> None:
    """A suspending block does not get the one connection of an engine that the suspended session may use still."""
    memory = create_engine("sqlite://", poolclass=StaticPool)
    Book.metadata.create_all(memory)
    db = UnitOfWork(sessionmaker(binds={Loan: engine, Book: memory}))

    with db.transaction() as outer:
        with (
            pytest.raises(ConfigurationError, match="is a StaticPool, which has one connection"),
            db.transaction(propagation=REQUIRES_NEW) as inner,
        ):
            inner.add(Book(title="inner"))
            inner.flush()
        outer.add(Book(title="outer"))

    assert titles(memory) == ["outer"]
    memory.dispose()


# Savepoints of the user's own


def test_joined_block_in_a_savepoint_of_ones_own(any_engine: Engine, db: UnitOfWork) -> None:
    """What fails in a joined block inside session.begin_nested() goes with that savepoint."""
    with db.transaction() as session:
        session.add(Book(title="before"))
        with pytest.raises(LookupError), session.begin_nested(), db.transaction():
            session.add(Book(title="inside"))
            raise LookupError
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


def test_joined_block_that_is_caught_in_a_savepoint_of_ones_own(any_engine: Engine, db: UnitOfWork) -> None:
    """Such a savepoint cannot be released with half of the block in it."""
    with db.transaction() as session:
        session.add(Book(title="before"))
        with pytest.raises(UnexpectedRollbackError), session.begin_nested():  # noqa: SIM117
            with pytest.raises(LookupError), db.transaction():
                session.add(Book(title="half"))
                session.flush()
                raise LookupError
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


def test_savepoint_that_a_joined_block_left_behind(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint that was begun inside the joined block that failed does not make the rest whole."""
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        session.add(Book(title="lost"))
        with pytest.raises(LookupError), db.transaction():
            session.begin_nested()
            raise LookupError

    assert titles(any_engine) == []


def test_hooks_of_a_savepoint_of_ones_own(any_engine: Engine, db: UnitOfWork) -> None:
    """Hooks that were registered inside session.begin_nested() go with its work."""
    ran: list[object] = []
    error = LookupError()

    with db.transaction() as session:
        db.on_commit(ran.append, "before")
        with pytest.raises(LookupError), session.begin_nested():
            db.on_commit(ran.append, "inside")
            db.on_rollback(ran.append)
            raise error
        with session.begin_nested():
            session.add(Book(title="kept"))
            db.on_commit(ran.append, "released")
        by_hand = session.begin_nested()
        db.on_commit(ran.append, "by hand")
        by_hand.rollback()
        assert ran == [error]

    assert ran == [error, "before", "released"]
    assert titles(any_engine) == ["kept"]


# Time


def test_last_flush_counts(any_engine: Engine, db: UnitOfWork) -> None:
    """The time that the last flush takes is a part of the block's, although nothing is left to send after it."""

    def slow(session: Session, _context: object) -> None:
        end = session.connection().info.setdefault("until", [])
        while not end:
            end.extend([0] * 1)
            sum(range(3_000_000))

    with (
        listening(Session, "after_flush", slow),
        pytest.raises(TransactionTimeoutError),
        db.transaction(timeout=0.01) as session,
    ):
        session.add(Book(title="lost"))

    assert titles(any_engine) == []


def test_open_result_after_a_block_with_less_time(any_engine: Engine, db: UnitOfWork) -> None:
    """A result that was opened before a block with little time can be read after it."""
    with Session(any_engine) as session, session.begin():
        session.add_all([Book(title=str(number)) for number in range(50)])

    with db.transaction() as session:
        result = session.execute(select(Book.title), execution_options={"stream_results": True, "yield_per": 1})
        first = next(result)
        with db.transaction(timeout=0.05):
            pass
        sum(range(3_000_000))
        rest = result.all()

    assert len([first, *rest]) == 50


@pytest.mark.parametrize("timeout", [86_400.0 * 400, 1e12])
def test_very_long(any_engine: Engine, db: UnitOfWork, timeout: float) -> None:
    """A timeout that is longer than the server's longest is the server's longest."""
    with db.transaction(timeout=timeout) as session:
        session.add(Book(title="kept"))

    assert titles(any_engine) == ["kept"]


def test_timeout_and_the_level_by_hand(postgresql: Engine) -> None:
    """A timeout is no query: the user's own SET TRANSACTION is still the first."""
    db = UnitOfWork(sessionmaker(postgresql))

    with db.transaction(timeout=60) as session:
        session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        level = session.scalar(text("SHOW transaction_isolation"))

    assert level == "serializable"


# Read-only


def test_ddl_in_a_read_only_transaction(mariadb: Engine) -> None:
    """On MariaDB DDL ends a transaction, and must not let the next statement write."""
    db = UnitOfWork(sessionmaker(mariadb))

    with pytest.raises(Exception, match="read-only"), db.transaction(read_only=True) as session:
        with suppress(Exception):
            session.connection().connection.cursor().execute("CREATE TABLE sneaky (a INT)")
        session.execute(text("INSERT INTO book (title) VALUES ('lost')"))

    assert titles(mariadb) == []


@pytest.mark.parametrize("default", ["READ ONLY", "READ WRITE"])
def test_session_default_of_the_users(mariadb: Engine, default: str) -> None:
    """Whoever has made the server's session read-only has it so afterwards."""
    engine = create_engine(mariadb.url, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _set(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET SESSION TRANSACTION {default}")
        cursor.close()

    with UnitOfWork(sessionmaker(engine)).transaction(read_only=True) as session:
        session.scalars(select(Book)).all()
    with engine.connect() as connection:
        after = connection.exec_driver_sql("SELECT @@tx_read_only").scalar()
    engine.dispose()

    assert after == (default == "READ ONLY")


def test_connection_options_do_not_undo_a_blocks(postgresql: Engine) -> None:
    """What a block demands is not undone by who is first to ask for a connection in it."""
    db = UnitOfWork(sessionmaker(postgresql))

    with db.transaction(read_only=True, isolation_level="SERIALIZABLE") as session:
        connection = session.connection(
            execution_options={"postgresql_readonly": False, "isolation_level": "READ COMMITTED"}
        )
        shown = [connection.exec_driver_sql(f"SHOW transaction_{name}").scalar() for name in ("read_only", "isolation")]

    assert shown == ["on", "serializable"]


def test_default_level_and_bound_sessions(engine: Engine) -> None:
    """The setting does not stand in the way of a test that binds its sessions to a Connection."""
    with engine.connect() as connection:
        outer = connection.begin()
        factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
        db = UnitOfWork(factory, isolation_level="SERIALIZABLE")

        with db.transaction() as session:
            session.add(Book(title="seen by the test alone"))
        outer.rollback()

    assert titles(engine) == []


# Two phases


def test_two_phases_of_mariadb_that_fail(mariadb: Engine) -> None:
    """A failing flush at the commit is its own error in two-phase transactions, and the connection is kept."""
    db = UnitOfWork(sessionmaker(mariadb, twophase=True))
    with db.transaction() as session:
        session.add(Book(id=1, title="there"))

    with pytest.raises(IntegrityError), db.transaction() as session:
        session.add(Book(id=1, title="again"))
    with pytest.raises(IntegrityError), db.transaction() as session:
        session.execute(insert(Book).values(id=1, title="again"))

    assert titles(mariadb) == ["there"]


# Memory


def test_no_cycles_of_ours(engine: Engine) -> None:
    """A transaction that ends in an error of ours leaves nothing for the garbage collector."""
    db = UnitOfWork(sessionmaker(engine))

    def late() -> None:
        with suppress(TransactionTimeoutError), db.transaction(timeout=1e-9) as session:
            session.add(Book(title="late"))

    def caught() -> None:
        with suppress(UnexpectedRollbackError), db.transaction() as session:
            fail_in(session)

    for work in (late, caught):
        assert garbage_of(work, 3).ours == []


def test_waiting_for_oneself_on_sqlite(engine: Engine) -> None:
    """A block that suspends and finds the database locked is told who may hold the lock."""
    db = UnitOfWork(sessionmaker(create_engine(engine.url, connect_args={"timeout": 0}, poolclass=NullPool)))

    with db.transaction(name="order") as session:
        session.add(Book(title="kept"))
        session.flush()
        with (
            pytest.raises(OperationalError, match="suspended transaction of the block 'order' may hold the lock"),
            db.transaction(propagation=REQUIRES_NEW) as inner,
        ):
            inner.add(Book(title="lost"))

    assert titles(engine) == ["kept"]


# What happens between the last flush and COMMIT


def swallow(session: Session) -> None:
    swallow_in(session.connection())


def swallow_in(connection: Any) -> None:
    with suppress(DBAPIError):
        connection.exec_driver_sql("SELECT * FROM missing")


@pytest.mark.parametrize("name", ["after_insert", "after_flush", "before_commit"])
@pytest.mark.parametrize("strict", [True, False])
def test_error_that_a_listener_swallows_in_the_last_flush(any_engine: Engine, name: str, strict: bool) -> None:
    """A listener that swallows an error during the flush of the commit does not make a success of what is lost."""
    db = UnitOfWork(sessionmaker(any_engine), strict=strict)
    ran: list[str] = []

    def work() -> None:
        with db.transaction() as session:
            session.add(Book(title="Emma"))
            db.on_commit(ran.append, "mail")

    target: Any = Book if name == "after_insert" else Session
    listener: Any = {
        "after_insert": lambda _mapper, connection, _book: swallow_in(connection),
        "after_flush": lambda session, _context: swallow(session),
        "before_commit": swallow,
    }[name]
    with listening(target, name, listener):
        if strict or any_engine.dialect.name == "postgresql":
            # Where the flush comes after it, that is refused, by us or by PostgreSQL.
            with pytest.raises((UnexpectedRollbackError, TransactionDoomedError, InternalError)):
                work()
        else:
            work()

    stored = [] if strict or any_engine.dialect.name == "postgresql" else ["Emma"]
    assert titles(any_engine) == stored
    assert ran == (["mail"] if stored else [])


def test_error_that_a_listener_swallows_in_a_savepoint(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint is not released with such an error in it, and the transaction goes on."""

    def listener(session: Session, _context: object) -> None:
        if any(book.title == "inside" for book in session.new):
            swallow(session)

    with listening(Session, "after_flush", listener), db.transaction() as session:
        session.add(Book(title="before"))
        with pytest.raises(UnexpectedRollbackError), db.savepoint():
            session.add(Book(title="inside"))
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


@pytest.mark.parametrize("twophase", [False, True])
def test_rollback_only_in_the_last_flush(postgresql: Engine, twophase: bool) -> None:
    """A listener may still ask for a rollback, which is quiet, while the commit flushes."""
    db = UnitOfWork(sessionmaker(postgresql, twophase=twophase))

    def listener(_session: Session, _context: object) -> None:
        db.set_rollback_only()

    with listening(Session, "after_flush", listener), db.transaction() as session:
        session.add(Book(title="lost"))

    assert titles(postgresql) == []


def test_rollback_only_in_the_flush_of_a_savepoint(any_engine: Engine, db: UnitOfWork) -> None:
    """So it is in a savepoint, and what is around it goes on."""

    def listener(session: Session, _context: object) -> None:
        if any(book.title == "inside" for book in session.new):
            db.set_rollback_only()

    with listening(Session, "after_flush", listener), db.transaction() as session:
        session.add(Book(title="before"))
        with db.savepoint():
            session.add(Book(title="inside"))
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


# Tasks


def test_tasks_and_registries(any_engine: Engine, app: Flask) -> None:
    """A registry has one session for a context: a second task that suspends is refused, and nothing gets lost."""
    registry = flask_scoped_session(sessionmaker(any_engine))
    db = UnitOfWork(registry, app)

    @app.post("/")
    @transactional
    async def view() -> str:
        registry.add(Book(title="order"))

        async def audit(number: int) -> None:
            with db.transaction(propagation=REQUIRES_NEW):
                registry.add(Book(title=f"audit {number}"))
                await asyncio.sleep(0)

        results = await asyncio.gather(audit(1), audit(2), return_exceptions=True)
        return type(results[1]).__name__

    # On SQLite the order has not been sent yet.
    answer = app.test_client().post("/")

    assert answer.text == "ConfigurationError"
    assert titles(any_engine) == ["audit 1", "order"]


def test_joined_blocks_of_tasks(engine: Engine) -> None:
    """Each of the blocks that tasks have joined has its own deadline, whichever ends first."""
    db = UnitOfWork(sessionmaker(engine))
    ended: list[str] = []

    async def work() -> None:
        other_is_in, other_is_out = asyncio.Event(), asyncio.Event()

        async def short() -> None:
            with db.transaction(timeout=0.01, name="short") as session:
                session.connection()
                other_is_in.set()
                await other_is_out.wait()
                sum(range(3_000_000))

        async def other() -> None:
            await other_is_in.wait()
            with db.transaction(timeout=60, name="other"):
                pass
            other_is_out.set()

        with db.transaction() as session:
            session.add(Book(title="lost"))
            try:
                await asyncio.gather(short(), other())
            except TransactionTimeoutError as error:
                ended.append(str(error.timeout))
                raise

    with pytest.raises(TransactionTimeoutError):
        asyncio.run(work())

    assert ended == ["0.01"]
    assert titles(engine) == []


def test_standalone_block_that_is_left_elsewhere(engine: Engine) -> None:
    """A block that was entered in another context takes nobody else's place when it is left here."""
    db = UnitOfWork(sessionmaker(engine))

    def body() -> Generator[None, None, None]:
        with db.transaction():
            yield

    elsewhere = body()
    copy_context().run(next, elsewhere)

    with suppress(LookupError), db.transaction() as session:
        elsewhere.close()
        assert db.session is session
        with db.transaction() as joined:
            assert joined is session
            joined.add(Book(title="lost"))
        raise LookupError

    assert titles(engine) == []


# Connections of somebody else's


@pytest.mark.parametrize("options", [{"read_only": True}, {"timeout": 60}, {}])
def test_transaction_of_the_test_is_not_ended(any_engine: Engine, app: Flask, options: dict[str, Any]) -> None:
    """A block on a Connection that a test is in a transaction on leaves that transaction alone."""
    with any_engine.connect() as connection:
        outer = connection.begin()
        begin_on(connection)
        connection.execute(insert(Book).values(title="by the test"))
        db = UnitOfWork(sessionmaker(connection), app, isolation_level="SERIALIZABLE")
        with app.app_context():
            db.session.scalars(select(Book)).all()
            with db.transaction(**options) as session:
                found = session.scalars(select(Book.title)).all()
            for before in ("", "SELECT 1"):
                if before:
                    db.session.execute(text(before))
                with (
                    pytest.raises(IncompatibleTransactionError, match="bound to a Connection"),
                    db.transaction(isolation_level="READ COMMITTED"),
                ):
                    db.session.connection()
        still = connection.scalars(select(Book.title)).all()
        outer.rollback()

    assert found == still == ["by the test"]


def begin_on(connection: Any) -> None:
    """Let Python's sqlite3 begin, as SQLAlchemy's documentation advises for tests."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN")


def test_two_sessions_on_one_connection(engine: Engine) -> None:
    """A session that comes and goes on another's Connection leaves the other's errors to be noticed."""
    with engine.connect() as connection:
        outer_transaction = connection.begin()
        begin_on(connection)
        factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
        first, second = UnitOfWork(factory), UnitOfWork(factory)

        with pytest.raises(UnexpectedRollbackError), first.transaction() as session:
            session.add(Book(title="lost"))
            session.flush()
            with second.transaction() as other:
                other.add(Book(title="other"))
            fail_in(session)
        stored = connection.scalars(select(Book.title)).all()
        outer_transaction.rollback()

    assert stored == []


def test_two_sessions_that_leave_in_the_wrong_order(engine: Engine) -> None:
    """A session that leaves first takes nothing from the one that is on the Connection now."""
    with engine.connect() as connection:
        outer_transaction = connection.begin()
        begin_on(connection)
        factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
        first, second = UnitOfWork(factory).transaction(), UnitOfWork(factory).transaction()

        first.__enter__().connection()
        session = second.__enter__()
        session.connection()
        with suppress(Exception):
            first.__exit__(LookupError, LookupError(), None)
        fail_in(session)
        with pytest.raises(UnexpectedRollbackError):
            second.__exit__(None, None, None)
        outer_transaction.rollback()

    assert titles(engine) == []


def test_factory_that_begins_on_a_connection(engine: Engine) -> None:
    """A session that was handed out begun on its maker's Connection is watched, and the Connection left alone."""
    with engine.connect() as connection:
        outer = connection.begin()
        begin_on(connection)

        def open_session() -> Session:
            session = Session(connection, join_transaction_mode="create_savepoint")
            session.connection()
            return session

        db = UnitOfWork(open_session)
        with pytest.raises(UnexpectedRollbackError), db.transaction(read_only=True) as session:
            fail_in(session)
        with db.transaction() as session:
            session.add(Book(title="seen by the test alone"))
        outer.rollback()

    assert titles(engine) == []


def test_read_only_on_a_bound_connection(any_engine: Engine) -> None:
    """Read-only is seen to on a test's Connection as well, although no server does."""
    with any_engine.connect() as connection:
        outer = connection.begin()
        begin_on(connection)
        db = UnitOfWork(sessionmaker(connection, join_transaction_mode="create_savepoint"))
        with (
            pytest.raises(ReadOnlyTransactionError, match="INSERT INTO book"),
            db.transaction(read_only=True) as session,
        ):
            session.execute(insert(Book).values(title="lost"))
        connection.execute(insert(Book).values(title="by the test"))
        outer.rollback()

    assert titles(any_engine) == []


def test_partial_commit_on_connections_again(engine: Engine, postgresql: Engine) -> None:
    """Connections that a second session begins on are noted for the second one."""
    with engine.connect() as books, postgresql.connect() as others:
        db = UnitOfWork(sessionmaker(binds={Book: books, Loan: others}))
        seen = set()
        for number in range(100):
            with pytest.raises((IntegrityError, PartialCommitError)) as caught, db.transaction() as session:
                session.add(Book(title=str(number)))
                session.add(Loan(book_id=404))
            for connection in (books, others):
                # Its maker is to give up what could not be committed.
                connection.rollback()
            seen.add(type(caught.value))
            expected = 1 if isinstance(caught.value, PartialCommitError) else 0
            assert count(engine) == expected
            with engine.begin() as cleaning:
                cleaning.execute(text("DELETE FROM book"))
            if number > 2 and len(seen) > 1:
                break

    assert seen == {IntegrityError, PartialCommitError}


# Savepoints of the Core


@pytest.mark.parametrize("way", ["raise", "rollback only"])
def test_savepoint_of_the_core_heals_no_more_than_itself(any_engine: Engine, db: UnitOfWork, way: str) -> None:
    """What a joined block has done before a savepoint of its own is not made whole by the savepoint's rollback."""
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        connection = session.connection()
        with suppress(LookupError), db.transaction():
            session.execute(insert(Book).values(title="half"))
            savepoint = connection.begin_nested()
            fail_in(session)
            if way == "raise":
                raise LookupError
            db.set_rollback_only()
        savepoint.rollback()

    assert titles(any_engine) == []


def test_joined_block_in_a_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork) -> None:
    """A joined block that fails inside a savepoint of a connection goes with it."""
    with db.transaction() as session:
        session.execute(insert(Book).values(title="before"))
        with pytest.raises(LookupError), session.connection().begin_nested(), db.transaction():
            session.execute(insert(Book).values(title="inside"))
            raise LookupError
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


@pytest.mark.parametrize("outer", ["core", "session"])
def test_savepoint_around_a_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork, outer: str) -> None:
    """An error that is swallowed in an inner one is gone with the outer one, too."""
    with db.transaction() as session:
        session.execute(insert(Book).values(title="before"))
        around = session.connection().begin_nested() if outer == "core" else session.begin_nested()
        with pytest.raises(TransactionDoomedError), around, session.connection().begin_nested():
            session.execute(insert(Book).values(title="inside"))
            fail_in(session)
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


def test_hooks_of_a_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork) -> None:
    """Hooks that were registered in a savepoint of a connection go with its work."""
    ran: list[object] = []

    with db.transaction() as session:
        db.on_commit(ran.append, "before")
        savepoint = session.connection().begin_nested()
        session.execute(insert(Book).values(title="lost"))
        db.on_commit(ran.append, "inside")
        db.on_commit(ran.append, "inside, too")
        db.on_rollback(ran.append)
        savepoint.rollback()
        with session.connection().begin_nested():
            session.execute(insert(Book).values(title="kept"))
            db.on_commit(ran.append, "released")

    assert ran == [None, "before", "released"]
    assert titles(any_engine) == ["kept"]


@pytest.mark.parametrize("failing", [False, True])
def test_savepoint_of_ones_own_that_is_closed(any_engine: Engine, db: UnitOfWork, failing: bool) -> None:
    """close() undoes a savepoint of one's own as rollback() does, and its hooks with it."""
    ran: list[object] = []

    with db.transaction() as session:
        session.execute(insert(Book).values(id=7, title="before"))
        savepoint = session.begin_nested()
        db.on_commit(ran.append, "inside")
        session.add(Book(id=7 if failing else 8, title="lost"))
        with suppress(IntegrityError):
            session.flush()
        savepoint.close()

    assert ran == []
    assert titles(any_engine) == ["before"]


# Settings that stay, and settings that give way


def test_settings_after_a_commit_by_hand(any_engine: Engine) -> None:
    """With manual_commit="allow" the rest of the block has the level and the deadline that the first part had."""
    db = UnitOfWork(sessionmaker(any_engine), isolation_level="SERIALIZABLE", timeout=60, manual_commit="allow")
    seen: list[object] = []

    with db.transaction() as session:
        for title in ("first", "second"):
            session.add(Book(title=title))
            session.flush()
            transaction = db.current_transaction
            assert transaction is not None
            assert transaction._deadline is not None
            seen.append((session.connection().get_isolation_level(), transaction._deadline.at))
            session.commit()

    assert seen[0] == seen[1]
    assert titles(any_engine) == ["first", "second"]


def test_a_level_that_is_asked_for_beats_the_setting(postgresql: Engine) -> None:
    """Who asks for a connection at a level has it, where only the setting says otherwise."""
    db = UnitOfWork(sessionmaker(postgresql), isolation_level="READ COMMITTED")

    with db.transaction() as session:
        connection = session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        level = connection.get_isolation_level()

    assert level == "SERIALIZABLE"


@pytest.mark.parametrize("auto_commit", [True, False])
def test_the_setting_and_work_from_before(any_engine: Engine, app: Flask, auto_commit: bool) -> None:
    """UOW_ISOLATION_LEVEL is no reason to refuse what somebody has written before, which is kept with the rest."""
    app.config |= {"UOW_AUTO_COMMIT": auto_commit, "UOW_ISOLATION_LEVEL": "SERIALIZABLE"}
    db = UnitOfWork(sessionmaker(any_engine))

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: object) -> None:
            db.session.add(Book(title="by the session"))
            db.session.flush()

    app.session_interface = Interface()
    db.init_app(app)

    @app.post("/")
    @transactional
    def view() -> str:
        db.session.add(Book(title="by the view"))
        return "stored"

    assert app.test_client().post("/").status_code == 200
    assert titles(any_engine) == ["by the session", "by the view"]


def test_a_view_that_cannot_have_its_level(postgresql: Engine, app: Flask) -> None:
    """What keeps a view from its own level is an error like any other: handlers can query, and it is a 500."""
    db = UnitOfWork(sessionmaker(postgresql))

    class Interface(SessionInterface):
        def open_session(self, app: Flask, request: object) -> None:
            db.session.add(Book(title="lost"))
            db.session.flush()

    app.session_interface = Interface()
    db.init_app(app)

    @app.route("/<int:swallows>", methods=["POST"])
    @transactional(isolation_level="SERIALIZABLE")
    def view(swallows: int) -> str:
        if swallows:
            with suppress(IncompatibleTransactionError):
                db.session.add(Book(title="lost, too"))
        else:
            db.session.add(Book(title="lost, too"))
        return "stored"

    @app.errorhandler(UnitOfWorkError)
    def handle(error: UnitOfWorkError) -> tuple[str, int]:
        return f"{type(error).__name__}, {len(db.session.scalars(select(Book)).all())} books", 500

    client = app.test_client()

    assert client.post("/0").text == "IncompatibleTransactionError, 0 books"
    assert client.post("/1").text == "UnexpectedRollbackError, 0 books"
    assert titles(postgresql) == []


def test_read_only_with_a_row_factory(engine: Engine) -> None:
    """SQLite's rows may be of any kind."""
    other = create_engine(engine.url)

    @event.listens_for(other, "connect")
    def _use_rows(connection: Any, _record: object) -> None:
        connection.row_factory = sqlite3.Row

    with (
        pytest.raises(ReadOnlyTransactionError),
        UnitOfWork(sessionmaker(other)).transaction(read_only=True) as session,
    ):
        session.execute(insert(Book).values(title="lost"))
    other.dispose()

    assert titles(engine) == []


def test_locks_are_no_reading(mariadb: Engine, app: Flask) -> None:
    """Rows that were locked outside any transaction stay locked, and a block that would begin anew is refused."""
    db = UnitOfWork(sessionmaker(mariadb), app)

    with app.app_context():
        db.session.scalars(select(Book).with_for_update()).all()
        with pytest.raises(IncompatibleTransactionError), db.transaction(isolation_level="SERIALIZABLE"):
            pytest.fail("the body ran")


def test_connection_that_was_invalidated(postgresql: Engine) -> None:
    """A transaction whose connection somebody has given up is not told of as stored."""
    db = UnitOfWork(sessionmaker(postgresql))

    with pytest.raises(UnexpectedRollbackError, match="given it up"), db.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        session.connection().invalidate()

    assert titles(postgresql) == []


def test_places_are_not_kept(engine: Engine) -> None:
    """Blocks that are left in another context than they were entered in leave nothing behind."""
    db = UnitOfWork(sessionmaker(engine))

    def body() -> Generator[None, None, None]:
        with db.transaction(propagation=REQUIRES_NEW):
            yield

    with db.transaction():
        for _ in range(5):
            generator = body()
            next(generator)
            copy_context().run(generator.close)
        with db.transaction(propagation=REQUIRES_NEW):
            pass
        kept = len(_places.get())

    assert kept == 0


# What a savepoint of the Core heals, and what it takes with it


@pytest.mark.parametrize("strict", [True, False])
def test_a_later_savepoint_heals_nothing(any_engine: Engine, strict: bool) -> None:
    """A failure in a savepoint that was released is not made good by the rollback of another one."""
    db = UnitOfWork(sessionmaker(any_engine), strict=strict)

    with pytest.raises((UnexpectedRollbackError, TransactionDoomedError)), db.transaction() as session:
        with session.connection().begin_nested(), suppress(LookupError), db.transaction():
            session.execute(insert(Book).values(title="half"))
            raise LookupError
        with suppress(LookupError), db.savepoint():
            session.execute(insert(Book).values(title="other"))
            raise LookupError

    assert titles(any_engine) == []


def test_a_savepoint_of_another_connection_heals_nothing(engine: Engine, postgresql: Engine) -> None:
    """Nor is it made good by one of another engine, which has the same name."""
    db = UnitOfWork(sessionmaker(binds={Book: engine, Loan: postgresql}))

    with pytest.raises((UnexpectedRollbackError, TransactionDoomedError)), db.transaction() as session:
        books, loans = session.connection({"mapper": Book}), session.connection({"mapper": Loan})
        here, there = books.begin_nested(), loans.begin_nested()
        loans.execute(insert(Book).values(title="half"))
        with suppress(DBAPIError):
            loans.exec_driver_sql("SELECT * FROM missing")
        here.rollback()
        there.commit()

    assert titles(postgresql) == []


@pytest.mark.filterwarnings("ignore:nested transaction already deassociated")
@pytest.mark.parametrize("inner", ["core", "savepoint", "session", "open"])
def test_hooks_inside_of_a_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork, inner: str) -> None:
    """Hooks go with the savepoint of a connection around them, whatever else was between."""
    ran: list[str] = []

    with db.transaction() as session:
        connection = session.connection()
        around = connection.begin_nested()
        db.on_commit(ran.append, "around")
        if inner == "open":
            connection.begin_nested()
            db.on_commit(ran.append, "inside")
        else:
            blocks: dict[str, Any] = {
                "core": connection.begin_nested,
                "savepoint": db.savepoint,
                "session": session.begin_nested,
            }
            with blocks[inner]():
                session.execute(insert(Book).values(title="lost"))
                db.on_commit(ran.append, "inside")
        around.rollback()
        session.execute(insert(Book).values(title="kept"))

    assert ran == []
    assert titles(any_engine) == ["kept"]


def test_hook_that_fails_at_the_rollback_of_a_savepoint_of_the_core(any_engine: Engine, app: Flask) -> None:
    """A hook runs when the savepoint is rolled back already, and what it raises changes nothing of that."""
    db = UnitOfWork(sessionmaker(any_engine), hook_errors="raise")
    seen: list[int] = []

    def fail(_error: object) -> None:
        seen.append(len(db.session.scalars(select(Book)).all()))
        raise LookupError

    with db.transaction() as session:
        session.execute(insert(Book).values(title="kept"))
        savepoint = session.connection().begin_nested()
        session.execute(insert(Book).values(title="undone"))
        fail_in(session)
        db.on_rollback(fail)
        with pytest.raises(HookError):
            savepoint.rollback()

    assert seen == [1]
    assert titles(any_engine) == ["kept"]


# Streams in many contexts


def test_stream_that_is_read_in_many_contexts(any_engine: Engine, db: UnitOfWork, app: Flask) -> None:
    """What a stream has suspended is there for its next item, in whatever context that is asked for."""
    db.init_app(app)

    @db.stream
    def body() -> Iterator[str]:
        with db.transaction(propagation=REQUIRES_NEW) as session:
            for title in ("first", "second"):
                assert db.session is session
                session.add(Book(title=title))
                yield title
        raise LookupError

    with app.app_context():
        reading = body()
        titles_read = [copy_context().run(next, reading) for _ in range(2)]
        with pytest.raises(LookupError):
            copy_context().run(next, reading)

    assert titles_read == ["first", "second"]
    assert titles(any_engine) == ["first", "second"]


# Two phases, and sessions that take turns


@pytest.mark.parametrize("twophase", [False, True])
@pytest.mark.parametrize("way", ["rollback only", "swallow"])
def test_before_commit_of_sqlalchemy(mariadb: Engine, twophase: bool, way: str) -> None:
    """A listener to SQLAlchemy's own before_commit may ask for a rollback, and cannot hide an error."""
    db = UnitOfWork(sessionmaker(mariadb, twophase=twophase))

    def listener(session: Session) -> None:
        if way == "rollback only":
            db.set_rollback_only()
        else:
            session.flush()
            swallow(session)

    def work() -> None:
        with db.transaction() as session:
            session.add(Book(title="lost"))

    with listening(Session, "before_commit", listener):
        if way == "rollback only":
            work()
        else:
            with pytest.raises(UnexpectedRollbackError):
                work()

    assert titles(mariadb) == []


def test_sessions_that_take_turns_on_a_connection(engine: Engine) -> None:
    """However often two sessions take turns on one Connection, nothing piles up."""
    with engine.connect() as connection:
        outer = connection.begin()
        begin_on(connection)
        factory = sessionmaker(connection, join_transaction_mode="create_savepoint")
        first, second = UnitOfWork(factory), UnitOfWork(factory)
        with first.transaction(propagation=Propagation.NEVER), second.transaction(propagation=Propagation.NEVER):
            for _ in range(10):
                for each in (first, second):
                    each.session.add(Book(title="seen by the test alone"))
                    each.session.commit()
            watching = len(list(_watches_of(connection)))
        left = len(list(_watches_of(connection)))
        outer.rollback()

    assert (watching, left) == (2, 0)


def test_deadline_of_a_joined_block_after_a_commit_by_hand(any_engine: Engine) -> None:
    """The deadline of a joined block is the server's after a commit by hand, too."""
    db = UnitOfWork(sessionmaker(any_engine), manual_commit="allow")

    with pytest.raises(TransactionTimeoutError), db.transaction() as session, db.transaction(timeout=0.2):
        session.add(Book(title="first"))
        session.commit()
        session.execute(text(SLOW[any_engine.dialect.name]))

    assert titles(any_engine) == ["first"]
