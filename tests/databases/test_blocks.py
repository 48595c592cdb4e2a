"""What blocks may ask for, on every kind of database: propagation, doom, isolation, read-only and time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Connection, Engine, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import (
    ConfigurationError,
    Propagation,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UnitOfWork,
)
from tests.conftest import Book, count, titles
from tests.databases.conftest import SLOW, fail_in

NESTED, REQUIRES_NEW, NOT_SUPPORTED = Propagation.NESTED, Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED

SETTINGS = {
    "sqlite": ["PRAGMA query_only", "PRAGMA busy_timeout"],
    "postgresql": ["SHOW transaction_isolation", "SHOW transaction_read_only", "SHOW statement_timeout"],
    "mysql": ["SELECT @@tx_isolation", "SELECT @@tx_read_only", "SELECT @@max_statement_time"],
}


@pytest.fixture
def one_connection(any_engine: Engine) -> Iterator[Engine]:
    """An engine on the same database whose pool has one connection, which the next transaction will get."""
    engine = create_engine(any_engine.url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    yield engine
    engine.dispose()


@pytest.fixture
def sent(any_engine: Engine) -> Iterator[list[str]]:
    """Every statement that goes to the server."""
    statements: list[str] = []

    def note(_cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    events = ("do_execute", "do_execute_no_params", "do_executemany")
    for name in events:
        event.listen(any_engine, name, note)
    yield statements
    for name in events:
        event.remove(any_engine, name, note)


def settings_of(engine: Engine) -> list[object]:
    """What the next user of a pooled connection finds."""
    with engine.connect() as connection:
        return [connection.exec_driver_sql(query).scalar() for query in SETTINGS[engine.dialect.name]]


def slow(engine: Engine) -> Any:
    return text(SLOW[engine.dialect.name])


# Propagation


def test_requires_new_is_kept_when_the_outer_fails(any_engine: Engine, db: UnitOfWork) -> None:
    """What REQUIRES_NEW stores stays, and the outer transaction is current again after it, with its own session."""
    ran: list[str] = []

    with pytest.raises(LookupError), db.transaction() as outer:
        transaction = db.current_transaction
        with db.transaction(propagation=REQUIRES_NEW) as inner:
            assert inner is not outer
            assert db.session is inner
            assert db.current_transaction is not transaction
            inner.add(Book(title="kept"))
            db.on_commit(ran.append, "inner")
        assert ran == ["inner"]
        assert db.session is outer
        assert db.current_transaction is transaction
        db.on_commit(ran.append, "outer")
        outer.add(Book(title="lost"))
        outer.flush()
        raise LookupError

    assert titles(any_engine) == ["kept"]
    assert ran == ["inner"]


def test_requires_new_fails_alone(any_engine: Engine, db: UnitOfWork) -> None:
    """What fails in REQUIRES_NEW and is caught outside it leaves the outer transaction whole."""
    with db.transaction() as outer:
        with pytest.raises(DBAPIError), db.transaction(propagation=REQUIRES_NEW) as inner:
            inner.add(Book(title="lost"))
            inner.flush()
            inner.execute(text("SELECT * FROM missing"))
        assert db.session is outer
        outer.add(Book(title="kept"))

    assert titles(any_engine) == ["kept"]


def test_requires_new_with_an_empty_pool(one_connection: Engine, any_engine: Engine) -> None:
    """A pool without a second connection is named as the cause, and the outer transaction goes on."""
    db = UnitOfWork(sessionmaker(one_connection))

    with db.transaction() as outer:
        outer.add(Book(title="kept"))
        outer.flush()
        with (
            pytest.raises(PoolTimeoutError, match=r"It was wanted for a transaction\(\) block.*REQUIRES_NEW"),
            db.transaction(propagation=REQUIRES_NEW) as inner,
        ):
            inner.execute(select(Book))
        assert db.session is outer

    assert titles(any_engine) == ["kept"]


def test_requires_new_with_an_empty_pool_in_a_flush(one_connection: Engine, any_engine: Engine) -> None:
    """It is so as well where the first statement is a flush."""
    db = UnitOfWork(sessionmaker(one_connection))

    with db.transaction() as outer:
        outer.connection()
        with (
            pytest.raises(PoolTimeoutError, match="REQUIRES_NEW"),
            db.transaction(propagation=REQUIRES_NEW) as inner,
        ):
            inner.add(Book(title="lost"))

    assert count(any_engine) == 0


def test_not_supported_runs_outside(any_engine: Engine, db: UnitOfWork) -> None:
    """NOT_SUPPORTED suspends: its session is another, has no transaction of ours, and stores nothing by itself."""
    with db.transaction() as outer:
        with db.transaction(propagation=NOT_SUPPORTED) as inner:
            assert inner is not outer
            assert db.current_transaction is None
            inner.add(Book(title="lost"))
            inner.flush()
        assert db.session is outer
        outer.add(Book(title="kept"))

    assert titles(any_engine) == ["kept"]


# Doom


@pytest.mark.parametrize("way", ["core", "flush", "held connection", "autoflush"])
def test_statements_after_a_caught_error_are_not_sent(
    any_engine: Engine, db: UnitOfWork, sent: list[str], way: str
) -> None:
    """After an error that was caught each further statement is refused, on every database, with the first as cause."""
    with pytest.raises(UnexpectedRollbackError) as unexpected, db.transaction() as session:
        connection = session.connection()
        session.add(Book(title="lost"))
        session.flush()
        fail_in(session)
        assert "SELECT * FROM missing" in sent
        sent.clear()
        with pytest.raises(TransactionDoomedError, match="because the database refused a statement") as doomed:
            if way == "core":
                session.execute(select(Book))
            elif way == "held connection":
                connection.execute(select(Book))
            else:
                session.add(Book(title="second half"))
                session.flush() if way == "flush" else session.scalars(select(Book))

    assert sent == []
    assert isinstance(doomed.value.__cause__, DBAPIError)
    assert unexpected.value.__cause__ is doomed.value.__cause__
    assert titles(any_engine) == []


def test_savepoint_clears_what_went_wrong_in_it(any_engine: Engine, db: UnitOfWork) -> None:
    """Inside a savepoint statements after an error are refused too, and its rollback makes everything well."""
    with db.transaction() as session:
        session.add(Book(title="before"))
        with pytest.raises(TransactionDoomedError), db.savepoint():
            session.add(Book(title="inside"))
            fail_in(session)
            session.execute(select(Book))
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


def test_savepoint_of_ones_own(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint by session.begin_nested() is treated alike: it can be rolled back, and nothing else."""
    with db.transaction() as session:
        session.add(Book(title="before"))
        savepoint = session.begin_nested()
        fail_in(session)
        with pytest.raises(TransactionDoomedError, match="transaction of a savepoint"):
            session.execute(select(Book))
        savepoint.rollback()
        assert session.scalar(select(func.count()).select_from(Book)) == 1

    assert titles(any_engine) == ["before"]


@pytest.mark.parametrize("inside", [False, True])
def test_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork, inside: bool) -> None:
    """So is one of a connection, as third parties make them: its rollback makes everything well."""
    with db.transaction() as session:
        session.add(Book(title="before"))
        session.flush()
        outer = session.begin_nested() if inside else None
        with pytest.raises(DBAPIError), session.connection().begin_nested():
            session.execute(insert(Book).values(title="inside"))
            session.execute(text("SELECT * FROM missing"))
        if outer is not None:
            outer.commit()
        session.add(Book(title="after"))

    assert titles(any_engine) == ["after", "before"]


def test_savepoint_of_the_core_in_which_an_error_was_caught(any_engine: Engine, db: UnitOfWork) -> None:
    """Such a savepoint cannot be released after an error that was caught in it."""
    with pytest.raises(TransactionDoomedError), db.transaction() as session, session.connection().begin_nested():
        session.execute(insert(Book).values(title="lost"))
        fail_in(session)

    assert titles(any_engine) == []


def test_error_before_a_savepoint_of_the_core(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint of a connection heals nothing that went wrong before it."""
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        session.execute(insert(Book).values(title="lost"))
        connection = session.connection()
        fail_in(session)
        with pytest.raises(TransactionDoomedError):
            connection.begin_nested()

    assert titles(any_engine) == []


def test_no_savepoint_in_a_doomed_transaction(db: UnitOfWork) -> None:
    """A savepoint is not even begun after an error that was caught."""
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        fail_in(session)
        with pytest.raises(TransactionDoomedError), db.savepoint():
            pytest.fail("the body ran")


def test_joined_block_that_failed_stops_statements(any_engine: Engine, db: UnitOfWork) -> None:
    """So it is after a joined block that has failed: half of its work is there, and the other half is not."""
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        with pytest.raises(LookupError), db.transaction(name="payment"):
            session.add(Book(title="half"))
            raise LookupError
        with pytest.raises(TransactionDoomedError, match="because the block 'payment', which had joined") as doomed:
            session.execute(select(Book))

    assert isinstance(doomed.value.__cause__, LookupError)
    assert titles(any_engine) == []


def test_rollback_by_hand_ends_a_doomed_transaction(any_engine: Engine, db: UnitOfWork, app: Flask) -> None:
    """Under the app-wide policy an explicit rollback is the way out, and the next statement begins anew."""
    app.config["UOW_AUTO_COMMIT"] = True
    db.init_app(app)

    @app.post("/")
    def view() -> str:
        session = db.session
        session.add(Book(title="lost"))
        session.flush()
        fail_in(session)
        session.rollback()
        session.add(Book(title="kept"))
        return "stored"

    response = app.test_client().post("/")

    assert response.status_code == 200
    assert titles(any_engine) == ["kept"]


def test_not_strict(any_engine: Engine) -> None:
    """UOW_STRICT = False leaves a caught error to the database; what PostgreSQL has given up is still not a success."""
    db = UnitOfWork(sessionmaker(any_engine), strict=False)

    def work() -> None:
        with db.transaction() as session:
            session.add(Book(title="first"))
            session.flush()
            fail_in(session)
            if any_engine.dialect.name != "postgresql":
                session.add(Book(title="second"))

    if any_engine.dialect.name == "postgresql":
        with pytest.raises(UnexpectedRollbackError, match="and gave it up") as caught:
            work()
        assert isinstance(caught.value.__cause__, DBAPIError)
        assert titles(any_engine) == []
    else:
        work()
        assert titles(any_engine) == ["first", "second"]


def test_not_strict_with_a_savepoint_of_the_core(any_engine: Engine) -> None:
    """Not strict, what was mended in a savepoint that SQLAlchemy's Core has made is stored, on every database."""
    db = UnitOfWork(sessionmaker(any_engine), strict=False)

    with db.transaction() as session:
        session.execute(insert(Book).values(title="kept"))
        with pytest.raises(DBAPIError), session.connection().begin_nested():
            session.execute(text("SELECT * FROM missing"))

    assert titles(any_engine) == ["kept"]


@pytest.mark.parametrize("strict", [True, False])
def test_swallowed_deadlock_never_commits_the_second_half(mariadb: Engine, strict: bool) -> None:
    """MariaDB rolls back the whole transaction at a deadlock; what follows is not stored without the rest."""
    with Session(mariadb) as session, session.begin():
        session.add_all([Book(id=1, title="one"), Book(id=2, title="two")])
    db = UnitOfWork(sessionmaker(mariadb), strict=strict)
    both_have_one = threading.Barrier(2, timeout=20)
    outcomes: dict[int, object] = {}

    def swap(first: int, second: int) -> None:
        try:
            with db.transaction() as session:
                session.execute(update(Book).where(Book.id == first).values(title=f"by {first}"))
                both_have_one.wait()
                with suppress(DBAPIError):
                    session.execute(update(Book).where(Book.id == second).values(title=f"by {first}"))
                with suppress(TransactionDoomedError):
                    session.execute(insert(Book).values(title=f"second half of {first}"))
            outcomes[first] = "committed"
        except Exception as error:  # noqa: BLE001 - looked at below
            outcomes[first] = type(error)

    threads = [threading.Thread(target=swap, args=pair) for pair in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    winner = next(first for first, outcome in outcomes.items() if outcome == "committed")
    assert outcomes[3 - winner] is UnexpectedRollbackError
    assert titles(mariadb) == [f"by {winner}", f"by {winner}", f"second half of {winner}"]


# Isolation


def test_isolation_level_is_set_and_gone(one_connection: Engine) -> None:
    """The level holds for the transaction, whatever its first statement is, and not for the next."""
    db = UnitOfWork(sessionmaker(one_connection))
    before = settings_of(one_connection)
    levels: list[str] = []

    with db.transaction(isolation_level="SERIALIZABLE") as session:
        levels.append(session.connection().get_isolation_level())
    with db.transaction(isolation_level="SERIALIZABLE") as session:
        session.add(Book(title="flushed first"))
        session.flush()
        levels.append(session.connection().get_isolation_level())
    with pytest.raises(DBAPIError), db.transaction(isolation_level="SERIALIZABLE") as session:
        session.execute(text("SELECT * FROM missing"))

    assert levels == ["SERIALIZABLE", "SERIALIZABLE"]
    assert settings_of(one_connection) == before


def test_default_isolation_level(one_connection: Engine) -> None:
    """The setting holds where a block says nothing, and a block's own level goes before it."""
    db = UnitOfWork(sessionmaker(one_connection), isolation_level="SERIALIZABLE")

    with db.transaction() as session:
        level = session.connection().get_isolation_level()
        seen = None if db.current_transaction is None else db.current_transaction.isolation_level
    with db.transaction(isolation_level="READ COMMITTED") as session:
        own = session.connection().get_isolation_level()

    assert (level, seen) == ("SERIALIZABLE", "SERIALIZABLE")
    # SQLite has one level.
    assert own == ("SERIALIZABLE" if one_connection.dialect.name == "sqlite" else "READ COMMITTED")


def test_lost_connection_takes_its_settings_with_it(one_connection: Engine, any_engine: Engine) -> None:
    """After a connection that broke in a read-only, timed, SERIALIZABLE transaction the next one is as ever."""
    before = settings_of(one_connection)
    db = UnitOfWork(sessionmaker(one_connection))

    def work() -> None:
        with db.transaction(isolation_level="SERIALIZABLE", read_only=True, timeout=60) as session:
            session.execute(select(Book))
            session.connection().connection.dbapi_connection.close()  # type: ignore[union-attr]
            session.execute(select(Book))

    with pytest.raises(Exception, match=r"(?i)clos|interface"):
        work()

    assert settings_of(one_connection) == before


# Read-only


WRITES: list[Callable[[Session], object]] = [
    lambda session: session.add(Book(title="lost")),
    lambda session: session.execute(insert(Book).values(title="lost")),
    lambda session: session.execute(text("INSERT INTO book (title) VALUES ('lost')")),
    lambda session: session.connection().execute(insert(Book).values(title="lost")),
    lambda session: session.bulk_save_objects([Book(title="lost")]),
]


@pytest.mark.parametrize("write", WRITES, ids=["orm", "core", "text", "connection", "bulk"])
def test_read_only(one_connection: Engine, write: Callable[[Session], object]) -> None:
    """A read-only transaction refuses to write, by whatever way, and the next user of the connection may."""
    db = UnitOfWork(sessionmaker(one_connection))
    before = settings_of(one_connection)

    with (
        pytest.raises(ReadOnlyTransactionError, match=r"read-only, and was to write (a new Book|the statement INSERT)"),
        db.transaction(read_only=True) as session,
    ):
        session.scalars(select(Book)).all()
        write(session)

    assert settings_of(one_connection) == before
    with db.transaction() as session:
        session.add(Book(title="kept"))
    assert titles(one_connection) == ["kept"]


def test_read_only_error_that_is_caught(any_engine: Engine, db: UnitOfWork) -> None:
    """A refused statement dooms, as any error of the database does."""
    with pytest.raises(UnexpectedRollbackError) as caught, db.transaction(read_only=True) as session:
        with pytest.raises(ReadOnlyTransactionError):
            session.execute(insert(Book).values(title="lost"))
        with pytest.raises(TransactionDoomedError):
            session.scalars(select(Book))

    assert isinstance(caught.value.__cause__, ReadOnlyTransactionError)


def test_all_at_once_and_gone(one_connection: Engine) -> None:
    """After a read-only, timed, SERIALIZABLE transaction that succeeds, the connection is as it was."""
    db = UnitOfWork(sessionmaker(one_connection))
    before = settings_of(one_connection)

    with db.transaction(isolation_level="SERIALIZABLE", read_only=True, timeout=60) as session:
        session.scalars(select(Book)).all()
        during = [
            session.connection().exec_driver_sql(query).scalar() for query in SETTINGS[one_connection.dialect.name]
        ]

    assert during != before
    assert settings_of(one_connection) == before


# Time


def test_slow_statement_is_stopped(any_engine: Engine, one_connection: Engine) -> None:
    """A statement that would take longer than what is left is stopped by the server, and nothing is stored."""
    db = UnitOfWork(sessionmaker(one_connection))
    before = settings_of(one_connection)
    began = monotonic()

    with (
        pytest.raises(TransactionTimeoutError, match=r"not done after 0\.2 s") as caught,
        db.transaction(timeout=0.2) as session,
    ):
        session.add(Book(title="lost"))
        session.flush()
        session.execute(slow(any_engine))

    assert monotonic() - began < 10
    assert isinstance(caught.value.__cause__, Exception)
    assert settings_of(one_connection) == before
    assert titles(any_engine) == []


def test_waiting_for_a_lock_is_stopped(any_engine: Engine, db: UnitOfWork) -> None:
    """So is a statement that waits for somebody else's lock."""
    with Session(any_engine) as session, session.begin():
        session.add(Book(id=1, title="free"))

    with Session(any_engine) as other:
        other.execute(update(Book).values(title="locked"))
        with pytest.raises(TransactionTimeoutError), db.transaction(timeout=0.2) as session:
            session.execute(update(Book).values(title="mine"))

    assert titles(any_engine) == ["free"]


def test_timeout_that_is_caught(any_engine: Engine, db: UnitOfWork) -> None:
    """A timeout that is caught dooms: nothing more is sent, and nothing is stored."""
    with pytest.raises(UnexpectedRollbackError) as caught, db.transaction(timeout=0.1) as session:
        session.add(Book(title="lost"))
        with pytest.raises(TransactionTimeoutError):
            session.execute(slow(any_engine))
        with pytest.raises(TransactionDoomedError):
            session.execute(select(Book))

    assert isinstance(caught.value.__cause__, TransactionTimeoutError)
    assert titles(any_engine) == []


def test_timeout_of_a_savepoint(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint can have less time than its transaction, which has its own again after it."""
    with db.transaction(timeout=60) as session:
        session.add(Book(title="kept"))
        with (
            pytest.raises(TransactionTimeoutError, match=r"0\.1 s"),
            db.transaction(propagation=NESTED, timeout=0.1),
        ):
            session.add(Book(title="lost"))
            session.execute(slow(any_engine))
        session.add(Book(title="kept as well"))

    assert titles(any_engine) == ["kept", "kept as well"]


def test_setting_of_a_savepoint_is_put_back(one_connection: Engine) -> None:
    """When the only block with a timeout is over, the server's setting is as it was, in the same transaction."""
    db = UnitOfWork(sessionmaker(one_connection))
    queries = [query for query in SETTINGS[one_connection.dialect.name] if "time" in query and "time_zone" not in query]

    def settings(connection: Connection) -> list[object]:
        return [connection.exec_driver_sql(query).scalar() for query in queries]

    with db.transaction() as session:
        before = settings(session.connection())
        with db.transaction(propagation=NESTED, timeout=3):
            during = settings(session.connection())
        after = settings(session.connection())
        with pytest.raises(LookupError), db.transaction(propagation=NESTED, timeout=3):
            session.execute(select(Book))
            raise LookupError
        after_rollback = settings(session.connection())

    assert during != before
    assert after == before
    assert after_rollback == before


def test_a_shorter_setting_of_the_users_stays(any_engine: Engine) -> None:
    """Somebody who gave the server a shorter limit than the timeout keeps it, and has it afterwards."""
    limit = {
        "sqlite": "PRAGMA busy_timeout = 77",
        "postgresql": "SET statement_timeout = '77ms'",
        "mysql": "SET max_statement_time = 0.077",
    }[any_engine.dialect.name]
    query = next(query for query in SETTINGS[any_engine.dialect.name] if query.endswith(("_timeout", "_time")))
    engine = create_engine(any_engine.url, pool_size=1, max_overflow=0)

    @event.listens_for(engine, "connect")
    def _limit(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(limit)
        cursor.close()
        connection.commit()

    with UnitOfWork(sessionmaker(engine)).transaction(timeout=60) as session:
        during = str(session.scalar(text(query)))
    with engine.connect() as connection:
        after = str(connection.scalar(text(query)))
    engine.dispose()

    assert "77" in during
    assert after == during


# Autocommit


def autocommit_engines(engine: Engine) -> list[Engine]:
    """An engine on the same database in each spelling of AUTOCOMMIT that its driver knows."""
    by_itself: dict[str, dict[str, Any]] = {
        "sqlite": {"isolation_level": None},
        "postgresql": {"autocommit": True},
        "mysql": {"autocommit": True},
    }
    arguments = by_itself[engine.dialect.name]
    return [
        create_engine(engine.url, isolation_level="AUTOCOMMIT"),
        create_engine(engine.url).execution_options(isolation_level="AUTOCOMMIT"),
        create_engine(engine.url, connect_args=arguments),
    ]


@pytest.mark.parametrize("spelling", [0, 1, 2])
def test_autocommit_is_refused(any_engine: Engine, spelling: int) -> None:
    """An engine that commits each statement by itself is refused in a transaction, and nothing is stored."""
    engine = autocommit_engines(any_engine)[spelling]
    db = UnitOfWork(sessionmaker(engine))

    with (
        pytest.raises(ConfigurationError, match=r"isolation_level of a connection of Engine\(.* is AUTOCOMMIT"),
        db.transaction() as session,
    ):
        session.add(Book(title="lost"))
        session.flush()
    with pytest.raises(UnexpectedRollbackError), db.transaction() as session:
        with pytest.raises(ConfigurationError):
            session.execute(insert(Book).values(title="lost"))
        with pytest.raises(TransactionDoomedError):
            session.execute(insert(Book).values(title="lost too"))

    assert titles(any_engine) == []
    engine.dispose()


@pytest.mark.parametrize("spelling", [0, 1, 2])
def test_autocommit_is_left_alone_outside(any_engine: Engine, spelling: int) -> None:
    """Where no transaction was asked for, such an engine does what it is for."""
    engine = autocommit_engines(any_engine)[spelling]
    db = UnitOfWork(sessionmaker(engine))

    with db.transaction(propagation=Propagation.NEVER) as session:
        session.execute(insert(Book).values(title="stored"))

    assert titles(any_engine) == ["stored"]
    engine.dispose()


def test_autocommit_of_one_connection_is_refused(any_engine: Engine, db: UnitOfWork) -> None:
    """Nor can a block be given a connection that commits by itself."""
    with (
        pytest.raises(ConfigurationError, match="is AUTOCOMMIT"),
        db.transaction() as session,
    ):
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})


def test_integrity_error_in_a_block_that_asks_for_everything(any_engine: Engine, db: UnitOfWork) -> None:
    """An ordinary error stays an ordinary error, with every option given."""
    with (
        pytest.raises(IntegrityError),
        db.transaction(isolation_level="SERIALIZABLE", read_only=False, timeout=60) as session,
    ):
        session.execute(insert(Book).values(id=1, title="one"))
        session.execute(insert(Book).values(id=1, title="another"))

    assert titles(any_engine) == []
