"""``flask uow check`` finds what is wrong with an app, and says what to do."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Flask, current_app
from flask.cli import ScriptInfo
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from flask_uow import Propagation, UnitOfWork, transactional
from flask_uow.cli import uow as commands

Make = Callable[..., Engine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes engines on a SQLite file, or on another URL, and disposes of them."""
    made: list[Engine] = []

    def make(url: str = f"sqlite:///{tmp_path / 'shop.db'}", **options: Any) -> Engine:
        engine = create_engine(url, **options)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.dispose()


def app_with(*sessions: Any) -> tuple[Flask, UnitOfWork]:
    """An app with a UnitOfWork for each of *sessions*: 'default', 'unit1' and so on."""
    app = Flask("bookshop")
    names = ["default", *(f"unit{number}" for number in range(1, len(sessions)))]
    units = [UnitOfWork(each, app, name=name) for each, name in zip(sessions, names, strict=True)]
    return app, units[0]


def run(app: Flask, *arguments: str, **env: str) -> Result:
    return app.test_cli_runner().invoke(args=["uow", "check", *arguments], env=env)


def on_terminal(app: Flask, monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    """What is printed on a terminal that is so wide."""
    ours, theirs = os.openpty()
    with monkeypatch.context() as patch, os.fdopen(theirs, "w") as terminal:
        patch.setenv("COLUMNS", str(columns))
        patch.setattr(sys, "stdout", terminal)
        commands.main(["check"], obj=ScriptInfo(create_app=lambda: app), standalone_mode=False)
    printed = b""
    with suppress(OSError):  # Linux says EIO at the end
        while part := os.read(ours, 10_000):
            printed += part
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def findings(app: Flask, *arguments: str, **env: str) -> list[dict[str, Any]]:
    result = run(app, *arguments, "--format", "json", **env)
    found: list[dict[str, Any]] = json.loads(result.stdout)
    assert result.exit_code == (1 if found else 0)
    return found


def codes(app: Flask, *arguments: str, **env: str) -> list[str]:
    return [finding["code"] for finding in findings(app, *arguments, **env)]


# Text, JSON, exit status


def test_nothing_found(make: Make) -> None:
    """An app without anything wrong has the exit status 0."""
    app, _ = app_with(make())

    result = run(app)

    assert (result.exit_code, result.output) == (0, "No findings.\n")
    assert findings(app) == []


def test_findings_as_text(make: Make) -> None:
    """A finding says what is wrong, with what, and what to do."""
    app, _ = app_with(make(pool_size=2, max_overflow=1), make("sqlite://"))

    result = run(app, "--threads", "4")

    assert result.exit_code == 1
    first, problem, cure, _, second, *_, last = result.output.splitlines()
    assert first.startswith("pool-too-small: sqlite:///")
    assert first.endswith("shop.db, of the UnitOfWork 'default'")
    assert problem == (
        "    4 threads need 4 connections at once, and the pool has 3. The rest wait for one, and fail when their time "
        "is over."
    )
    assert cure == "    Give create_engine() pool_size=4, or run fewer threads."
    assert second == "sqlite-memory: sqlite://, of the UnitOfWork 'unit1'"
    assert last == "2 findings."


def test_findings_as_json(make: Make) -> None:
    """As JSON they are one list of objects."""
    app, _ = app_with(make("sqlite://"))

    assert findings(app) == [
        {
            "code": "sqlite-memory",
            "subject": "sqlite://",
            "problem": (
                "Each thread has an in-memory SQLite database of its own, which is empty: what one thread stores, the "
                "others do not see."
            ),
            "cure": "Use a file, such as sqlite:///shop.db; in tests, one in a temporary folder.",
            "unit_of_work": "default",
        }
    ]


def test_terminal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal lines are as wide as it is, and coloured; what is piped is the same text without."""
    app, _ = app_with(make("sqlite://"))

    printed, piped = on_terminal(app, monkeypatch, 60), run(app).output

    assert "\x1b[31m" in printed
    assert "\x1b" not in piped
    plain = click.unstyle(printed)
    assert max(map(len, plain.splitlines())) <= 60 < max(map(len, piped.splitlines()))
    assert plain.split() == piped.split()
    assert piped.endswith("\n\n1 finding.\n")


def test_nothing_found_on_a_terminal(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it is green that nothing was found."""
    app, _ = app_with(make())

    assert on_terminal(app, monkeypatch, 60) == "\x1b[32mNo findings.\x1b[0m\n"


def test_one_of_several(make: Make) -> None:
    """One UnitOfWork can be asked about by its name."""
    app, _ = app_with(make(), make("sqlite://"))

    assert codes(app, "--name", "default") == []
    assert codes(app, "--name", "unit1") == ["sqlite-memory"]
    assert "The app has no UnitOfWork called 'x'. It has: 'default', 'unit1'." in run(app, "--name", "x").output


def test_passwords(make: Make) -> None:
    """Nobody's password is printed."""
    engine = make("postgresql+psycopg://jane:secret@127.0.0.1:1/shop", pool_size=1, max_overflow=0)
    app, _ = app_with(engine)

    result = run(app)

    assert "pool-too-small: postgresql+psycopg://jane:***@127.0.0.1:1/shop" in result.output
    assert "secret" not in result.output


# Pools


@pytest.mark.parametrize(
    ("options", "threads", "found"),
    [
        ({}, 15, False),
        ({}, 16, True),
        ({"pool_size": 1, "max_overflow": 0}, 1, False),
        ({"pool_size": 1, "max_overflow": -1}, 100, False),
        ({"pool_size": 0}, 100, False),
        ({"poolclass": NullPool}, 100, False),
    ],
)
def test_pool(make: Make, options: dict[str, Any], threads: int, found: bool) -> None:
    """A pool has to have a connection for each thread, if it has a limit."""
    app, _ = app_with(make(**options))

    assert codes(app, "--threads", str(threads)) == ["pool-too-small"] * found


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [("", 4), ("--threads 8", 8), ("-w 2 --threads=6 --bind :80", 6), ("--threads 8 --threads 2", 2), ("-w 9", 4)],
)
def test_threads_of_gunicorn(make: Make, arguments: str, threads: int) -> None:
    """Gunicorn's own setting says how many threads there are, where nothing else does."""
    enough, _ = app_with(make(pool_size=threads, max_overflow=0))
    lacking, _ = app_with(make(pool_size=max(threads - 1, 1), max_overflow=0))

    assert codes(enough, GUNICORN_CMD_ARGS=arguments) == []
    assert codes(lacking, GUNICORN_CMD_ARGS=arguments) == ["pool-too-small"]
    assert codes(lacking, "--threads", "1", GUNICORN_CMD_ARGS=arguments) == []


def view() -> str:
    raise NotImplementedError


@pytest.mark.parametrize("mode", Propagation)
def test_second_connection(make: Make, mode: Propagation) -> None:
    """A thread needs a second connection where a view may suspend a transaction."""
    app, uow = app_with(make(pool_size=7, max_overflow=0))
    app.add_url_rule("/", "view", uow.transactional(propagation=mode, name="the view")(view))

    found = findings(app)

    if mode in (Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED):
        assert found[0]["problem"] == (
            "4 threads need 8 connections at once, and the pool has 7. A thread needs two of them where the view "
            f"suspends a transaction ({mode.name}). When all have one and wait for another, none can go on."
        )
    else:
        assert found == []


def test_function_that_suspends(make: Make) -> None:
    """Functions that are no views count as well: those decorated for this UnitOfWork, or in the app's own package."""
    app, uow = app_with(make(pool_size=7, max_overflow=0), make())
    app.import_name = "tests.shop"

    def decorate(decorator: Any, module: str) -> Any:
        def function() -> None: ...

        function.__module__ = module
        return decorator(function)

    new = Propagation.REQUIRES_NEW
    others = [
        decorate(UnitOfWork(make(), name="other").transactional(propagation=new), "tests.shop"),
        decorate(transactional(propagation=new, using="unit1"), "tests.shop"),
        decorate(transactional(propagation=new), "elsewhere"),
        decorate(uow.transactional, "tests.shop"),
    ]
    before = codes(app)
    by_object = decorate(uow.transactional(propagation=new), "elsewhere")
    with_object = codes(app)
    del by_object
    after = codes(app)
    by_module = decorate(transactional(propagation=new), "tests.services")
    with_module = codes(app)

    assert (before, after) == ([], [])
    assert with_object == with_module == ["pool-too-small"]
    assert all(map(callable, [*others, by_module]))


# Databases in memory


@pytest.mark.parametrize(
    ("url", "pool", "what"),
    [
        ("sqlite://", None, "Each thread has an in-memory SQLite database of its own"),
        ("sqlite://", StaticPool, "The in-memory SQLite database has a StaticPool, which is one connection for all"),
        ("sqlite://", QueuePool, "Each connection has an in-memory SQLite database of its own"),
        ("sqlite:///file::memory:?uri=true", None, "an in-memory SQLite database of its own"),
    ],
)
def test_memory(make: Make, url: str, pool: Any, what: str) -> None:
    """A database in memory is not there for several threads."""
    app, _ = app_with(make(url, **({"poolclass": pool} if pool else {})))

    [found] = findings(app)

    assert found["code"] == "sqlite-memory"
    assert what in found["problem"]
    assert codes(app, "--threads", "1") == []


@pytest.mark.parametrize("url", ["sqlite:///file:shop?mode=memory&cache=shared&uri=true", "sqlite://"])
def test_no_memory_of_its_own(make: Make, tmp_path: Path, url: str) -> None:
    """A database in memory that all connections share, and a file behind another URL, are none of that."""
    options: dict[str, Any] = {}
    if url == "sqlite://":
        options["creator"] = lambda: sqlite3.connect(tmp_path / "shop.db", check_same_thread=False)
    app, _ = app_with(make(url, poolclass=QueuePool, **options))

    assert codes(app) == []


def test_one_connection_for_all(make: Make) -> None:
    """A StaticPool on a file, and sessions on one Connection, mix the transactions of threads."""
    with make().connect() as connection:
        app, _ = app_with(make(poolclass=StaticPool), sessionmaker(connection))

        found = findings(app)
        with_one_thread = findings(app, "--threads", "1")

    assert [each["code"] for each in found] == ["shared-connection"] * 2
    assert "The engine has a StaticPool" in found[0]["problem"]
    assert "bound to one Connection" in found[1]["problem"]
    assert with_one_thread == []


# Autocommit


def by_option(make: Make) -> Engine:
    return make(isolation_level="AUTOCOMMIT")


def by_execution_option(make: Make) -> Engine:
    return make(execution_options={"isolation_level": "AUTOCOMMIT"})


def by_copy(make: Make) -> Engine:
    return make().execution_options(isolation_level="AUTOCOMMIT")


@pytest.mark.parametrize("spelling", [by_option, by_execution_option, by_copy])
def test_autocommit(make: Make, spelling: Callable[[Make], Engine]) -> None:
    """An engine in AUTOCOMMIT is found, however it was told."""
    app, _ = app_with(sessionmaker(spelling(make)))

    [found] = findings(app)

    assert found["code"] == "autocommit"
    assert 'The isolation level is "AUTOCOMMIT"' in found["problem"]
    assert "Give UnitOfWork an engine without it" in found["cure"]


def test_autocommit_without_a_database(make: Make) -> None:
    """An engine in AUTOCOMMIT is found although its database cannot be reached."""
    app, _ = app_with(make("postgresql+psycopg://nobody@127.0.0.1:1/none", isolation_level="AUTOCOMMIT"))

    assert codes(app) == ["autocommit"]


def test_autocommit_of_a_connection(make: Make) -> None:
    """A connection in AUTOCOMMIT that sessions are bound to is found."""
    with make().connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        app, _ = app_with(sessionmaker(connection))

        assert codes(app, "--threads", "1") == ["autocommit"]


def test_autocommit_of_the_driver(make: Make, postgresql: Engine) -> None:
    """A driver that commits each statement is found, where SQLAlchemy knows nothing of it."""
    app, _ = app_with(make(postgresql.url, connect_args={"autocommit": True}), postgresql)

    [found] = findings(app)

    assert (found["code"], found["unit_of_work"]) == ("autocommit", "default")
    assert "The driver is in autocommit mode" in found["problem"]


# Savepoints of pysqlite


LEVELS = [{"isolation_level": None}, *([{"autocommit": True}] if sys.version_info >= (3, 12) else [])]


@pytest.mark.parametrize("arguments", LEVELS)
def test_nobody_begins(make: Make, arguments: dict[str, Any]) -> None:
    """A driver of SQLite that is in autocommit mode is found, for neither rollbacks nor savepoints work."""
    app, _ = app_with(make(connect_args=arguments))

    [found] = findings(app)

    assert found["code"] == "sqlite-savepoints"
    assert "neither a rollback nor a savepoint could undo it" in found["problem"]


@pytest.mark.parametrize("arguments", LEVELS)
def test_listener_that_begins(make: Make, arguments: dict[str, Any]) -> None:
    """It is right where a listener of the user's sends BEGIN."""
    engine = make(connect_args=arguments)
    event.listen(engine, "begin", begin)
    app, _ = app_with(engine)

    assert codes(app) == []


def begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


@pytest.mark.parametrize("level", ["DEFERRED", "IMMEDIATE"])
def test_we_begin(make: Make, level: str) -> None:
    """What flask_uow puts right by itself is no finding."""
    app, _ = app_with(make(connect_args={"isolation_level": level}))

    assert codes(app) == []


# The order of decorators


def test_order(make: Make) -> None:
    """A decorator above @app.route is found without a request."""
    app, _ = app_with(make())

    @transactional
    @app.get("/")
    def index() -> str: ...  # type: ignore[empty-body]

    [found] = findings(app)

    assert (found["code"], found["subject"], found["unit_of_work"]) == (
        "decorator-order",
        "the endpoint 'index'",
        "default",
    )
    assert f"index() in {__file__}:" in found["problem"]
    assert found["cure"] == "Write it below @app.route, next to the function."


def test_order_of_a_view_without_a_place(make: Make) -> None:
    """A view that does not say where it is written is found, too."""
    app, uow = app_with(make())

    class Silent:
        def __call__(self) -> None: ...

    def function() -> None: ...

    silent: Any = Silent()
    function.__wrapped__ = silent  # type: ignore[attr-defined]
    app.add_url_rule("/", "index", silent)
    uow.transactional(function)

    [found] = findings(app)

    assert "object at" in found["problem"]
    assert "() is above @app.route" in found["problem"]


# What cannot be looked at


def test_unreachable(make: Make) -> None:
    """A database that cannot be reached is told on stderr, and keeps nothing else from being looked at."""
    app, _ = app_with(make("postgresql+psycopg://nobody:secret@127.0.0.1:1/none"), make("sqlite://"))

    result = run(app)

    assert result.exit_code == 1
    assert result.stdout.startswith("sqlite-memory")
    assert result.stderr.startswith(
        "Not looked at: postgresql+psycopg://nobody:***@127.0.0.1:1/none of the UnitOfWork 'default', which cannot be "
        "reached: connection"
    )


def test_listener_that_fails(make: Make) -> None:
    """Whatever keeps a connection from being made is told."""
    engine = make()
    app, _ = app_with(engine)

    @event.listens_for(engine, "connect")
    def fail(*_: object) -> None:
        raise LookupError("no such secret")

    result = run(app)

    assert (result.exit_code, result.stdout) == (0, "No findings.\n")
    assert "cannot be reached: no such secret" in result.stderr


def test_unknown_engines() -> None:
    """A UnitOfWork that does not say what its engines are is told."""

    def fail() -> Session:
        raise LookupError

    app, _ = app_with(fail)

    result = run(app)

    assert (result.exit_code, result.stdout) == (0, "No findings.\n")
    assert "Not looked at: the engines of the UnitOfWork 'default': what its sessions" in result.stderr


def test_engine_of_the_app(make: Make) -> None:
    """An engine that is found through the current app is looked at."""
    app, _ = app_with(lambda: Session(current_app.extensions["engine"]))
    app.extensions["engine"] = make("sqlite://")

    assert codes(app) == ["sqlite-memory"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path)
    connection.execute("BEGIN EXCLUSIVE")
    yield
    connection.close()


def test_busy(make: Make, tmp_path: Path) -> None:
    """A database that somebody else has locked is told, and not waited for without end."""
    app, _ = app_with(make(connect_args={"isolation_level": "IMMEDIATE", "timeout": 0}))

    with locked(tmp_path / "shop.db"):
        result = run(app)

    assert result.exit_code == 0
    assert "cannot be reached: database is locked" in result.stderr


def test_nothing_is_left(engine: Engine) -> None:
    """Each connection is given back, without a transaction."""
    app, _ = app_with(engine)

    run(app)

    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    assert engine.pool.checkedin() == 1  # type: ignore[attr-defined]
