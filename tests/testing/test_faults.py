from __future__ import annotations

import re
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool

from flask_uow import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    TransactionDoomedError,
    UnexpectedRollbackError,
    UnitOfWork,
)
from flask_uow._core.faults import Fault, asks_for_another_attempt, fault_of
from flask_uow.testing import inject, isolate, record
from tests.conftest import Base, Book
from tests.testing.conftest import Shop, make_shop


@pytest.fixture(params=["plain", "isolated"])
def wrapped_shop(request: pytest.FixtureRequest, any_shop: Shop) -> Any:
    """The app as it is, and isolated."""
    with isolate(any_shop.uow) if request.param == "isolated" else nullcontext():
        yield any_shop


def stored(shop: Shop) -> list[str]:
    seen: list[str] = shop.client.get("/").json  # type: ignore[assignment] # it is a list
    return seen


# Serialization failures and deadlocks


@pytest.mark.parametrize("fault", ["serialization_failure", "deadlock"])
@pytest.mark.parametrize("at", [None, 1, "INSERT", re.compile("insert", re.IGNORECASE), "commit"])
def test_retried(wrapped_shop: Shop, fault: Any, at: Any) -> None:
    """A view that may run again does, whether a statement or the COMMIT fails, and its work is stored once."""
    with inject(wrapped_shop.uow, fault, at=at, times=2) as injection:
        response = wrapped_shop.client.post("/again/Emma")

    assert (response.text, injection.struck) == ("3", 2)
    assert stored(wrapped_shop) == ["Emma"]
    assert wrapped_shop.done == [*["lost Emma"] * (2 if at == "commit" else 0), "stored Emma"]


@pytest.mark.parametrize("fault", ["serialization_failure", "deadlock"])
def test_error_of_the_driver(wrapped_shop: Shop, fault: Any) -> None:
    """The error is one of the driver's, with its code, and with the statement that it was sent for."""
    with (
        inject(wrapped_shop.uow, fault),
        pytest.raises(DBAPIError) as caught,
        wrapped_shop.uow.transaction() as session,
    ):
        session.execute(text("SELECT 77"))

    error = caught.value
    assert error.statement == "SELECT 77"
    assert isinstance(error.orig, wrapped_shop.engine.dialect.loaded_dbapi.Error)
    assert asks_for_another_attempt(error)
    if wrapped_shop.engine.dialect.name != "sqlite":
        assert fault_of(error) is Fault[fault.upper()]
    assert not error.connection_invalidated


def test_transaction_of_the_server_is_given_up(postgresql: Engine) -> None:
    """PostgreSQL itself has given the transaction up, and refuses what comes after."""
    uow = UnitOfWork(sessionmaker(postgresql), strict=False)

    with inject(uow, "deadlock"), pytest.raises(UnexpectedRollbackError), uow.transaction() as session:
        with suppress(SQLAlchemyError):
            session.execute(text("SELECT 1"))
        with pytest.raises(DBAPIError, match="current transaction is aborted"):
            session.execute(text("SELECT 1"))


def test_swallowed(wrapped_shop: Shop) -> None:
    """One that is swallowed dooms the transaction, as any does."""
    with (
        inject(wrapped_shop.uow, "deadlock"),
        pytest.raises(TransactionDoomedError),
        wrapped_shop.uow.transaction() as session,
    ):
        with suppress(DBAPIError):
            session.execute(text("SELECT 1"))
        session.execute(text("SELECT 2"))

    assert stored(wrapped_shop) == []


# Where it strikes


def test_number_of_a_statement(shop: Shop) -> None:
    """A number counts the statements of each transaction, without those that begin and end savepoints."""
    with inject(shop.uow, "deadlock", at=2, times=5) as injection:
        for _ in range(2):
            with pytest.raises(OperationalError), shop.uow.transaction() as session:
                session.execute(text("SELECT 1"))
                with session.begin_nested():
                    session.execute(text("SELECT 2"))
        with shop.uow.transaction() as session:
            session.execute(text("SELECT 3"))

    assert injection.struck == 2


def test_number_outside_a_transaction(shop: Shop) -> None:
    """Outside any transaction the statements count from where the session has begun."""
    with inject(shop.uow, "deadlock", at=2) as injection, shop.app.app_context():
        for _ in range(2):
            shop.uow.session.execute(text("SELECT 1"))
            shop.uow.session.rollback()
        struck = injection.struck
        shop.uow.session.execute(text("SELECT 1"))
        with pytest.raises(OperationalError):
            shop.uow.session.execute(text("SELECT 2"))

    assert (struck, injection.struck) == (0, 1)


def test_no_more_than_that(shop: Shop) -> None:
    """It strikes as often as it was told, and not after its end."""
    with inject(shop.uow, "deadlock", at="SELECT") as injection, shop.uow.transaction(name="a") as session:
        with pytest.raises(OperationalError), session.begin_nested():
            session.execute(text("SELECT 1"))
        session.execute(text("SELECT 1"))
    with inject(shop.uow, "deadlock", at="nowhere") as other:
        shop.client.post("/Emma")
    shop.client.post("/Sanditon")

    assert (injection.struck, other.struck) == (1, 0)
    assert stored(shop) == ["Emma", "Sanditon"]
    assert repr(injection) == "<Injection of 'deadlock' at 'SELECT', struck 1 of 1 times>"
    assert repr(inject(shop.uow, "deadlock")) == "<Injection of 'deadlock' at 1, struck 0 of 1 times>"


def test_other_objects_are_left_alone(shop: Shop) -> None:
    """Another UnitOfWork on the same engine does not fail."""
    other = UnitOfWork(shop.engine)

    with inject(shop.uow, "deadlock") as injection, other.transaction() as session:
        session.execute(text("SELECT 1"))

    assert injection.struck == 0


def test_beside_a_recording(shop: Shop) -> None:
    """What was to be sent is recorded, and that it was rolled back."""
    with record(shop.uow) as recording, inject(shop.uow, "deadlock", at="commit"):
        shop.client.post("/again/Emma")

    recording.assert_rolled_back()
    recording.assert_committed()
    assert len(recording.statements) == 2


def test_one_after_the_other(shop: Shop) -> None:
    """A connection that is in use already is listened to once, however many want to strike."""
    sent: list[str] = []
    with shop.uow.transaction() as session:
        session.execute(text("SELECT 0"))
        with (
            inject(shop.uow, "deadlock", at="SELECT 1") as first,
            inject(shop.uow, "deadlock", at="SELECT 2") as second,
        ):
            for number in (1, 2, 3):
                with suppress(OperationalError), session.begin_nested():
                    session.execute(text(f"SELECT {number}"))
                    sent.append(f"SELECT {number}")

    assert (first.struck, second.struck) == (1, 1)
    assert sent == ["SELECT 3"]


# Lost connections


def test_disconnect(any_shop: Shop) -> None:
    """The connection is lost for real: its work too, and the next request has another one."""
    any_shop.client.post("/Emma")
    with inject(any_shop.uow, "disconnect", at="INSERT") as injection, pytest.raises(DBAPIError) as caught:
        any_shop.client.post("/Sanditon")

    assert caught.value.connection_invalidated
    assert fault_of(caught.value) is Fault.DISCONNECT
    assert injection.struck == 1
    assert stored(any_shop) == ["Emma"]


def test_disconnect_in_isolation(any_shop: Shop) -> None:
    """Isolated, it looks the same to the app, and what the test has done before is there still."""
    with isolate(any_shop.uow) as [connection]:
        any_shop.client.post("/Emma")
        with inject(any_shop.uow, "disconnect", at="INSERT"), pytest.raises(DBAPIError) as caught:
            any_shop.client.post("/Sanditon")
        seen = stored(any_shop)
        is_alive = not connection.invalidated

    assert caught.value.connection_invalidated
    assert fault_of(caught.value) is Fault.DISCONNECT
    assert (seen, is_alive) == (["Emma"], True)


def test_disconnect_at_commit(wrapped_shop: Shop) -> None:
    """Nobody knows what became of the COMMIT: no hook runs, and the next request works."""
    with inject(wrapped_shop.uow, "disconnect_at_commit") as injection, pytest.raises(CommitOutcomeUnknownError):
        wrapped_shop.client.post("/Emma")
    wrapped_shop.client.post("/Sanditon")

    assert injection.struck == 1
    assert wrapped_shop.done == ["stored Sanditon"]
    assert stored(wrapped_shop) == ["Sanditon"]


@pytest.mark.parametrize("is_isolated", [False, True])
def test_disconnect_at_commit_is_looked_into(any_shop: Shop, is_isolated: bool) -> None:
    """Who verifies what became of the COMMIT learns that nothing is stored."""
    uow = any_shop.uow
    if not is_isolated and any_shop.engine.dialect.name == "sqlite":
        pytest.skip("SQLite cannot tell whether a COMMIT may still come, and it would be asked for 5 s")
    asked = []

    def is_stored(session: Session) -> bool:
        asked.append(session.scalars(select(Book.title)).all())
        return bool(asked[-1])

    with isolate(uow) if is_isolated else nullcontext():
        with (
            inject(uow, "disconnect", at="commit"),
            pytest.raises(DBAPIError),
            uow.transaction(verify=is_stored) as session,
        ):
            session.add(Book(title="Emma"))
        seen = stored(any_shop)

    assert set(map(tuple, asked)) == {()}
    assert seen == []


def test_verify_that_is_wrong(shop: Shop) -> None:
    """Isolated, a function that says that the work is stored is believed, as it is in production."""
    with isolate(shop.uow):
        with inject(shop.uow, "disconnect_at_commit"), shop.uow.transaction(verify=lambda _: True) as session:
            session.add(Book(title="Emma"))
            shop.uow.on_commit(shop.done.append, "stored")
        shop.client.post("/Sanditon")
        seen = stored(shop)

    assert shop.done == ["stored", "stored Sanditon"]
    assert seen == ["Sanditon"]


def test_rollback_after_a_lost_answer(any_shop: Shop) -> None:
    """What was found out to be stored does not come back with the next rollback."""
    with isolate(any_shop.uow), any_shop.app.app_context():
        session = any_shop.uow.session
        with inject(any_shop.uow, "disconnect_at_commit"), any_shop.uow.transaction(verify=lambda _: True):
            session.add(Book(title="Emma"))
        with suppress(LookupError), any_shop.uow.transaction():
            session.add(Book(title="Sanditon"))
            session.flush()
            raise LookupError
        seen = session.scalars(select(Book.title)).all()

    assert "Sanditon" not in seen
    assert stored(any_shop) == []


def _fails_with(engine: Engine) -> None:
    shop = make_shop(engine)
    with inject(shop.uow, "serialization_failure"):
        again = shop.client.post("/again/Emma").text
    with inject(shop.uow, "disconnect_at_commit"), pytest.raises(CommitOutcomeUnknownError):
        shop.client.post("/Sanditon")

    assert again == "2"
    assert stored(shop) == ["Emma"]
    engine.dispose()


def test_psycopg2(postgresql: Engine) -> None:
    """Another driver of PostgreSQL fails as well with errors of its own."""
    _fails_with(create_engine(postgresql.url.set(drivername="postgresql+psycopg2")))


def test_driver_that_hides_its_socket(mariadb: Engine) -> None:
    """The connection of a driver whose socket is not to be had is closed."""
    _fails_with(create_engine(mariadb.url.set(drivername="mysql+mysqlconnector", query={})))


class Other(SQLiteDialect_pysqlite):
    """A database that calls itself by another name."""

    name = "other"
    supports_statement_cache = True


def test_database_that_nobody_has_tried(tmp_path: Path) -> None:
    """Where it is not known how a fault looks, that is said."""
    registry.register("other", __name__, "Other")
    engine = create_engine(f"other:///{tmp_path / 'other.db'}")
    uow = UnitOfWork(engine)

    with (
        inject(uow, "deadlock"),
        pytest.raises(ConfigurationError, match="Give it an exception of the driver's"),
        uow.transaction() as session,
    ):
        session.execute(text("SELECT 1"))

    engine.dispose()


def test_memory_cannot_be_lost() -> None:
    """A database in memory would be gone with its connection: that is refused, and isolated it is not lost."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    shop = make_shop(engine)

    with inject(shop.uow, "disconnect"), pytest.raises(ConfigurationError, match="a database in memory"):
        shop.client.post("/Emma")
    with isolate(shop.uow):
        with inject(shop.uow, "disconnect"), pytest.raises(DBAPIError):
            shop.client.post("/Emma")
        shop.client.post("/Sanditon")
        seen = stored(shop)

    assert seen == ["Sanditon"]
    engine.dispose()


# Exceptions


@pytest.mark.parametrize("at", [1, "commit"])
def test_exception_of_ones_own(wrapped_shop: Shop, at: Any) -> None:
    """An exception is raised as it is, an instance or one of a class."""
    error = LookupError("no book")

    with inject(wrapped_shop.uow, error, at=at), pytest.raises(LookupError) as caught:
        wrapped_shop.client.post("/Emma")
    with inject(wrapped_shop.uow, LookupError, at=at), pytest.raises(LookupError) as of_class:
        wrapped_shop.client.post("/Emma")

    assert caught.value is error
    assert of_class.value is not error

    assert stored(wrapped_shop) == []


def test_interrupt(any_shop: Shop) -> None:
    """What interrupts a program is raised as well."""
    with inject(any_shop.uow, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        any_shop.client.post("/Emma")

    assert stored(any_shop) == []


@pytest.mark.parametrize("at", [1, "commit"])
def test_error_of_sqlalchemy(wrapped_shop: Shop, at: Any) -> None:
    """An error of SQLAlchemy's is what it makes of the driver's, or of one of that kind."""
    driver = wrapped_shop.engine.dialect.loaded_dbapi
    real = driver.IntegrityError("no two of them")

    for given in (IntegrityError("?", {}, real), IntegrityError("?", {}, Exception("no two of them")), real):
        with inject(wrapped_shop.uow, given, at=at), pytest.raises(IntegrityError, match="no two of them") as caught:
            wrapped_shop.client.post("/Emma")
        assert caught.value.statement != "?"
        assert isinstance(caught.value.orig, driver.IntegrityError)

    assert stored(wrapped_shop) == []
    wrapped_shop.client.post("/Sanditon")
    assert stored(wrapped_shop) == ["Sanditon"]


# What it takes


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        (("deadlok",), {}, "error is 'deadlok'; it must be one of 'serialization_failure', 'deadlock'"),
        ((7,), {}, "error is 7"),
        ((int,), {}, "error is <class 'int'>"),
        (("deadlock",), {"times": 0}, "times is 0; it must be a whole number"),
        (("deadlock",), {"times": True}, "times is True"),
        (("deadlock",), {"at": 0}, "at is 0; it must be the number of a statement"),
        (("deadlock",), {"at": True}, "at is True"),
        (("deadlock",), {"at": "("}, r"at is '\('"),
        (("deadlock",), {"at": 1.5}, "at is 1.5"),
        (("disconnect_at_commit",), {"at": 1}, 'at is 1; "disconnect_at_commit" strikes at the COMMIT'),
    ],
)
def test_wrong_arguments(shop: Shop, args: tuple[Any], options: dict[str, Any], match: str) -> None:
    """A wrong argument is refused at once, with what is allowed."""
    with pytest.raises(ConfigurationError, match=match):
        inject(shop.uow, *args, **options)


def test_what_it_is_injected_into() -> None:
    """It takes a UnitOfWork."""
    with pytest.raises(ConfigurationError, match="its first argument is a UnitOfWork"):
        inject("deadlock", "deadlock")  # type: ignore[arg-type] # what is tested


def test_disconnect_at_commit_where_it_is() -> None:
    """Saying where a COMMIT is lost is no contradiction."""
    assert inject(UnitOfWork(sessionmaker()), "disconnect_at_commit", at="commit").struck == 0
