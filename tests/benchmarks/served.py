"""How many requests a second gunicorn answers, and how long they take, each contender on a server of its own.

All servers stay up, and take turns in being asked; one of them works at a time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from flask import Flask
from sqlalchemy import URL, make_url

from tests.benchmarks.models import ROUTES
from tests.benchmarks.plan import Plan
from tests.benchmarks.results import Times, no_times, percentile
from tests.benchmarks.roster import CONTENDERS, Contender
from tests.benchmarks.stand import check_contents

CONNECTIONS: Final = 4
"""How many clients there are at a time, and threads to answer them."""

PATIENCE: Final = 60
"""Seconds after which a load, or a server that was told to stop, is ended."""

_URL: Final = "UOW_BENCHMARK_URL"


class Served(NamedTuple):
    """What is told of a route, by contender and one number for each round, less being better: all are seconds."""

    per_request: Times
    """How long a request takes if all of them are spread over the time: the inverse of the throughput."""

    p50: Times
    p99: Times


def app(key: str) -> Flask:
    """Return what gunicorn serves. The database's address is no argument: it may have a password in it."""
    return CONTENDERS[key].make(make_url(os.environ[_URL])).app


class Server:
    """A gunicorn that serves a contender."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked: Counter[str] = Counter()

    def load(self, route: str, requests: int) -> tuple[float, list[float]]:
        """Return the seconds that so many requests take together, and that each takes."""
        expected = ROUTES[route]
        load = subprocess.run(
            [
                *(sys.executable, "-m", "tests.benchmarks.load", str(self.port), expected.method, expected.path),
                *(str(expected.status), expected.body, str(requests), str(CONNECTIONS)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        answer = json.loads(load.stdout)
        latencies: list[float] = answer["latencies"]
        # Each connection has sent one more, before the time began.
        self.asked[route] += len(latencies) + CONNECTIONS
        return answer["seconds"], latencies


def _start(contender: Contender, url: URL) -> tuple[Server, subprocess.Popen[bytes]]:
    """Start a server. It can be asked at once: who connects to its socket waits until it is up."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"fd://{listening.fileno()}", "--no-control-socket"),
                *("--worker-class", "gthread", "--workers", "1", "--threads", str(CONNECTIONS)),
                *("--log-level", "warning", f"tests.benchmarks.served:app({contender.key!r})"),
            ],
            env=os.environ | {_URL: url.render_as_string(hide_password=False)},
            pass_fds=[listening.fileno()],
        )
        port: int = listening.getsockname()[1]
    return Server(port), process


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Tell all to end, and then wait for each."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def servers(contenders: Sequence[Contender], urls: Mapping[str, URL]) -> Iterator[dict[str, Server]]:
    """Start a server for each contender; when they are ended, raise if they have stored anything else than asked."""
    started: dict[str, Server] = {}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for contender in contenders:
            started[contender.key], process = _start(contender, urls[contender.key])
            processes.append(process)
        yield started
    finally:
        _end(processes)
    for key, server in started.items():
        check_contents(urls[key], server.asked)


def measure(contenders: Sequence[Contender], urls: Mapping[str, URL], plan: Plan) -> Served:
    """Return what was measured."""
    served = Served(*(no_times(contenders, plan.routes) for _ in Served._fields))
    with servers(contenders, urls) as started:
        for route, contender in replace(plan, rounds=1).turns(contenders):
            started[contender.key].load(route, plan.warm_up)
        for route, contender in plan.turns(contenders):
            seconds, latencies = started[contender.key].load(route, plan.requests)
            served.per_request[route][contender.key].append(seconds / len(latencies))
            served.p50[route][contender.key].append(percentile(latencies, 50))
            served.p99[route][contender.key].append(percentile(latencies, 99))
    return served
