"""Y1 to Y3 and H5: what fails because of others at the same time is run again, whole, and once."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from flask_uow import (
    Backoff,
    ConfigurationError,
    HookError,
    Outcome,
    Propagation,
    Transaction,
    TransactionTimeoutError,
    UnexpectedRollbackError,
    UnitOfWork,
)
from flask_uow._core.block import Block
from flask_uow._core.journal import Journal
from flask_uow._core.options import Options, check_options
from flask_uow._core.policy import no_opinion
from flask_uow._core.runtime import Runtime
from flask_uow._core.session import SessionSource
from flask_uow.signals import Publisher
from tests.conftest import Book, Log, conflict, count, titles

AT_ONCE = Backoff(base=0)


class Ran:
    """How often something ran, and what its hooks were told."""

    def __init__(self, db: UnitOfWork) -> None:
        self.db = db
        self.transactions: list[Transaction] = []
        self.stored: list[int] = []
        self.undone: list[tuple[type[BaseException] | None, bool]] = []

    @property
    def times(self) -> int:
        return len(self.transactions)

    def once_more(self) -> int:
        """Note an attempt, and return its number."""
        transaction = self.db.current_transaction
        assert transaction is not None
        self.transactions.append(transaction)
        number = transaction.attempt
        self.db.on_commit(self.stored.append, number)

        def undone(error: BaseException | None) -> None:
            self.undone.append((None if error is None else type(error), transaction.will_retry))

        self.db.on_rollback(undone)
        return number


@pytest.fixture
def ran(db: UnitOfWork) -> Ran:
    return Ran(db)


def test_function_is_run_again(db: UnitOfWork, any_engine: Engine, ran: Ran, log: Log) -> None:
    """Two conflicts, and the third attempt stores its work: once, with hooks of its own alone."""
    sessions = []

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work(title: str) -> str:
        number = ran.once_more()
        sessions.append(db.session)
        assert list(db.session) == []
        if number < 3:
            conflict(db.session)
        db.session.add(Book(title=title))
        return f"attempt {number}"

    assert work("Emma") == "attempt 3"

    assert titles(any_engine) == ["Emma"]
    assert [transaction.attempt for transaction in ran.transactions] == [1, 2, 3]
    assert len({transaction.id for transaction in ran.transactions}) == 3
    assert [transaction.outcome for transaction in ran.transactions] == [
        Outcome.ROLLED_BACK,
        Outcome.ROLLED_BACK,
        Outcome.COMMITTED,
    ]
    assert ran.stored == [3]
    assert [will_retry for _, will_retry in ran.undone] == [True, True]
    assert log == [
        *["transaction_started", "after_rollback", "transaction_retried", "transaction_completed", "session_removed"]
        * 2,
        *["transaction_started", "before_commit", "after_commit", "transaction_completed", "session_removed"],
    ]
    retried = log.arguments[log.index("transaction_retried")]
    assert retried["transaction"] is ran.transactions[0]
    assert isinstance(retried["error"], DBAPIError)
    assert (retried["attempt"], retried["delay"]) == (1, 0.0)


def test_exhausted(db: UnitOfWork, any_engine: Engine, ran: Ran, log: Log) -> None:
    """Y3: the original error goes on, with a note; the last on_rollback hook knows that it is the last."""

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        conflict(db.session)

    with pytest.raises(OperationalError) as caught:
        work()

    assert ran.times == 2
    assert caught.value.__notes__ == ["This was attempt 2 of 2 of test_exhausted.<locals>.work(); there are no more."]
    assert [will_retry for _, will_retry in ran.undone] == [True, False]
    assert log.count("transaction_retried") == 1
    assert count(any_engine) == 0


@pytest.mark.parametrize("ending", ["returns", "raises", "asks for a rollback"])
def test_swallowed_conflict(db: UnitOfWork, any_engine: Engine, ran: Ran, ending: str) -> None:
    """Y3: it is remembered, whatever the function does afterwards."""

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> str:
        if ran.once_more() == 1:
            with suppress(DBAPIError):
                conflict(db.session)
            if ending == "raises":
                raise LookupError
            if ending == "asks for a rollback":
                db.set_rollback_only()
            return "a half"
        db.session.add(Book(title="Emma"))
        return "whole"

    assert work() == "whole"
    assert (ran.times, titles(any_engine)) == (2, ["Emma"])


def test_swallowed_conflict_without_strictness(any_engine: Engine) -> None:
    """UOW_STRICT = False leaves it to the database; one that has given the transaction up asks for another attempt."""
    if any_engine.dialect.name != "postgresql":
        pytest.skip("the others go on")
    ran = Ran(UnitOfWork(sessionmaker(any_engine), strict=False))
    db = ran.db

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        if ran.once_more() == 1:
            with suppress(DBAPIError):
                conflict(db.session)
        else:
            db.session.add(Book(title="Emma"))

    work()
    assert (ran.times, titles(any_engine)) == (2, ["Emma"])


class Stop(BaseException):
    """What is no Exception."""


@pytest.mark.parametrize("error", [LookupError(), Stop(), StaleDataError(), ExceptionGroup("many", [LookupError()])])
def test_other_errors_are_not_retried(db: UnitOfWork, ran: Ran, error: BaseException) -> None:
    """What is not the database's wish for another attempt goes on as it is, without a note."""

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        raise error

    with pytest.raises(type(error)):
        work()
    assert ran.times == 1
    assert not hasattr(error, "__notes__")


def test_conflict_that_a_stop_has_interrupted(db: UnitOfWork, ran: Ran) -> None:
    """Somebody wants to end the program: that is no time for another attempt, whatever came before."""

    @db.transactional(attempts=3, backoff=AT_ONCE, retry_on=Exception)
    def work() -> None:
        ran.once_more()
        with suppress(DBAPIError):
            conflict(db.session)
        raise Stop

    with pytest.raises(Stop):
        work()
    assert ran.times == 1


def test_stop_that_became_an_error(db: UnitOfWork, ran: Ran) -> None:
    """What is no Exception is no reason for another attempt, even where it was turned into one."""

    @db.transactional(attempts=3, backoff=AT_ONCE, retry_on=lambda error: isinstance(error, Stop))
    def work() -> None:
        ran.once_more()
        raise LookupError from Stop()

    with pytest.raises(LookupError):
        work()
    assert ran.times == 1


def test_swallowed_to_the_end(db: UnitOfWork, ran: Ran) -> None:
    """A function that swallows every conflict and asks for a rollback returns in the end, as without attempts."""

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> str:
        ran.once_more()
        db.set_rollback_only()
        with suppress(DBAPIError):
            conflict(db.session)
        return "quiet"

    assert work() == "quiet"
    assert ran.times == 2


def test_constraint_is_not_retried(db: UnitOfWork, ran: Ran) -> None:
    """The same work would fail in the same way."""

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        db.session.execute(text("INSERT INTO book (id, title) VALUES (1, 'Emma'), (1, 'Persuasion')"))

    with pytest.raises(IntegrityError):
        work()
    assert ran.times == 1


def never(_error: Exception) -> bool:
    return False


def is_stale(error: Exception) -> bool:
    return isinstance(error, StaleDataError)


def fails(_error: Exception) -> bool:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("retry_on", "times"),
    [(StaleDataError, 3), ((LookupError, StaleDataError), 3), (is_stale, 3), ((), 1), (never, 1), (fails, 1)],
)
@pytest.mark.parametrize("wrap", ["", "from", "group", "context"])
def test_retry_on(  # noqa: PLR0917 - fixtures and parameters
    db: UnitOfWork,
    ran: Ran,
    caplog: pytest.LogCaptureFixture,
    retry_on: type[Exception] | Callable[[Exception], bool],
    times: int,
    wrap: str,
) -> None:
    """Y2: classes or a predicate add to the database's own wishes; causes and groups are searched."""

    @db.transactional(attempts=3, retry_on=retry_on, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        stale = StaleDataError()
        if wrap == "from":
            raise RuntimeError from stale
        if wrap == "group":
            raise ExceptionGroup("many", [ValueError(), ExceptionGroup("more", [stale])])
        if wrap == "context":
            try:
                raise stale
            except StaleDataError:
                raise RuntimeError  # noqa: B904 - that is what is tested
        raise stale

    with pytest.raises((StaleDataError, RuntimeError, ExceptionGroup)):
        work()
    assert ran.times == times
    assert ("retry_on" in caplog.text) == (retry_on is fails)


def test_what_was_being_handled_before_does_not_count(db: UnitOfWork, ran: Ran) -> None:
    """A function that is called while a conflict is handled has errors of its own."""

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        raise LookupError

    with pytest.raises(LookupError):
        try:
            with db.transaction() as session:
                conflict(session)
        except DBAPIError:
            work()
    assert ran.times == 1


# Nested and stacked


@pytest.mark.parametrize("propagation", [Propagation.REQUIRED, Propagation.NESTED])
def test_only_the_outermost_is_run_again(
    db: UnitOfWork, any_engine: Engine, ran: Ran, propagation: Propagation
) -> None:
    """A conflict in a joined block or in a savepoint restarts the whole, and attempts do not multiply."""
    inner_times: list[int] = []

    @db.transactional(attempts=5, propagation=propagation, backoff=AT_ONCE)
    def inner(number: int) -> None:
        inner_times.append(number)
        db.session.add(Book(title="inner"))
        if number < 3:
            conflict(db.session)

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def outer() -> None:
        number = ran.once_more()
        db.session.add(Book(title="outer"))
        inner(number)

    outer()

    assert (ran.times, inner_times) == (3, [1, 2, 3])
    assert titles(any_engine) == ["inner", "outer"]


def test_stacked_decorators(db: UnitOfWork, ran: Ran) -> None:
    """Two decorators with three attempts each are three attempts."""

    @db.transactional(attempts=3, backoff=AT_ONCE)
    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        conflict(db.session)

    with pytest.raises(OperationalError):
        work()
    assert ran.times == 3


def test_with_block_does_not_repeat_its_function(db: UnitOfWork, ran: Ran) -> None:
    """Inside a with block there is nothing to run again: the block cannot, and the function has joined it."""

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        conflict(db.session)

    with pytest.raises(OperationalError), db.transaction():
        work()
    assert ran.times == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_attempts_of_another_transaction_do_not_multiply(any_engine: Engine, wrapped: bool) -> None:
    """A REQUIRES_NEW block that has given up is no reason to run everything around it again."""
    if any_engine.dialect.name == "sqlite":
        pytest.skip("the suspended transaction would hold its one lock")
    ran = Ran(UnitOfWork(sessionmaker(any_engine)))
    db = ran.db
    outer_times: list[int] = []

    @db.transactional(attempts=2, propagation=Propagation.REQUIRES_NEW, backoff=AT_ONCE)
    def inner() -> None:
        ran.once_more()
        conflict(db.session)

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def outer() -> None:
        outer_times.append(1)
        try:
            inner()
        except OperationalError as error:
            if wrapped:
                raise RuntimeError from error
            raise

    with pytest.raises((OperationalError, RuntimeError)):
        outer()
    assert (ran.times, len(outer_times)) == (2, 1)


# What keeps it from being run again


def test_committed_by_hand(db: UnitOfWork, any_engine: Engine, ran: Ran, caplog: pytest.LogCaptureFixture) -> None:
    """Work that is stored already would be done twice."""

    @db.transactional(attempts=3, manual_commit="allow", backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        db.session.add(Book(title="Emma"))
        db.session.commit()
        conflict(db.session)

    with pytest.raises(OperationalError) as caught:
        work()
    assert (ran.times, titles(any_engine)) == (1, ["Emma"])
    assert "committed" in caught.value.__notes__[0]
    assert "is not run again" in caplog.text


def test_rolled_back_by_hand(db: UnitOfWork, any_engine: Engine, ran: Ran) -> None:
    """A rollback by hand leaves nothing that could be done twice."""

    @db.transactional(attempts=3, manual_commit="allow", backoff=AT_ONCE)
    def work() -> None:
        db.session.add(Book(title="Emma"))
        db.session.rollback()
        if ran.once_more() < 3:
            conflict(db.session)
        db.session.add(Book(title="Persuasion"))

    work()
    assert (ran.times, titles(any_engine)) == (3, ["Persuasion"])
    assert [transaction.attempt for transaction in ran.transactions] == [1, 2, 3]


def test_failing_hook_is_not_retried(any_engine: Engine) -> None:
    """The work is stored, whatever the hook's own transaction ran into."""
    ran = Ran(UnitOfWork(sessionmaker(any_engine), hook_errors="raise"))
    db = ran.db

    def hook() -> None:
        with db.transaction() as session:
            conflict(session)

    @db.transactional(attempts=3, retry_on=Exception, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        db.session.add(Book(title="Emma"))
        db.on_commit(hook)

    with pytest.raises(HookError):
        work()
    assert (ran.times, titles(any_engine)) == (1, ["Emma"])


def test_hook_that_fails_between_attempts(any_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and keeps nothing from the next attempt."""
    ran = Ran(UnitOfWork(sessionmaker(any_engine), hook_errors="raise"))
    db = ran.db

    def undone(_error: BaseException | None) -> None:
        raise ZeroDivisionError

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> str:
        if ran.once_more() == 1:
            db.on_rollback(undone)
            db.set_rollback_only()
            with suppress(DBAPIError):
                conflict(db.session)
        return "done"

    assert work() == "done"
    assert ran.times == 2
    assert "on_rollback hook" in caplog.text


def test_changes_from_before(app: Flask, any_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What was written before the function would be undone and missing, so that it is not run again."""
    ran = Ran(UnitOfWork(sessionmaker(any_engine), app))
    db = ran.db

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        conflict(db.session)

    with app.app_context():
        if any_engine.dialect.name == "sqlite":
            # Its rival wants the lock.
            db.session.add(Book(title="Emma"))
        else:
            db.session.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        with pytest.raises((OperationalError, sqlite3.OperationalError)):
            work()
    assert ran.times == 1
    assert "had changes from before it began" in caplog.text


def test_objects_from_before_stay(app: Flask, any_engine: Engine) -> None:
    """What was loaded before is in the session still, and is read anew; what an attempt has loaded is not."""
    with Session(any_engine) as session, session.begin():
        session.add_all([Book(id=1, title="Emma"), Book(id=2, title="Persuasion")])
    ran = Ran(UnitOfWork(sessionmaker(any_engine), app))
    db = ran.db
    loaded: list[Book] = []

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work(given: Book) -> None:
        number = ran.once_more()
        assert given in db.session
        assert given.title == "Emma"
        given.title = "changed in vain"
        assert list(db.session) == [given]
        loaded.append(db.session.get_one(Book, 2))
        if number == 1:
            db.session.add(Book(title="Sanditon"))
            with db.session.no_autoflush:
                conflict(db.session)
        given.title = "changed"

    with app.app_context():
        work(db.session.get_one(Book, 1))
        assert inspect(loaded[0]).detached
        assert loaded[1] in db.session
    assert titles(any_engine) == ["Persuasion", "changed"]


# Time


class Slept(list[float]):
    """How long somebody would have waited."""


def runtime_of(engine: Engine, slept: Slept) -> Runtime:
    source = SessionSource(sessionmaker(engine), Session.close)
    return Runtime(
        source, Publisher(object(), journal=Journal()), no_opinion, "error", lambda: "log", sleep=slept.append
    )


def run(runtime: Runtime, options: Options, work: Callable[[Session], None]) -> int:
    """Run *work* as a decorated function is, and return how often it ran."""
    attempts = None
    times = 0
    while True:
        block = Block(lambda: (runtime, None), options, "work", can_repeat=True, attempts=attempts)
        times += 1
        try:
            with block as session:
                work(session)
        except DBAPIError:
            assert block.attempts is not None
            if block.attempts.delay is None:
                return times
            attempts = block.attempts
            attempts.wait()


def test_backoff(engine: Engine) -> None:
    """The waits grow up to a cap."""
    slept = Slept()
    backoff = Backoff(base=1, cap=5, jitter=False)

    times = run(runtime_of(engine, slept), check_options({"attempts": 6, "backoff": backoff}, decorator=True), conflict)

    assert times == 6
    assert slept == [1, 2, 4, 5, 5]


def test_deadline(engine: Engine) -> None:
    """T9: there is one deadline for all attempts, and none begins that could not end before it."""
    impatient = create_engine(engine.url, connect_args={"timeout": 0})
    slept = Slept()
    backoff = Backoff(base=400, cap=10_000, jitter=False)
    options = check_options({"attempts": 6, "backoff": backoff, "timeout": 1000}, decorator=True)

    assert run(runtime_of(impatient, slept), options, conflict) == 3
    assert slept == [400, 800]
    impatient.dispose()


def test_timeout_is_not_retried(db: UnitOfWork, any_engine: Engine, ran: Ran) -> None:
    """A transaction that has used up its time has none for another attempt, also where SQLite was locked for it."""

    @db.transactional(attempts=3, timeout=0.05, backoff=AT_ONCE)
    def work() -> None:
        ran.once_more()
        if any_engine.dialect.name == "sqlite":
            rival = sqlite3.connect(str(any_engine.url.database))
            try:
                rival.execute("BEGIN EXCLUSIVE")
                db.session.execute(text("SELECT * FROM book"))
            finally:
                rival.close()
        while True:
            db.session.execute(text("SELECT 1"))

    with pytest.raises(TransactionTimeoutError):
        work()
    assert ran.times == 1


# At COMMIT, and elsewhere


def test_conflict_at_commit_alone(postgresql: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """C3: a serialization failure that only COMMIT finds is the server's answer, and is retried."""
    caplog.set_level(logging.INFO, "flask_uow")
    with postgresql.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON book DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
                "WHEN (NEW.title = 'first') EXECUTE FUNCTION conflict()"
            )
        )
    ran = Ran(UnitOfWork(sessionmaker(postgresql), resolve_commit=True))
    db = ran.db

    @db.transactional(attempts=3, backoff=AT_ONCE)
    def work() -> None:
        db.session.add(Book(title="first" if ran.once_more() == 1 else "second"))

    work()

    assert (ran.times, ran.stored, titles(postgresql)) == (2, [2], ["second"])
    assert "Attempt 1 of 3" in caplog.text


def test_real_write_skew(postgresql: Engine) -> None:
    """Two serializable transactions that read what the other writes: one is run again, and sees the other's row."""
    ran = Ran(UnitOfWork(sessionmaker(postgresql)))
    db = ran.db

    @db.transactional(isolation_level="SERIALIZABLE", attempts=3, backoff=AT_ONCE)
    def work() -> None:
        number = ran.once_more()
        seen = db.session.scalar(text("SELECT count(*) FROM book"))
        if number == 1:
            with Session(postgresql.execution_options(isolation_level="SERIALIZABLE")) as other, other.begin():
                other.execute(text("SELECT count(*) FROM book"))
                other.add(Book(title=f"other saw {seen}"))
        db.session.add(Book(title=f"this saw {seen}"))

    work()
    assert (ran.times, titles(postgresql)) == (2, ["other saw 0", "this saw 1"])


def test_asynchronous_function(db: UnitOfWork, any_engine: Engine, ran: Ran) -> None:
    """It waits without blocking the loop."""

    @db.transactional(attempts=2, backoff=Backoff(base=0.001, jitter=False))
    async def work() -> str:
        await asyncio.sleep(0)
        if ran.once_more() == 1:
            conflict(db.session)
        db.session.add(Book(title="Emma"))
        return "done"

    assert asyncio.run(work()) == "done"
    assert (ran.times, titles(any_engine)) == (2, ["Emma"])


def test_deadlock_in_a_savepoint_on_mariadb(mariadb: Engine) -> None:
    """1305 is the tail of 1213: the savepoint is gone with the transaction, and the whole is run again."""
    ran = Ran(UnitOfWork(sessionmaker(mariadb)))
    db = ran.db
    with Session(mariadb) as session, session.begin():
        session.add_all([Book(id=1, title="1"), Book(id=2, title="2")])

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        number = ran.once_more()
        db.session.execute(text("UPDATE book SET title = 'mine' WHERE id = 1"))
        with suppress(DBAPIError), db.savepoint():
            if number == 1:
                # As at a deadlock, the transaction is gone with its savepoints.
                db.session.connection().connection.driver_connection.rollback()  # type: ignore[union-attr]
                conflict(db.session)

    work()
    assert ran.times == 2
    assert titles(mariadb) == ["2", "mine"]


def test_unexpected_rollback_is_what_it_is_without_attempts(db: UnitOfWork) -> None:
    """One attempt is the default, and nothing is told of any."""
    with pytest.raises(UnexpectedRollbackError) as caught, db.transaction() as session, suppress(DBAPIError):
        conflict(session)
    assert not hasattr(caught.value, "__notes__")


def test_deadlock_in_a_savepoint_of_the_users_own_on_mariadb(mariadb: Engine) -> None:
    """The whole is gone, and is run again; 1305 says only that the savepoint is."""
    ran = Ran(UnitOfWork(sessionmaker(mariadb)))
    db = ran.db

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        number = ran.once_more()
        with db.session.begin_nested():
            db.session.add(Book(title="Emma"))
            db.session.flush()
            if number == 1:
                db.session.connection().connection.driver_connection.rollback()  # type: ignore[union-attr]
                with suppress(DBAPIError):
                    conflict(db.session)

    work()
    assert (ran.times, titles(mariadb)) == (2, ["Emma"])


def test_object_that_is_kept_between_contexts(any_engine: Engine) -> None:
    """Also where each attempt has a session of its own a change of it is not lost without a word."""
    with Session(any_engine) as session, session.begin():
        session.add(Book(id=1000, title="old"))
    ran = Ran(UnitOfWork(sessionmaker(any_engine)))
    db = ran.db
    kept: list[Book] = []

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        number = ran.once_more()
        if not kept:
            kept.append(db.session.get_one(Book, 1000))
        if number == 1:
            with suppress(DBAPIError, sqlite3.OperationalError):
                conflict(db.session)
            raise OperationalError("SELECT", {}, locked())
        kept[0].title = "new"
        db.session.execute(text("SELECT 1"))

    with pytest.raises(ConfigurationError, match="was loaded by an attempt that has failed"):
        work()
    assert titles(any_engine) == ["old"]
    kept[0].title = "for display"
    with db.transaction() as session:
        session.add(Book(title="Emma"))


def locked() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    return error


def test_one_error_many_times(db: UnitOfWork) -> None:
    """An error object that is raised again and again has one note."""
    error = OperationalError("SELECT", {}, locked())

    @db.transactional(attempts=2, backoff=AT_ONCE)
    def work() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(OperationalError):
            work()
    assert len(error.__notes__) == 1


def test_coroutine_that_is_closed_elsewhere(db: UnitOfWork, ran: Ran) -> None:
    """It takes nothing from whoever runs there."""

    @db.transactional(attempts=2, backoff=AT_ONCE)
    async def waiting() -> None:
        await asyncio.sleep(0)

    coroutine = waiting()
    copy_context().run(coroutine.send, None)

    @db.transactional(attempts=2, retry_on=LookupError, backoff=AT_ONCE, manual_commit="allow")
    def work() -> None:
        ran.once_more()
        db.session.execute(text("SELECT 1"))
        coroutine.close()
        db.session.add(Book(title="Emma"))
        db.session.commit()
        raise LookupError

    with pytest.raises(LookupError):
        work()
    assert ran.times == 1
