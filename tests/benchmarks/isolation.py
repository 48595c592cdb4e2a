"""What it costs to leave a database as it was: 200 tests that write through HTTP, isolated or cleaned up after.

    python -m tests.benchmarks.isolation postgresql+psycopg://postgres@127.0.0.1:5432/postgres [tables]

The kinds of tests take turns, so that what else the machine does is shared. It prints the time for 200 tests of each
kind, and how many times faster isolation is. The database that it needs is made and dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from time import perf_counter
from uuid import uuid4

from flask import Flask
from sqlalchemy import Engine, ForeignKey, MetaData, String, Table, create_engine, func, make_url, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from flask_uow import UnitOfWork
from flask_uow.testing import isolate

TESTS = 200


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100), unique=True)


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100))
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"))


def make_app(uow: UnitOfWork) -> Flask:
    app = Flask("library")
    app.testing = True
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @app.post("/<title>")
    def add(title: str) -> str:
        shelf = Shelf(name=title)
        uow.session.add(shelf)
        uow.session.flush()
        uow.session.add_all(Book(title=f"{title} {volume}", shelf_id=shelf.id) for volume in range(3))
        return ""

    return app


def more_tables(count: int) -> MetaData:
    """The other tables that an app has; to clean up is to clean them all."""
    metadata = Base.metadata
    for number in range(count - len(metadata.tables)):
        Table(f"other_{number}", metadata, *(column._copy() for column in Shelf.__table__.columns))
    return metadata


def stored(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(Book)) or 0


def measure(engine: Engine, tables: int) -> None:
    """Run the tests of each kind in turn, and print what they took."""
    metadata = more_tables(tables)
    metadata.create_all(engine)
    uow = UnitOfWork(sessionmaker(engine))
    client = make_app(uow).test_client()
    names = ", ".join(table.name for table in metadata.sorted_tables)

    def isolated() -> None:
        with isolate(uow):
            client.post("/Emma")

    def truncated() -> None:
        client.post("/Emma")
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))

    def deleted() -> None:
        client.post("/Emma")
        with engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())

    kinds: dict[str, Callable[[], None]] = {"isolated": isolated, "truncated": truncated, "deleted": deleted}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for run in kinds.values():
        run()
    for _ in range(TESTS):
        for kind, run in kinds.items():
            started = perf_counter()
            run()
            times[kind].append(perf_counter() - started)
            assert stored(engine) == 0, f"{kind} left something behind"

    print(f"{TESTS} tests of each kind, {len(metadata.tables)} tables")
    for kind, taken in times.items():
        ratio = sum(taken) / sum(times["isolated"])
        print(f"{kind:10} {sum(taken):7.2f} s, median {median(taken) * 1000:6.2f} ms, {ratio:5.1f} times isolated")


def main(url: str, tables: int = 10) -> None:
    """Measure on a new database of a server."""
    name = f"uow_{uuid4().hex[:12]}"
    admin = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine = create_engine(make_url(url).set(database=name))
    try:
        measure(engine, tables)
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
