"""What the tests share: one app and one set of tables, and a clean sheet for each test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Connection, make_url
from sqlalchemy.orm import Session

from .. import create_app
from ..models import Book, Member


@pytest.fixture(scope="session")
def database_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A new SQLite file, or a database of a server; with pytest-xdist each process has one of its own."""
    given = os.environ.get("LIBRARY_TEST_DATABASE_URL")
    if given is None:
        return f"sqlite:///{tmp_path_factory.mktemp('library') / 'library.db'}"
    url = make_url(given)
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        url = url.set(database=f"{url.database}_{worker}")
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def app(database_url: str) -> Iterator[Flask]:
    """The app, made once, with its tables."""
    app = create_app({"DATABASE_URL": database_url, "TESTING": True})
    yield app
    app.extensions["library.engine"].dispose()


@pytest.fixture(autouse=True)
def connection(uow_isolate: list[Connection]) -> Connection:
    """The connection on which a test happens. That it is autouse makes every test leave nothing behind."""
    return uow_isolate[0]


class Shelf(NamedTuple):
    """Primary keys of what is there before a test begins."""

    emma: int
    ada: int
    grace: int


@pytest.fixture
def shelf(connection: Connection) -> Shelf:
    """One copy of one book, and two members."""
    emma = Book(title="Emma", copies=1)
    ada, grace = Member(name="Ada", email="ada@example.org"), Member(name="Grace", email="grace@example.org")
    with Session(connection) as session:
        session.add_all([emma, ada, grace])
        session.commit()
        return Shelf(emma.id, ada.id, grace.id)


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """A client of the app."""
    return app.test_client()


@pytest.fixture
def outbox(app: Flask) -> list[tuple[str, str]]:
    """The mails that were sent in a test."""
    mails: list[tuple[str, str]] = app.extensions["library.outbox"]
    mails.clear()
    return mails
