"""What a request costs: written by hand, with flask_uow, and with what else there is.

::

    python -m tests.benchmarks [--only wsgi] [--rounds 60] [--requests 20] [--plot docs/images] [--short]

Three measurements, each printed as Markdown:

wsgi          seconds inside a process without a server, in one interleaved run, on SQLite files
instructions  instructions of a request, counted by valgrind, on SQLite files
served        requests a second under gunicorn and how long they take, in one interleaved run, on PostgreSQL

Times have quartiles behind their median. A ratio is taken within one round: to the view by hand, or to Flask alone
for the route without a database. The databases are made for it, and dropped.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from sqlalchemy.exc import OperationalError

from tests.benchmarks import instructions, served, wsgi
from tests.benchmarks.command import at_least, end_in_order
from tests.benchmarks.databases import temporary_databases
from tests.benchmarks.models import ROUTES
from tests.benchmarks.plan import Plan
from tests.benchmarks.results import Spread, Times, spread, spreads_of_ratios, table, table_by_route
from tests.benchmarks.roster import CONTENDERS, Contender, base_of
from tests.benchmarks.stand import CLOCKS

POSTGRESQL: Final = os.environ.get("FLASK_UOW_TEST_POSTGRESQL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")


PLANS: Final = {"wsgi": Plan(60, 20, warm_up=50), "served": Plan(10, 200, warm_up=40)}
SHORT_PLANS: Final = {"wsgi": Plan(2, 2, warm_up=1), "served": Plan(1, 4, warm_up=4)}

COUNTED: Final = instructions.Counted(few=10, many=60, seeds=3)
SHORT_COUNTED: Final = instructions.Counted(few=2, many=4, seeds=1)


class LeftOutError(Exception):
    """A measurement is not possible here."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="contenders:\n" + "\n".join(f"  {key:20}{c.label}" for key, c in CONTENDERS.items()),
    )
    parser.add_argument("--only", choices=REPORTS, help="the one measurement to do; otherwise those that are possible")
    parser.add_argument("--rounds", type=at_least(1), help="how many (wsgi 60, served 10)")
    parser.add_argument("--requests", type=at_least(1), help="in a turn (wsgi 20, served 200)")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="of wsgi; cpu for a machine that others use, too"
    )
    parser.add_argument("--seeds", type=at_least(1), help="how many hash seeds instructions are counted with (3)")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=CONTENDERS,
        default=list(CONTENDERS),
        metavar="KEY",
        help="who takes part beside those that others are compared with (all)",
    )
    parser.add_argument(
        "--routes",
        nargs="+",
        choices=ROUTES,
        default=list(ROUTES),
        metavar="NAME",
        help=f"of {', '.join(ROUTES)} (all)",
    )
    parser.add_argument("--url", help="a server on which databases can be made, for wsgi and served")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw the ratios of wsgi, as PNG and SVG")
    parser.add_argument("--short", action="store_true", help="show that it works; the numbers say nothing")
    options = parser.parse_args(arguments)
    if options.plot and options.only not in {None, "wsgi"}:
        parser.error("--plot draws the measurement wsgi, which --only leaves out.")
    return options


def selected(options: argparse.Namespace) -> list[Contender]:
    """Return who takes part; those whom they are compared with always do."""
    wanted = {*options.contenders, *map(base_of, options.routes)}
    return [
        contender
        for key, contender in CONTENDERS.items()
        if key in wanted and not set(contender.routes).isdisjoint(options.routes)
    ]


def plan_of(options: argparse.Namespace, measurement: str) -> Plan:
    """Return when and how often is asked in a measurement."""
    plan = (SHORT_PLANS if options.short else PLANS)[measurement]
    return replace(
        plan,
        rounds=options.rounds or plan.rounds,
        requests=options.requests or plan.requests,
        routes=options.routes,
        clock=options.clock,
    )


def spreads(times: Times) -> dict[str, dict[str, Spread]]:
    """Return the quartiles of all rounds."""
    return {route: {key: spread(numbers) for key, numbers in of_route.items()} for route, of_route in times.items()}


def report_wsgi(options: argparse.Namespace, contenders: list[Contender], labels: Mapping[str, str]) -> None:
    """Print how many times the base each takes, and the microseconds."""
    plan = plan_of(options, "wsgi")
    with temporary_databases(options.url, labels) as urls:
        times = wsgi.measure(contenders, urls, plan)
    ratios = spreads_of_ratios(times, base_of)
    size = f"{plan.rounds} rounds of {plan.requests} requests, {plan.clock} clock"
    title = f"Time of a request in proportion to by hand, without a database to Flask alone ({size})"
    print(f"\n## {title}\n\n{table_by_route(ratios, labels, '{:.3f}'.format)}")
    print(f"\n## Microseconds\n\n{table_by_route(spreads(times), labels, lambda seconds: f'{seconds * 1e6:.0f}')}")
    if options.plot:
        # It takes longer to load than all that is measured in the short form.
        from tests.benchmarks.plot import draw

        for path in draw(ratios, labels, title, options.plot):
            print(f"\nDrawn: {path}")


def report_instructions(options: argparse.Namespace, contenders: list[Contender], labels: Mapping[str, str]) -> None:
    """Print the thousands of instructions, and how many times the base that is."""
    if not instructions.is_possible():
        raise LeftOutError("valgrind is not installed.")
    plan = SHORT_COUNTED if options.short else COUNTED
    if options.seeds:
        plan = plan._replace(seeds=options.seeds)
    counts = instructions.measure(contenders, options.routes, plan)

    def cell(route: str, key: str) -> str:
        if (count := counts[route].get(key)) is None:
            return ""
        base = counts[route][base_of(route)]
        return f"{count / 1000:,.0f} ({count / base:.3f}, {(count - base) / 1000:+,.0f})"

    print("\n## Thousands of instructions of a request (in proportion to by hand, and more than by hand)\n")
    print(table(["", *counts], ([label, *(cell(route, key) for route in counts)] for key, label in labels.items())))


def report_served(options: argparse.Namespace, contenders: list[Contender], labels: Mapping[str, str]) -> None:
    """Print for each route requests a second and latencies, with their ratios to the base."""
    plan = plan_of(options, "served")
    with ExitStack() as stack:
        try:
            urls = stack.enter_context(temporary_databases(options.url or POSTGRESQL, labels))
        except OperationalError as error:
            raise LeftOutError(f"no database can be made: {error.orig}") from error
        times = served.measure(contenders, urls, plan)
    scales: list[Callable[[float], str]] = [
        lambda seconds: f"{1 / seconds:.0f}",
        lambda seconds: f"{seconds * 1e3:.2f}",
        lambda seconds: f"{seconds * 1e3:.2f}",
    ]
    values = [spreads(part) for part in times]
    ratios = [spreads_of_ratios(part, base_of) for part in times]

    def cells(route: str, key: str) -> Iterator[str]:
        for form, value, ratio in zip(scales, values, ratios, strict=True):
            if key in value[route]:
                low, median, high = ratio[route][key]
                yield form(value[route][key].median)
                yield f"{median:.3f} ({low:.3f} to {high:.3f})"

    title = f"under gunicorn, {plan.rounds} rounds of {plan.requests} requests, {served.CONNECTIONS} at a time"
    for route in options.routes:
        print(f"\n## {route}, {title}\n")
        head = ["", "requests/s", "time of all, ratio", "p50, ms", "ratio", "p99, ms", "ratio"]
        taking_part = {key: label for key, label in labels.items() if route in CONTENDERS[key].routes}
        print(table(head, ([label, *cells(route, key)] for key, label in taking_part.items())))


REPORTS: Final[dict[str, Callable[[argparse.Namespace, list[Contender], Mapping[str, str]], None]]] = {
    "wsgi": report_wsgi,
    "instructions": report_instructions,
    "served": report_served,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the measurements that are asked for."""
    options = parse(arguments)
    contenders = selected(options)
    labels = {contender.key: contender.label for contender in contenders}
    for name in [options.only] if options.only else REPORTS:
        try:
            REPORTS[name](options, contenders, labels)
        except LeftOutError as reason:
            if options.only:
                raise SystemExit(f"{name} is not possible here: {reason}") from reason
            print(f"\n{name} is left out: {reason}")


if __name__ == "__main__":
    end_in_order()
    main()
