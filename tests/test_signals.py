"""The signals: once per real commit, in order, and none kept from another."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError

from flask_uow import Outcome, State, UnitOfWork, signals
from tests.conftest import Book, Loan, Log, titles


def test_signals_of_a_commit(uow: UnitOfWork, log: Log) -> None:
    """A commit is told four times, with the transaction each time, its outcome and its duration in seconds."""
    with uow.transaction(name="order") as session:
        session.add(Book(title="Emma"))
        transaction = uow.current_transaction

    assert log == ["transaction_started", "before_commit", "after_commit", "transaction_completed", "session_removed"]
    assert all(arguments["transaction"] is transaction for arguments in log.arguments[:4])
    assert log.arguments[1]["session"] is session
    completed = log.arguments[3]
    assert (completed["outcome"], completed["error"]) == (Outcome.COMMITTED, None)
    assert isinstance(completed["duration"], float)
    assert completed["duration"] > 0


def test_signals_of_a_rollback(uow: UnitOfWork, log: Log) -> None:
    """A rollback is told with the error that caused it."""
    with pytest.raises(LookupError) as caught, uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        raise LookupError

    assert log == ["transaction_started", "after_rollback", "transaction_completed", "session_removed"]
    assert log.arguments[1]["error"] is caught.value
    assert (log.arguments[2]["outcome"], log.arguments[2]["error"]) == (Outcome.ROLLED_BACK, caught.value)


def test_failed_commit_is_no_commit(uow: UnitOfWork, log: Log) -> None:
    """A COMMIT that fails is told as a rollback, and never as a commit."""
    with pytest.raises(IntegrityError), uow.transaction() as session:
        session.add(Loan(book_id=404))

    assert log == [
        "transaction_started",
        "before_commit",
        "after_rollback",
        "transaction_completed",
        "session_removed",
    ]


def test_savepoints_are_not_told(uow: UnitOfWork, log: Log) -> None:
    """Savepoints, released or rolled back, send nothing: signals are about real commits."""
    with uow.transaction() as session:
        with uow.savepoint():
            session.add(Book(title="released"))
        with pytest.raises(LookupError), uow.savepoint():
            raise LookupError
        quiet = list(log)

    assert quiet == ["transaction_started"]
    assert log.count("after_commit") == log.count("transaction_completed") == 1
    assert "after_rollback" not in log


def test_block_without_statements(uow: UnitOfWork, log: Log) -> None:
    """Where no statement was sent there is no COMMIT to tell of, but the transaction began and is completed."""
    with uow.transaction():
        pass

    assert log == ["transaction_started", "transaction_completed", "session_removed"]


def test_receiver_of_before_commit_adds_work(uow: UnitOfWork, engine: Engine) -> None:
    """What a receiver of before_commit adds is in the same transaction."""

    def audit(_sender: object, session: Any, **_extra: object) -> None:
        session.add(Book(title=f"audit of {', '.join(session.scalars(select(Book.title)))}"))

    with signals.before_commit.connected_to(audit), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma", "audit of Emma"]


@pytest.mark.parametrize("way", ["raise", "set_rollback_only", "doom"])
def test_receiver_of_before_commit_vetoes(uow: UnitOfWork, engine: Engine, log: Log, way: str) -> None:
    """A receiver of before_commit that raises, or asks for it, rolls the transaction back."""

    def veto(_sender: object, transaction: Any, session: Any, **_extra: object) -> None:
        if way == "raise":
            raise LookupError("vetoed")
        if way == "set_rollback_only":
            transaction.set_rollback_only()
        else:
            with pytest.raises(IntegrityError):
                session.connection().exec_driver_sql("INSERT INTO book (id, title) VALUES (1, 'same key')")

    def order() -> None:
        with uow.transaction() as session:
            session.add(Book(id=1, title="Emma"))

    with signals.before_commit.connected_to(veto):
        if way == "set_rollback_only":
            order()
        else:
            with pytest.raises(LookupError if way == "raise" else Exception, match=r"vetoed|rolled back"):
                order()

    assert titles(engine) == []
    assert log[-3:] == ["after_rollback", "transaction_completed", "session_removed"]


@pytest.mark.parametrize("name", ["transaction_started", "after_commit", "transaction_completed", "session_removed"])
def test_raising_receiver_keeps_none_from_running(
    uow: UnitOfWork, engine: Engine, log: Log, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """After the fact a raising receiver is logged, and the others are called."""

    def fail(_sender: object, **_extra: object) -> None:
        raise LookupError("broken receiver")

    signal = getattr(signals, name)
    others: list[object] = []

    def first(sender: object, **_extra: object) -> None:
        others.append(sender)

    def last(sender: object, **_extra: object) -> None:
        others.append(sender)

    with signal.connected_to(first), signal.connected_to(fail), signal.connected_to(last), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]
    assert others == [uow, uow]
    assert "broken receiver" in caplog.text


def test_senders(app: Flask, uow: UnitOfWork) -> None:
    """A receiver connected with a sender hears of that app alone."""
    other = Flask("other")
    uow.init_app(app)
    uow.init_app(other)
    heard: list[object] = []

    def receiver(sender: object, **_extra: object) -> None:
        heard.append(sender)

    with signals.after_commit.connected_to(receiver, sender=app):
        for application in (app, other):
            with application.app_context(), uow.transaction() as session:
                session.add(Book(title=application.name))

    assert heard == [app]


def test_muted_signals_are_silent(uow: UnitOfWork, log: Log) -> None:
    """Blinker's muted() holds for us too."""
    with signals.after_commit.muted(), uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert "after_commit" not in log


def test_coroutine_receivers(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Coroutine receivers run through app.ensure_sync(); outside Flask, where there is no loop, that is logged."""
    uow.init_app(app)
    heard: list[object] = []

    async def receiver(sender: object, **_extra: object) -> None:
        heard.append(sender)

    with signals.after_commit.connected_to(receiver):
        with app.app_context(), uow.transaction() as session:
            session.add(Book(title="inside"))
        with uow.transaction() as session:
            session.add(Book(title="outside"))

    assert heard == [app]
    assert "there is no loop to run it in" in caplog.text


def test_transaction_tells_about_itself(app: Flask, uow: UnitOfWork) -> None:
    """A transaction has a unique id, a name, a depth, a state, an outcome, and room for the user's own."""
    uow.init_app(app)
    seen: list[Any] = []

    @app.post("/")
    @uow.transactional
    def view() -> str:
        outer = uow.current_transaction
        assert outer is not None
        outer.info["user"] = "Jane"
        with uow.savepoint():
            inner = uow.current_transaction
            assert inner is not None
            assert (inner.parent, inner.depth) == (outer, 1)
            assert inner.state is State.ACTIVE
            seen.append(inner)
        assert (inner.state, inner.outcome) == (State.COMPLETED, None)
        assert (outer.parent, outer.depth, outer.attempt, outer.outcome) == (None, 0, 1, None)
        seen.append(outer)
        uow.session.add(Book(title="Emma"))
        return ""

    app.test_client().post("/")
    app.test_client().post("/")

    first_inner, first_outer, _, second_outer = seen
    assert first_outer.outcome is first_inner.outcome is Outcome.COMMITTED
    assert first_outer.info == {"user": "Jane"}
    assert first_outer.name.endswith("view()")
    assert first_outer.id != second_outer.id
    assert first_outer.id in repr(first_outer)
