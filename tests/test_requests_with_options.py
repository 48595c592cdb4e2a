"""What a view asks for: its isolation level, read-only, time, and a propagation that is not the default."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest
from flask import Blueprint, Flask
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import (
    ConfigurationError,
    IncompatibleTransactionError,
    Propagation,
    ReadOnlyTransactionError,
    TransactionForbiddenError,
    TransactionRequiredError,
    UnexpectedRollbackError,
    UnitOfWork,
    current_transaction,
    transactional,
)
from tests.conftest import Book, titles

LEVEL = "SHOW transaction_isolation"


@pytest.fixture
def db(postgresql: Engine) -> UnitOfWork:
    return UnitOfWork(sessionmaker(postgresql))


def level_of(uow: UnitOfWork) -> str:
    return str(uow.session.scalar(text(LEVEL)))


def reported(app: Flask) -> list[BaseException]:
    """What became a 500."""
    errors: list[BaseException] = []

    @app.errorhandler(Exception)
    def handle(error: Exception) -> tuple[str, int]:
        errors.append(error)
        return type(error).__name__, 500

    return errors


# Isolation


@pytest.mark.parametrize("policy", ["view", "blueprint", "app"])
def test_login_loader_does_not_stand_in_the_way(app: Flask, db: UnitOfWork, policy: str) -> None:
    """The level of the endpoint's policy holds from the first statement of the request, before the view too."""
    blueprint = Blueprint("shop", __name__)
    levels: list[str] = []
    if policy == "app":
        app.config |= {"UOW_AUTO_COMMIT": True, "UOW_ISOLATION_LEVEL": "SERIALIZABLE"}
    elif policy == "blueprint":
        db.transactional(isolation_level="SERIALIZABLE")(blueprint)
    db.init_app(app)

    @app.before_request
    def load_user() -> None:
        db.session.scalars(select(Book)).all()
        levels.append(level_of(db))

    def view() -> str:
        levels.append(level_of(db))
        db.session.add(Book(title="Emma"))
        return str(current_transaction.isolation_level)

    blueprint.post("/")(db.transactional(isolation_level="SERIALIZABLE")(view) if policy == "view" else view)
    app.register_blueprint(blueprint)

    response = app.test_client().post("/")

    assert response.text == "SERIALIZABLE"
    assert levels == ["serializable", "serializable"]


def test_block_after_a_login_loader(app: Flask, db: UnitOfWork, postgresql: Engine) -> None:
    """Without a policy, what a loader has read is no obstacle to a block either: it has a transaction of its own."""
    db.init_app(app)

    @app.before_request
    def load_user() -> None:
        db.session.scalars(select(Book)).all()

    @app.post("/")
    def view() -> str:
        held = db.session
        with db.transaction(isolation_level="SERIALIZABLE") as session:
            assert session is held
            session.add(Book(title="Emma"))
            return level_of(db)

    response = app.test_client().post("/")

    assert response.text == "serializable"
    assert titles(postgresql) == ["Emma"]


WRITES: dict[str, Callable[[Session], object]] = {
    "new": lambda session: session.add(Book(title="mine")),
    "flushed": lambda session: session.bulk_save_objects([Book(title="mine")]),
    "core": lambda session: session.execute(insert(Book).values(title="mine")),
    "text": lambda session: session.execute(text("INSERT INTO book (title) VALUES ('mine')")),
    "with": lambda session: session.execute(
        text("WITH gone AS (DELETE FROM book RETURNING id) SELECT count(*) FROM gone")
    ),
}


@pytest.mark.parametrize("options", [{"isolation_level": "SERIALIZABLE"}, {"read_only": True}])
@pytest.mark.parametrize("write", WRITES)
def test_block_after_changes_that_nobody_committed(
    app: Flask, db: UnitOfWork, postgresql: Engine, write: str, options: Any
) -> None:
    """What was written outside any transaction is not thrown away for a block, which is refused and changes nothing."""
    db.init_app(app)

    with app.app_context():
        session = db.session
        session.scalars(select(Book)).all()
        WRITES[write](session)
        with (
            pytest.raises(IncompatibleTransactionError, match="has begun already, with changes that nobody has"),
            db.transaction(**options),
        ):
            pytest.fail("the body ran")
        assert not current_transaction
        session.commit()

    assert titles(postgresql) == ([] if write == "with" else ["mine"])


@pytest.mark.parametrize("read", ["SELECT 1", "WITH n AS (SELECT 1) SELECT * FROM n", "SHOW work_mem", "VALUES (1)"])
def test_queries_are_no_changes(app: Flask, db: UnitOfWork, read: str) -> None:
    """Whatever only reads does not stand in the way."""
    db.init_app(app)

    with app.app_context():
        db.session.execute(text(read))
        with db.transaction(isolation_level="SERIALIZABLE"):
            level = level_of(db)

    assert level == "serializable"


def test_a_change_that_is_none(app: Flask, db: UnitOfWork, postgresql: Engine) -> None:
    """An attribute set to what it was is no change."""
    with Session(postgresql) as session, session.begin():
        session.add(Book(title="Emma"))
    db.init_app(app)

    with app.app_context():
        book = db.session.scalars(select(Book)).one()
        book.title = "Emma"
        with db.transaction(isolation_level="SERIALIZABLE"):
            level = level_of(db)

    assert level == "serializable"


@pytest.mark.parametrize(
    ("outer", "inner", "message"),
    [
        ({}, {"isolation_level": "SERIALIZABLE"}, "asks for isolation_level='SERIALIZABLE', .*at the engine's own"),
        (
            {"isolation_level": "REPEATABLE READ"},
            {"isolation_level": "SERIALIZABLE"},
            "which is at REPEATABLE READ. Give the level to the block that begins",
        ),
        ({"read_only": True}, {"read_only": False}, "asks for read_only=False, .* which is read-only"),
        (
            {"isolation_level": "SERIALIZABLE"},
            {"isolation_level": "SERIALIZABLE", "propagation": Propagation.NESTED},
            "would be a savepoint in the transaction of the block 'outer'",
        ),
        ({"read_only": True}, {"read_only": False, "propagation": Propagation.NESTED}, "asks for read_only=False"),
    ],
)
def test_blocks_that_do_not_fit(uow: UnitOfWork, engine: Engine, outer: Any, inner: Any, message: str) -> None:
    """A block that asks for what the active transaction is not is refused before its body, which can go on."""
    with uow.transaction(name="outer", **outer) as session:
        with pytest.raises(IncompatibleTransactionError, match=message), uow.transaction(**inner):
            pytest.fail("the body ran")
        if "read_only" not in outer:
            session.add(Book(title="kept"))

    assert titles(engine) == ([] if "read_only" in outer else ["kept"])


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        ({"isolation_level": "SERIALIZABLE"}, {}),
        ({"isolation_level": "SERIALIZABLE"}, {"isolation_level": "serializable"}),
        ({"read_only": True}, {}),
        ({"read_only": True}, {"read_only": True}),
        ({}, {"read_only": True}),
        ({}, {"read_only": False}),
        ({}, {"propagation": Propagation.SUPPORTS, "read_only": True}),
        ({"isolation_level": "SERIALIZABLE"}, {"propagation": Propagation.NESTED}),
    ],
)
def test_blocks_that_fit(uow: UnitOfWork, outer: Any, inner: Any) -> None:
    """A block that asks for nothing, or for what there is, joins."""
    with uow.transaction(**outer) as session, uow.transaction(**inner) as joined:
        transaction = uow.current_transaction
        assert joined is session
        assert transaction is not None
        assert transaction.isolation_level == outer.get("isolation_level")
        assert transaction.read_only is outer.get("read_only", False)


# Read-only


def test_read_only_methods(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Managed requests with these methods are read-only; their own option, and other methods, are not touched."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_READ_ONLY_METHODS": {"GET"}}
    uow.init_app(app)
    errors = reported(app)

    def view() -> str:
        uow.session.add(Book(title="Emma"))
        return str(current_transaction.read_only)

    app.route("/app", methods=["GET", "POST"], endpoint="app")(view)
    app.get("/decorated", endpoint="decorated")(transactional(view))
    app.get("/writing", endpoint="writing")(transactional(read_only=False)(view))
    client = app.test_client()

    answers = [client.get("/app"), client.head("/app"), client.post("/app"), client.get("/decorated")]
    writing = client.get("/writing")

    assert [answer.status_code for answer in answers] == [500, 500, 200, 500]
    assert {type(error) for error in errors} == {ReadOnlyTransactionError}
    assert writing.text == "False"
    assert titles(engine) == ["Emma", "Emma"]


def test_read_only_methods_open_nothing(app: Flask, uow: UnitOfWork) -> None:
    """A request that no policy covers has no transaction, read-only or not."""
    app.config["UOW_READ_ONLY_METHODS"] = {"GET"}
    uow.init_app(app)

    @app.get("/")
    def view() -> str:
        return str(bool(current_transaction))

    assert app.test_client().get("/").text == "False"


def test_read_only_error_names_the_objects(uow: UnitOfWork, engine: Engine) -> None:
    """The error names what was to be written, by class and key, and not without end."""
    with Session(engine) as session, session.begin():
        session.add_all([Book(id=number, title="old") for number in range(8)])

    with pytest.raises(ReadOnlyTransactionError) as caught, uow.transaction(read_only=True, name="report") as session:
        books = session.scalars(select(Book).order_by(Book.id)).all()
        for book in books[:3]:
            book.title = "new"
        session.delete(books[3])
        session.add(Book(title="another"))
        session.flush()

    assert set(caught.value.objects) == {"a new Book", "Book 0", "Book 1", "Book 2", "the deletion of Book 3"}
    assert "The transaction of the block 'report' is read-only" in str(caught.value)

    with pytest.raises(ReadOnlyTransactionError) as caught, uow.transaction(read_only=True) as session:
        session.add_all([Book(title="another") for _ in range(8)])

    assert caught.value.objects == (*["a new Book"] * 5, "3 more")


def test_refused_flush_can_be_mended(uow: UnitOfWork, engine: Engine) -> None:
    """What the ORM refuses was not sent, so that the transaction can go on without it."""
    with uow.transaction(read_only=True) as session:
        book = Book(title="lost")
        session.add(book)
        with pytest.raises(ReadOnlyTransactionError):
            session.flush()
        session.expunge(book)
        assert session.scalars(select(Book)).all() == []

    assert titles(engine) == []


def test_read_only_savepoint(uow: UnitOfWork, engine: Engine) -> None:
    """A read-only savepoint refuses what the ORM would write in it, and what came before is none of its business."""
    with uow.transaction() as session:
        session.add(Book(title="before"))
        with (
            pytest.raises(ReadOnlyTransactionError),
            uow.transaction(propagation=Propagation.NESTED, read_only=True),
        ):
            session.add(Book(title="inside"))
        session.add(Book(title="after"))

    assert titles(engine) == ["after", "before"]


def test_sessions_that_are_not_read_only(uow: UnitOfWork, engine: Engine) -> None:
    """A read-only transaction is nobody else's."""
    with uow.transaction(read_only=True) as session:
        session.scalars(select(Book)).all()
        with Session(engine) as other, other.begin():
            other.connection()
            assert other.info == {}
    with uow.transaction(read_only=True), uow.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
        inner.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


# Time


def test_view_out_of_time(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view that has used up its time fails, and nothing of it is stored, also where no statement is left to send."""
    app.config |= {"UOW_AUTO_COMMIT": True, "UOW_TIMEOUT": 0.02}
    uow.init_app(app)
    reported(app)

    @app.post("/<int:early>")
    def view(early: int) -> str:
        uow.session.add(Book(title="lost"))
        if early:
            uow.session.flush()
        wait(0.03)
        return "stored"

    answers = [app.test_client().post("/0"), app.test_client().post("/1")]

    assert [answer.text for answer in answers] == ["TransactionTimeoutError"] * 2
    assert titles(engine) == []


def wait(seconds: float) -> None:
    """Let time pass without the database, as slow work does."""
    end = monotonic() + seconds
    while monotonic() < end:
        pass


def test_joined_block_can_tighten(uow: UnitOfWork, engine: Engine) -> None:
    """A joined block can have less time, and cannot have more."""
    with pytest.raises(UnexpectedRollbackError, match=r"timeout of 0\.01 s"), uow.transaction(timeout=60) as session:
        session.add(Book(title="lost"))
        session.flush()
        with pytest.raises(Exception, match="the block 'inner' was not done after"):  # noqa: SIM117
            with uow.transaction(timeout=0.01, name="inner"):
                wait(0.02)
    with (
        pytest.raises(Exception, match="the block 'outer' was not done after"),
        uow.transaction(timeout=0.01, name="outer") as session,
        uow.transaction(timeout=60),
    ):
        session.add(Book(title="lost"))
        session.flush()
        wait(0.02)
        session.execute(select(Book))

    assert titles(engine) == []


def test_time_of_a_joined_block_is_its_own(uow: UnitOfWork, engine: Engine) -> None:
    """The time of a joined block that ended well is over with it."""
    with uow.transaction() as session:
        with uow.transaction(timeout=0.3):
            session.add(Book(title="kept"))
            session.flush()
        wait(0.35)
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept", "kept"]


def test_no_statement_no_timeout(uow: UnitOfWork) -> None:
    """A block that has not touched the database has nothing to be late with."""
    with uow.transaction(timeout=0.01):
        wait(0.02)
    with uow.transaction(), uow.transaction(timeout=0.01):
        wait(0.02)


# Propagation of views


def views(app: Flask, uow: UnitOfWork) -> list[bool]:
    """A view for each mode, which stores a book; what is seen is whether it was in a transaction."""
    seen: list[bool] = []

    def view() -> str:
        seen.append(bool(current_transaction))
        uow.session.add(Book(title="Emma"))
        uow.session.flush()
        return "done"

    for mode in Propagation:
        decorated = transactional(propagation=mode)(view)
        app.post(f"/{mode.name}", endpoint=mode.name)(decorated)
    return seen


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("REQUIRED", ([True], ["Emma"])),
        ("NESTED", ([True], ["Emma"])),
        ("REQUIRES_NEW", ([True], ["Emma"])),
        ("MANDATORY", ([True], ["Emma"])),
        ("SUPPORTS", ([True], ["Emma"])),
        ("NOT_SUPPORTED", ([False], [])),
        ("NEVER", (TransactionForbiddenError, [])),
    ],
)
def test_views_under_the_app_wide_policy(app: Flask, uow: UnitOfWork, engine: Engine, mode: str, expected: Any) -> None:
    """Under UOW_AUTO_COMMIT there is a transaction for a view's mode to meet."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    errors = reported(app)
    found = views(app, uow)

    app.test_client().post(f"/{mode}")

    assert (found or type(errors[0]), titles(engine)) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("REQUIRED", ([True], ["Emma"])),
        ("NESTED", ([True], ["Emma"])),
        ("REQUIRES_NEW", ([True], ["Emma"])),
        ("MANDATORY", (TransactionRequiredError, [])),
        ("SUPPORTS", ([False], [])),
        ("NOT_SUPPORTED", ([False], [])),
        ("NEVER", ([False], [])),
    ],
)
def test_views_without_a_policy(app: Flask, uow: UnitOfWork, engine: Engine, mode: str, expected: Any) -> None:
    """Without one, a mode that does not begin a transaction finds none."""
    uow.init_app(app)
    errors = reported(app)
    found = views(app, uow)

    app.test_client().post(f"/{mode}")

    assert (found or type(errors[0]), titles(engine)) == expected


@pytest.mark.parametrize("mode", ["MANDATORY", "SUPPORTS", "NOT_SUPPORTED", "NEVER"])
def test_blueprints_begin(uow: UnitOfWork, mode: str) -> None:
    """The policy of a Blueprint begins a transaction, and a mode that does not is refused."""
    with pytest.raises(ConfigurationError, match=rf"^propagation of a Blueprint is Propagation\.{mode}; .*exempt"):
        uow.transactional(propagation=Propagation[mode])(Blueprint("shop", __name__))


def test_requires_new_in_a_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An audit row in a transaction of its own stays when the view fails, with the view's session current after it."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @uow.transactional(propagation=Propagation.REQUIRES_NEW)
    def audit() -> None:
        uow.session.add(Book(title="attempt"))

    @app.post("/")
    def view() -> tuple[str, int]:
        held = uow.session
        transaction = uow.current_transaction
        audit()
        assert uow.session is held
        assert uow.current_transaction is transaction
        held.add(Book(title="lost"))
        return "no funds", 422

    assert app.test_client().post("/").status_code == 422
    assert titles(engine) == ["attempt"]


# Where a second connection cannot exist


@pytest.mark.parametrize("mode", [Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED])
def test_no_second_connection(mode: Propagation) -> None:
    """A block that suspends is refused where its COMMIT or ROLLBACK would end the suspended transaction."""
    engine = create_engine("sqlite://")
    Book.metadata.create_all(engine)
    uow = UnitOfWork(sessionmaker(engine))

    with uow.transaction(name="order") as session:
        session.add(Book(title="kept"))
        with (
            pytest.raises(ConfigurationError, match=r"would suspend .* of the block 'order'.*SingletonThread"),
            uow.transaction(propagation=mode),
        ):
            pytest.fail("the body ran")
        assert uow.session is session

    assert titles(engine) == ["kept"]
    engine.dispose()


def test_session_bound_to_a_connection(engine: Engine) -> None:
    """A session that was bound to a Connection is its maker's: nothing is set on it, and nothing suspended."""
    with engine.connect() as connection:
        outer = connection.begin()
        uow = UnitOfWork(sessionmaker(connection, join_transaction_mode="create_savepoint"))

        with uow.transaction(timeout=60, read_only=True) as session:
            session.scalars(select(Book)).all()
            with (
                pytest.raises(ConfigurationError, match="its session is bound to one Connection"),
                uow.transaction(propagation=Propagation.REQUIRES_NEW),
            ):
                pytest.fail("the body ran")
        with (
            pytest.raises(IncompatibleTransactionError, match="its session is bound to a Connection"),
            uow.transaction(isolation_level="SERIALIZABLE") as session,
        ):
            session.scalars(select(Book)).all()
        with uow.transaction() as session:
            session.add(Book(title="seen by the test alone"))
        assert connection.exec_driver_sql("PRAGMA query_only").scalar() == 0
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000
        outer.rollback()

    assert titles(engine) == []
