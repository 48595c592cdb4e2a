"""What is logged, under which name, and what each record says beside its message."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import Backoff, CommitOutcomeUnknownError, UnitOfWork, flask_scoped_session, signals
from flask_uow.testing import inject
from tests.conftest import Book, conflict, titles


class JsonLines(logging.Formatter):
    """One object a line, as a collector of logs wants it."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "logger": record.name,
                "level": record.levelname,
                "message": record.getMessage(),
                "transaction_id": record.transaction_id,  # type: ignore[attr-defined] # each record has it
                "endpoint": record.endpoint,  # type: ignore[attr-defined] # likewise
            }
        )


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What was logged so far, through a handler on the parent of all loggers."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("flask_uow")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


class Broken(flask_scoped_session):
    """One that cannot be removed."""

    def remove(self) -> None:
        raise LookupError("broken")


Lines = Callable[[], list[dict[str, Any]]]
Seen = list[str | None]


def note(uow: UnitOfWork, seen: Seen) -> None:
    transaction = uow.current_transaction
    assert transaction is not None
    seen.append(transaction.id)


def failing_hook(uow: UnitOfWork, seen: Seen) -> None:
    note(uow, seen)
    with uow.savepoint():
        uow.on_commit(lambda: 1 / 0)


def failing_hook_of_a_savepoint(uow: UnitOfWork, seen: Seen) -> None:
    note(uow, seen)
    with suppress(LookupError), uow.savepoint():
        uow.on_rollback(lambda _error: 1 / 0)
        raise LookupError


def store(uow: UnitOfWork, seen: Seen) -> None:
    note(uow, seen)
    uow.session.add(Book(title="Emma"))


def meet_a_rival(uow: UnitOfWork, seen: Seen) -> None:
    tried = bool(seen)
    note(uow, seen)
    if not tried:
        conflict(uow.session)


def commit_halfway(uow: UnitOfWork, seen: Seen) -> None:
    uow.session.add(Book(title="Emma"))
    uow.session.commit()
    note(uow, seen)
    conflict(uow.session)


def go_wrong(uow: UnitOfWork, seen: Seen) -> None:
    note(uow, seen)
    uow.session.connection()
    raise LookupError


def broken(*_args: object, **_kwargs: object) -> bool:
    raise ZeroDivisionError


@dataclass(frozen=True)
class Scenario:
    """Something that is logged, once."""

    work: Callable[[UnitOfWork, Seen], None]
    expected: tuple[str, str]
    message: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, uow: UnitOfWork, seen: Seen) -> None:
        """Do it in a transaction, whose id is then in *seen*."""
        options = {"backoff": Backoff(base=0.0), **self.options}
        with signals.after_commit.connected_to(broken), suppress(LookupError, OperationalError):
            uow.transactional(**options)(self.work)(uow, seen)


SCENARIOS = [
    Scenario(failing_hook, ("flask_uow.hooks", "ERROR"), "The on_commit hook"),
    Scenario(failing_hook_of_a_savepoint, ("flask_uow.hooks", "ERROR"), "The on_rollback hook"),
    Scenario(store, ("flask_uow.signals", "ERROR"), "A receiver of the signal after_commit failed"),
    Scenario(meet_a_rival, ("flask_uow.retry", "INFO"), "Attempt 1 of 2", {"attempts": 2}),
    Scenario(
        commit_halfway,
        ("flask_uow.retry", "WARNING"),
        "is not run again",
        {"attempts": 2, "manual_commit": "allow"},
    ),
    Scenario(
        go_wrong, ("flask_uow.retry", "ERROR"), "The function retry_on", {"attempts": 2, "retry_on": lambda _: broken()}
    ),
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.work.__name__)
def test_in_a_request(app: Flask, uow: UnitOfWork, lines: Lines, scenario: Scenario) -> None:
    """A record has the id of the outermost transaction that it is about, and the endpoint of its request."""
    uow.init_app(app)
    seen: Seen = []

    @app.post("/", endpoint="books.add")
    def view() -> str:
        scenario.run(uow, seen)
        return ""

    app.test_client().post("/")

    (line,) = [line for line in lines() if scenario.message in line["message"]]
    assert (line["logger"], line["level"]) == scenario.expected
    assert (line["transaction_id"], line["endpoint"]) == (seen[0], "books.add")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.work.__name__)
def test_outside_flask(uow: UnitOfWork, lines: Lines, scenario: Scenario) -> None:
    """A record has the id of its transaction, and None for the endpoint that is not there."""
    seen: Seen = []

    scenario.run(uow, seen)

    (line,) = [line for line in lines() if scenario.message in line["message"]]
    assert (line["logger"], line["level"]) == scenario.expected
    assert (line["transaction_id"], line["endpoint"]) == (seen[0], None)


LOST: list[tuple[Any, str, str]] = [
    (None, "ERROR", "nobody was asked"),
    (lambda _session: True, "WARNING", "its work is stored"),
    (broken, "ERROR", "verify failed, and does not say"),
]


@pytest.mark.parametrize("lost", LOST, ids=["unknown", "stored", "failing"])
def test_lost_answer(app: Flask, uow: UnitOfWork, lines: Lines, lost: tuple[Any, str, str]) -> None:
    """What is said of a COMMIT without an answer names its transaction and its endpoint."""
    verify, level, message = lost
    uow.init_app(app)
    ids: Seen = []

    @app.post("/", endpoint="books.add")
    @uow.transactional(verify=verify)
    def view() -> str:
        note(uow, ids)
        uow.session.add(Book(title="Emma"))
        return ""

    @app.errorhandler(CommitOutcomeUnknownError)
    def unknown(_error: CommitOutcomeUnknownError) -> tuple[str, int]:
        return "unknown", 503

    with inject(uow, "disconnect_at_commit"):
        app.test_client().post("/")

    (line,) = [line for line in lines() if message in line["message"]]
    assert (line["logger"], line["level"]) == ("flask_uow.commit", level)
    assert (line["transaction_id"], line["endpoint"]) == (ids[0], "books.add")


def test_failing_teardown(app: Flask, engine: Engine, lines: Lines) -> None:
    """What goes wrong at teardown, when Flask has left the request, still names its endpoint."""

    class Stubborn(Session):
        def close(self) -> None:
            super().close()
            raise LookupError("stuck")

    uow = UnitOfWork(sessionmaker(engine, class_=Stubborn), app)
    Broken(Session, app)

    @app.get("/", endpoint="books.list")
    def view() -> str:
        uow.session.scalars(select(Book)).all()
        return ""

    app.test_client().get("/")

    assert [(line["logger"], line["endpoint"], line["transaction_id"]) for line in lines()] == [
        ("flask_uow.session", "books.list", None),
        ("flask_uow.requests", "books.list", None),
    ]


def test_teardown_of_an_app_context(app: Flask, uow: UnitOfWork, lines: Lines) -> None:
    """A context without a request has no endpoint, whether or not anybody has used a session in it."""
    uow.init_app(app)
    Broken(Session, app)

    with app.app_context():
        pass
    with app.app_context():
        uow.session.scalars(select(Book)).all()

    assert [(line["logger"], line["endpoint"]) for line in lines()] == [("flask_uow.requests", None)] * 2


def test_handler_of_a_500(app: Flask, engine: Engine, lines: Lines) -> None:
    """What its work comes to is told with the endpoint of the request."""
    uow = UnitOfWork(sessionmaker(engine), app, auto_commit=True, hook_errors="raise")

    @app.post("/", endpoint="books.add")
    def view() -> str:
        raise LookupError

    @app.errorhandler(500)
    def sorry(_error: Exception) -> str:
        uow.session.add(Book(title="Emma"))
        uow.on_commit(lambda: 1 / 0)
        return "sorry"

    app.test_client().post("/")

    (line,) = lines()
    assert (line["logger"], line["endpoint"]) == ("flask_uow.requests", "books.add")
    assert titles(engine) == ["Emma"]


def test_like_a_library() -> None:
    """No logger of ours has a handler, a level or a filter of its own, and all hand on what they get."""
    ours = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("flask_uow.") and isinstance(logger, logging.Logger)
    ]

    assert len(ours) > 5
    assert [
        logger for logger in ours if logger.handlers or logger.filters or logger.level or not logger.propagate
    ] == []
