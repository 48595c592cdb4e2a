"""An app on each kind of database, for the tests of what tests of apps use."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import Engine, select
from sqlalchemy.orm import sessionmaker

from flask_uow import Backoff, Propagation, UnitOfWork
from tests.conftest import Book, Loan


@dataclass
class Shop:
    """An app with views for what an app does with a transaction."""

    app: Flask
    uow: UnitOfWork
    engine: Engine
    done: list[str]
    """What its hooks have done."""

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()


def make_shop(engine: Engine, uow: UnitOfWork | None = None) -> Shop:
    uow = uow or UnitOfWork(sessionmaker(engine))
    app = Flask("shop")
    app.testing = True
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    shop = Shop(app, uow, engine, [])

    @app.get("/")
    def titles() -> list[str]:
        return sorted(uow.session.scalars(select(Book.title)))

    @app.post("/<title>")
    def add(title: str) -> str:
        uow.session.add(Book(title=title))
        uow.on_commit(shop.done.append, f"stored {title}")
        uow.on_rollback(lambda error: shop.done.append(f"lost {title}"))
        return ""

    @app.post("/refused/<title>")
    def refused(title: str) -> tuple[str, int]:
        uow.session.add(Book(title=title))
        uow.session.flush()
        uow.on_rollback(lambda error: shop.done.append(f"lost {title}"))
        return "", 409

    @app.post("/loan/<int:book>")
    def lend(book: int) -> str:
        uow.session.add(Loan(book_id=book))
        return ""

    @app.post("/nested/<title>")
    def nested(title: str) -> str:
        uow.session.add(Book(title=title))
        try:
            with uow.savepoint():
                uow.session.add(Book(title=f"not {title}"))
                uow.session.flush()
                raise LookupError
        except LookupError:
            pass
        return ""

    @app.post("/new/<title>/<int:status>")
    def new(title: str, status: int) -> tuple[str, int]:
        uow.session.add(Book(title=title))
        uow.session.flush()
        with uow.transaction(propagation=Propagation.REQUIRES_NEW) as session:
            session.add(Book(title=f"new {title}"))
        return "", status

    @app.post("/again/<title>")
    @uow.transactional(attempts=3, backoff=Backoff(0))
    def again(title: str) -> str:
        uow.session.add(Book(title=title))
        uow.session.flush()
        uow.on_commit(shop.done.append, f"stored {title}")
        uow.on_rollback(lambda error: shop.done.append(f"lost {title}"))
        transaction = uow.current_transaction
        assert transaction is not None
        return str(transaction.attempt)

    @app.get("/ping")
    def ping() -> str:
        return "pong"

    return shop


@pytest.fixture
def shop(engine: Engine) -> Shop:
    """The app on a file of SQLite."""
    return make_shop(engine)


@pytest.fixture
def any_shop(any_engine: Engine) -> Shop:
    """The app on each kind of database in turn."""
    return make_shop(any_engine)
