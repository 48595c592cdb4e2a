"""What it costs to follow changes: the flush of 1, 10 and 1,000 rows, in one interleaved run.

::

    python -m tests.benchmarks.flushes [URL]

It prints for each kind of flush how long it takes without flask_uow, and what the others take in proportion to that:
the median of the ratios within each round. Times on a machine that does other things say nothing; the first ratio
column, where nobody listens, shows how much of the rest is noise.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Final

from sqlalchemy import Engine, String, create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from flask_uow import UnitOfWork, signals
from flask_uow.audit import AuditTrail
from tests.benchmarks.command import end_in_order

ROUNDS: Final = {1: 400, 10: 150, 1000: 15}
"""How often each is done, by the number of rows."""


class Base(DeclarativeBase):
    pass


class Sample(Base):
    __tablename__ = "uow_benchmark_sample"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50))
    size: Mapped[int]
    kind: Mapped[str] = mapped_column(String(50))
    place: Mapped[str] = mapped_column(String(50))


def insert(session: Session, count: int) -> list[Sample]:
    samples = [Sample(name=f"sample {number}", size=number, kind="a", place="b") for number in range(count)]
    session.add_all(samples)
    return samples


def update(session: Session, count: int) -> list[Sample]:
    samples = insert(session, count)
    session.flush()
    for sample in samples:
        sample.name += "!"
    return samples


def delete(session: Session, count: int) -> list[Sample]:
    samples = insert(session, count)
    session.flush()
    for sample in samples:
        session.delete(sample)
    return samples


Prepare = Callable[[Session, int], list[Sample]]
"""Gives a session something to flush, and returns the objects: it holds those weakly that are flushed."""


def plain(sessions: sessionmaker[Session], prepare: Prepare, count: int) -> float:
    """Return how many seconds a flush takes without flask_uow."""
    with sessions() as session:
        session.execute(text("SELECT 1"))
        samples = prepare(session, count)
        began = perf_counter()
        session.flush()
        seconds = perf_counter() - began
        assert len(samples) == count
        return seconds


def followed(uow: UnitOfWork, prepare: Prepare, count: int, *, read: bool) -> float:
    """Return how many seconds a flush takes in a transaction, and the changes if they are read."""
    with uow.transaction() as session:
        session.execute(text("SELECT 1"))
        samples = prepare(session, count)
        transaction = uow.current_transaction
        assert transaction is not None
        began = perf_counter()
        session.flush()
        if read:
            len(transaction.changes)
        seconds = perf_counter() - began
        assert len(samples) == count
        transaction.set_rollback_only()
    return seconds


def ignore(_sender: object, **_extra: object) -> None:
    """Listen, and do nothing."""


def measure(sessions: sessionmaker[Session]) -> None:
    """Print a table."""
    uow, audited = UnitOfWork(sessions), UnitOfWork(sessions)
    AuditTrail(audited, Base)

    def listening(prepare: Prepare, count: int, *, read: bool) -> float:
        with signals.after_commit.connected_to(ignore):
            return followed(uow, prepare, count, read=read)

    ways: dict[str, Callable[[Prepare, int], float]] = {
        "plain": lambda prepare, count: plain(sessions, prepare, count),
        "nobody": lambda prepare, count: followed(uow, prepare, count, read=False),
        "a listener": lambda prepare, count: listening(prepare, count, read=False),
        "it reads": lambda prepare, count: listening(prepare, count, read=True),
        "an audit trail": lambda prepare, count: followed(audited, prepare, count, read=False),
    }
    print(f"{'':18}{'us':>9}" + "".join(f"{way:>16}" for way in list(ways)[1:]))
    for prepare in (insert, update, delete):
        for count, rounds in ROUNDS.items():
            times: dict[str, list[float]] = {way: [] for way in ways}
            gc.collect()
            gc.disable()
            for _ in range(rounds):
                for way, run in ways.items():
                    times[way].append(run(prepare, count))
            gc.enable()
            ratios = [
                statistics.median(one / base for one, base in zip(times[way], times["plain"], strict=True))
                for way in list(ways)[1:]
            ]
            head = f"{prepare.__name__} {count:,}"
            base = statistics.median(times["plain"]) * 1e6
            print(f"{head:18}{base:9.0f}" + "".join(f"{ratio:16.3f}" for ratio in ratios))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure on a database, which is left as it was, or on a new SQLite file."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.flushes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", nargs="?", help="a database; otherwise a new SQLite file")
    url: str | None = parser.parse_args(arguments).url

    with tempfile.TemporaryDirectory() as folder:
        engine: Engine = create_engine(url or f"sqlite:///{Path(folder) / 'benchmark.db'}")
        Base.metadata.create_all(engine)
        try:
            measure(sessionmaker(engine))
        finally:
            Base.metadata.drop_all(engine)
            engine.dispose()


if __name__ == "__main__":
    end_in_order()
    main()
