"""Whether memory stays flat: 100,000 requests of many kinds, in process, in a mixed order that is always the same.

::

    python -m tests.benchmarks.soak [--requests 100000] [--threads 4] [--url URL]

It runs on a new SQLite file, or on a database at the URL, which is left as it was. Half of the requests come from one
thread, and half from several at once, of which one has all of its own inside an outer ``app_context()``. Twenty times
it prints how much memory the process has, and how many objects the collector follows. A tenth of the requests are
sent once more under ``tracemalloc``, which slows them down, and what our own lines have allocated is printed. Memory
is flat if the last quarter has on average no more than the third, within `TOLERANCE`.

Then each kind of request is sent with the garbage collector switched off, to see what it leaves in cycles, and
compared with the same view written by hand.

The exit status is 1 if memory grows, if a kind leaves more cycles than by hand, or if a connection is not given back.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import resource
import statistics
import sys
import tempfile
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Final
from weakref import ReferenceType

from flask import Flask
from sqlalchemy import Engine, create_engine, delete, make_url

import flask_uow
from tests.benchmarks.command import at_least, end_in_order
from tests.benchmarks.kinds import KINDS, Base, Kind, Note, by_hand, of_ours, prepare, quiet, send, total
from tests.garbage import Garbage, garbage_of

__all__ = [
    "SEED",
    "Apps",
    "Excess",
    "Readings",
    "excess_of",
    "new_apps",
    "our_bytes",
    "send_block",
]

SEED: Final = 20_26
"""Of the order in which requests come."""

SAMPLES: Final = 20
"""How often memory is looked at; a multiple of four."""

GARBAGE_REQUESTS: Final = 100
"""How many requests of each kind are looked at for cycles, in each app."""

TOLERANCE: Final = {"objects": 100, "resident KiB": 2048, "traced KiB": 4}
"""By how much the last quarter may be above the third.

An object for each of the 25,000 requests in a quarter would be 25,000 objects; one for each thousandth is found. The
process has two MiB because the allocator gives pages back when it likes.
"""

KNOTS: Final = ("builtins.frame of flask.app.Flask.wsgi_app", "sqlalchemy.engine.base.ExceptionContextImpl")
"""Where Flask and SQLAlchemy tie a cycle around each exception, so that all frames in its traceback are in it."""


# The apps


@dataclass(frozen=True)
class Apps:
    """What requests are sent to, and the engines below."""

    ours: Flask
    watched: Flask
    """Ours, with receivers that read what has been changed."""

    by_hand: Flask
    engine: Engine
    twin: Engine
    """That of the app by hand: ours corrects what the driver does on SQLite."""

    @property
    def held(self) -> int:
        """How many connections are not in their pool."""
        return sum(engine.pool.checkedout() for engine in (self.engine, self.twin))  # type: ignore[attr-defined] # they are QueuePools


@contextmanager
def new_apps(folder: Path, url: str | None = None) -> Iterator[Apps]:
    """Make the apps, on a SQLite file each, or one after the other on one database."""
    addresses = [make_url(url)] * 2 if url else [make_url(f"sqlite:///{folder / name}.db") for name in ("ours", "hand")]
    engine, twin = (create_engine(address) for address in addresses)
    prepare(engine)
    if not url:
        prepare(twin)
    try:
        yield Apps(of_ours(engine, watched=False), of_ours(engine, watched=True), by_hand(twin), engine, twin)
    finally:
        for each in (engine, twin):
            Base.metadata.drop_all(each)
            each.dispose()


# Memory


@dataclass
class Readings:
    """What was measured, in the order of time."""

    name: str
    values: list[float] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """By how much the last quarter is above the third, on average."""
        quarter = len(self.values) // 4
        return statistics.mean(self.values[-quarter:]) - statistics.mean(self.values[-2 * quarter : -quarter])

    @property
    def problem(self) -> str | None:
        """Say that it grows, if it does."""
        allowed = TOLERANCE[self.name]
        if self.growth <= allowed:
            return None
        return f"{self.name} grew by {self.growth:,.0f} from the third quarter to the last; {allowed:,} are allowed."


def resident() -> float:
    """How much memory the process has, in KiB: what it has now on Linux, and the most that it had elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text("ascii").split()[1]) * resource.getpagesize() / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


def read_memory() -> int:
    """How many objects the collector follows, when nothing is left that it would take away.

    Weak references do not count: sqlite3 keeps some to cursors that are gone.
    """
    gc.collect()
    return sum(type(each) is not ReferenceType for each in gc.get_objects())


def our_bytes(apps: Apps) -> int:
    """How much memory is in use that lines of this package have allocated.

    New connections are opened after it: sqlite3 keeps weak references to up to 200 cursors that are gone.
    """
    apps.engine.dispose()
    gc.collect()
    ours = tracemalloc.Filter(inclusive=True, filename_pattern=str(Path(flask_uow.__file__).parent / "*"))
    snapshot = tracemalloc.take_snapshot().filter_traces([ours])
    return sum(each.size for each in snapshot.statistics("filename"))


# The requests


Send = Callable[[Kind, int], None]


def mixed(numbers: Sequence[int]) -> list[tuple[Kind, int]]:
    """Return kinds of requests for *numbers*, in an order that depends on nothing but those."""
    order = random.Random(SEED + numbers[0])
    return list(zip(order.choices(KINDS, [kind.share for kind in KINDS], k=len(numbers)), numbers, strict=True))


def sender(apps: Apps) -> Send:
    """Send every third request to the app that is watched."""

    def send_one(kind: Kind, number: int) -> None:
        send(apps.watched if number % 3 == 0 else apps.ours, kind, number)

    return send_one


def send_all(apps: Apps, requests: list[tuple[Kind, int]]) -> None:
    """Send one after the other."""
    send_one = sender(apps)
    for kind, number in requests:
        send_one(kind, number)


def send_inside(apps: Apps, requests: list[tuple[Kind, int]]) -> None:
    """Send one after the other, in a context of the app that is there already."""
    with apps.ours.app_context():
        for kind, number in requests:
            send(apps.ours, kind, number)


def send_block(apps: Apps, pool: ThreadPoolExecutor | None, threads: int, numbers: Sequence[int]) -> None:
    """Send one half from here, and the other half from *threads* threads at once; then tidy up the table."""
    requests = mixed(numbers)
    half = len(requests) // 2 if pool is not None else len(requests)
    send_all(apps, requests[:half])
    if pool is not None:
        shares = [requests[half:][start::threads] for start in range(threads)]
        jobs = [pool.submit(send_inside if index == 0 else send_all, apps, share) for index, share in enumerate(shares)]
        for job in jobs:
            job.result()
    with apps.engine.begin() as connection:
        connection.execute(delete(Note))


def blocks(count: int) -> Iterator[range]:
    """Divide the numbers of *count* requests by the times when memory is looked at."""
    ends = [count * sample // SAMPLES for sample in range(SAMPLES + 1)]
    return itertools.starmap(range, itertools.pairwise(ends))


def soak(apps: Apps, count: int, threads: int, say: Callable[[str], None]) -> list[Readings]:
    """Send *count* requests, and return how memory went: the collector's objects, and the memory of the process."""
    objects, memory = Readings("objects"), Readings("resident KiB")
    say(f"{'requests':>10}{'objects':>12}{'resident KiB':>15}{'requests/s':>13}")
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        for block in blocks(count):
            began = perf_counter()
            send_block(apps, pool if threads else None, threads, block)
            rate = len(block) / (perf_counter() - began)
            objects.values.append(read_memory())
            memory.values.append(resident())
            say(f"{block.stop:10,}{objects.values[-1]:12,.0f}{memory.values[-1]:15,.0f}{rate:13,.0f}")
    return [objects, memory]


def trace(apps: Apps, count: int, say: Callable[[str], None]) -> Readings:
    """Send *count* requests under tracemalloc, and return what our own lines have in use."""
    traced = Readings("traced KiB")
    say(f"{'requests':>10}{'traced KiB':>12}")
    tracemalloc.start()
    try:
        for block in blocks(count):
            send_block(apps, None, 0, block)
            traced.values.append(our_bytes(apps) / 1024)
            say(f"{block.stop:10,}{traced.values[-1]:12,.1f}")
    finally:
        tracemalloc.stop()
    return traced


# Cycles


@dataclass(frozen=True)
class Excess:
    """What a kind of request leaves for the collector, in an app of ours and by hand."""

    kind: Kind
    app: str
    ours: Garbage
    by_hand: Garbage
    requests: int

    @property
    def cycles(self) -> Counter[tuple[str, ...]]:
        """Those that by hand has not, if there are more for each request; others' have our frames in them."""
        cycles, by_hand = (sum(each.cycles.values()) // self.requests for each in (self.ours, self.by_hand))
        return self.ours.cycles - self.by_hand.cycles if cycles > by_hand else Counter()

    @property
    def problem(self) -> str | None:
        """Say what there is too much of, if there is.

        Where others tie a cycle around an exception, all that its traceback leads to hangs on it, and our frames are
        in it. Where they do not, there is nothing that ours may leave in addition.
        """
        if found := self.cycles:
            most, count = max(found.items(), key=lambda each: (any("flask_uow." in name for name in each[0]), each[1]))
            shown = ", ".join(f"{count} {name}" for name, count in Counter(most).items())
            return f"{self.kind.name} in {self.app}: {count} cycles in {self.requests} requests, each of {shown}."
        objects, by_hand = (sum(each.types.values()) // self.requests for each in (self.ours, self.by_hand))
        if "builtins.traceback" not in self.by_hand.types and (self.ours.ours or objects > by_hand):
            more = self.ours.types - self.by_hand.types
            return f"{self.kind.name} in {self.app}: {objects} objects a request, {by_hand} by hand; more are {more}."
        return None


def excess_of(apps: Apps, kind: Kind, requests: int) -> list[Excess]:
    """Compare what a kind leaves in our apps and by hand."""

    def left_by(app: Flask) -> Garbage:
        numbers = itertools.count()
        # What is made at the first request of a kind, and at the second, such as a statement's place in a cache.
        for _ in range(2):
            send(app, kind, next(numbers))
        return garbage_of(lambda: send(app, kind, next(numbers)), requests, KNOTS)

    by_hand = left_by(apps.by_hand)
    return [
        Excess(kind, name, left_by(app), by_hand, requests)
        for name, app in (("the app", apps.ours), ("the app that is watched", apps.watched))
    ]


def measure_cycles(apps: Apps) -> list[str]:
    """Print what each kind leaves in cycles, and return what is wrong with that."""
    print(f"\n{'for each request':20}{'cycles':>8}{'by hand':>9}{'objects':>9}{'by hand':>9}")
    problems = []
    for kind in KINDS:
        for excess in excess_of(apps, kind, GARBAGE_REQUESTS):
            counts = [
                sum(counter.values()) / excess.requests
                for counter in (excess.ours.cycles, excess.by_hand.cycles, excess.ours.types, excess.by_hand.types)
            ]
            if excess.app == "the app":
                print(f"{kind.name:20}{counts[0]:8.2f}{counts[1]:9.2f}{counts[2]:9.2f}{counts[3]:9.2f}")
            if excess.problem:
                problems.append(excess.problem)
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.soak", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("--requests", type=at_least(200), default=100_000, help="how many, from 200 (100,000)")
    parser.add_argument("--threads", type=at_least(1), default=4, help="that send half of them (4)")
    parser.add_argument("--url", help="a database, instead of a new SQLite file")
    given = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as folder, quiet(), new_apps(Path(folder), given.url) as apps:
        readings = soak(apps, given.requests, given.threads, print)
        print()
        readings.append(trace(apps, given.requests // 10, print))
        problems = [each.problem for each in readings if each.problem]
        for each in readings:
            print(f"{each.name}: {each.growth:+,.1f} from the third quarter to the last")
        problems += measure_cycles(apps)
        if apps.held:
            problems.append(f"{apps.held} connections were not given back.")
        if missing := total(apps.engine):
            problems.append(f"The accounts are off by {missing}.")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    print(
        "not flat, or not clean" if problems else "\nMemory is flat, there are no cycles of ours, and the pool is full."
    )
    return 1 if problems else 0


if __name__ == "__main__":
    end_in_order()
    sys.exit(main())
