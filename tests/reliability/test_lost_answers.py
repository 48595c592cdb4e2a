"""The answer to a COMMIT is lost: stored, rolled back, or unknown, and never twice."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import Backoff, CommitOutcomeUnknownError, Outcome, Propagation, UnitOfWork
from tests.conftest import Book, Loan, Log, count, titles
from tests.reliability.conftest import Cut, Proxy

FATES = [("before", "rolled back"), ("after", "committed"), ("half-open", "unknown")]


class Shop:
    """An app with one view that writes, and what its hooks were told."""

    def __init__(self, engine: Engine, app: Flask, **options: Any) -> None:
        self.uow = UnitOfWork(sessionmaker(engine), app)
        self.app = app
        self.hooks: list[str] = []
        self.calls = 0
        self.errors: list[BaseException] = []

        @app.post("/<title>")
        @self.uow.transactional(**options)
        def view(title: str) -> str:
            self.calls += 1
            self.uow.on_commit(self.hooks.append, f"stored {title}")
            self.uow.on_rollback(lambda _error: self.hooks.append(f"undone {title}"))
            self.uow.session.add(Book(title=title))
            return "stored"

        @app.errorhandler(CommitOutcomeUnknownError)
        def unknown(error: CommitOutcomeUnknownError) -> tuple[str, int]:
            self.errors.append(error)
            return "unknown", 503

        @app.errorhandler(OperationalError)
        def failed(error: OperationalError) -> tuple[str, int]:
            self.errors.append(error)
            # A handler can query at once.
            return str(len(self.uow.session.scalars(select(Book)).all())), 500

    def quick(self, patience: float) -> None:
        """Have less patience when the outcome is asked for."""
        managed = self.app.extensions["uow"].dispatch.managed[self.uow]
        managed.runtime = replace(managed.runtime, patience=patience)

    def post(self, title: str = "Emma") -> tuple[int, str]:
        response = self.app.test_client().post(f"/{title}")
        return response.status_code, response.text


@pytest.mark.parametrize(("cut", "fate"), FATES)
def test_resolved(  # noqa: PLR0917 - fixtures and parameters
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, log: Log, cut: Cut, fate: str
) -> None:
    """C2: PostgreSQL is asked by the transaction's id: stored and answered, undone, or not known."""
    engine, proxy = proxied
    shop = Shop(engine, app, resolve_commit=True, attempts=3, backoff=Backoff(base=0))
    shop.quick(0.5)
    proxy.cut = cut

    answer = shop.post()

    assert proxy.cuts == 1
    assert shop.calls == 1, "a disconnect is not retried unless retry_on says so"
    completed = log.arguments[log.index("transaction_completed")]
    if fate == "committed":
        assert (answer, shop.hooks, titles(postgresql)) == ((200, "stored"), ["stored Emma"], ["Emma"])
        assert completed["outcome"] is Outcome.COMMITTED
        assert log[:3] == ["transaction_started", "before_commit", "after_commit"]
    elif fate == "rolled back":
        assert (answer, shop.hooks, titles(postgresql)) == ((500, "0"), ["undone Emma"], [])
        assert completed["outcome"] is Outcome.ROLLED_BACK
        assert isinstance(shop.errors[0], OperationalError)
    else:
        assert (answer, shop.hooks) == ((503, "unknown"), [])
        assert completed["outcome"] is Outcome.UNKNOWN
        assert log.count("after_commit") == log.count("after_rollback") == 0
        assert isinstance(shop.errors[0], CommitOutcomeUnknownError)
        assert "in progress" in shop.errors[0].reason
        assert (shop.errors[0].xact_id or "").isdigit()
    # The pool can be used, and no row appears twice.
    assert shop.post("Persuasion") == (200, "stored")
    assert titles(postgresql) == (["Emma"] if fate == "committed" else []) + ["Persuasion"]


@pytest.mark.parametrize("cut", ["before", "after", "half-open"])
def test_not_resolved(app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, log: Log, cut: Cut) -> None:
    """C1: without anybody to ask it is unknown each time: no hook, no retry, and what an operator needs."""
    engine, proxy = proxied
    shop = Shop(engine, app, attempts=3, retry_on=Exception, backoff=Backoff(base=0))
    proxy.cut = cut

    assert shop.post() == (503, "unknown")

    assert (proxy.cuts, shop.calls, shop.hooks) == (1, 1, [])
    error = shop.errors[0]
    assert isinstance(error, CommitOutcomeUnknownError)
    assert isinstance(error.__cause__, OperationalError)
    assert error.transaction_id == log.arguments[0]["transaction"].id  # type: ignore[attr-defined]
    assert (error.xact_id, "resolve_commit" in error.reason) == (None, True)
    assert "***" in error.database or "@" not in error.database or "postgres@" in error.database
    assert log.count("transaction_retried") == 0
    assert log[-1] == "session_removed"
    assert shop.post("Persuasion") == (200, "stored")
    assert titles(postgresql) == (["Emma"] if cut == "after" else []) + ["Persuasion"]


def test_rolled_back_is_retried_where_asked_for(app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine) -> None:
    """A COMMIT that is known to have been rolled back is an ordinary failure, and can be tried again."""
    engine, proxy = proxied
    shop = Shop(engine, app, resolve_commit=True, attempts=3, retry_on=OperationalError, backoff=Backoff(base=0))
    proxy.cut = "before"

    assert shop.post() == (200, "stored")
    assert (shop.calls, shop.hooks, titles(postgresql)) == (2, ["undone Emma", "stored Emma"], ["Emma"])


@pytest.mark.parametrize(("cut", "stored"), [("before", False), ("after", True)])
def test_verify(app: Flask, proxied_mariadb: tuple[Engine, Proxy], mariadb: Engine, cut: Cut, stored: bool) -> None:
    """C2: where the database cannot be asked for the transaction, the application knows what to look for."""
    engine, proxy = proxied_mariadb
    sessions: list[Session] = []

    def verify(session: Session) -> bool:
        sessions.append(session)
        assert shop.uow.session is session
        assert shop.uow.current_transaction is None
        return session.scalar(select(Book).where(Book.title == "Emma")) is not None

    shop = Shop(engine, app, verify=verify)
    proxy.cut = cut

    status, _ = shop.post()

    assert proxy.cuts == 1
    assert (status, titles(mariadb)) == ((200, ["Emma"]) if stored else (500, []))
    assert shop.hooks == (["stored Emma"] if stored else ["undone Emma"])
    assert len(set(map(id, sessions))) == len(sessions)


def test_unknown_on_mariadb(app: Flask, proxied_mariadb: tuple[Engine, Proxy], mariadb: Engine) -> None:
    """resolve_commit cannot help there, and does no harm."""
    engine, proxy = proxied_mariadb
    shop = Shop(engine, app, resolve_commit=True)
    proxy.cut = "after"

    assert shop.post() == (503, "unknown")
    assert (shop.hooks, titles(mariadb)) == ([], ["Emma"])


@pytest.mark.parametrize("answer", [None, LookupError("no"), OperationalError("SELECT", {}, Exception("gone"))])
def test_verify_that_does_not_know(
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, answer: Exception | None
) -> None:
    """A verify that forgets its return, or fails, says nothing: the outcome is unknown."""
    engine, proxy = proxied

    def verify(_session: Session) -> Any:
        if answer is not None:
            raise answer

    shop = Shop(engine, app, verify=verify)
    shop.quick(0.2)
    proxy.cut = "after"

    assert shop.post() == (503, "unknown")
    assert isinstance(shop.errors[0], CommitOutcomeUnknownError)
    assert "verify" in shop.errors[0].reason
    assert (shop.hooks, titles(postgresql)) == ([], ["Emma"])


def test_a_read_only_transaction_has_nothing_to_lose(app: Flask, proxied: tuple[Engine, Proxy]) -> None:
    """Nothing was stored either way, so the answer can go out."""
    engine, proxy = proxied
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.get("/")
    @uow.transactional(read_only=True)
    def view() -> str:
        return str(len(uow.session.scalars(select(Book)).all()))

    proxy.cut = "before"

    assert app.test_client().get("/").status_code == 200
    assert proxy.cuts == 1


def test_a_transaction_that_wrote_nothing(app: Flask, proxied: tuple[Engine, Proxy]) -> None:
    """PostgreSQL has no id for it, so there was nothing to lose, either."""
    engine, proxy = proxied
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_RESOLVE_COMMIT": True}
    uow = UnitOfWork(sessionmaker(engine), app)

    @app.get("/")
    def view() -> str:
        return str(len(uow.session.scalars(select(Book)).all()))

    proxy.cut = "before"

    assert app.test_client().get("/").status_code == 200
    assert proxy.cuts == 1


def test_objects_can_be_used_after_a_commit_that_was_resolved(
    proxied: tuple[Engine, Proxy], postgresql: Engine, log: Log
) -> None:
    """The session is as after any commit: its objects are in it, and are read again."""
    engine, proxy = proxied
    uow = UnitOfWork(sessionmaker(engine))

    with uow.transaction() as outer:
        with uow.transaction(propagation=Propagation.REQUIRES_NEW, resolve_commit=True) as session:
            book = Book(title="Emma")
            session.add(book)
            proxy.cut = "after"
        assert proxy.cuts == 1
        outer.add(Book(title="Persuasion"))

    with uow.transaction(resolve_commit=True, name="by hand", manual_commit="allow") as session:
        book = Book(title="Mansfield Park")
        session.add(book)
        proxy.cut = "after"
        session.commit()
        assert book in session
        assert book.title == "Mansfield Park"
    assert titles(postgresql) == ["Emma", "Mansfield Park", "Persuasion"]


@pytest.mark.parametrize(("retry_on", "status"), [((), 500), (OperationalError, 200)])
def test_a_connection_that_is_killed_before_commit(
    app: Flask, postgresql: Engine, retry_on: type[Exception] | tuple[()], status: int
) -> None:
    """pg_terminate_backend() in the middle of a transaction is an ordinary failure, retried only where asked for."""
    uow = UnitOfWork(sessionmaker(postgresql), app)
    calls: list[int] = []

    @app.post("/")
    @uow.transactional(attempts=3, retry_on=retry_on, backoff=Backoff(base=0))
    def view() -> str:
        session = uow.session
        calls.append(1)
        session.add(Book(title="Emma"))
        session.flush()
        if len(calls) == 1:
            pid = session.scalar(text("SELECT pg_backend_pid()"))
            with postgresql.connect() as other:
                other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        session.execute(text("SELECT 1"))
        return "stored"

    assert app.test_client().post("/").status_code == status
    assert (len(calls), count(postgresql)) == ((1, 0) if status == 500 else (2, 1))


def test_listener_that_fails_after_a_commit_that_was_resolved(
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """The work is stored, and told so; what a listener of the user's makes of it is logged."""
    engine, proxy = proxied
    shop = Shop(engine, app, resolve_commit=True)

    @event.listens_for(Session, "after_commit")
    def fail(_session: Session) -> None:
        raise ZeroDivisionError

    proxy.cut = "after"
    try:
        assert shop.post() == (200, "stored")
    finally:
        event.remove(Session, "after_commit", fail)
    assert (shop.hooks, titles(postgresql)) == (["stored Emma"], ["Emma"])
    assert "ZeroDivisionError" in caplog.text


class Interrupt(BaseException):
    """Somebody wants to end the program."""


@contextmanager
def raising_after_commit(engine: Engine, error: BaseException) -> Iterator[tuple[Engine, list[bool]]]:
    """An engine on the same database, whose driver raises *error* after it has committed, once the list has an item."""
    raises: list[bool] = []
    url = engine.url.set(drivername="postgresql").render_as_string()

    class Connection(psycopg.Connection[Any]):
        def commit(self) -> None:
            super().commit()
            if raises:
                raise error

    raising = create_engine(engine.url, creator=lambda: Connection.connect(url))
    with raising.connect():
        """The first connection commits, too."""
    yield raising, raises
    raising.dispose()


def test_interrupt_while_commit_is_on_its_way(app: Flask, postgresql: Engine, log: Log) -> None:
    """It goes on as it is; the outcome is not known, so neither kind of hook runs."""
    with raising_after_commit(postgresql, Interrupt()) as (engine, raises):
        shop = Shop(engine, app, resolve_commit=True)
        raises.append(True)

        with pytest.raises(Interrupt):
            shop.post()

        raises.clear()
        assert shop.hooks == []
        assert log.arguments[log.index("transaction_completed")]["outcome"] is Outcome.UNKNOWN
        assert log.count("after_commit") == log.count("after_rollback") == 0
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # it is a QueuePool
        assert titles(postgresql) == ["Emma"]


def test_driver_that_fails_without_an_error_of_its_own(app: Flask, postgresql: Engine) -> None:
    """An OSError in the driver's commit is no answer, either."""
    with raising_after_commit(postgresql, ConnectionResetError()) as (engine, raises):
        shop = Shop(engine, app, resolve_commit=True)
        raises.append(True)

        assert shop.post() == (200, "stored")

        assert (shop.hooks, titles(postgresql)) == (["stored Emma"], ["Emma"])


def test_listener_of_the_engine_is_no_lost_answer(app: Flask, engine: Engine, log: Log) -> None:
    """What a listener raises before COMMIT is sent is a rollback."""
    shop = Shop(engine, app)

    @event.listens_for(engine, "commit")
    def fail(_connection: object) -> None:
        raise ZeroDivisionError

    assert shop.post()[0] == 500
    assert shop.hooks == ["undone Emma"]
    assert log.arguments[log.index("transaction_completed")]["outcome"] is Outcome.ROLLED_BACK
    event.remove(engine, "commit", fail)


def test_connection_that_is_dead_at_teardown(app: Flask, postgresql: Engine) -> None:
    """A session that nobody settles is closed, although its ROLLBACK fails."""
    uow = UnitOfWork(sessionmaker(postgresql), app)

    @app.post("/")
    def view() -> str:
        uow.session.execute(text("SELECT 1"))
        connection = uow.session.connection().connection.driver_connection
        assert connection is not None
        connection.close()
        return "done"

    assert app.test_client().post("/").text == "done"
    assert postgresql.pool.checkedout() == 0  # type: ignore[attr-defined] # it is a QueuePool


def test_hook_of_a_transaction_that_wrote_nothing(app: Flask, proxied: tuple[Engine, Proxy]) -> None:
    """A notification is nothing that PostgreSQL has an id for; so its hook is not run for what may not have been."""
    engine, proxy = proxied
    uow = UnitOfWork(sessionmaker(engine), app, resolve_commit=True)
    told: list[str] = []

    @app.post("/")
    @uow.transactional
    def view() -> str:
        uow.session.execute(text("SELECT pg_notify('shop', 'sold')"))
        uow.on_commit(told.append, "sold")
        return "done"

    proxy.cut = "before"

    assert app.test_client().post("/").status_code == 500
    assert (proxy.cuts, told) == (1, [])


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt()])
def test_interrupt_while_somebody_is_asked(
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, log: Log, error: BaseException
) -> None:
    """It goes on, and nobody is told of a rollback that was none."""
    engine, proxy = proxied

    def verify(_session: Session) -> bool:
        raise error

    shop = Shop(engine, app, verify=verify)
    proxy.cut = "after"

    with pytest.raises(type(error)):
        shop.post()

    assert (shop.hooks, titles(postgresql)) == ([], ["Emma"])
    assert log.arguments[log.index("transaction_completed")]["outcome"] is Outcome.UNKNOWN
    assert log.count("after_rollback") == 0


def test_verify_does_not_overrule_what_is_in_progress(
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine
) -> None:
    """A row that is not to be seen yet can still come, as long as PostgreSQL says that its transaction is there."""
    engine, proxy = proxied
    shop = Shop(
        engine,
        app,
        resolve_commit=True,
        verify=lambda _: False,
        attempts=2,
        retry_on=Exception,
        backoff=Backoff(base=0),
    )
    shop.quick(0.2)
    proxy.cut = "half-open"

    assert shop.post() == (503, "unknown")
    assert (shop.calls, shop.hooks) == (1, [])


def test_verify_is_not_believed_while_the_session_is_there(
    app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine
) -> None:
    """Without resolve_commit it is the server's session that says whether the COMMIT can still be carried out."""
    engine, proxy = proxied
    shop = Shop(engine, app, verify=lambda _: False)
    shop.quick(0.2)
    proxy.cut = "half-open"

    assert shop.post() == (503, "unknown")
    assert shop.hooks == []
    assert "may still be carried out" in str(shop.errors[0])


def test_slow_commit(app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine) -> None:
    """A COMMIT that takes its time after the connection was lost is waited for."""
    with postgresql.begin() as connection:
        connection.execute(
            text(
                "CREATE OR REPLACE FUNCTION think() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN PERFORM pg_sleep(1.5); RETURN NULL; END $$"
            )
        )
        connection.execute(
            text(
                "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON book DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
                "EXECUTE FUNCTION think()"
            )
        )
    engine, proxy = proxied
    shop = Shop(
        engine,
        app,
        verify=lambda session: session.scalar(select(Book).where(Book.title == "Emma")) is not None,
        attempts=2,
        retry_on=OperationalError,
        backoff=Backoff(base=0),
    )
    proxy.cut = "midway"

    assert shop.post() == (200, "stored")
    assert (shop.calls, shop.hooks, titles(postgresql)) == (1, ["stored Emma"], ["Emma"])


def test_two_phases(proxied: tuple[Engine, Proxy], postgresql: Engine) -> None:
    """What is prepared holds its locks, and can still be committed: nobody may say that it was rolled back."""
    engine, proxy = proxied
    uow = UnitOfWork(sessionmaker(engine, twophase=True))
    hooks: list[str] = []

    @uow.transactional(verify=lambda _: False, attempts=2, retry_on=OperationalError)
    def work() -> None:
        uow.session.add(Book(title="Emma"))
        uow.on_rollback(lambda _error: hooks.append("undone"))
        proxy.cut = "before"

    uow._runtime = replace(uow._runtime, patience=0.2)
    with pytest.raises(CommitOutcomeUnknownError):
        work()
    assert hooks == []
    with postgresql.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        (name,) = connection.scalars(text("SELECT gid FROM pg_prepared_xacts"))
        connection.exec_driver_sql(f"ROLLBACK PREPARED '{name}'")


def test_several_engines(proxied: tuple[Engine, Proxy], postgresql: Engine, engine: Engine) -> None:
    """Nobody can say what became of the whole; the driver's error says which engine it was."""
    first, proxy = proxied
    uow = UnitOfWork(sessionmaker(binds={Book: first, Loan: engine}))

    with pytest.raises(CommitOutcomeUnknownError, match="several engines"), uow.transaction(verify=lambda _: True) as s:
        s.add(Book(title="Emma"))
        s.flush()
        s.execute(text("SELECT 1"), bind_arguments={"bind": engine})
        proxy.cut = "after"
    assert titles(postgresql) == ["Emma"]


LISTENER = """
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import Session


class Down(Exception):
    pass


@event.listens_for(Engine, "handle_error")
def replace(context):
    if context.is_disconnect:
        raise Down


from flask_uow import CommitOutcomeUnknownError, UnitOfWork
from tests.conftest import Book

engine = create_engine({url!r})
uow = UnitOfWork(lambda: Session(engine))
calls = []


@uow.transactional(attempts=2, retry_on=Down)
def work():
    calls.append(1)
    uow.session.add(Book(title="Emma"))


try:
    work()
except CommitOutcomeUnknownError as error:
    print(len(calls), type(error.__cause__).__name__)
engine.dispose()
"""


def test_listener_that_replaces_the_error(proxied: tuple[Engine, Proxy], postgresql: Engine) -> None:
    """A listener of the user's that was there before ours does not make a rollback of a lost answer."""
    engine, proxy = proxied
    proxy.cut = "after"

    script = LISTENER.format(url=engine.url.render_as_string(hide_password=False))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.stdout == "1 Down\n", done.stderr
    assert titles(postgresql) == ["Emma"]


def test_option_that_keeps_errors_from_listeners(app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine) -> None:
    """skip_user_error_events keeps them from ours, too, and a lost answer is still one."""
    engine, proxy = proxied
    shop = Shop(engine.execution_options(skip_user_error_events=True), app)
    proxy.cut = "after"

    assert shop.post() == (503, "unknown")
    assert (shop.hooks, titles(postgresql)) == ([], ["Emma"])


def test_two_units_of_work(app: Flask, proxied: tuple[Engine, Proxy], postgresql: Engine, engine: Engine) -> None:
    """Unknown is not failed: the error is that, with a note of what is stored for certain."""
    lossy, proxy = proxied
    app.config["UOW_AUTO_COMMIT"] = app.config["UOW_SECOND_AUTO_COMMIT"] = True
    first = UnitOfWork(sessionmaker(engine), app)
    second = UnitOfWork(sessionmaker(lossy), app, name="second")

    @app.post("/")
    def view() -> str:
        first.session.add(Book(title="Emma"))
        second.session.add(Book(title="Emma"))
        return "done"

    @app.errorhandler(CommitOutcomeUnknownError)
    def unknown(error: CommitOutcomeUnknownError) -> tuple[str, int]:
        return error.__notes__[0], 503

    proxy.cut = "after"

    assert app.test_client().post("/").text == "Committed before it: 'default'."
    assert titles(engine) == titles(postgresql) == ["Emma"]


def test_password_in_the_query(app: Flask, proxied: tuple[Engine, Proxy]) -> None:
    """The error and the log name the database, and no secret."""
    engine, proxy = proxied
    secret = create_engine(engine.url.update_query_dict({"password": "hunter2"}))
    shop = Shop(secret, app)
    proxy.cut = "before"

    assert shop.post() == (503, "unknown")
    assert "hunter2" not in str(shop.errors[0])
    assert str(engine.url.port) in str(shop.errors[0])
    secret.dispose()


def test_interrupt_before_the_driver_is_asked(app: Flask, engine: Engine, log: Log) -> None:
    """An interrupt can come at any moment from then on, and nobody can tell whether COMMIT was sent."""
    shop = Shop(engine, app)

    @event.listens_for(engine, "commit")
    def interrupt(_connection: object) -> None:
        raise Interrupt

    with pytest.raises(Interrupt):
        shop.post()
    event.remove(engine, "commit", interrupt)
    assert shop.hooks == []
    assert log.arguments[log.index("transaction_completed")]["outcome"] is Outcome.UNKNOWN


def test_verify_on_another_database(app: Flask, engine: Engine) -> None:
    """Where nobody can ask for the server's session, verify is asked all the same."""

    class Connection(sqlite3.Connection):
        def commit(self) -> None:
            super().commit()
            if self.broken:
                raise ConnectionResetError

        broken = False

    broken = create_engine(engine.url, connect_args={"factory": Connection})
    shop = Shop(broken, app, verify=lambda session: session.scalar(select(Book)) is not None)
    Connection.broken = True

    assert shop.post() == (200, "stored")
    assert (shop.hooks, titles(engine)) == (["stored Emma"], ["Emma"])
    broken.dispose()
