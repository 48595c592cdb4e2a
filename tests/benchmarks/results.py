"""What the numbers say: medians, quartiles, ratios within a round, and tables of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.benchmarks.roster import Contender

Times = dict[str, dict[str, list[float]]]
"""By route and contender, one number for each round."""


def no_times(contenders: Sequence[Contender], routes: Iterable[str]) -> Times:
    """Return where the times of those are to be noted that take part by each route."""
    return {route: {c.key: [] for c in contenders if route in c.routes} for route in routes}


class Spread(NamedTuple):
    """The middle of some numbers, and where the middle half of them lies."""

    low: float
    median: float
    high: float


def spread(numbers: Sequence[float]) -> Spread:
    """Return the quartiles of *numbers*, which are all there are and no sample of more."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0])
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(low, median, high)


def ratios(numbers: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return how many times *base* each number is in its own round, so that what a whole round suffers cancels out."""
    return [one / other for one, other in zip(numbers, base, strict=True)]


def percentile(numbers: Iterable[float], percent: int) -> float:
    """Return the smallest number that *percent* of 100 do not exceed."""
    ordered = sorted(numbers)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def spreads_of_ratios(times: Times, base_of: Callable[[str], str]) -> dict[str, dict[str, Spread]]:
    """Return by route and contender how many times as long as the base it takes."""
    return {
        route: {key: spread(ratios(numbers, of_route[base_of(route)])) for key, numbers in of_route.items()}
        for route, of_route in times.items()
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its columns as wide as their cells."""
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" for line in lines)


def table_by_route(
    spreads: Mapping[str, Mapping[str, Spread]], labels: Mapping[str, str], form: Callable[[float], str]
) -> str:
    """Return a table with a row for each contender and a column for each route; empty where it does not take part."""

    def cell(found: Spread | None) -> str:
        if found is None:
            return ""
        return f"{form(found.median)} ({form(found.low)} to {form(found.high)})"

    return table(
        ["", *spreads],
        ([label, *(cell(of_route.get(key)) for of_route in spreads.values())] for key, label in labels.items()),
    )
