"""How many instructions a request takes, counted by valgrind: the same program takes the same number each time.

Another program does not only take what it does more: where its objects lie decides which of CPython's caches collide,
which is 1 or 2 % and has nothing to do with it. Another hash seed has them lie elsewhere, so that the median over
several of them is closer to what a contender costs.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from sqlalchemy import URL

from tests.benchmarks.databases import temporary_databases
from tests.benchmarks.roster import Contender

AT_A_TIME: Final = 2
"""How many processes are counted at the same time, which does not change what is counted."""

PATIENCE: Final = 900
"""Seconds after which a process is ended: everything takes fifty times as long there."""


def is_possible() -> bool:
    """Whether instructions can be counted here."""
    return all(map(shutil.which, ("valgrind", "callgrind_control")))


class Counted(NamedTuple):
    """How often is asked, and with which hash seeds."""

    few: int
    many: int
    seeds: int


def count(contender: Contender, url: URL, routes: Sequence[str], plan: Counted, seed: int) -> dict[str, int]:
    """Return the instructions of one request by route."""
    with tempfile.TemporaryDirectory(prefix="uow_instructions_") as folder:
        child = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
                *(f"--callgrind-out-file={folder}/%p", f"--log-file={folder}/log.%p"),
                *(sys.executable, "-m", "tests.benchmarks.instructions_child"),
                *(contender.key, url.render_as_string(hide_password=False), str(plan.few), str(plan.many)),
                *(route for route in routes if route in contender.routes),
            ],
            env=os.environ | {"PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if child.returncode:
            raise AssertionError(f"{contender.key} failed:\n{child.stderr}")
        return {
            route: (total(Path(folder) / with_many) - total(Path(folder) / with_few)) // (plan.many - plan.few)
            for route, with_few, with_many in map(str.split, child.stdout.splitlines())
        }


def total(written: Path) -> int:
    """Return what callgrind has counted in one process."""
    found = re.search(r"^(?:summary|totals): (\d+)$", written.read_text("utf-8"), re.MULTILINE)
    assert found is not None, "callgrind has written no sum"
    return int(found[1])


def measure(contenders: Sequence[Contender], routes: Sequence[str], plan: Counted) -> dict[str, dict[str, float]]:
    """Return the instructions of one request by route and contender, the median over the seeds."""
    runs = [(contender, seed) for contender in contenders for seed in range(plan.seeds)]

    def counted(contender: Contender, seed: int) -> dict[str, int]:
        return count(contender, urls[f"{contender.key}_{seed}"], routes, plan, seed)

    with (
        temporary_databases(None, [f"{contender.key}_{seed}" for contender, seed in runs]) as urls,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        of_runs = dict(zip(runs, pool.map(counted, *zip(*runs, strict=True)), strict=True))
    return {
        route: {
            contender.key: median(of_runs[contender, seed][route] for seed in range(plan.seeds))
            for contender in contenders
            if route in contender.routes
        }
        for route in routes
    }
