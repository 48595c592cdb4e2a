"""A small library that lends books, with a test-suite of its own.

The app is here and in ``models.py``. The tests are in ``tests``; they use the testing kit of flask_uow, and nothing
else of it::

    python -m pytest docs/examples/library
    python -m pytest docs/examples/library -n 2

They run on a SQLite file, or where ``LIBRARY_TEST_DATABASE_URL`` says: ``postgresql+psycopg://...``
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Flask, abort, current_app, request
from flask.typing import ResponseReturnValue
from sqlalchemy import Engine, create_engine, event, make_url, select
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session, joinedload

from flask_uow import CommitOutcomeUnknownError, UnitOfWork

from .models import Base, Book, Loan, Member

uow = UnitOfWork(lambda: Session(current_app.extensions["library.engine"]))

library = Blueprint("library", __name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the app; *config* goes before the environment."""
    app = Flask(__name__)
    app.config["UOW_AUTO_COMMIT"] = True
    app.config["DATABASE_URL"] = "sqlite:///library.db"
    app.config.from_prefixed_env("LIBRARY")
    app.config.from_mapping(config or {})
    app.register_blueprint(library)
    app.register_error_handler(IntegrityError, refused)
    app.register_error_handler(OperationalError, busy)
    app.register_error_handler(CommitOutcomeUnknownError, unknown)

    app.extensions["library.engine"] = open_database(app.config["DATABASE_URL"])
    app.extensions["library.outbox"] = []
    uow.init_app(app)

    Base.metadata.create_all(app.extensions["library.engine"])
    return app


def open_database(url: str) -> Engine:
    """Return an engine, whose database checks foreign keys."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)

    engine = create_engine(url, connect_args={"isolation_level": "IMMEDIATE"})

    @event.listens_for(engine, "connect")
    def check_foreign_keys(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    return engine


# Views


@library.get("/hours")
def hours() -> ResponseReturnValue:
    """Say when the library is open. No database knows that."""
    return {"open": "from nine to five"}


@library.get("/loans")
def loans() -> ResponseReturnValue:
    """List who has which book."""
    query = select(Loan).options(joinedload(Loan.book), joinedload(Loan.member)).order_by(Loan.id)
    return [{"book": loan.book.title, "member": loan.member.name} for loan in uow.session.scalars(query)]


@library.post("/loans")
@uow.transactional(attempts=3)
def borrow() -> ResponseReturnValue:
    """Lend a copy. Two who ask for it at the same time can be in each other's way, which is tried again."""
    wanted = request.get_json()
    book = uow.session.get(Book, wanted["book"], with_for_update=True)
    member = uow.session.get(Member, wanted["member"])
    if book is None or member is None:
        abort(404)
    uow.on_commit(send_mail, member.email, f"Please bring {book.title} back in four weeks.")

    uow.session.add(Loan(book=book, member=member))
    book.copies -= 1
    uow.session.flush()
    if book.copies < 0:
        abort(409)
    return {"book": book.title}, 201


@library.delete("/loans/<int:loan_id>")
def bring_back(loan_id: int) -> ResponseReturnValue:
    """Put a copy back on the shelf."""
    loan = uow.session.get(Loan, loan_id) or abort(404)
    loan.book.copies += 1
    uow.session.delete(loan)
    return "", 204


@library.post("/books")
def add_books() -> ResponseReturnValue:
    """Add those titles that are new. One that is not is undone alone, in a savepoint."""
    added, known = [], []
    for title in request.get_json():
        try:
            with uow.savepoint() as session:
                session.add(Book(title=title))
        except IntegrityError:
            known.append(title)
        else:
            added.append(title)
    return {"added": added, "known": known}


def send_mail(address: str, text: str) -> None:
    """Put a mail where another program would send it from."""
    current_app.extensions["library.outbox"].append((address, text))


# Errors


def refused(_error: IntegrityError) -> ResponseReturnValue:
    """Answer that a constraint was violated."""
    return {"message": "That is not possible."}, 409


def busy(_error: OperationalError) -> ResponseReturnValue:
    """Answer that all attempts have failed."""
    return {"message": "Please try again."}, 503


def unknown(_error: CommitOutcomeUnknownError) -> ResponseReturnValue:
    """Answer that the connection was lost while the loan was being stored."""
    return {"message": "Please look at your loans before you try again."}, 503
