"""How long requests take without a server between: in turns, each contender in a process of its own.

In one process all would pay for the others: flask_uow listens to SQLAlchemy's Session class, a signal with a receiver
costs every sender more, and each app makes the garbage collector slower. The processes are forked from one, so that
hash seed and memory are alike, and nobody works while another is being timed.
"""

from __future__ import annotations

import gc
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection

from sqlalchemy import URL

from tests.benchmarks.models import Made
from tests.benchmarks.plan import Plan
from tests.benchmarks.results import Times, no_times
from tests.benchmarks.roster import Contender
from tests.benchmarks.stand import CLOCKS, Stand


def _serve(connection: Connection, make: Callable[[URL], Made], url: URL, routes: Sequence[str], plan: Plan) -> None:
    """Take turns until there are no more. What fails is reported instead of a time."""
    try:
        stand = Stand(make(url), url)
        stand.warm_up(routes, plan.warm_up)
        # What is there now stays, so that collections look at what requests have made alone.
        gc.collect()
        gc.freeze()
        connection.send((None, None))
        for route in iter(connection.recv, None):
            connection.send((stand.time(route, plan.requests, CLOCKS[plan.clock]), None))
        stand.close()
        connection.send((None, None))
    except Exception:  # noqa: BLE001 - it is raised where the answer is read
        connection.send((None, traceback.format_exc()))


class RemoteStand:
    """A stand in another process."""

    def __init__(self, contender: Contender, connection: Connection) -> None:
        self.contender = contender
        self.connection = connection

    def result(self) -> float | None:
        """Return what the process has to say, or raise what it has raised."""
        seconds: float | None
        trouble: str | None
        seconds, trouble = self.connection.recv()
        if trouble:
            raise AssertionError(f"{self.contender.key} failed:\n{trouble}")
        return seconds

    def time(self, route: str) -> float:
        """See `Stand.time`."""
        self.connection.send(route)
        seconds = self.result()
        assert seconds is not None
        return seconds

    def close(self) -> None:
        """Let it end, and hear what it says to what is stored."""
        self.connection.send(None)
        self.result()


@contextmanager
def processes(contenders: Sequence[Contender], urls: Mapping[str, URL], plan: Plan) -> Iterator[dict[str, RemoteStand]]:
    """Start a process for each contender; in the end each says what it finds stored, and is ended."""
    # All have imported the same. To be imported changes nothing: flask_uow listens from its first session on.
    makers = [contender.make for contender in contenders]
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        stands: dict[str, RemoteStand] = {}
        for contender, make in zip(contenders, makers, strict=True):
            routes = [route for route in plan.routes if route in contender.routes]
            ours, theirs = context.Pipe()
            # It ends with us, whatever becomes of us.
            process = context.Process(
                target=_serve, args=(theirs, make, urls[contender.key], routes, plan), daemon=True
            )
            process.start()
            theirs.close()
            for end in (process.close, process.join, process.terminate, ours.close):
                stack.callback(end)
            stands[contender.key] = RemoteStand(contender, ours)
        for stand in stands.values():
            stand.result()
        yield stands
        for stand in stands.values():
            stand.close()


def measure(contenders: Sequence[Contender], urls: Mapping[str, URL], plan: Plan) -> Times:
    """Return seconds per request by route and contender, one number a round."""
    times = no_times(contenders, plan.routes)
    with processes(contenders, urls, plan) as stands:
        for route, contender in plan.turns(contenders):
            times[route][contender.key].append(stands[contender.key].time(route))
    return times
