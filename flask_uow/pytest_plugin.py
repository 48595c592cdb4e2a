"""Fixtures for pytest, which do nothing unless a test asks for them.

They are about the UnitOfWork that a fixture ``uow`` of the user's returns, or several in a list or a tuple; or about
those of the Flask application that the fixture ``app`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import pytest
from flask import Flask, has_app_context
from sqlalchemy import Connection

from flask_uow.errors import ConfigurationError
from flask_uow.extension import UnitOfWork
from flask_uow.testing import Injection, Recording, inject, isolate, record

__all__ = ["uow_inject", "uow_isolate", "uow_record"]


@pytest.fixture
def uow_isolate(request: pytest.FixtureRequest) -> Iterator[list[Connection]]:
    """Let what is committed in the test be gone after it; the connections on which everything happens.

    See `flask_uow.testing.isolate`.
    """
    uows = _units_of_work(request)
    app = request.getfixturevalue("app") if "app" in request.fixturenames else None
    with ExitStack() as stack:
        # Other extensions know their engines there. In a context of the user's it is seen whether a session is in use.
        with app.app_context() if isinstance(app, Flask) and not has_app_context() else nullcontext():
            connections = stack.enter_context(isolate(*uows))
        yield connections


@pytest.fixture
def uow_record(request: pytest.FixtureRequest) -> Iterator[Recording]:
    """What the UnitOfWork does in the test; of several, the first.

    See `flask_uow.testing.record`.
    """
    with record(_units_of_work(request)[0]) as recording:
        yield recording


@pytest.fixture
def uow_inject(request: pytest.FixtureRequest) -> Iterator[Callable[..., Injection]]:
    """Return a function that lets the database fail from now on, to the end of a with statement or of the test.

    It is `flask_uow.testing.inject` without the first argument, the UnitOfWork; of several, the first.
    """
    uow = _units_of_work(request)[0]
    with ExitStack() as stack:

        def start(error: Any, **options: Any) -> Injection:
            return stack.enter_context(inject(uow, error, **options))

        yield start


def _units_of_work(request: pytest.FixtureRequest) -> list[UnitOfWork]:
    """Return the UnitOfWork objects that a test is about.

    Raises:
        ConfigurationError: There is neither a fixture ``uow`` nor an ``app`` that has any.
    """
    given = _value_of(request, "uow")
    if given is not None:
        return list(given) if isinstance(given, (list, tuple)) else [given]
    app = _value_of(request, "app")
    found: dict[str, UnitOfWork] = getattr(app, "extensions", {}).get("uow", {})
    if not found:
        raise ConfigurationError(
            f"The fixture {request.fixturename!r}",
            "needs a UnitOfWork. Write a fixture 'uow' that returns it, or a fixture 'app' that returns the Flask "
            "application with which it was initialised.",
        )
    return list(found.values())


def _value_of(request: pytest.FixtureRequest, name: str) -> Any:
    """Return the value of a fixture, or None where there is none of that name."""
    try:
        return request.getfixturevalue(name)
    except pytest.FixtureLookupError as error:
        if error.argname != name:
            raise
        return None
