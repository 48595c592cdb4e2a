"""How long requests take inside a process: every app is called as a WSGI server would call it.

Each contender has a process of its own. In one process all would pay for the others: flask_uow listens to
SQLAlchemy's Session class, a signal with a receiver costs every sender more, and each app makes the garbage collector
slower. The processes are forked from one, so that hash seed and memory are alike, and take turns in one interleaved
run: nobody works while another is being timed.
"""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any, Final

from flask import Flask
from sqlalchemy import URL
from werkzeug.test import create_environ

from tests.benchmarks.models import ROUTES, Route, contents, contents_after
from tests.benchmarks.results import Times
from tests.benchmarks.roster import Contender

WARM_UP: Final = 50
"""Requests of each route before the first turn: caches of compiled statements, and the interpreter's own."""


class Client:
    """Calls an app as a server does, in as few steps as that takes."""

    def __init__(self, app: Flask, route: Route) -> None:
        self.app = app
        self.route = route
        self.environ = create_environ(route.path, method=route.method, input_stream=BytesIO())
        self.status = ""

    def start_response(self, status: str, _headers: object, _exc_info: object = None) -> Any:
        """Take the status; nobody here writes without returning an iterable."""
        self.status = status

    def ask(self) -> bytes:
        """Send one request, and return the body of the response."""
        response: Any = self.app(self.environ.copy(), self.start_response)
        try:
            return b"".join(response)
        finally:
            response.close()

    def ask_and_check(self) -> None:
        """Send one request, and raise unless the answer is right."""
        body = self.ask()
        self.route.check(int(self.status.split()[0]), body)


class Stand:
    """One contender on its database, and how often each of its routes was asked for."""

    def __init__(self, contender: Contender, url: URL) -> None:
        self.url = url
        self.app, self.engine = contender.make(url)
        self.asked: Counter[str] = Counter()
        self.clients = {name: Client(self.app, ROUTES[name]) for name in contender.routes}

    def ask(self, route: str, count: int) -> float:
        """Return how many seconds a request takes; one before the clock starts and the last one are looked at.

        The garbage collector runs before, and stays switched on as in production: who leaves circles pays.
        """
        client = self.clients[route]
        client.ask_and_check()
        gc.collect()
        began = perf_counter()
        for _ in range(count):
            body = client.ask()
        seconds = perf_counter() - began
        client.route.check(int(client.status.split()[0]), body)
        self.asked[route] += count + 1
        return seconds / count

    def warm_up(self, routes: Sequence[str], count: int = WARM_UP) -> None:
        """Ask often enough for the first turn to be like the others."""
        for route in routes:
            if route in self.clients:
                self.ask(route, count)
        # What is there now stays, so that collections look at what requests have made alone.
        gc.collect()
        gc.freeze()

    def close(self) -> None:
        """Raise if anything else is stored than what the answered requests are to have written."""
        if self.engine is not None:
            self.engine.dispose()
        found, expected = contents(self.url), contents_after(self.asked)
        if found != expected:
            raise AssertionError(f"{found} is stored after {dict(self.asked)}, instead of {expected}.")


def _serve(connection: Connection, contender: Contender, url: URL, routes: Sequence[str]) -> None:
    """Take turns until there are no more. What fails is reported instead of a time."""
    try:
        stand = Stand(contender, url)
        stand.warm_up(routes)
        connection.send((None, None))
        for route, count in iter(connection.recv, None):
            connection.send((stand.ask(route, count), None))
        stand.close()
        connection.send((None, None))
    except Exception:  # noqa: BLE001 - it is raised where the answer is read
        connection.send((None, traceback.format_exc()))


class RemoteStand:
    """A stand in another process."""

    def __init__(self, contender: Contender, connection: Connection) -> None:
        self.contender = contender
        self.connection = connection

    def result(self) -> Any:
        """Return what the process has to say, or raise what it has raised."""
        seconds, trouble = self.connection.recv()
        if trouble:
            raise AssertionError(f"{self.contender.key} failed:\n{trouble}")
        return seconds

    def ask(self, route: str, count: int) -> float:
        """See `Stand.ask`."""
        self.connection.send((route, count))
        seconds: float = self.result()
        return seconds

    def close(self) -> None:
        """Let it end, and hear what it says to what is stored."""
        self.connection.send(None)
        self.result()


@contextmanager
def processes(
    contenders: Sequence[Contender], urls: Mapping[str, URL], routes: Sequence[str]
) -> Iterator[list[RemoteStand]]:
    """Start a process for each contender, and end it."""
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        stands = []
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, contender, urls[contender.key], routes))
            process.start()
            theirs.close()
            # Without anybody who listens it ends by itself; it is not left alone if it does not.
            stack.callback(process.close)
            stack.callback(process.join)
            stack.callback(process.terminate)
            stack.callback(ours.close)
            stands.append(RemoteStand(contender, ours))
            stands[-1].result()
        yield stands
        for stand in stands:
            stand.close()


def measure(
    contenders: Sequence[Contender], urls: Mapping[str, URL], routes: Sequence[str], *, rounds: int, requests: int
) -> Times:
    """Return seconds per request by route and contender, one number a round.

    In each round and for each route all have a turn, the first of which is another one's in the next round.
    """
    times: Times = {route: {c.key: [] for c in contenders if route in c.routes} for route in routes}
    with processes(contenders, urls, routes) as stands:
        for number in range(rounds):
            start = number % len(stands)
            for route, of_route in times.items():
                for stand in stands[start:] + stands[:start]:
                    if stand.contender.key in of_route:
                        of_route[stand.contender.key].append(stand.ask(route, requests))
    return times
