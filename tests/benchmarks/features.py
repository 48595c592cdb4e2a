"""What costs what: a transaction with one INSERT, and with each thing that it can have, in one interleaved run.

::

    python -m tests.benchmarks.features [--rounds 150] [--url URL]

It prints how many microseconds each transaction takes, and how many more than the plain one: the median of the
differences within each round. ``resolve_commit`` and ``SET TRANSACTION`` are round trips, and cost what the way to the
server does; without a URL of PostgreSQL the first does nothing. The databases are made for it, and dropped.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any, Final

from sqlalchemy.orm import Session, sessionmaker

from flask_uow import Propagation, UnitOfWork, signals
from tests.benchmarks.command import at_least, end_in_order
from tests.benchmarks.databases import temporary_databases
from tests.benchmarks.models import Entry, make_engine
from tests.benchmarks.results import spread, table

BLOCKS: Final = 20
"""In a turn."""

Work = Callable[[Session], object]


def ignore(_sender: object, **_extra: object) -> None:
    """Listen, and do nothing."""


def read(_sender: object, *, changes: Any, **_extra: object) -> None:
    """Listen, and look at what was changed."""
    len(changes)


def insert(session: Session) -> None:
    session.add(Entry(route="write"))
    session.flush()


class Feature:
    """One of what is compared.

    Args:
        uow: By which its blocks begin.
        work: What is done in each, beside the INSERT.
        listening: What is connected to signals meanwhile, made anew for each turn.
        options: Those of the block.
    """

    def __init__(
        self,
        uow: UnitOfWork,
        work: Work = lambda _session: None,
        listening: Callable[[], Any] = nullcontext,
        **options: Any,
    ) -> None:
        self._uow = uow
        self._work = work
        self._listening = listening
        self._options = options

    def run(self, blocks: int) -> float:
        """Return how many seconds a block takes."""
        with self._listening():
            began = perf_counter()
            for _ in range(blocks):
                with self._uow.transaction(**self._options) as session:
                    insert(session)
                    self._work(session)
            return (perf_counter() - began) / blocks


def features(sessions: sessionmaker[Session]) -> dict[str, Feature]:
    """Return what is compared, the plain one first."""
    uow = UnitOfWork(sessions)

    def save(session: Session) -> None:
        with uow.savepoint():
            pass

    def join(_session: Session) -> None:
        with uow.transaction():
            pass

    def begin_another(_session: Session) -> None:
        with uow.transaction(propagation=Propagation.NOT_SUPPORTED):
            pass

    return {
        "plain": Feature(uow),
        "an `on_commit` hook": Feature(uow, lambda _session: uow.on_commit(int)),
        "a receiver of `transaction_completed`": Feature(
            uow, listening=lambda: signals.transaction_completed.connected_to(ignore)
        ),
        "a receiver of `after_commit`": Feature(uow, listening=lambda: signals.after_commit.connected_to(ignore)),
        "one that reads the changes": Feature(uow, listening=lambda: signals.after_commit.connected_to(read)),
        "`uow.savepoint()`, empty": Feature(uow, save),
        "a block that joins": Feature(uow, join),
        "one that steps out (`NOT_SUPPORTED`)": Feature(uow, begin_another),
        "`timeout=60`": Feature(uow, timeout=60),
        '`isolation_level="SERIALIZABLE"`': Feature(uow, isolation_level="SERIALIZABLE"),
        "`UOW_SLOW_TRANSACTION`": Feature(UnitOfWork(sessions, slow_transaction=60)),
        "`resolve_commit=True`": Feature(uow, resolve_commit=True),
    }


def measure(sessions: sessionmaker[Session], rounds: int) -> None:
    """Print a table."""
    compared = features(sessions)
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    order = list(compared)
    for each in compared.values():
        each.run(BLOCKS)
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        gc.collect()
        for name in order:
            seconds[name].append(compared[name].run(BLOCKS))

    plain = seconds["plain"]
    rows = []
    for name, numbers in seconds.items():
        more = spread([(one - other) * 1e6 for one, other in zip(numbers, plain, strict=True)])
        rows.append(
            [
                name,
                f"{statistics.median(numbers) * 1e6:.0f}",
                "" if name == "plain" else f"{more.median:+.0f} ({more.low:+.0f} to {more.high:+.0f})",
                f"{statistics.median(one / other for one, other in zip(numbers, plain, strict=True)):.2f}",
            ]
        )
    print(table(["a transaction with one INSERT, and", "µs", "more, µs", "times"], rows))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.features", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least(1), default=150, help="how many (150)")
    parser.add_argument("--url", help="a server on which databases can be made; otherwise a SQLite file")
    asked = parser.parse_args(arguments)

    with temporary_databases(asked.url, ["features"]) as urls:
        engine = make_engine(urls["features"])
        print(f"{engine.dialect.name}, {asked.rounds} rounds of {BLOCKS}\n")
        try:
            measure(sessionmaker(engine), asked.rounds)
        finally:
            engine.dispose()


if __name__ == "__main__":
    end_in_order()
    main()
