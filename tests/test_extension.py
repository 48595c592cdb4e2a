"""The extension: its life with applications, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from flask_uow import (
    ConfigurationError,
    ManualTransactionControlError,
    NoScopeError,
    TransactionRequiredError,
    UnitOfWork,
    current_transaction,
    on_commit,
    on_rollback,
    transactional,
)
from tests.conftest import Book, Log, titles


def untouched(app: Flask) -> dict[str, Any]:
    """What an installation would change."""
    return {**{name: value for name, value in vars(app).items() if callable(value)}, "extensions": dict(app.extensions)}


def test_factory_pattern(uow: UnitOfWork, engine: Engine) -> None:
    """One object serves every app that a factory makes, each with its own configuration."""

    def create_app(*, auto_commit: bool) -> Flask:
        app = Flask("bookshop")
        app.config["UOW_AUTO_COMMIT"] = auto_commit
        uow.init_app(app)

        @app.post("/<title>")
        def view(title: str) -> str:
            uow.session.add(Book(title=title))
            return ""

        return app

    create_app(auto_commit=True).test_client().post("/kept")
    create_app(auto_commit=False).test_client().post("/forgotten")

    assert titles(engine) == ["kept"]


def test_app_in_the_constructor(app: Flask, engine: Engine) -> None:
    """UnitOfWork(sessions, app) is init_app(app), and the state is under app.extensions by name."""
    uow = UnitOfWork(engine, app)
    reports = UnitOfWork(engine, app, name="reports")

    assert app.extensions["uow"] == {"default": uow, "reports": reports}
    assert (uow.name, repr(reports)) == ("default", "<UnitOfWork 'reports'>")


def test_settings_of_the_constructor_are_defaults(app: Flask, engine: Engine) -> None:
    """Settings given to the constructor hold for every app, unless its configuration says otherwise."""
    uow = UnitOfWork(sessionmaker(engine), app, auto_commit=True)
    silent = Flask("silent")
    silent.config["UOW_AUTO_COMMIT"] = False
    uow.init_app(silent)

    for application in (app, silent):

        @application.get("/")
        def view() -> str:
            uow.session.add(Book(title="Emma"))
            return ""

        application.test_client().get("/")

    assert titles(engine) == ["Emma"]


def test_second_init_app(app: Flask, uow: UnitOfWork) -> None:
    """A second call on one app is refused, and changes nothing."""
    uow.init_app(app)
    before = untouched(app)

    with pytest.raises(ConfigurationError, match=r"init_app\(\) was called for 'bookshop' before"):
        uow.init_app(app)

    assert untouched(app) == before


def test_second_object_of_a_name(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Two objects of one name on one app are refused, with the cure."""
    uow.init_app(app)
    before = untouched(app)

    with pytest.raises(ConfigurationError, match=r"Give each its own: UnitOfWork\(sessions, name=\"reports\"\)"):
        UnitOfWork(engine, app)

    assert untouched(app) == before


def test_init_app_after_the_first_request(app: Flask, uow: UnitOfWork) -> None:
    """Too late is refused, and nothing is half installed."""
    app.test_client().get("/")
    before = untouched(app)

    with pytest.raises(ConfigurationError, match="after 'bookshop' had handled its first request"):
        uow.init_app(app)

    assert untouched(app) == before


@pytest.mark.parametrize("key", ["UOW_AUTO_COMIT", "UOW_AUTO_COMMIT"])
def test_wrong_configuration_installs_nothing(app: Flask, uow: UnitOfWork, key: str) -> None:
    """A wrong setting leaves the app as it was, and the call can be made again."""
    before = untouched(app)
    app.config[key] = "yes"

    with pytest.raises(ConfigurationError, match=key):
        uow.init_app(app)

    assert untouched(app) == before
    del app.config[key]
    uow.init_app(app)


@pytest.mark.parametrize("app_argument", ["app", Flask, object()])
def test_app_that_is_none(uow: UnitOfWork, app_argument: Any) -> None:
    """What is no Flask application is refused."""
    with pytest.raises(ConfigurationError, match="it must be a Flask application"):
        uow.init_app(app_argument)


@pytest.mark.parametrize("name", ["", "two words", 7, None])
def test_name_that_is_none(engine: Engine, name: Any) -> None:
    """A name must be able to be part of a configuration key."""
    with pytest.raises(ConfigurationError, match=r"name is .*; it must be a string of letters"):
        UnitOfWork(engine, name=name)


def test_import_needs_no_extras() -> None:
    """The package is imported with its three dependencies alone: SQLAlchemy 2.1 does not bring greenlet."""
    script = "import sys; sys.modules['greenlet'] = None; import flask_uow; print(flask_uow.__all__[0])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "Backoff\n"), done.stderr


# Without Flask


def test_block_without_flask(uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """A script uses transaction() alone: committed, closed, and told in the name of the UnitOfWork."""
    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        assert uow.session is session
        inside = uow.current_transaction
        assert bool(current_transaction)
        on_commit(log.append, "hook")
        log.arguments.append({})
        log.senders.append(uow)

    assert titles(engine) == ["Emma"]
    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "hook",
        "transaction_completed",
        "session_removed",
    ]
    assert set(log.senders) == {uow}
    assert inside is not None
    assert uow.current_transaction is None
    assert not bool(current_transaction)


def test_settings_count_without_an_app(engine: Engine) -> None:
    """Outside an app the constructor's settings are in force."""
    uow = UnitOfWork(sessionmaker(engine), manual_commit="flush")

    with uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.commit()
        stored = titles(engine)

    assert (stored, titles(engine)) == ([], ["Emma"])


def test_decorated_function_without_flask(uow: UnitOfWork, engine: Engine) -> None:
    """A decorated function is a transaction in a script; the module's decorator joins the block around it."""

    @uow.transactional
    def store(title: str) -> str:
        uow.session.add(Book(title=title))
        return title

    @transactional
    def store_with_the_surroundings(title: str) -> str:
        return store(title)

    assert store("first") == "first"
    with pytest.raises(LookupError), uow.transaction():
        store_with_the_surroundings("lost")
        raise LookupError
    with pytest.raises(NoScopeError, match=r"store_with_the_surroundings\(\) is not available here: no app context"):
        store_with_the_surroundings("nowhere")

    assert titles(engine) == ["first"]


def test_two_objects_nest_without_flask(uow: UnitOfWork, engine: Engine) -> None:
    """Blocks of two objects have sessions of their own; the innermost is the current one."""
    other = UnitOfWork(sessionmaker(engine), name="other")

    with uow.transaction(name="outer") as outer, other.transaction(name="inner") as inner:
        assert outer is not inner
        assert (uow.session, other.session) == (outer, inner)
        assert current_transaction.name == "inner"
        outer.rollback  # noqa: B018 - neither is closed

    assert uow.current_transaction is None


def test_initialised_object_without_an_app_context(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An object that serves apps works in a script beside them as well."""
    uow.init_app(app)

    with uow.transaction() as session:
        session.add(Book(title="Emma"))

    assert titles(engine) == ["Emma"]


def test_block_in_the_context_of_a_strange_app(uow: UnitOfWork, engine: Engine) -> None:
    """In an app that it was not initialised with, a block is as outside any app."""
    with Flask("stranger").app_context(), uow.transaction() as session:
        session.add(Book(title="Emma"))
        assert uow.session is session

    assert titles(engine) == ["Emma"]


def test_decorated_view_of_an_app_that_was_forgotten(uow: UnitOfWork, engine: Engine) -> None:
    """A view whose app was not initialised would commit whatever it answers, so it is refused."""
    app = Flask("forgotten")

    @app.post("/")
    @uow.transactional
    def view() -> tuple[str, int]:
        uow.session.add(Book(title="lost"))
        return "", 409

    app.testing = True

    with pytest.raises(NoScopeError, match=r"view\(\) is not available here: init_app\(\) was not called for"):
        app.test_client().post("/")
    assert titles(engine) == []


# In a command


def test_command(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A decorated command commits when it ends, and rolls back when it fails."""
    uow.init_app(app)

    @app.cli.command("add")
    @transactional
    def add_book() -> None:
        uow.session.add(Book(title="Emma"))

    @app.cli.command("fail")
    @transactional
    def fail() -> None:
        uow.session.add(Book(title="lost"))
        raise SystemExit(3)

    runner = app.test_cli_runner()

    assert runner.invoke(args=["add"]).exit_code == 0
    assert runner.invoke(args=["fail"]).exit_code == 3
    assert titles(engine) == ["Emma"]


# What needs a transaction


@pytest.mark.parametrize("place", ["nowhere", "app context"])
@pytest.mark.parametrize("what", ["on_commit", "on_rollback", "set_rollback_only", "savepoint"])
def test_transaction_is_required(app: Flask, uow: UnitOfWork, what: str, place: str) -> None:
    """Hooks, set_rollback_only() and savepoints need a transaction, and say so."""
    uow.init_app(app)
    calls: dict[str, Callable[[], object]] = {
        "savepoint": lambda: uow.savepoint().__enter__(),
        "set_rollback_only": uow.set_rollback_only,
        "on_commit": lambda: uow.on_commit(print),
        "on_rollback": lambda: uow.on_rollback(print),
    }

    with (
        app.app_context() if place == "app context" else nullcontext(),
        pytest.raises(TransactionRequiredError, match=rf"{what}\(\) needs an active transaction, and there is none"),
    ):
        calls[what]()


def test_hook_that_runs_at_once(app: Flask, uow: UnitOfWork) -> None:
    """With if_inactive="run" an on_commit hook runs at once where there is no transaction; on_rollback never will."""
    uow.init_app(app)
    ran: list[object] = []

    uow.on_commit(ran.append, "outside", if_inactive="run")
    on_commit(ran.append, "module", if_inactive="run")
    uow.on_rollback(ran.append, if_inactive="run")
    with app.app_context():
        uow.on_commit(ran.append, "inside", if_inactive="run")
        on_commit(ran.append, "module inside", if_inactive="run")
        on_rollback(ran.append, if_inactive="run")

    assert ran == ["outside", "module", "inside", "module inside"]


def test_module_level_hooks(app: Flask, uow: UnitOfWork) -> None:
    """The module's functions find the current app's UnitOfWork, as decorators too."""
    uow.init_app(app)
    ran: list[object] = []

    with app.app_context():
        with uow.transaction():

            @on_commit
            def plain() -> None:
                ran.append("plain")

            @on_commit(key="once")
            def keyed() -> None:
                ran.append("keyed")

            @uow.on_commit(key="once")
            def again() -> None:
                ran.append("again")

        with pytest.raises(LookupError), uow.transaction():

            @on_rollback
            def undone(error: BaseException | None) -> None:
                ran.append(type(error))

            @uow.on_rollback(key="other")
            def undone_too(error: BaseException | None) -> None:
                ran.append(type(error))

            raise LookupError
        with pytest.raises(TransactionRequiredError):
            on_commit(print)
    with pytest.raises(NoScopeError, match=r"on_commit\(\) is not available here: no app context is active"):
        on_commit(print)

    assert ran == ["plain", "keyed", LookupError, LookupError]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {}, r"on_commit\(\) was given 3; it takes a function"),
        ((None,), {}, r"on_commit\(\) was given None; it takes a function"),
        ((print,), {"if_inactive": "maybe"}, 'if_inactive is \'maybe\'; it must be "error" or "run"'),
    ],
)
def test_wrong_hooks(uow: UnitOfWork, arguments: Any, options: Any, message: str) -> None:
    """A hook that could not run is refused when it is registered."""
    with uow.transaction(), pytest.raises(ConfigurationError, match=message):
        uow.on_commit(*arguments, **options)


def test_coroutine_hooks_are_refused(uow: UnitOfWork) -> None:
    """A coroutine function would never be awaited, and is refused, as a function and as an object's __call__."""

    async def hook() -> None: ...

    class Hook:
        async def __call__(self) -> None: ...

    with uow.transaction():
        for callback in (hook, Hook()):
            with pytest.raises(ConfigurationError, match="coroutine function"):
                uow.on_commit(callback)


def test_missing_object_is_named(app: Flask, uow: UnitOfWork) -> None:
    """using= with a name that the app does not have says which it has."""
    uow.init_app(app)

    @transactional(using="reports")
    def work() -> None: ...

    with app.app_context(), pytest.raises(NoScopeError, match="no UnitOfWork named 'reports'; it has 'default'"):
        work()
    with Flask("empty").app_context():
        assert not bool(current_transaction)
        with pytest.raises(NoScopeError, match="it has none"):
            work()


@pytest.mark.parametrize("option", ["attempts", "retry_on", "backoff", "commit_if", "using"])
def test_options_that_a_block_cannot_have(uow: UnitOfWork, option: str) -> None:
    """A with block cannot be run again, see a response, or look for another UnitOfWork."""
    with pytest.raises(ConfigurationError, match=rf"{option} is not an option of transaction\(\)"):
        uow.transaction(**{option: 1})  # type: ignore[arg-type]


def test_block_entered_twice(uow: UnitOfWork) -> None:
    """A context manager that is running cannot be entered again; afterwards it can."""
    block = uow.transaction()

    with block, pytest.raises(ConfigurationError, match=r"Call transaction\(\) or savepoint\(\) anew"):
        block.__enter__()
    with block as session:
        assert uow.session is session


def test_settling_by_hand_without_a_policy(app: Flask, uow: UnitOfWork, engine: Engine, log: Log) -> None:
    """Without policy and block, the session's own commit() and rollback() work, and are told."""
    uow.init_app(app)

    with app.app_context():
        uow.session.commit()
        uow.session.add(Book(title="kept"))
        uow.session.commit()
        uow.session.add(Book(title="undone"))
        uow.session.rollback()
        uow.session.add(Book(title="forgotten"))

    assert titles(engine) == ["kept"]
    assert log == [
        "transaction_started",
        "before_commit",
        "after_commit",
        "transaction_completed",
        "transaction_started",
        "after_rollback",
        "transaction_completed",
        "session_removed",
    ]


@pytest.mark.parametrize("method", ["close", "reset"])
def test_closing_by_hand_without_a_policy(app: Flask, uow: UnitOfWork, engine: Engine, method: str) -> None:
    """A legacy view may close the session; the next use has a fresh one, and a held one still counts."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/<way>")
    def view(way: str) -> str:
        session = uow.session
        session.add(Book(title="dropped"))
        getattr(session, method)()
        (session if way == "held" else uow.session).add(Book(title=way))
        return ""

    client = app.test_client()
    client.post("/held")
    client.post("/fresh")

    assert titles(engine) == ["fresh", "held"]


def test_block_refuses_what_would_break_it(uow: UnitOfWork, engine: Engine) -> None:
    """A block is intact after a refused commit(), and a savepoint of the user's own is no matter."""
    with uow.transaction(name="order") as session:
        session.add(Book(title="Emma"))
        with session.begin_nested():
            session.add(Book(title="Persuasion"))
        with pytest.raises(ManualTransactionControlError, match="inside the block 'order'"):
            session.commit()

    assert titles(engine) == ["Emma", "Persuasion"]
