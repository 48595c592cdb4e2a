from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

from flask_uow._core.once import once


def test_nobody_goes_on_before_it_is_done() -> None:
    """It runs once, and who comes while it runs goes on when it has returned."""
    started, may_end = Event(), Event()
    together = Barrier(2)
    steps: list[str] = []

    @once
    def prepare() -> None:
        started.set()
        may_end.wait(10)
        steps.append("prepared")

    def second() -> None:
        started.wait(10)
        together.wait(10)
        prepare()
        steps.append("gone on")

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(prepare), pool.submit(second)]
        together.wait(10)
        may_end.set()
        for future in futures:
            future.result(10)
    prepare()

    assert steps == ["prepared", "gone on"]


def test_failure_is_tried_again() -> None:
    """What has failed is not done, and runs again."""
    calls: list[int] = []

    @once
    def prepare() -> None:
        calls.append(len(calls))
        if len(calls) == 1:
            raise LookupError

    for _ in range(3):
        try:
            prepare()
        except LookupError:
            calls.append(-1)

    assert calls == [0, -1, 2]
