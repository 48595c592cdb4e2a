r"""The process whose instructions `tests.benchmarks.instructions` has counted.

::

    valgrind --tool=callgrind --instr-atstart=no python -m tests.benchmarks.instructions_child \
        CONTENDER URL FEW MANY ROUTE...

For each route it warms up, and forks twice: once to send few requests, and once to send many. What callgrind has
counted before counts for both, so that everything but the requests between few and many cancels out. It prints the
route and the two processes, by whose ids callgrind names what it writes.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import traceback
from typing import Final

from sqlalchemy import make_url

from tests.benchmarks.roster import CONTENDERS
from tests.benchmarks.stand import Stand

WARM_UP: Final = 30
"""Requests of each route before anything is counted, all routes first: what they have in common is used by all."""


def switch_on() -> None:
    """Let callgrind begin to count, which makes everything four times slower: imports are done by then."""
    with subprocess.Popen(["callgrind_control", "--instr=on", str(os.getpid())], stdout=subprocess.DEVNULL) as control:
        # Callgrind listens while it has instructions to execute; somebody who sleeps would have to be woken.
        while control.poll() is None:
            pass
    if control.returncode:
        raise AssertionError("callgrind_control has failed.")


def in_another_process(stand: Stand, route: str, count: int) -> int:
    """Ask so often in a copy of this process, and return its id."""
    process = os.fork()
    if process == 0:
        try:
            stand.ask(route, count)
        except BaseException:  # noqa: BLE001 - this copy must not go on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(process, 0)
    if status:
        raise AssertionError(f"{count} requests to {route} have failed.")
    stand.asked[route] += count
    return process


def main(key: str, url: str, few: int, many: int, routes: list[str]) -> None:
    """Print for each route the process with few requests, and that with many."""
    # When it runs depends on what was done before; here nothing is left for it.
    gc.disable()
    database = make_url(url)
    stand = Stand(CONTENDERS[key].make(database), database)
    stand.warm_up(routes, WARM_UP)
    switch_on()
    for route in routes:
        if stand.engine is not None:
            # No connection in two processes: each makes its own, which is among what cancels out.
            stand.engine.dispose()
        print(route, in_another_process(stand, route, few), in_another_process(stand, route, many), flush=True)
    stand.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
