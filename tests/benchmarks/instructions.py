"""How many instructions a request takes, counted by valgrind: it repeats where times do not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from sqlalchemy import URL

from tests.benchmarks.roster import Contender

AT_A_TIME: Final = 2
"""How many processes are counted at the same time, which does not change what is counted."""

PATIENCE: Final = 900
"""Seconds after which a process is ended: everything takes fifty times as long there."""


def is_possible() -> bool:
    """Whether instructions can be counted here."""
    return all(map(shutil.which, ("valgrind", "callgrind_control")))


def count(contender: Contender, url: URL, routes: Sequence[str], *, few: int, many: int) -> dict[str, int]:
    """Return the instructions of one request by route."""
    with tempfile.TemporaryDirectory(prefix="uow_instructions_") as folder:
        child = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--instr-atstart=no"),
                *(f"--callgrind-out-file={folder}/%p", f"--log-file={folder}/log.%p"),
                *(sys.executable, "-m", "tests.benchmarks.instructions_child"),
                *(contender.key, url.render_as_string(hide_password=False), str(few), str(many)),
                *(route for route in routes if route in contender.routes),
            ],
            # The order of sets and dicts follows the seed, and with it the way that a program takes.
            env=os.environ | {"PYTHONHASHSEED": "0"},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if child.returncode:
            raise AssertionError(f"{contender.key} failed:\n{child.stderr}")
        return {
            route: (total(Path(folder) / with_many) - total(Path(folder) / with_few)) // (many - few)
            for route, with_few, with_many in map(str.split, child.stdout.splitlines())
        }


def total(written: Path) -> int:
    """Return what callgrind has counted in one process."""
    found = re.search(r"^(?:summary|totals): (\d+)$", written.read_text("utf-8"), re.MULTILINE)
    assert found is not None, "callgrind has written no sum"
    return int(found[1])


def measure(
    contenders: Sequence[Contender], urls: Mapping[str, URL], routes: Sequence[str], *, few: int, many: int
) -> dict[str, dict[str, int]]:
    """Return the instructions of one request by route and contender."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        of_contenders = list(
            pool.map(lambda contender: count(contender, urls[contender.key], routes, few=few, many=many), contenders)
        )
    return {
        route: {c.key: counts[route] for c, counts in zip(contenders, of_contenders, strict=True) if route in counts}
        for route in routes
    }
