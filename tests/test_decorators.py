"""What can be decorated, and what is refused with advice."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import click
import pytest
from flask import Flask
from sqlalchemy import Engine

from flask_uow import ConfigurationError, Propagation, TransactionRequiredError, UnitOfWork, transactional
from tests.conftest import Book, titles


class Shop:
    def __init__(self, uow: UnitOfWork) -> None:
        self.uow = uow

    @transactional
    def store(self, title: str, *, shout: bool = False) -> str:
        """Store a book."""
        self.uow.session.add(Book(title=title))
        return title.upper() if shout else title

    @classmethod
    @transactional(name="class method")
    def make(cls, uow: UnitOfWork) -> Shop:
        uow.session.add(Book(title="made"))
        return cls(uow)


def test_functions_keep_their_face(uow: UnitOfWork) -> None:
    """Name, docstring and signature of a decorated function are its own."""
    assert Shop.store.__name__ == "store"
    assert Shop.store.__doc__ == "Store a book."
    assert "shout" in inspect.signature(Shop.store).parameters


def test_methods(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Methods and class methods are decorated like functions."""
    uow.init_app(app)

    with app.app_context():
        value = Shop.make(uow).store("Emma", shout=True)

    assert value == "EMMA"
    assert titles(engine) == ["Emma", "made"]


@pytest.mark.parametrize("error", [None, LookupError, asyncio.CancelledError])
def test_coroutine_functions(uow: UnitOfWork, engine: Engine, error: type[BaseException] | None) -> None:
    """The transaction of a coroutine function lasts until it is done, cancelled or failed."""

    @uow.transactional
    async def store() -> str:
        uow.session.add(Book(title="Emma"))
        await asyncio.sleep(0)
        if error is not None:
            raise error
        return "stored"

    assert inspect.iscoroutinefunction(store)
    if error is None:
        assert asyncio.run(store()) == "stored"
    else:
        with pytest.raises(error):
            asyncio.run(store())
    assert titles(engine) == ([] if error else ["Emma"])


def test_options_of_a_decorated_function(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Options given to the decorator hold at each call."""
    uow.init_app(app)

    @transactional(propagation=Propagation.MANDATORY)
    def needs_one() -> None: ...

    @uow.transactional(propagation=Propagation.NESTED)
    def may_fail(title: str) -> None:
        uow.session.add(Book(title=title))
        uow.session.flush()
        if title == "lost":
            raise LookupError

    with app.app_context():
        with pytest.raises(TransactionRequiredError, match=r"needs_one\(\) needs an active transaction"):
            needs_one()
        with uow.transaction():
            needs_one()
            may_fail("kept")
            with pytest.raises(LookupError):
                may_fail("lost")

    assert titles(engine) == ["kept"]


def generator() -> Any:
    yield


async def async_generator() -> Any:
    yield


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (generator, "cannot decorate the generator function generator"),
        (async_generator, "cannot decorate the generator function async_generator"),
        (Shop, "cannot decorate the class Shop"),
        (classmethod(print), "is above @classmethod"),
        (staticmethod(print), "is above @staticmethod"),
        (click.Command("add"), "is above the decorator of the command 'add'"),
        (3, "was given 3; it decorates functions, methods and Blueprints"),
    ],
)
def test_what_cannot_be_decorated(target: Any, message: str) -> None:
    """What a decorator would silently get wrong is refused, with the reason."""
    with pytest.raises(ConfigurationError, match=message):
        transactional(target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"propagation": "NESTED"}, "propagation is 'NESTED'; it must be a member of Propagation"),
        ({"rollback_for": "LookupError"}, "rollback_for is 'LookupError'; it must be an exception class"),
        ({"no_rollback_for": [LookupError]}, "no_rollback_for is .*; it must be an exception class"),
        ({"rollback_for": LookupError, "no_rollback_for": (LookupError,)}, "both name LookupError"),
        ({"commit_if": True}, "commit_if is True; it must be a plain function that takes the response"),
        ({"manual_commit": "maybe"}, 'manual_commit is \'maybe\'; it must be None, "error", "flush" or "allow"'),
        ({"name": ""}, "name is ''; it must be a string that is not empty"),
        ({"using": 3}, "using is 3; it must be the name of a UnitOfWork"),
        ({"attempts": 0}, "attempts is 0; it must be a whole number, 1 or above"),
        ({"timeout": -1}, "timeout is -1; it must be a number of seconds above 0"),
        (
            {"propagation": Propagation.NEVER, "read_only": True},
            "read_only is about a transaction, and with Propagation.NEVER there is none",
        ),
        ({"comit_if": print}, "comit_if is not an option of a transaction. Did you mean commit_if?"),
        ({"zzz": 1}, "zzz is not an option of a transaction. Known are: propagation"),
    ],
)
def test_options_are_checked_at_decoration(options: Any, message: str) -> None:
    """A wrong option is an error where it is written, and names what is allowed."""
    with pytest.raises(ConfigurationError, match=message):
        transactional(**options)


def test_using_is_for_the_module(uow: UnitOfWork) -> None:
    """uow.transactional() has its UnitOfWork already."""
    with pytest.raises(ConfigurationError, match=r"using is an option of flask_uow\.transactional"):
        uow.transactional(using="other")
