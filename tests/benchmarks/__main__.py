"""What a request costs, by hand, with flask_uow, and with what else there is, in interleaved runs.

::

    python -m tests.benchmarks [--rounds 60] [--requests 20] [--only wsgi] [--plot docs/images] [--short]

It prints Markdown tables: medians, with the quartiles behind them. A ratio is that of two times within one round, to
the views by hand, or to Flask alone for the route without a database. ``--help`` lists contenders and routes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tests.benchmarks import wsgi
from tests.benchmarks.databases import temporary_databases
from tests.benchmarks.models import ROUTES
from tests.benchmarks.results import spread, spreads_of_ratios, table_by_route
from tests.benchmarks.roster import CONTENDERS, Contender, base_of


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--requests", type=int, default=20, help="of each route in a turn")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="KEY")
    parser.add_argument("--routes", nargs="+", choices=ROUTES, default=list(ROUTES), metavar="NAME")
    parser.add_argument("--url", help="of a server where databases can be made and dropped, instead of SQLite files")
    return parser.parse_args(arguments)


def selected(options: argparse.Namespace) -> list[Contender]:
    """Return who takes part; those whom they are compared with always do."""
    wanted = {*options.contenders, *map(base_of, options.routes)}
    return [
        contender
        for key, contender in CONTENDERS.items()
        if key in wanted and not set(contender.routes).isdisjoint(options.routes)
    ]


def report_wsgi(options: argparse.Namespace) -> None:
    """Measure inside the processes, and print two tables."""
    contenders = selected(options)
    labels = {contender.key: contender.label for contender in contenders}
    with temporary_databases(options.url, labels) as urls:
        times = wsgi.measure(contenders, urls, options.routes, rounds=options.rounds, requests=options.requests)
    seconds = {route: {key: spread(n) for key, n in of_route.items()} for route, of_route in times.items()}
    print(f"\nTimes a request takes as long as by hand ({options.rounds} rounds of {options.requests} requests)\n")
    print(table_by_route(spreads_of_ratios(times, base_of), labels, "{:.3f}".format))
    print("\nMicroseconds a request\n")
    print(table_by_route(seconds, labels, lambda number: f"{number * 1e6:.0f}"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for."""
    options = parse(arguments)
    report_wsgi(options)


if __name__ == "__main__":
    main()
