from __future__ import annotations

import inspect
import types
from importlib import resources

import pytest
from blinker import Signal
from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

import flask_uow
from flask_uow import (
    NoScopeError,
    TransactionRequiredError,
    UnitOfWork,
    current_session,
    current_transaction,
    errors,
    flask_scoped_session,
    on_commit,
    on_rollback,
    signals,
    transactional,
)
from tests.conftest import Book, titles


def test_all_lists_every_public_name() -> None:
    """What can be imported is what is promised, in alphabetical order, with the two modules that users name."""
    public = {
        name
        for name, value in vars(flask_uow).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }

    assert sorted(public | {"errors", "signals"}) == flask_uow.__all__


def test_star_import() -> None:
    """Every promised name is there."""
    namespace: dict[str, object] = {}

    exec("from flask_uow import *", namespace)

    assert set(namespace) - {"__builtins__"} == set(flask_uow.__all__)


def test_every_error_is_public() -> None:
    """An error that users meet can be imported from the package."""
    assert set(errors.__all__) <= set(flask_uow.__all__)
    assert [getattr(flask_uow, name) for name in errors.__all__] == [getattr(errors, name) for name in errors.__all__]


@pytest.mark.parametrize("name", flask_uow.__all__)
def test_documented(name: str) -> None:
    """Every public name says what it is."""
    value = vars(flask_uow)[name]

    assert inspect.getdoc(type(value) if name.startswith("current_") else value)


@pytest.mark.parametrize("member", [name for name in vars(UnitOfWork) if not name.startswith("_")])
def test_methods_documented(member: str) -> None:
    """Every public method and property of a UnitOfWork says what it does."""
    assert inspect.getdoc(inspect.getattr_static(UnitOfWork, member))


def test_signals() -> None:
    """Every signal is listed, in alphabetical order, and says what it is sent with."""
    found = {name: value for name, value in vars(signals).items() if isinstance(value, Signal)}

    assert sorted({*found, "Publisher"}) == signals.__all__
    assert all(inspect.getdoc(signal) for signal in found.values())


def test_typed() -> None:
    """Type checkers are told that the package is typed."""
    assert resources.files(flask_uow).joinpath("py.typed").is_file()


# What stands in the module, outside any app


def test_current_transaction_nowhere() -> None:
    """Outside any app and any block there is no current transaction, and asking for it is harmless."""
    assert bool(current_transaction) is False


@pytest.mark.parametrize(("register", "name"), [(on_commit, "on_commit"), (on_rollback, "on_rollback")])
def test_hook_nowhere(register: types.FunctionType, name: str) -> None:
    """Outside any app and any block nobody knows what a hook is to wait for."""
    with pytest.raises(NoScopeError, match=rf"^{name}\(\) is not available here: no app context is active"):
        register(print)


def test_hook_nowhere_at_once() -> None:
    """A commit hook that may run at once does so anywhere."""
    calls: list[str] = []

    on_commit(calls.append, "now", if_inactive="run")

    assert calls == ["now"]


def test_decorated_function_nowhere() -> None:
    """A decorated function that is called outside any app says why it cannot run."""

    @transactional
    def work() -> None:
        pytest.fail("the body ran")

    with pytest.raises(NoScopeError, match=r"work\(\) is not available here: no app context is active"):
        work()


def test_current_session_nowhere() -> None:
    """The current session needs an app context."""
    with pytest.raises(RuntimeError, match="current_session is not available outside an app context"):
        current_session.add  # noqa: B018 - found by looking at it


# In a block outside any app


def test_in_a_block(engine: Engine) -> None:
    """In a block outside any app the module's functions are about that block."""
    uow = UnitOfWork(sessionmaker(engine))
    calls: list[str] = []

    @transactional
    def add(title: str) -> None:
        uow.session.add(Book(title=title))
        on_commit(calls.append, title)

    with uow.transaction(name="payday"):
        add("Emma")
        name = current_transaction.name
        before = list(calls)

    assert name == "payday"
    assert before == []
    assert calls == ["Emma"]
    assert titles(engine) == ["Emma"]


# In an app


def test_in_an_app(app: Flask, engine: Engine) -> None:
    """In an app context the module's functions are about the app's UnitOfWork."""
    uow = UnitOfWork(sessionmaker(engine), app)
    calls: list[object] = []

    @transactional
    def add(title: str) -> str | None:
        uow.session.add(Book(title=title))
        on_commit(calls.append, title)
        on_rollback(calls.append)
        return current_transaction.name

    with app.app_context():
        name = add("Emma")
        after = bool(current_transaction)

    assert name == "test_in_an_app.<locals>.add()"
    assert not after
    assert calls == ["Emma"]
    assert titles(engine) == ["Emma"]


def test_another_of_the_app(app: Flask, engine: Engine) -> None:
    """using= finds the UnitOfWork of that name."""
    UnitOfWork(sessionmaker(), app)
    reports = UnitOfWork(sessionmaker(engine), app, name="reports")

    @transactional(using="reports")
    def add() -> None:
        reports.session.add(Book(title="Emma"))

    with app.app_context():
        add()

    assert titles(engine) == ["Emma"]


def test_hook_without_a_transaction(app: Flask) -> None:
    """In an app context without a transaction a hook is refused."""
    UnitOfWork(sessionmaker(), app)

    with app.app_context(), pytest.raises(TransactionRequiredError, match=r"^on_commit\(\) needs an active"):
        on_commit(print)


def test_current_session(app: Flask, engine: Engine) -> None:
    """The current session is the app's flask_scoped_session, and through it the context's session."""
    registry = flask_scoped_session(sessionmaker(engine), app)

    with app.app_context():
        current_session.add(Book(title="Emma"))
        current_session.commit()
        same = current_session() is registry()

    assert same
    assert titles(engine) == ["Emma"]


def test_current_session_of_another_app(app: Flask) -> None:
    """An app that was not initialised has no current session."""
    with app.app_context(), pytest.raises(AttributeError, match=r"has no attribute 'scoped_session'\. Initialise it"):
        current_session.add  # noqa: B018 - found by looking at it
