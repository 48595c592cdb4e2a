"""Changes that nobody has settled are told of, and nothing else is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import pytest
from flask import Flask, Response, abort, redirect, stream_with_context
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import Engine, Integer, PickleType, String, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from werkzeug.test import TestResponse

from flask_uow import Propagation, UncommittedChangesError, UnitOfWork, flask_scoped_session, signals
from tests.conftest import Base, Book, Log, assert_nothing_checked_out, titles

Work = Callable[[Session], object]


def told(caplog: pytest.LogCaptureFixture) -> list[Any]:
    return [record for record in caplog.records if record.name == "flask_uow.uncommitted"]


def the_one(caplog: pytest.LogCaptureFixture) -> Any:
    (record,) = told(caplog)
    return record


@pytest.fixture(autouse=True)
def emma(engine: Engine) -> None:
    """A book that is there, with the key 1."""
    store_emma(engine)


def store_emma(engine: Engine) -> None:
    with Session(engine) as session:
        session.add(Book(id=1, title="Emma"))
        session.commit()


def serve(app: Flask, uow: UnitOfWork, work: Work, answer: Any = "done", rule: str = "/") -> None:
    """Let a view, that no policy covers, do something."""

    def view() -> Any:
        work(uow.session)
        return answer

    app.add_url_rule(rule, "books.act" if rule == "/" else rule, view, methods=["POST"])


def post(app: Flask, uow: UnitOfWork, work: Work, answer: Any = "done") -> TestResponse:
    """Do something in a view that no policy covers."""
    serve(app, uow, work, answer)
    return app.test_client().post("/")


def add(session: Session) -> None:
    session.add(Book(title="new"))


def begin_and_add(session: Session) -> None:
    session.begin()
    add(session)


def add_with_a_key(session: Session) -> None:
    session.add(Book(id=7, title="new"))


def add_and_flush(session: Session) -> None:
    session.add(Book(id=7, title="new"))
    session.flush()


def change(session: Session) -> None:
    # A session keeps what is changed.
    session.get_one(Book, 1).title = "changed"


def change_and_flush(session: Session) -> None:
    change(session)
    session.flush()


def remove(session: Session) -> None:
    session.delete(session.get_one(Book, 1))


def remove_and_flush(session: Session) -> None:
    remove(session)
    session.flush()


def add_in_a_savepoint(session: Session) -> None:
    with session.begin_nested():
        add_and_flush(session)


def add_in_a_savepoint_that_is_open(session: Session) -> None:
    session.begin_nested()
    add_and_flush(session)


def add_before_a_savepoint(session: Session) -> None:
    session.execute(insert(Book).values(id=7, title="new"))
    session.begin_nested().rollback()


CHANGES: list[tuple[Work, str]] = [
    (add, "a new Book. "),
    (add_with_a_key, "a new Book 7. "),
    (add_and_flush, "a new Book 7. "),
    (change, ": Book 1. "),
    (change_and_flush, ": Book 1. "),
    (remove, "the deletion of Book 1. "),
    (remove_and_flush, "the deletion of Book 1. "),
    (add_in_a_savepoint, "a new Book 7. "),
    (add_in_a_savepoint_that_is_open, "a new Book 7. "),
    (add_before_a_savepoint, "the statement INSERT INTO book"),
    (lambda session: session.execute(insert(Book).values(title="new")), "the statement INSERT INTO book"),
    (lambda session: session.execute(update(Book).values(title="changed")), "the statement UPDATE book SET title="),
    (lambda session: session.execute(delete(Book)), "the statement DELETE FROM book"),
    (
        lambda session: session.execute(text(" /* all */ delete\n from book")),
        "the statement /* all */ delete from book",
    ),
    (lambda session: session.connection().execute(text("DELETE FROM book")), "the statement DELETE FROM book"),
    (lambda session: session.bulk_insert_mappings(Book.__mapper__, [{"title": "new"}]), "the statement INSERT INTO"),
    (begin_and_add, "a new Book. "),
]


@pytest.mark.parametrize("change", CHANGES)
def test_changes_in_a_request(
    app: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture, change: tuple[Work, str]
) -> None:
    """A warning names the endpoint, the objects, and the three ways out; the response goes out as it is."""
    work, words = change
    uow.init_app(app)

    response = post(app, uow, work)

    record = the_one(caplog)
    message = record.getMessage()
    assert message.startswith("The request to 'books.act' ended with changes that nobody has committed")
    assert words in message
    assert all(way in message for way in ("UOW_AUTO_COMMIT", "@transactional", "session.commit()", "session.rollback("))
    assert (record.levelno, record.endpoint, record.transaction_id) == (logging.WARNING, "books.act", None)
    assert (len(record.objects), record.more) == (1, 0)
    assert (response.text, titles(engine)) == ("done", ["Emma"])


SQLITE_ONLY: list[tuple[str, bool]] = [
    ("CREATE TABLE shelf (id INTEGER)", True),
    ("CREATE TEMPORARY TABLE shelf (id INTEGER)", False),
    ("WITH old AS (SELECT 1) DELETE FROM book", True),
    ("WITH old AS (SELECT 1) SELECT * FROM old", False),
    ("REPLACE INTO book (id, title) VALUES (1, 'Emma')", True),
    ("PRAGMA table_info(book)", False),
]


@pytest.mark.parametrize(("statement", "tells"), SQLITE_ONLY)
def test_statements_of_sqlite(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, statement: str, *, tells: bool
) -> None:
    """A statement is told of that surely changes something, whatever it begins with."""
    uow.init_app(app)

    post(app, uow, lambda session: session.execute(text(statement)))

    assert len(told(caplog)) == tells


def commit(session: Session) -> None:
    add(session)
    session.flush()
    session.commit()


def roll_back(session: Session) -> None:
    add(session)
    session.flush()
    session.execute(delete(Book))
    session.rollback()


def expunge(session: Session) -> None:
    book = Book(title="new")
    session.add(book)
    session.expunge(book)


def roll_back_a_savepoint(session: Session) -> None:
    session.scalars(select(Book)).all()
    with session.begin_nested() as savepoint:
        add_and_flush(session)
        session.execute(insert(Book).values(title="new"))
        with session.begin_nested():
            session.execute(delete(Book))
        savepoint.rollback()


def roll_back_a_savepoint_of_the_connection(session: Session) -> None:
    connection = session.connection()
    with connection.begin_nested() as savepoint:
        connection.execute(insert(Book).values(title="new"))
        savepoint.rollback()


def change_nothing(session: Session) -> None:
    book = session.get_one(Book, 1)
    book.title = str(book.title)
    session.flush()
    book.title = str(book.title)


def change_and_change_back(session: Session) -> None:
    book = session.get_one(Book, 1)
    book.title = "changed"
    book.title = "Emma"


def add_and_remove(session: Session) -> None:
    book = Book(title="new")
    session.add(book)
    session.flush()
    session.delete(book)
    session.flush()
    session.rollback()


def fail_to_flush(session: Session) -> None:
    session.add(Book(id=1, title="same key"))
    with suppress(IntegrityError):
        session.flush()


def fail_to_execute(session: Session) -> None:
    with suppress(IntegrityError):
        session.execute(insert(Book).values(id=1, title="same key"))


def close(session: Session) -> None:
    add(session)
    session.flush()
    session.close()


def lock(session: Session) -> None:
    session.scalars(select(Book).with_for_update()).all()


NO_CHANGES: list[Work] = [
    lambda session: session,
    lambda session: session.scalars(select(Book)).all(),
    commit,
    roll_back,
    expunge,
    roll_back_a_savepoint,
    roll_back_a_savepoint_of_the_connection,
    change_nothing,
    change_and_change_back,
    add_and_remove,
    fail_to_flush,
    fail_to_execute,
    close,
    lock,
    lambda session: session.merge(Book(id=1, title="Emma")),
]


@pytest.mark.parametrize("work", NO_CHANGES)
def test_no_false_alarm(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, work: Work) -> None:
    """Nothing is said of reads, of what was settled, and of what came to nothing."""
    uow.init_app(app)

    post(app, uow, work)

    assert told(caplog) == []


@pytest.mark.parametrize("work", [add_and_flush, change_and_flush, remove, add_before_a_savepoint])
def test_on_each_database(any_engine: Engine, app: Flask, caplog: pytest.LogCaptureFixture, work: Work) -> None:
    """It is the same on each database."""
    if any_engine.dialect.name != "sqlite":
        store_emma(any_engine)
    uow = UnitOfWork(sessionmaker(any_engine), app)

    post(app, uow, work)

    assert "Book" in the_one(caplog).getMessage() or "INTO book" in the_one(caplog).getMessage()
    assert titles(any_engine) == ["Emma"]


@pytest.mark.parametrize(
    "work", [commit, roll_back, roll_back_a_savepoint, fail_to_flush, fail_to_execute, change_nothing, lock]
)
def test_no_false_alarm_on_each_database(
    any_engine: Engine, app: Flask, caplog: pytest.LogCaptureFixture, work: Work
) -> None:
    """Nor is a database different when there is nothing to tell."""
    if any_engine.dialect.name != "sqlite":
        store_emma(any_engine)
    uow = UnitOfWork(sessionmaker(any_engine), app)

    post(app, uow, work)

    assert told(caplog) == []


def test_settings_of_a_server(postgresql: Engine, app: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """What is no change is none, and nothing is told of what PostgreSQL has given up anyway."""
    uow = UnitOfWork(sessionmaker(postgresql), app)

    def work(session: Session) -> None:
        session.execute(text("SET LOCAL statement_timeout = 5000"))
        session.execute(text("SELECT set_config('search_path', 'public', true)"))
        session.execute(text("LOCK TABLE book"))
        with uow.session.begin_nested():
            session.execute(text("CREATE TEMP TABLE shelf (id INTEGER)"))

    def give_up(session: Session) -> None:
        session.execute(insert(Book).values(title="lost"))
        with suppress(DBAPIError):
            session.execute(text("SELECT * FROM missing"))

    serve(app, uow, give_up, rule="/2")
    post(app, uow, work)
    app.test_client().post("/2")

    assert told(caplog) == []


def test_what_follows_a_commit(app: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A commit settles what is before it, and no more."""
    uow.init_app(app)

    def work(session: Session) -> None:
        commit(session)
        session.add(Book(id=9, title="forgotten"))

    post(app, uow, work)

    assert the_one(caplog).objects == ("a new Book 9",)
    assert titles(engine) == ["Emma", "new"]


def test_the_same_statement_fails_later(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A statement that fails takes nothing back of one before it."""
    uow.init_app(app)

    def work(session: Session) -> None:
        for _ in range(2):
            with suppress(IntegrityError):
                session.execute(insert(Book).values(id=8, title="twice"))

    post(app, uow, work)

    assert the_one(caplog).objects[0].startswith("the statement INSERT INTO book")


def test_many_objects(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Five are named, in the order in which they were added, and the others counted."""
    uow.init_app(app)

    def work(session: Session) -> None:
        session.add_all([Book(id=number, title=str(number)) for number in range(10, 18)])
        session.flush()
        session.add_all([Book(title="not flushed") for _ in range(200)])

    post(app, uow, work)

    record = the_one(caplog)
    assert record.objects == tuple(f"a new Book {number}" for number in range(10, 15))
    assert record.more == 203
    assert "a new Book 14 and 203 more. " in record.getMessage()


class Shelves(DeclarativeBase):
    """Models that nobody else has."""


class Uncomparable:
    def __eq__(self, other: object) -> bool:
        raise ValueError("truth value is ambiguous")

    __hash__ = None  # type: ignore[assignment] # like an array


class Shelf(Shelves):
    __tablename__ = "shelf"

    name: Mapped[str] = mapped_column(String(5000), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    content: Mapped[Any] = mapped_column(PickleType(comparator=lambda one, other: one == other), nullable=True)


@pytest.fixture
def shelves(engine: Engine) -> Iterator[None]:
    Shelves.metadata.create_all(engine)
    yield
    Shelves.metadata.drop_all(engine)


@pytest.mark.usefixtures("shelves")
def test_long_keys(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A key of any length takes little room in the log; one that is not complete is left out."""
    uow.init_app(app)

    def work(session: Session) -> None:
        session.add(Shelf(name="x" * 4000, number=10**50))
        session.add(Shelf(name="half"))

    def write(session: Session) -> None:
        session.execute(text(f"INSERT INTO shelf (name, number) VALUES ('{'z' * 4000}', 1)"))

    serve(app, uow, write, rule="/2")
    post(app, uow, work)
    app.test_client().post("/2")

    first, second = told(caplog)
    assert [text[:30] for text in first.objects] == ["a new Shelf 'xxxxxxxxxxxxxxxxx", "a new Shelf"]
    assert all(len(each) <= 120 for each in (*first.objects, *second.objects))
    assert len(first.getMessage()) < 600


@pytest.mark.usefixtures("shelves")
def test_values_that_cannot_be_compared(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """An object whose values refuse to be compared counts as changed, and teardown goes on."""
    uow.init_app(app)

    def work(session: Session) -> None:
        shelf = Shelf(name="a", number=1, content=1)
        session.add(shelf)
        session.commit()
        assert shelf.content == 1
        shelf.content = Uncomparable()

    post(app, uow, work)

    assert the_one(caplog).objects == ("Shelf 'a', 1",)


# Where nobody expects anything to be kept


@pytest.mark.parametrize("answer", [("no", 400), ("no", 404), ("no", 500)])
def test_errors_are_quiet(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, answer: Any) -> None:
    """Nothing is said after a response that is an error."""
    uow.init_app(app)

    post(app, uow, add_and_flush, answer)

    assert told(caplog) == []


@pytest.mark.parametrize("handled", [True, False])
@pytest.mark.parametrize("error", [LookupError, lambda: abort(404)])
def test_exceptions_are_quiet(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, error: Callable[[], Any], *, handled: bool
) -> None:
    """Nothing is said of what a view has left that raised, whatever its handler answers."""
    uow.init_app(app)

    def work(session: Session) -> None:
        add_and_flush(session)
        raise error()

    if handled:
        app.register_error_handler(Exception, lambda _error: "fine")

    assert post(app, uow, work).status_code == (200 if handled else 500 if error is LookupError else 404)
    assert told(caplog) == []


def test_redirects_that_are_raised(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A redirect is an answer like any other, raised or not."""
    uow.init_app(app)

    def work(session: Session) -> None:
        add_and_flush(session)
        abort(redirect("/elsewhere"))

    assert post(app, uow, work).status_code == 302
    assert the_one(caplog).objects == ("a new Book 7",)


def test_handler_that_writes(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """What the handler of a decorated view's error writes is covered by nobody, and told of if it answers well."""
    uow.init_app(app)

    @app.errorhandler(LookupError)
    def note(_error: LookupError) -> str:
        uow.session.add(Book(id=9, title="noted"))
        return "fine"

    @app.post("/", endpoint="books.add")
    @uow.transactional
    def view() -> str:
        uow.session.add(Book(id=7, title="lost"))
        raise LookupError

    app.test_client().post("/")

    assert the_one(caplog).objects == ("a new Book 9",)


def test_before_request_that_raises(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A request that fails before its view is none whose work anybody expects."""
    uow.init_app(app)

    @app.before_request
    def fail() -> None:
        add_and_flush(uow.session)
        raise LookupError

    app.register_error_handler(LookupError, lambda _error: "fine")

    assert app.test_client().get("/").text == "fine"
    assert told(caplog) == []


# Under a policy


@pytest.mark.parametrize("status", [200, 400])
def test_requests_under_a_policy(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture, status: int) -> None:
    """A request that a policy settles leaves nothing."""
    uow = UnitOfWork(sessionmaker(engine), app, auto_commit=True)

    @app.after_request
    def after(response: Response) -> Response:
        uow.session.add(Book(title="after"))
        return response

    post(app, uow, add_and_flush, ("", status))

    assert told(caplog) == []
    assert len(titles(engine)) == (3 if status == 200 else 1)


@pytest.mark.parametrize("status", [200, 400])
def test_after_request_of_a_decorated_view(
    app: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """What comes after a view that is only decorated is covered by nobody."""
    uow.init_app(app)

    @app.after_request
    def after(response: Response) -> Response:
        uow.session.add(Book(id=9, title="after"))
        return response

    @app.post("/")
    @uow.transactional
    def view() -> tuple[str, int]:
        uow.session.add(Book(title="kept"))
        return "", status

    app.test_client().post("/")

    assert [record.objects for record in told(caplog)] == ([("a new Book 9",)] if status == 200 else [])
    assert titles(engine) == (["Emma", "kept"] if status == 200 else ["Emma"])


def test_rollback_only(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What was asked to be rolled back is not told of, and neither is what cannot commit."""
    uow = UnitOfWork(sessionmaker(engine), app, auto_commit=True)

    def work(session: Session) -> None:
        add_and_flush(session)
        uow.set_rollback_only()

    post(app, uow, work)

    assert told(caplog) == []


@pytest.mark.parametrize("end", [None, "rollback only", "doom"])
def test_block_that_was_never_left(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, end: Any) -> None:
    """A transaction that is still open at the end is told of, unless it could not have committed."""
    uow.init_app(app)

    with app.app_context():
        session = uow.transaction().__enter__()
        book = Book(id=7, title="new")
        session.add(book)
        session.flush()
        if end == "rollback only":
            uow.set_rollback_only()
        elif end == "doom":
            with suppress(DBAPIError):
                uow.session.execute(text("SELECT * FROM missing"))

    assert book.id == 7
    assert [record.objects for record in told(caplog)] == ([("a new Book 7",)] if end is None else [])


def test_blocks_and_streams(app: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Blocks, hooks with blocks of their own, and streamed bodies settle what they do."""
    uow.init_app(app)

    def store(title: str) -> None:
        with uow.transaction() as session:
            session.add(Book(title=title))

    @app.get("/")
    def view() -> Any:
        store("block")
        with uow.transaction() as session:
            session.add(Book(title="outer"))
            with suppress(LookupError), uow.savepoint():
                add_and_flush(session)
                raise LookupError
            uow.on_commit(store, "hook")
            with uow.savepoint():
                session.add(Book(title="inner"))
        return body()

    @uow.stream
    def body() -> Iterator[str]:
        uow.session.add(Book(title="stream"))
        yield "x"

    @app.get("/away")
    def away() -> Any:
        return body()

    client = app.test_client()
    assert client.get("/").text == "x"
    with client.get("/away", buffered=False) as response:
        next(iter(response.response))

    assert told(caplog) == []
    assert titles(engine) == ["Emma", "block", "hook", "inner", "outer", "stream"]


def test_body_that_writes(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A streamed body in the request's own session is a place to forget a commit, too."""
    uow.init_app(app)

    @app.get("/")
    def view() -> Any:
        def body() -> Iterator[str]:
            add_and_flush(uow.session)
            yield "x"

        return stream_with_context(body())

    assert app.test_client().get("/").text == "x"
    assert the_one(caplog).endpoint == "view"


# "raise" and "ignore"


@pytest.fixture
def strict(app: Flask, engine: Engine) -> UnitOfWork:
    app.config["UOW_UNCOMMITTED"] = "raise"
    return UnitOfWork(sessionmaker(engine), app)


def test_raise(app: Flask, strict: UnitOfWork, engine: Engine, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """The request fails when all of its functions have run, is rolled back there, and is not told of again."""
    closed: list[bool] = []

    @app.after_request
    def after(response: Response) -> Response:
        strict.session.add(Book(id=9, title="after"))
        response.call_on_close(lambda: closed.append(True))
        return response

    @app.teardown_request
    def look(_error: BaseException | None) -> None:
        assert not strict.session.in_transaction()

    app.testing = True
    with pytest.raises(
        UncommittedChangesError, match=r"'books\.act' ended with .*: a new Book 7, a new Book 9\."
    ) as caught:
        post(app, strict, add_and_flush)

    assert (caught.value.endpoint, caught.value.objects) == ("books.act", ("a new Book 7", "a new Book 9"))
    assert closed == [True]
    assert log.count("after_rollback") == 1
    assert titles(engine) == ["Emma"]
    assert told(caplog) == []


def test_raise_is_a_500(app: Flask, strict: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Outside tests the client is told that it has not worked, and nothing is said twice."""
    assert post(app, strict, add_and_flush).status_code == 500
    assert told(caplog) == []
    assert "UncommittedChangesError" in caplog.text


@pytest.mark.parametrize("work", NO_CHANGES)
def test_raise_has_no_false_alarm(app: Flask, strict: UnitOfWork, work: Work) -> None:
    """A request that has settled everything is as it was."""
    assert post(app, strict, work).status_code == 200


def test_raise_is_quiet_about_errors(app: Flask, strict: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """An answer that is an error stays the answer."""
    assert post(app, strict, add_and_flush, ("no", 404)).status_code == 404
    assert told(caplog) == []


def test_raise_with_several(app: Flask, strict: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What each UnitOfWork raises for is in one error; one that only warns does so."""
    other = UnitOfWork(sessionmaker(engine), app, name="other", uncommitted="raise")
    lenient = UnitOfWork(sessionmaker(engine), app, name="lenient")

    def work(session: Session) -> None:
        session.add(Book(id=7, title="one"))
        other.session.add_all([Book(id=number, title="two") for number in range(20, 27)])
        lenient.session.add(Book(id=9, title="three"))

    app.testing = True
    with pytest.raises(UncommittedChangesError, match=r"a new Book 7, a new Book 20, .* a new Book 23 and 3 more\."):
        post(app, strict, work)

    # The request has failed, and nobody expects anything to be kept.
    assert told(caplog) == []


def test_raise_after_the_response(app: Flask, strict: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """What comes too late to raise is an error in the log."""

    @app.teardown_request
    def write(_error: BaseException | None) -> None:
        add_and_flush(strict.session)

    assert post(app, strict, lambda _session: None).status_code == 200

    record = the_one(caplog)
    assert (record.levelno, record.endpoint, record.objects) == (logging.ERROR, "books.act", ("a new Book 7",))


def test_raise_outside_requests(app: Flask, strict: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """Teardown never raises."""
    with app.app_context():
        add_and_flush(strict.session)

    record = the_one(caplog)
    assert (record.levelno, record.endpoint) == (logging.ERROR, None)
    assert record.getMessage().startswith("A context outside any request ended with changes")


def test_ignore(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """It can be turned off."""
    uow = UnitOfWork(sessionmaker(engine), app, uncommitted="ignore")

    post(app, uow, add_and_flush)

    assert told(caplog) == []


# Outside requests


@pytest.mark.parametrize("error", [None, SystemExit(0), SystemExit(), click.exceptions.Exit(0)])
def test_contexts(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, error: BaseException | None) -> None:
    """A context of an app is told of, also when it is left by an exit that is no failure."""
    uow.init_app(app)

    with suppress(SystemExit, click.exceptions.Exit), app.app_context():
        add_and_flush(uow.session)
        if error is not None:
            raise error

    record = the_one(caplog)
    assert (record.levelno, record.endpoint, record.objects) == (logging.WARNING, None, ("a new Book 7",))


@pytest.mark.parametrize("error", [LookupError(), KeyboardInterrupt(), SystemExit(1), click.exceptions.Exit(2)])
def test_contexts_that_fail(
    app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    """Nothing is said of a context that ends with an error."""
    uow.init_app(app)

    with suppress(BaseException), app.app_context():
        add_and_flush(uow.session)
        raise error

    assert told(caplog) == []


def test_commands(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A command that forgets to commit is told of, and one that fails is not."""
    uow.init_app(app)

    @app.cli.command("forget")
    def forget() -> None:
        add_and_flush(uow.session)

    @app.cli.command("fail")
    def fail() -> None:
        add_and_flush(uow.session)
        raise click.ClickException("no")

    runner = app.test_cli_runner()
    results = [runner.invoke(args=[name]).exit_code for name in ("forget", "fail")]

    assert results == [0, 1]
    assert the_one(caplog).objects == ("a new Book 7",)


@pytest.mark.parametrize("propagation", [Propagation.SUPPORTS, Propagation.NOT_SUPPORTED, Propagation.NEVER])
def test_blocks_without_a_transaction(
    uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture, propagation: Propagation
) -> None:
    """A block that runs without a transaction is told of by its name, unless it raises."""
    with uow.transaction(propagation=propagation, name="import") as session:
        add_and_flush(session)
    with suppress(LookupError), uow.transaction(propagation=propagation) as session:
        add_and_flush(session)
        raise LookupError

    record = the_one(caplog)
    assert record.getMessage().startswith("The session of the block 'import' ended with changes")
    assert (record.endpoint, titles(engine)) == (None, ["Emma"])


def test_block_that_steps_out(app: Flask, uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A block that suspends a request's transaction is told of by its name, with the endpoint beside it."""
    uow.init_app(app)

    @app.post("/")
    @uow.transactional
    def view() -> str:
        with uow.transaction(propagation=Propagation.NOT_SUPPORTED, name="report") as session:
            add_and_flush(session)
        return ""

    app.test_client().post("/")

    record = the_one(caplog)
    assert "The session of the block 'report'" in record.getMessage()
    assert record.endpoint == "view"


def test_block_without_flask_that_raises_is_an_error(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Outside requests "raise" is an error in the log."""
    uow = UnitOfWork(sessionmaker(engine), uncommitted="raise")

    with uow.transaction(propagation=Propagation.SUPPORTS) as session:
        add_and_flush(session)

    assert the_one(caplog).levelno == logging.ERROR


def test_hooks_that_forget(uow: UnitOfWork, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that writes without a transaction of its own is told of with its block."""
    with uow.transaction(name="import") as session:
        session.add(Book(title="kept"))
        uow.on_commit(lambda: add_and_flush(uow.session))

    assert "The session of the block 'import'" in the_one(caplog).getMessage()


# Those who close the session before us


@pytest.mark.parametrize("make", [flask_scoped_session, scoped_session])
def test_registries(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture, make: Any) -> None:
    """A registry that a teardown function removes is told of before, and once."""
    registry = make(sessionmaker(engine))
    uow = UnitOfWork(registry, app)

    @app.teardown_appcontext
    def remove_session(_error: BaseException | None) -> None:
        registry.remove()

    @app.post("/", endpoint="books.act")
    def view() -> str:
        add_and_flush(registry())
        return ""

    assert uow.name == "default"
    app.test_client().post("/")

    assert the_one(caplog).endpoint == "books.act"
    assert_nothing_checked_out(engine)


def test_session_of_a_teardown_function(
    app: Flask, uow: UnitOfWork, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """What a teardown function writes by another UnitOfWork, and closes without a commit, is told of as well."""
    uow.init_app(app)
    late = UnitOfWork(sessionmaker(engine), app, name="late")

    @app.teardown_request
    def write(_error: BaseException | None) -> None:
        add_and_flush(late.session)
        late.session.close()

    @app.post("/", endpoint="books.act")
    def view() -> str:
        return str(uow.session.scalar(select(Book.title)))

    app.test_client().post("/")

    assert the_one(caplog).objects == ("a new Book 7",)
    assert titles(engine) == ["Emma"]


def test_registries_that_fail(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Nor is one told of that is removed after an error."""
    registry = scoped_session(sessionmaker(engine))
    UnitOfWork(registry, app)
    app.teardown_appcontext(lambda _error: registry.remove())

    with suppress(LookupError), app.app_context():
        add_and_flush(registry())
        raise LookupError

    assert told(caplog) == []


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("kind", [SQLAlchemy, SQLAlchemyLite])
def test_other_extensions(
    app: Flask, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Any, *, commits: bool
) -> None:
    """The sessions of other extensions are told of although their owners remove them first."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    app.config.update(SQLALCHEMY_DATABASE_URI=url, SQLALCHEMY_ENGINES={"default": url})
    db: Any = SQLAlchemy(model_class=Base) if kind is SQLAlchemy else SQLAlchemyLite()
    db.init_app(app)
    UnitOfWork(db, app)
    with app.app_context():
        engine = db.engine
        Base.metadata.create_all(engine)

    @app.post("/", endpoint="books.act")
    def view() -> str:
        db.session.add(Book(id=7, title="new"))
        db.session.flush()
        if commits:
            db.session.commit()
        return ""

    app.test_client().post("/")

    assert [(record.endpoint, record.objects) for record in told(caplog)] == (
        [] if commits else [("books.act", ("a new Book 7",))]
    )
    assert_nothing_checked_out(engine)
    engine.dispose()


def test_session_from_before(app: Flask, engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """What was sent before we have met a session is not told of; what it still has to write is."""
    registry = scoped_session(sessionmaker(engine))
    uow = UnitOfWork(registry, app)
    serve(app, uow, add_with_a_key, rule="/2")

    registry.execute(update(Book).values(title="changed"))
    post(app, uow, lambda _session: None)
    registry.execute(update(Book).values(title="changed"))
    app.test_client().post("/2")

    assert the_one(caplog).objects == ("a new Book 7",)


def test_signals_of_what_is_told(app: Flask, uow: UnitOfWork, log: Log, caplog: pytest.LogCaptureFixture) -> None:
    """To be told changes nothing in what signals say of a rollback at teardown."""
    uow.init_app(app)

    with signals.after_rollback.muted():
        post(app, uow, add_and_flush)

    assert len(told(caplog)) == 1
    assert log[-2:] == ["transaction_completed", "session_removed"]
