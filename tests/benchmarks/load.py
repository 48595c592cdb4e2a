"""The client of `tests.benchmarks.served`, in a process of its own: some connections, a request at a time on each.

::

    python -m tests.benchmarks.load PORT METHOD PATH STATUS BODY REQUESTS CONNECTIONS

It sends so many requests to 127.0.0.1, rounded up to as many on each connection, looks at each answer, and prints as
JSON how long all of them and each of them took. It needs the standard library alone, and as little of the processor
as can be: the server has to share.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from time import perf_counter
from typing import Final

TIMEOUT: Final = 30.0


class Caller:
    """One connection that is kept alive."""

    def __init__(self, port: int, method: str, path: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n".encode()

    def ask(self) -> tuple[int, str]:
        """Send a request, and return status and body of the answer."""
        self.socket.sendall(self.request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        status, *headers = head.decode("latin-1").split("\r\n")
        length = next(int(value) for name, _, value in (h.partition(":") for h in headers) if name == "Content-Length")
        while len(body) < length:
            body += self._receive()
        return int(status.split()[1]), body.decode()

    def _receive(self) -> bytes:
        received = self.socket.recv(65536)
        if not received:
            raise ConnectionError("The server has closed the connection in the middle of an answer.")
        return received


def seconds_of_each(caller: Caller, count: int, expected: tuple[int, str], start: Barrier) -> list[float]:
    """Send so many requests one after the other; the first, by which the connection comes about, has no time."""
    times = []
    for number in range(count + 1):
        began = perf_counter()
        answer = caller.ask()
        ended = perf_counter()
        if answer != expected:
            raise AssertionError(f"{answer} was answered instead of {expected}.")
        if number:
            times.append(ended - began)
        else:
            start.wait(TIMEOUT)
    return times


def main(caller: Callable[[], Caller], expected: tuple[int, str], requests: int, connections: int) -> None:
    """Print the seconds from the first timed request to the last, and those of each."""
    began: list[float] = []
    start = Barrier(connections, lambda: began.append(perf_counter()))
    callers = [caller() for _ in range(connections)]
    try:
        with ThreadPoolExecutor(connections) as pool:
            each = -(-requests // connections)
            jobs = [pool.submit(seconds_of_each, one, each, expected, start) for one in callers]
            latencies = [seconds for job in jobs for seconds in job.result(10 * TIMEOUT)]
        seconds = perf_counter() - began[0]
    finally:
        for one in callers:
            one.socket.close()
    json.dump({"seconds": seconds, "latencies": latencies}, sys.stdout)


if __name__ == "__main__":
    port, method, path, status, body, requests, connections = sys.argv[1:]
    main(partial(Caller, int(port), method, path), (int(status), body), int(requests), int(connections))
