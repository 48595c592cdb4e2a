"""The promises on every kind of database: what one does by itself must not show through."""

from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import Engine, func, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from flask_uow import UnexpectedRollbackError, UnitOfWork
from tests.conftest import Book, Loan, count, titles


@pytest.fixture
def app(app: Flask, db: UnitOfWork) -> Flask:
    app.config["UOW_AUTO_COMMIT"] = True
    db.init_app(app)
    return app


def test_commit_and_rollback(any_engine: Engine, db: UnitOfWork) -> None:
    """A block keeps its work when it ends, and nothing of it when it raises."""
    with db.transaction() as session:
        session.add(Book(title="kept"))
    with pytest.raises(LookupError), db.transaction() as session:
        session.add(Book(title="lost"))
        session.flush()
        raise LookupError

    assert titles(any_engine) == ["kept"]


def test_request(any_engine: Engine, db: UnitOfWork, app: Flask) -> None:
    """A request is kept or undone by its status, and the error handler can query at once."""

    @app.post("/<title>/<int:status>")
    def view(title: str, status: int) -> tuple[str, int]:
        db.session.add(Book(title=title))
        db.session.flush()
        if status == 599:
            db.session.execute(text("SELECT * FROM missing"))
        return "", status

    @app.errorhandler(DBAPIError)
    def handle(_error: DBAPIError) -> str:
        return str(db.session.scalar(select(func.count()).select_from(Book)))

    client = app.test_client()
    client.post("/kept/200")
    client.post("/lost/422")
    response = client.post("/raised/599")

    assert (response.status_code, response.text) == (200, "1")
    assert titles(any_engine) == ["kept"]


def test_failing_commit_is_handled(any_engine: Engine, db: UnitOfWork, app: Flask) -> None:
    """A constraint that fails at COMMIT is a 409 of the app's own, and the session is usable in its handler.

    MariaDB has no deferred constraints: there it fails at the flush, with the same end.
    """
    seen = []

    @app.post("/")
    def view() -> str:
        db.session.add(Book(title="lost"))
        db.session.add(Loan(book_id=404))
        return "lent"

    @app.errorhandler(IntegrityError)
    def handle(_error: IntegrityError) -> tuple[str, int]:
        return str(db.session.scalar(select(func.count()).select_from(Book))), 409

    @app.after_request
    def note(response):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - as short as in an app
        seen.append(response.status_code)
        return response

    response = app.test_client().post("/")

    assert (response.status_code, response.text) == (409, "0")
    assert seen == [409]
    assert count(any_engine) == 0


def test_savepoint_can_fail_alone(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint that is rolled back takes its own work and hooks with it, and nothing else."""
    ran: list[str] = []

    with db.transaction() as session:
        session.add(Book(title="before"))
        db.on_commit(ran.append, "before")
        with pytest.raises(IntegrityError), db.savepoint():
            db.on_commit(ran.append, "inside")
            session.execute(insert(Book).values(id=7, title="inside"))
            session.execute(insert(Book).values(id=7, title="same key"))
        session.add(Book(title="after"))
        db.on_commit(ran.append, "after")

    assert titles(any_engine) == ["after", "before"]
    assert ran == ["before", "after"]


def test_released_savepoint_goes_with_its_transaction(any_engine: Engine, db: UnitOfWork) -> None:
    """A savepoint that was released is undone with the transaction around it, its hooks unheard."""
    ran: list[str] = []

    with pytest.raises(LookupError), db.transaction():
        with db.savepoint() as session:
            session.add(Book(title="inside"))
            db.on_commit(ran.append, "inside")
        raise LookupError

    assert titles(any_engine) == []
    assert ran == []


def test_nested_savepoints(any_engine: Engine, db: UnitOfWork) -> None:
    """Savepoints nest, and each level is kept or undone by itself."""
    with db.transaction() as session, db.savepoint():
        session.add(Book(title="first level"))
        with pytest.raises(LookupError), db.savepoint():
            session.add(Book(title="second level"))
            session.flush()
            raise LookupError
        with db.savepoint():
            session.add(Book(title="second try"))

    assert titles(any_engine) == ["first level", "second try"]


def test_swallowed_flush_error_raises_at_its_savepoint(any_engine: Engine, db: UnitOfWork) -> None:
    """A flush error swallowed inside a savepoint raises at its end, and the outer block goes on."""
    with db.transaction() as session:
        session.add(Book(id=7, title="outer"))
        session.flush()
        session.expunge_all()
        with pytest.raises(UnexpectedRollbackError) as caught, db.savepoint():
            session.add(Book(id=7, title="same key"))
            with pytest.raises(IntegrityError):
                session.flush()
        session.add(Book(title="goes on"))

    assert isinstance(caught.value.__cause__, IntegrityError)
    assert titles(any_engine) == ["goes on", "outer"]


@pytest.mark.parametrize("way", ["core", "flush"])
def test_swallowed_database_error_never_commits_a_half(
    any_engine: Engine, db: UnitOfWork, app: Flask, way: str
) -> None:
    """A view that swallows a database error gets a 500 and stores nothing, on every database.

    PostgreSQL would answer COMMIT with a silent ROLLBACK, and the others would store the other half.
    """
    errors = []

    @app.post("/")
    def view() -> str:
        db.session.add(Book(id=7, title="first half"))
        db.session.flush()
        db.session.expunge_all()
        with pytest.raises(IntegrityError):
            if way == "core":
                db.session.execute(insert(Book).values(id=7, title="same key"))
            else:
                db.session.add(Book(id=7, title="same key"))
                db.session.flush()
        return "stored"

    @app.errorhandler(UnexpectedRollbackError)
    def handle(error: UnexpectedRollbackError) -> tuple[str, int]:
        errors.append(error)
        return str(error), 500

    response = app.test_client().post("/")

    assert response.status_code == 500
    assert "the database refused a statement (IntegrityError" in response.text
    assert isinstance(errors[0].__cause__, IntegrityError)
    assert titles(any_engine) == []


def test_hook_sees_the_rows_from_another_connection(any_engine: Engine, db: UnitOfWork) -> None:
    """When an on_commit hook runs, others can see the work."""
    seen: list[list[str]] = []

    with db.transaction() as session:
        session.add(Book(title="Emma"))
        db.on_commit(lambda: seen.append(titles(any_engine)))

    assert seen == [["Emma"]]


def test_lost_connection_is_an_ordinary_failure(any_engine: Engine, db: UnitOfWork) -> None:
    """A connection that breaks in a transaction is an error of the block, and the next block has a new one."""

    def work() -> None:
        with db.transaction() as session:
            session.add(Book(title="lost"))
            session.flush()
            session.connection().connection.dbapi_connection.close()  # type: ignore[union-attr]
            session.execute(select(Book))

    with pytest.raises(Exception, match=r"(?i)clos|interface"):
        work()
    with db.transaction() as session:
        session.add(Book(title="kept"))

    assert titles(any_engine) == ["kept"]
