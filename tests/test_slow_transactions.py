"""Transactions that take too long are logged, with what they were doing."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, event, func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow import Backoff, Propagation, UnitOfWork
from flask_uow.audit import AuditTrail
from flask_uow.testing import inject
from tests.conftest import Base, Book, conflict, titles

ALWAYS, NEVER = 1e-9, 3600.0
A_WHILE = 0.02


def spin() -> int:
    """Work for a while."""
    end = perf_counter() + A_WHILE
    while perf_counter() < end:
        pass
    return 1


def teach_to_spin(connection: Any, _record: object) -> None:
    connection.create_function("spin", 0, spin)


@pytest.fixture
def slow(engine: Engine) -> UnitOfWork:
    """One that calls every transaction slow, on a database that can work for a while."""
    engine.dispose()
    event.listen(engine, "connect", teach_to_spin)
    return UnitOfWork(sessionmaker(engine), slow_transaction=ALWAYS)


def told(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "flask_uow.slow"]


def the_one(caplog: pytest.LogCaptureFixture) -> Any:
    (record,) = told(caplog)
    return record


def test_in_a_request(app: Flask, slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A warning names the transaction and its endpoint, says where the time went, and what to do."""
    slow.init_app(app)
    ids: list[str] = []

    @app.post("/", endpoint="books.add")
    @slow.transactional(name="adding a book")
    def view() -> str:
        slow.session.add(Book(title="Emma"))
        slow.session.scalar(select(func.spin()))
        spin()
        assert slow.current_transaction is not None
        ids.append(slow.current_transaction.id)
        return ""

    assert app.test_client().post("/").status_code == 200

    record = the_one(caplog)
    message = record.getMessage()
    assert record.levelno == logging.WARNING
    assert message.startswith("The transaction of adding a book (endpoint 'books.add') took 0.")
    assert "2 statements" in message
    assert "on_commit()" in message
    assert (record.transaction_id, record.endpoint, record.outcome) == (ids[0], "books.add", "committed")
    assert (record.transaction_name, record.statements) == ("adding a book", 2)
    assert record.time_in_database >= A_WHILE
    assert record.time_outside >= A_WHILE
    assert record.duration == pytest.approx(record.time_in_database + record.time_outside)
    assert record.time_held <= record.duration


def test_outside_flask(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A script is told as well."""
    with slow.transaction(name="import") as session:
        session.add(Book(title="Emma"))

    record = the_one(caplog)
    assert "The transaction of import (outside any request)" in record.getMessage()
    assert (record.endpoint, record.statements) == (None, 1)


def test_quick_transactions(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """One that takes no longer than the setting is not told of."""
    uow = UnitOfWork(sessionmaker(engine), slow_transaction=NEVER)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert told(caplog) == []


@pytest.mark.parametrize("given", [{}, {"slow_transaction": None}])
def test_off(engine: Engine, caplog: pytest.LogCaptureFixture, given: dict[str, Any]) -> None:
    """Without the setting nothing is said, and nobody listens to the statements of a connection."""
    uow = UnitOfWork(sessionmaker(engine), **given)
    listeners: list[bool] = []

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        listeners.extend(
            bool(getattr(session.connection().dispatch, name))
            for name in ("before_cursor_execute", "after_cursor_execute", "commit", "rollback")
        )

    assert told(caplog) == []
    assert listeners == [False] * 4


def test_by_configuration(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """UOW_SLOW_TRANSACTION holds for the requests under a policy."""
    app.config.update(UOW_AUTO_COMMIT=True, UOW_SLOW_TRANSACTION=ALWAYS)
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.post("/")
    def view() -> str:
        uow.session.add(Book(title="Emma"))
        return ""

    app.test_client().post("/")

    assert "the request to 'view' (endpoint 'view')" in the_one(caplog).getMessage()


def test_without_the_database(app: Flask, slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A transaction that has sent nothing has held no connection, however long it took."""
    slow.init_app(app)

    @app.get("/")
    @slow.transactional
    def view() -> str:
        assert slow.session.is_active
        spin()
        return ""

    app.test_client().get("/")

    assert told(caplog) == []


def test_rolled_back(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """How it ends makes no difference, and is told."""
    with suppress(LookupError), slow.transaction() as session:
        session.execute(insert(Book).values(title="lost"))
        raise LookupError

    record = the_one(caplog)
    assert "until its end (rolled back)" in record.getMessage()
    assert (record.outcome, record.statements) == ("rolled_back", 1)


def test_each_attempt(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Each attempt is a transaction of its own; the time between two belongs to neither."""
    ids: list[str] = []

    @slow.transactional(attempts=2, backoff=Backoff(base=0.0))
    def work() -> None:
        assert slow.current_transaction is not None
        ids.append(slow.current_transaction.id)
        slow.session.add(Book(title="Emma"))
        if len(ids) == 1:
            conflict(slow.session)

    work()

    assert [(record.transaction_id, record.outcome) for record in told(caplog)] == [
        (ids[0], "rolled_back"),
        (ids[1], "committed"),
    ]


def test_savepoints(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A savepoint is a part of its transaction, and what opens and closes it is no statement of the user's."""
    with slow.transaction() as session:
        session.execute(text("SELECT 1"))
        with slow.savepoint():
            session.add(Book(title="Emma"))
        with suppress(LookupError), slow.savepoint():
            session.add(Book(title="lost"))
            session.flush()
            raise LookupError

    assert the_one(caplog).statements == 3


def test_two_transactions(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A suspended transaction and the one that runs meanwhile are measured apart."""
    with slow.transaction(name="outer") as outer:
        outer.execute(text("SELECT 1"))
        with slow.transaction(name="inner", propagation=Propagation.REQUIRES_NEW) as inner:
            inner.scalar(select(func.spin()))
            inner.execute(text("SELECT 2"))

    first, second = told(caplog)
    assert (first.transaction_name, first.statements) == ("inner", 2)
    assert (second.transaction_name, second.statements) == ("outer", 1)
    assert first.time_in_database >= A_WHILE
    assert second.time_outside >= A_WHILE


def test_hooks_take_no_time(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """What runs after the commit holds no connection, and does not count."""
    with slow.transaction() as session:
        session.add(Book(title="Emma"))
        slow.on_commit(lambda: caplog.records.append(logging.makeLogRecord({"name": "hook"})))

    assert [record.name for record in caplog.records] == ["flask_uow.slow", "hook"]


class Thorough(sqlite3.Connection):
    """Takes its time to commit, as one does that waits for a disk."""

    def commit(self) -> None:
        spin()
        super().commit()


def test_commit_is_work_of_the_database(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The time that COMMIT takes is time in the database."""
    thorough = create_engine(engine.url, connect_args={"factory": Thorough})
    uow = UnitOfWork(sessionmaker(thorough), slow_transaction=ALWAYS)

    with uow.transaction() as session:
        session.execute(text("SELECT 1"))
    thorough.dispose()

    record = the_one(caplog)
    assert (record.statements, record.time_in_database >= A_WHILE) == (1, True)


def test_failed_statements(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that fails has an end, too."""
    with suppress(LookupError), slow.transaction() as session:
        with suppress(DBAPIError):
            session.execute(text("SELECT * FROM missing"))
        spin()
        raise LookupError

    record = the_one(caplog)
    assert record.statements == 1
    assert record.time_outside >= A_WHILE


def test_refused_statements(slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that is never sent takes no time."""
    with suppress(Exception), slow.transaction(read_only=True) as session:
        session.execute(text("SELECT 1"))
        session.execute(insert(Book).values(title="refused"))
        spin()

    assert the_one(caplog).time_in_database < A_WHILE


def test_statements_of_ours(slow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The rows of an audit trail, and limits of time, are no statements of the user's."""
    trail = AuditTrail(slow, Base)
    Base.metadata.create_all(engine)
    try:
        with slow.transaction(timeout=60) as session:
            session.add(Book(title="Emma"))
        assert the_one(caplog).statements == 1
    finally:
        trail.table.drop(engine)
        Base.metadata.remove(trail.table)


def test_by_hand(app: Flask, slow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A commit by hand ends a transaction from its first statement on; what follows it is another."""
    slow.init_app(app)

    @app.post("/")
    def view() -> str:
        slow.session.scalar(select(func.spin()))
        slow.session.add(Book(title="Emma"))
        slow.session.commit()
        slow.session.add(Book(title="Persuasion"))
        slow.session.commit()
        return ""

    app.test_client().post("/")

    first, second = told(caplog)
    assert (first.statements, second.statements) == (2, 1)
    assert first.duration >= first.time_in_database >= A_WHILE
    assert (first.endpoint, second.endpoint) == ("view", "view")


def test_session_from_before(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A session that somebody has begun to use before us is measured from when we meet it."""
    registry = scoped_session(sessionmaker(engine))
    uow = UnitOfWork(registry, app, auto_commit=True, slow_transaction=ALWAYS)

    @app.post("/")
    def view() -> str:
        uow.session.add(Book(title="Emma"))
        return ""

    registry.execute(text("SELECT 1"))
    app.test_client().post("/")

    assert the_one(caplog).statements == 1


def test_bound_session(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """On a connection of somebody else's each transaction has its own count, and nothing is counted after the last."""
    with engine.connect() as connection:
        uow = UnitOfWork(lambda: Session(connection), slow_transaction=ALWAYS)
        for title in ("Emma", "Persuasion"):
            with uow.transaction() as session:
                session.add(Book(title=title))
        connection.execute(select(Book))

    assert [record.statements for record in told(caplog)] == [1, 1]


def test_several_engines(engine: Engine, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The work of all databases of a session is counted together."""
    other = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    uow = UnitOfWork(sessionmaker(binds={Book: engine}, bind=other), slow_transaction=ALWAYS)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        session.execute(text("SELECT 1"))

    assert the_one(caplog).statements == 2
    other.dispose()


def test_lost_answer(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A transaction of which nobody knows the end is told as such."""
    uow = UnitOfWork(sessionmaker(engine), slow_transaction=ALWAYS)

    with inject(uow, "disconnect_at_commit"), suppress(Exception), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert (the_one(caplog).outcome, titles(engine)) == ("unknown", [])


def test_on_each_database(any_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What is counted is the same on each database, under a timeout and without one."""
    uow = UnitOfWork(sessionmaker(any_engine), slow_transaction=ALWAYS)
    works: list[Callable[[Session], Any]] = [
        lambda session: session.add(Book(title="Emma")),
        lambda session: session.execute(insert(Book).values(title="Persuasion")),
        lambda session: session.scalars(select(Book)).all(),
    ]

    for timeout in (None, 60.0):
        with uow.transaction(timeout=timeout) as session:
            for work in works:
                work(session)
                session.flush()

    assert [record.statements for record in told(caplog)] == [3, 3]
    assert all(0 < record.time_in_database <= record.duration for record in told(caplog))
