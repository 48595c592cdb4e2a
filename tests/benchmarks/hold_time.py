"""What it is worth to give a connection back at the commit: 50 clients, a pool of 5, and 20 ms of work after that.

::

    python -m tests.benchmarks.hold_time [--requests 1000] [--rounds 3] [--url URL]

Three apps have the same view: it stores a row, commits, and answers with what is in the row. What comes after it, in
``after_request``, needs no database and takes 20 ms, as compressing an answer or calling another service may. One app
is ours; in one the view is written by hand, and closes its session; and one has Flask-SQLAlchemy, as its
documentation has it: ``db.session.commit()`` in the view, and then the attributes of the object, which are read again
in a new transaction, whose connection is held until teardown.

The apps take turns. It prints for each how many requests a second it answers, how long a connection is held, and the
ratio to the view by hand: the median of those within each round. The limit is 5 connections in 20 ms for those who
hold them, 250 requests a second, and 50 clients in 20 ms for those who do not, or what the processor can do. It runs on
PostgreSQL, in a database that it makes on the server of the tests and drops, or on another server at the URL.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any, Final

from flask import Flask, Response
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, Engine, String, create_engine, event, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from flask_uow import UnitOfWork
from tests.benchmarks.command import end_in_order
from tests.benchmarks.databases import new_database
from tests.benchmarks.kinds import Kind, send

CLIENTS: Final = 50
CONNECTIONS: Final = 5
SECONDS_AFTER: Final = 0.02
MOST_REQUESTS: Final = 20_000
MOST_ROUNDS: Final = 20

ENGINE_OPTIONS: Final[dict[str, Any]] = {"pool_size": CONNECTIONS, "max_overflow": 0, "pool_timeout": 60}


class Base(DeclarativeBase):
    pass


class Visit(Base):
    __tablename__ = "uow_hold_time_visit"

    id: Mapped[int] = mapped_column(primary_key=True)
    page: Mapped[str] = mapped_column(String(100))


def answer(visit: Visit) -> dict[str, object]:
    return {"id": visit.id, "page": visit.page}


def work_afterwards(response: Response) -> Response:
    """Take a while, without the database."""
    sleep(SECONDS_AFTER)
    return response


def new_app(name: str) -> Flask:
    app = Flask(name)
    app.after_request(work_afterwards)
    return app


# The three. In ours and by hand the answer is made before the commit, for after it there is nothing to be read.


def of_ours(url: URL) -> tuple[Flask, Engine]:
    engine = create_engine(url, **ENGINE_OPTIONS)
    app, uow = new_app("ours"), UnitOfWork(sessionmaker(engine))
    uow.init_app(app)

    @app.post("/<int:number>")
    @uow.transactional
    def view(number: int) -> dict[str, object]:
        visit = Visit(page=f"page {number}")
        uow.session.add(visit)
        uow.session.flush()
        return answer(visit)

    return app, engine


def by_hand(url: URL) -> tuple[Flask, Engine]:
    engine = create_engine(url, **ENGINE_OPTIONS)
    app, sessions = new_app("by_hand"), sessionmaker(engine)

    @app.post("/<int:number>")
    def view(number: int) -> dict[str, object]:
        session: Session = sessions()
        try:
            visit = Visit(page=f"page {number}")
            session.add(visit)
            session.flush()
            answered = answer(visit)
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            session.close()
        return answered

    return app, engine


def of_flask_sqlalchemy(url: URL) -> tuple[Flask, Engine]:
    app, db = new_app("flask_sqlalchemy"), SQLAlchemy(model_class=Base)
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = ENGINE_OPTIONS
    db.init_app(app)

    @app.post("/<int:number>")
    def view(number: int) -> dict[str, object]:
        visit = Visit(page=f"page {number}")
        db.session.add(visit)
        db.session.commit()
        return answer(visit)

    with app.app_context():
        return app, db.engine


@dataclass
class Contender:
    """One of the three, and how it did in each round."""

    name: str
    app: Flask
    engine: Engine
    rates: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    """How long connections were out of their pool, in seconds."""

    def __post_init__(self) -> None:
        @event.listens_for(self.engine, "checkout")
        def _begin(_connection: object, record: Any, _proxy: object) -> None:
            record.info["since"] = perf_counter()

        @event.listens_for(self.engine, "checkin")
        def _end(_connection: object, record: Any) -> None:
            if (since := record.info.pop("since", None)) is not None:
                self.held.append(perf_counter() - since)


MAKERS: Final[dict[str, Callable[[URL], tuple[Flask, Engine]]]] = {
    "by hand": by_hand,
    "flask_uow": of_ours,
    "Flask-SQLAlchemy": of_flask_sqlalchemy,
}

VISIT: Final = Kind("/{}")


def serve(app: Flask, clients: ThreadPoolExecutor, count: int) -> float:
    """Let all clients send *count* requests together, and return how many were answered in a second."""
    began = perf_counter()
    for _ in clients.map(lambda number: send(app, VISIT, number), range(count)):
        pass
    return count / (perf_counter() - began)


def measure(contenders: Sequence[Contender], count: int, rounds: int) -> None:
    """Let them take turns, and print a table."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        for contender in contenders:
            serve(contender.app, clients, CLIENTS)
            contender.held.clear()
        for number in range(rounds):
            # Nobody is always the first.
            first = number % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                contender.rates.append(serve(contender.app, clients, count))

    print(f"{'':18}{'requests/s':>12}{'ratio':>8}{'held ms':>10}")
    base = contenders[0].rates
    for contender in contenders:
        ratio = statistics.median(one / other for one, other in zip(contender.rates, base, strict=True))
        held = statistics.median(contender.held) * 1000
        print(f"{contender.name:18}{statistics.median(contender.rates):12.0f}{ratio:8.2f}{held:10.1f}")
        assert contender.engine.pool.checkedout() == 0, f"{contender.name} holds a connection"  # type: ignore[attr-defined] # it is a QueuePool


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on a new database."""
    default = os.environ.get("FLASK_UOW_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.hold_time", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--requests", type=int, default=1000, help=f"in each round, at most {MOST_REQUESTS}")
    parser.add_argument("--rounds", type=int, default=3, help=f"at most {MOST_ROUNDS}")
    parser.add_argument("--url", default=default, help="a server")
    given = parser.parse_args(arguments)
    if not (CLIENTS <= given.requests <= MOST_REQUESTS and 1 <= given.rounds <= MOST_ROUNDS):
        parser.error("It would say nothing, or not end in reasonable time.")

    with new_database(make_url(given.url)) as url:
        contenders = [Contender(name, *make(url)) for name, make in MAKERS.items()]
        try:
            Base.metadata.create_all(contenders[0].engine)
            measure(contenders, given.requests, given.rounds)
        finally:
            for contender in contenders:
                contender.engine.dispose()


if __name__ == "__main__":
    end_in_order()
    main()
