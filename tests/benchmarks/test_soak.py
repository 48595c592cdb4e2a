"""P3, in short: no request of any kind leaves anything behind, or ties a cycle that is ours."""

from __future__ import annotations

import itertools
import logging
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.benchmarks.kinds import KINDS, Kind, send, total
from tests.benchmarks.soak import Apps, Readings, excess_of, new_apps, our_bytes, send_block
from tests.garbage import garbage_of, kept_by

TIMES: Final = 4
"""How often each kind is sent where it is measured."""


@pytest.fixture(scope="module")
def apps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Apps]:
    """The apps, on files of their own; what is made at first is there, such as plans and statements."""
    folder: Path = tmp_path_factory.mktemp("soak")
    # pytest keeps what is logged, and the errors with it.
    logging.disable()
    try:
        with new_apps(folder) as apps:
            for app, number, kind in itertools.product((apps.ours, apps.watched, apps.by_hand), range(3), KINDS):
                send(app, kind, number)
            yield apps
            assert apps.held == 0
            assert total(apps.engine) == 0
    finally:
        logging.disable(logging.NOTSET)


def named(kind: Kind) -> str:
    return kind.name


every_kind = pytest.mark.parametrize("kind", KINDS, ids=named)


@every_kind
def test_nothing_is_kept(apps: Apps, kind: Kind) -> None:
    """After a request nothing is left of it, whatever it was: neither an object, nor a connection."""
    numbers = itertools.count()
    kept = [
        kept_by(lambda app=app: send(app, kind, next(numbers)), TIMES)  # type: ignore[misc] # the app of now
        for app in (apps.ours, apps.watched)
    ]

    assert kept == [{}, {}]
    assert apps.held == 0


def test_nothing_is_kept_in_a_context_around(apps: Apps) -> None:
    """A context that is there for many requests has nothing of those that are over."""
    numbers = itertools.count()

    def work() -> None:
        for kind in KINDS:
            send(apps.ours, kind, next(numbers))

    with apps.ours.app_context():
        kept = kept_by(work, TIMES)

    assert kept == {}


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_no_cycles_of_ours(apps: Apps, kind: Kind) -> None:
    """The collector finds after a request no more cycles than after the same one in an app by hand."""
    assert [excess.problem for excess in excess_of(apps, kind, TIMES) if excess.problem] == []


def test_requests_on_threads(apps: Apps) -> None:
    """Requests in a mixed order, half of them on two threads, leave nothing of ours, and no connection."""
    with ThreadPoolExecutor(2) as pool:
        kept = kept_by(lambda: send_block(apps, pool, 2, range(60)), 2)

    assert not [name for name in kept if "flask_uow" in name]
    assert apps.held == 0


def test_what_our_lines_allocate(apps: Apps) -> None:
    """What tracemalloc sees of our lines, numbers and strings included, does not grow with the requests."""
    tracemalloc.start()
    try:
        send_block(apps, None, 0, range(50))
        before = our_bytes(apps)
        send_block(apps, None, 0, range(50, 150))
        growth = our_bytes(apps) - before
    finally:
        tracemalloc.stop()

    # Less than a small object for each.
    assert growth < 100 * 16


# The measure itself


def test_what_is_kept_is_seen() -> None:
    """An object that is kept after each request is found."""
    kept: list[object] = []

    class Thing:
        pass

    found = kept_by(lambda: kept.append(Thing()), TIMES)

    assert list(found.values()) == [TIMES]


def test_a_cycle_of_plain_things_is_seen() -> None:
    """A cycle is found without any type of ours in it, and told from what hangs on it."""

    def work() -> None:
        knot: list[object] = []
        knot.append({"knot": knot, "hangs": [object(), [1]]})

    garbage = garbage_of(work, TIMES)

    assert garbage.cycles == {("builtins.dict", "builtins.list"): TIMES}
    assert garbage.types["builtins.list"] == 3 * TIMES


@pytest.mark.parametrize(("last", "grows"), [(1100, False), (1101, True)])
def test_growth_is_seen(last: int, grows: bool) -> None:
    """Memory grows if the last quarter has more than the third, beyond what is tolerated."""
    readings = Readings("objects", [5000, 5000, 1500, 1500, 990, 1010, last, last])

    assert (readings.problem is not None) is grows
