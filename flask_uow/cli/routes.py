"""``flask uow routes``: which policy covers which endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import click
from flask import current_app
from flask.cli import with_appcontext
from werkzeug.routing import Rule

from flask_uow._core.options import name_of
from flask_uow._core.propagation import Propagation, can_begin
from flask_uow.cli.chosen import FORMAT, NAME, chosen
from flask_uow.dispatch import Managed
from flask_uow.plans import Asked, Origin

__all__ = ["routes_command"]


@dataclass(frozen=True, slots=True)
class _Coverage:
    """What a UnitOfWork does with the requests to an endpoint by some methods."""

    policy: str | None = None
    origin: Origin | None = None
    blocks: tuple[str, ...] = ()
    """Of the view's own decorators, the propagation of those that begin no transaction."""

    isolation_level: str | None = None
    read_only: bool | None = None
    attempts: int | None = None
    commit_if: str | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """A rule, those of its methods that are covered alike, and how they are."""

    rule: Rule
    methods: tuple[str, ...]
    unit_of_work: str
    coverage: _Coverage


@click.command("routes")
@click.option(
    "--sort",
    "-s",
    type=click.Choice(["endpoint", "methods", "rule", "match"]),
    default="endpoint",
    show_default=True,
    help="What to sort by. 'match' is the order in which Flask looks for a rule that matches.",
)
@click.option("--all-methods", is_flag=True, help="Show HEAD and OPTIONS, too.")
@NAME
@FORMAT
@with_appcontext
def routes_command(sort: str, name: str | None, form: str, *, all_methods: bool) -> None:
    """Print which policy covers each endpoint, and where it comes from."""
    units = chosen(name)
    hidden = frozenset[str]() if all_methods else frozenset({"HEAD", "OPTIONS"})
    rows = [
        row for rule in current_app.url_map.iter_rules() for managed in units for row in _rows_of(managed, rule, hidden)
    ]
    if sort in _SORTS:
        rows.sort(key=_SORTS[sort])
    for line in _LINES[form](rows):
        click.echo(line)


_SORTS: Final[Mapping[str, Callable[[_Row], Any]]] = {
    "endpoint": lambda row: row.rule.endpoint,
    "methods": lambda row: row.methods,
    "rule": lambda row: row.rule.rule,
}


def _rows_of(managed: Managed, rule: Rule, hidden: frozenset[str]) -> Iterator[_Row]:
    """Yield a row for each group of methods of *rule* that are covered alike."""
    methods = rule.methods or set[str]()
    groups: dict[_Coverage, list[str]] = {}
    for method in sorted(methods - hidden or methods):
        groups.setdefault(_coverage(managed, rule.endpoint, method), []).append(method)
    for coverage, alike in groups.items():
        yield _Row(rule, tuple(alike), managed.name, coverage)


def _coverage(managed: Managed, endpoint: str, method: str) -> _Coverage:
    """Return what a request would find."""
    plan = managed.plan(Asked(endpoint, method))
    modes = (policy.options.propagation for policy in managed.policies(endpoint, method))
    blocks = tuple(dict.fromkeys(mode.name for mode in modes if not can_begin(mode)))
    if plan.view is None:
        origin = plan.origin or (Origin("view") if blocks else None)
        return _Coverage("exempt" if plan.origin else None, origin, blocks)

    options = plan.view.options
    mode = options.propagation
    return _Coverage(
        "transaction" if mode is Propagation.REQUIRED else mode.name,
        plan.origin,
        blocks,
        options.isolation_level or managed.settings.isolation_level,
        options.read_only or False,
        plan.view.retry.attempts if plan.view.retry else 1,
        None if plan.commit_if is None else name_of(plan.commit_if),
    )


# As text


Column = tuple[str, Callable[[_Row], str]]


def _as_text(rows: Sequence[_Row]) -> Iterator[str]:
    """Yield lines with aligned columns, under a head."""
    if not rows:
        yield "No routes were registered."
        return
    columns = list(_columns(rows))
    headings = [heading for heading, _ in columns]
    table = [[cell(row) for _, cell in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *table, strict=True)]
    rule = ["-" * width for width in widths]
    yield _line(headings, widths, [click.style(heading, bold=True) for heading in headings])
    yield _line(rule, widths, rule)
    for cells in table:
        yield _line(cells, widths, map(_coloured, cells, headings))


def _columns(rows: Iterable[_Row]) -> Iterator[Column]:
    """Yield those that have anything to say."""
    yield "Endpoint", lambda row: row.rule.endpoint
    yield "Methods", lambda row: ", ".join(row.methods)
    if any(row.rule.host or row.rule.subdomain for row in rows):
        yield "Domain", lambda row: row.rule.host or row.rule.subdomain or ""
    yield "Rule", lambda row: row.rule.rule
    if len({row.unit_of_work for row in rows}) > 1:
        yield "Unit of work", lambda row: row.unit_of_work
    yield "Policy", lambda row: ", ".join((*filter(None, [row.coverage.policy]), *row.coverage.blocks)) or "-"
    yield "From", lambda row: _origin(row.coverage.origin)
    yield "Isolation", lambda row: row.coverage.isolation_level or "-"
    yield "Read-only", lambda row: _YES[row.coverage.read_only]
    yield "Attempts", lambda row: str(row.coverage.attempts or "-")
    if any(row.coverage.commit_if for row in rows):
        yield "Commit if", lambda row: row.coverage.commit_if or "-"


_YES: Final = {True: "yes", False: "no", None: "-"}

_COLOURS: Final = {"Policy": "green", "From": "cyan"}


def _coloured(cell: str, heading: str) -> str:
    colour = _COLOURS.get(heading)
    if cell == "-":
        return click.style(cell, dim=True)
    if heading == "Policy" and cell.startswith("exempt"):
        colour = "yellow"
    return click.style(cell, fg=colour) if colour else cell


def _line(cells: Iterable[str], widths: Iterable[int], styled: Iterable[str]) -> str:
    """Return *styled* side by side, as wide as *cells* are to be."""
    parts = zip(cells, widths, styled, strict=True)
    return "".join(text + " " * (width - len(cell) + 2) for cell, width, text in parts).rstrip()


def _origin(origin: Origin | None) -> str:
    if origin is None:
        return "-"
    return f"{origin.place} {origin.blueprint}" if origin.blueprint else origin.place


# As JSON


def _as_json(rows: Iterable[_Row]) -> Iterator[str]:
    yield json.dumps([_values(row) for row in rows], indent=2)


def _values(row: _Row) -> dict[str, Any]:
    coverage = row.coverage
    return {
        "endpoint": row.rule.endpoint,
        "methods": row.methods,
        "domain": row.rule.host or row.rule.subdomain or None,
        "rule": row.rule.rule,
        "unit_of_work": row.unit_of_work,
        "policy": coverage.policy,
        "from": coverage.origin.place if coverage.origin else None,
        "blueprint": coverage.origin.blueprint if coverage.origin else None,
        "blocks": coverage.blocks,
        "isolation_level": coverage.isolation_level,
        "read_only": coverage.read_only,
        "attempts": coverage.attempts,
        "commit_if": coverage.commit_if,
    }


_LINES: Final[Mapping[str, Callable[[Sequence[_Row]], Iterator[str]]]] = {"text": _as_text, "json": _as_json}
