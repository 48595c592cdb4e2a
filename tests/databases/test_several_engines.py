"""One session with several engines: which of them have committed is never left in the dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, event, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import PartialCommitError, TransactionTimeoutError, UnitOfWork
from tests.conftest import Book, Loan, count


@pytest.fixture
def other(postgresql: Engine) -> Iterator[Engine]:
    """A second engine, whose loans are checked at COMMIT. It is another database to SQLAlchemy."""
    engine = create_engine(postgresql.url)
    yield engine
    engine.dispose()


@pytest.fixture
def db(engine: Engine, other: Engine) -> UnitOfWork:
    return UnitOfWork(sessionmaker(binds={Book: engine, Loan: other}))


def raising(error: type[Exception]) -> Callable[[Session], None]:
    def listener(_session: Session) -> None:
        raise error

    return listener


def loans(engine: Engine) -> int:
    with Session(engine) as session:
        return session.query(Loan).count()


def test_both_commit(engine: Engine, other: Engine, db: UnitOfWork) -> None:
    """A block's work in both databases is kept with one COMMIT in each."""
    with Session(other) as session, session.begin():
        session.execute(insert(Book).values(id=1, title="in the other"))

    with db.transaction() as session:
        session.add(Book(id=1, title="here"))
        session.add(Loan(book_id=1))

    assert (count(engine), loans(other)) == (1, 1)


def test_one_fails(engine: Engine, other: Engine, db: UnitOfWork) -> None:
    """Where one COMMIT fails after the other, the error names what is stored; where it comes first, nothing is.

    SQLAlchemy commits in no particular order, so both are seen in time.
    """
    seen = set()

    for number in range(200):
        errors: list[BaseException | None] = []
        with pytest.raises((IntegrityError, PartialCommitError)) as caught, db.transaction() as session:
            session.add(Book(title=f"number {number}"))
            session.add(Loan(book_id=404))
            db.on_commit(pytest.fail, "a hook ran for work that is not whole")
            db.on_rollback(errors.append)
        seen.add(type(caught.value))
        assert errors == [caught.value]
        if isinstance(caught.value, PartialCommitError):
            assert caught.value.committed == (repr(engine),)
            assert caught.value.failed == repr(other)
            assert isinstance(caught.value.__cause__, IntegrityError)
            assert count(engine) == 1
        else:
            assert count(engine) == 0
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM book"))
        if len(seen) > 1:
            break

    assert seen == {IntegrityError, PartialCommitError}
    assert loans(other) == 0


def test_failure_after_a_partial_commit(app: Flask, engine: Engine, other: Engine, db: UnitOfWork) -> None:
    """What a session has committed in part before has nothing to do with what fails in it afterwards."""
    db.init_app(app)

    with app.app_context():
        for number in range(200):
            with suppress(IntegrityError, PartialCommitError), db.transaction() as session:
                session.add(Book(title=f"number {number}"))
                session.add(Loan(book_id=404))
            if count(engine):
                break
        event.listen(db.session, "before_commit", raising(LookupError), once=True)
        with pytest.raises(LookupError), db.transaction() as session:
            session.add(Book(title="another"))

    assert (count(engine), loans(other)) == (1, 0)


def test_a_flush_that_fails_is_no_partial_commit(engine: Engine, other: Engine, db: UnitOfWork) -> None:
    """Nothing was committed where the last flush fails, and the error is the database's own."""
    with Session(engine) as session, session.begin():
        session.execute(insert(Book).values(id=1, title="there"))

    with pytest.raises(IntegrityError), db.transaction() as session:
        session.execute(insert(Loan).values(id=7, book_id=404))
        session.add(Book(id=1, title="same key"))

    assert (count(engine), loans(other)) == (1, 0)


def test_three_engines(engine: Engine, other: Engine, mariadb: Engine, db: UnitOfWork) -> None:
    """Any number of engines commit, and each is told of once."""
    sent: list[str] = []
    for each in (engine, other, mariadb):
        event.listen(each, "commit", lambda connection: sent.append(connection.dialect.name))

    with db.transaction() as session:
        session.execute(insert(Book).values(title="here"), bind_arguments={"bind": engine})
        session.execute(insert(Book).values(title="there"), bind_arguments={"bind": other})
        session.execute(insert(Book).values(title="elsewhere"), bind_arguments={"bind": mariadb})

    assert [count(each) for each in (engine, other, mariadb)] == [1, 1, 1]
    assert sorted(sent[:3]) == ["mysql", "postgresql", "sqlite"]


# Two-phase commit


@pytest.fixture
def two_phase(postgresql: Engine, other: Engine) -> UnitOfWork:
    return UnitOfWork(sessionmaker(binds={Book: postgresql, Loan: other}, twophase=True))


def prepared(engine: Engine) -> int:
    """How many transactions are prepared and not ended."""
    with engine.connect() as connection:
        number = connection.scalar(text("SELECT count(*) FROM pg_prepared_xacts"))
        assert isinstance(number, int)
        return number


def test_two_phases(postgresql: Engine, other: Engine, two_phase: UnitOfWork) -> None:
    """A session with twophase=True prepares in both databases before it commits in any."""
    phases: list[str] = []
    for name, engine in (("books", postgresql), ("loans", other)):
        event.listen(engine, "prepare_twophase", lambda *_, name=name: phases.append(f"prepare {name}"))
        event.listen(engine, "commit_twophase", lambda *_, name=name: phases.append(f"commit {name}"))
    ran: list[str] = []
    with Session(postgresql) as session, session.begin():
        session.add(Book(id=7, title="there"))

    with two_phase.transaction() as session:
        session.add(Book(title="here"))
        session.add(Loan(book_id=7))
        two_phase.on_commit(ran.append, "mail")

    assert sorted(phases[:2]) == ["prepare books", "prepare loans"]
    assert sorted(phases[2:]) == ["commit books", "commit loans"]
    assert (count(postgresql), loans(other)) == (2, 1)
    assert ran == ["mail"]
    assert prepared(postgresql) == 0


def test_two_phases_and_one_fails(postgresql: Engine, other: Engine, two_phase: UnitOfWork) -> None:
    """A database that cannot prepare keeps all of them from committing, and nothing is left prepared."""
    with pytest.raises(DBAPIError), two_phase.transaction() as session:
        session.add(Book(title="lost"))
        session.add(Loan(book_id=404))
        two_phase.on_commit(pytest.fail, "nothing was committed")

    assert (count(postgresql), loans(other)) == (0, 0)
    assert prepared(postgresql) == 0


def test_two_phases_rolled_back(postgresql: Engine, two_phase: UnitOfWork) -> None:
    """An error rolls both back before anything is prepared."""
    with pytest.raises(LookupError), two_phase.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        raise LookupError

    assert count(postgresql) == 0
    assert prepared(postgresql) == 0


def test_two_phases_with_options(postgresql: Engine, two_phase: UnitOfWork) -> None:
    """Isolation level, read-only and timeout hold in two-phase transactions as well."""
    with two_phase.transaction(isolation_level="SERIALIZABLE", read_only=True, timeout=60) as session:
        shown = [
            session.connection(bind_arguments={"mapper": Book}).exec_driver_sql(f"SHOW {name}").scalar()
            for name in ("transaction_isolation", "transaction_read_only", "statement_timeout")
        ]
    with pytest.raises(TransactionTimeoutError), two_phase.transaction(timeout=0.1) as session:
        session.execute(text("SELECT pg_sleep(60)"), bind_arguments={"mapper": Book})

    assert shown[:2] == ["serializable", "on"]
    assert shown[2] != "0"
    assert prepared(postgresql) == 0


def test_mariadb_in_two_phases(mariadb: Engine) -> None:
    """MariaDB's XA transactions commit, and a read-only one refuses what the ORM would write."""
    db = UnitOfWork(sessionmaker(mariadb, twophase=True))

    with db.transaction(timeout=60) as session:
        session.add(Book(title="kept"))
    with db.transaction(read_only=True) as session:
        found = session.query(Book).count()

    assert found == 1


def test_a_listener_that_fails_is_no_partial_commit(engine: Engine, other: Engine, db: UnitOfWork) -> None:
    """What a listener of the user's raises after the COMMIT of every engine is its own error."""
    with Session(other) as session, session.begin():
        session.add(Book(id=1, title="there"))

    with pytest.raises(LookupError), db.transaction() as session:
        event.listen(session, "after_commit", raising(LookupError))
        session.add(Book(id=1, title="here"))
        session.add(Loan(book_id=1))

    assert (count(engine), loans(other)) == (1, 1)


def test_two_phases_on_a_connection_again(mariadb: Engine) -> None:
    """A session on a Connection of its maker's can commit in two phases again and again, each one looked at."""
    with mariadb.connect() as connection:
        db = UnitOfWork(sessionmaker(connection, twophase=True), manual_commit="allow")
        with db.transaction() as session:
            for title in ("first", "second"):
                session.add(Book(title=title))
                session.commit()
            event.listen(session, "before_commit", lambda _session: db.set_rollback_only())
            session.add(Book(title="lost"))

    assert count(mariadb) == 2
