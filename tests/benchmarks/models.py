"""What all contenders share: the models, the engine, the work of each route, and what must be stored in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from flask import Flask
from sqlalchemy import URL, Connection, Engine, String, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

BALANCE: Final = 1_000_000
"""What each of the two accounts has in the beginning."""


class Base(DeclarativeBase):
    """The models of the benchmarks; Flask-SQLAlchemy is given plain ones, too."""


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    balance: Mapped[int]


class Entry(Base):
    """A row that a route has written."""

    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(String(50))


# The engine


def engine_options(url: URL) -> dict[str, Any]:
    """Return the options of everybody's engine, those included that an extension makes itself."""
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        arguments = {"isolation_level": None}
    elif url.get_driver_name() == "psycopg":
        # As with SQLite below: that a disk has stored it is not waited for.
        arguments = {"options": "-c synchronous_commit=off"}
    return {"pool_size": 5, "connect_args": arguments}


def set_up(engine: Engine) -> None:
    """Give SQLite real transactions, without waiting for the disk: its noise is not what is measured.

    BEGIN comes before the first statement, as SQLAlchemy's documentation advises: Python's driver alone would send
    none before a SELECT, so that a transfer could lose somebody else's, nor before a savepoint, which would then be
    committed when it is released. The listener goes past SQLAlchemy, which is the cheapest way for everybody.
    """
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def _set_pragmas(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = MEMORY")
        connection.execute("PRAGMA synchronous = OFF")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection
        driver.execute("BEGIN")


def make_engine(url: URL) -> Engine:
    """Return an engine for those that take one."""
    engine = create_engine(url, **engine_options(url))
    set_up(engine)
    return engine


# The app


class RefusedError(Exception):
    """What a view raises in the middle of its work."""


class Made(NamedTuple):
    """An app, and its engine if it has one."""

    app: Flask
    engine: Engine | None


def make_app() -> Flask:
    """Return an app with what no contender does in its own way."""
    app = Flask("benchmark")

    @app.get("/nothing")
    def nothing() -> str:
        return "nothing"

    @app.errorhandler(RefusedError)
    def refused(_error: RefusedError) -> tuple[str, int]:
        return "refused", 409

    return app


@dataclass(frozen=True)
class Route:
    """What is asked for, and what must be answered and stored."""

    name: str
    method: str
    body: str
    status: int = 200
    entries: int = 0
    """How many rows a request leaves behind."""

    moved: int = 0
    """By how much a request makes the first account poorer, and the second richer."""

    @property
    def path(self) -> str:
        """Where it is."""
        return f"/{self.name}"

    def check(self, status: int, body: bytes) -> None:
        """Raise if that is not the answer."""
        answer, expected = (status, body), (self.status, self.body.encode())
        if answer != expected:
            raise AssertionError(f"{self.method} {self.path} was answered with {answer} instead of {expected}.")


ROUTES: Final = {
    route.name: route
    for route in (
        Route("nothing", "GET", "nothing"),
        Route("read", "GET", "Ada"),
        Route("write", "POST", "written", entries=1),
        Route("transfer", "POST", "moved", moved=1),
        Route("exception", "POST", "refused", status=409),
        Route("savepoint", "POST", "saved", entries=1),
    )
}


# The work of the routes: what is left to a contender is when it is committed, and when the session is closed.


def read_name(session: Session) -> str:
    """Send one SELECT."""
    return session.get_one(Account, 1).name


def add_entry(session: Session, route: str) -> None:
    """Have one INSERT sent with the next flush."""
    session.add(Entry(route=route))


def transfer_one(session: Session) -> None:
    """Send two SELECTs, and have two UPDATEs sent with the next flush."""
    # Locked where the database has locks for rows: otherwise two requests at a time lose one of them.
    payer = session.get_one(Account, 1, with_for_update=True)
    payee = session.get_one(Account, 2, with_for_update=True)
    payer.balance -= 1
    payee.balance += 1


def fail(session: Session) -> None:
    """Send one INSERT, and raise."""
    add_entry(session, "exception")
    session.flush()
    raise RefusedError


# The contents


def fill(url: URL) -> None:
    """Make the tables, and two accounts."""
    engine = make_engine(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Account(id=key, name=name, balance=BALANCE) for key, name in ((1, "Ada"), (2, "Bob")))
    engine.dispose()


class Contents(NamedTuple):
    """What is stored: how many rows each route has written, and what the two accounts have."""

    entries: dict[str, int]
    balances: list[int]


def contents(url: URL) -> Contents:
    """Return what is stored, seen from a new connection."""
    engine = make_engine(url)
    with Session(engine) as session:
        written = select(Entry.route, func.count()).group_by(Entry.route)
        entries = {row[0]: row[1] for row in session.execute(written)}
        balances = list(session.scalars(select(Account.balance).order_by(Account.id)))
    engine.dispose()
    return Contents(entries, balances)


def contents_after(asked: Mapping[str, int]) -> Contents:
    """Return what must be stored when each route was asked so many times."""
    entries = {name: count * ROUTES[name].entries for name, count in asked.items() if ROUTES[name].entries and count}
    moved = sum(count * ROUTES[name].moved for name, count in asked.items())
    return Contents(entries, [BALANCE - moved, BALANCE + moved])
