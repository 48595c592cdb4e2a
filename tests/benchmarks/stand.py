"""One contender's app on its database, called as a WSGI server would call it, and held to what it must answer."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO
from time import perf_counter, process_time
from typing import Any, Final

from flask import Flask
from sqlalchemy import URL
from werkzeug.test import create_environ

from tests.benchmarks.models import ROUTES, Made, Route, contents, contents_after

CLOCKS: Final = {"wall": perf_counter, "cpu": process_time}
"""What a user waits, and what the process has worked. On a machine that does other things only the latter repeats."""


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

    def check(self, body: bytes) -> None:
        """Raise unless the last request was answered with its status, and this body."""
        self.route.check(int(self.status.split()[0]), body)


class Stand:
    """One contender on its database, and how often each of its routes was asked for."""

    def __init__(self, made: Made, url: URL) -> None:
        self.url = url
        self.app, self.engine = made
        self.asked: Counter[str] = Counter()
        self.clients = {name: Client(self.app, route) for name, route in ROUTES.items()}

    def ask(self, route: str, count: int) -> None:
        """Ask for a route, and look at the last answer."""
        client = self.clients[route]
        for _ in range(count):
            body = client.ask()
        client.check(body)
        self.asked[route] += count

    def time(self, route: str, count: int, clock: Callable[[], float] = perf_counter) -> float:
        """Return how many seconds a request takes; one before the clock starts and the last one are looked at.

        The garbage collector runs before, and stays switched on as in production: who leaves circles pays.
        """
        client = self.clients[route]
        self.ask(route, 1)
        gc.collect()
        began = clock()
        for _ in range(count):
            body = client.ask()
        seconds = clock() - began
        client.check(body)
        self.asked[route] += count
        return seconds / count

    def warm_up(self, routes: Sequence[str], count: int) -> None:
        """Ask often enough for what follows to be like what comes later: the first answer is looked at, too."""
        for route in routes:
            self.ask(route, 1)
            self.ask(route, count)

    def close(self) -> None:
        """Raise if anything else is stored than what the answered requests are to have written."""
        if self.engine is not None:
            self.engine.dispose()
        check_contents(self.url, self.asked)


def check_contents(url: URL, asked: Counter[str]) -> None:
    """Raise unless what is stored is what so many requests are to have written."""
    found, expected = contents(url), contents_after(asked)
    if found != expected:
        raise AssertionError(f"{found} is stored after {dict(asked)}, instead of {expected}.")
