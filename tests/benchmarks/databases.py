"""A database of its own for each contender, filled and in the end dropped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.pool import NullPool

from tests.benchmarks.models import fill


@contextmanager
def temporary_databases(server: str | None, names: Iterable[str]) -> Iterator[dict[str, URL]]:
    """Yield the address of a new database for each name: on *server*, or a SQLite file."""
    with ExitStack() as stack:
        if server is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uow_benchmark_")))
            urls = {name: URL.create("sqlite", database=str(folder / f"{name}.db")) for name in names}
        else:
            urls = {name: stack.enter_context(new_database(make_url(server))) for name in names}
        for url in urls.values():
            fill(url)
        yield urls


@contextmanager
def new_database(server: URL) -> Iterator[URL]:
    """Yield the address of a new, empty database on *server*."""
    name = f"uow_{uuid4().hex[:12]}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield server.set(database=name)
    finally:
        # A server of PostgreSQL's notices a little later that somebody has left.
        force = " WITH (FORCE)" if admin.dialect.name == "postgresql" else ""
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}{force}"))
