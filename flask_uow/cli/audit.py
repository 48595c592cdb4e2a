"""``flask uow audit``: the last entries of an audit trail."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import product
from typing import Any, Protocol, runtime_checkable

import click
from flask.cli import with_appcontext
from sqlalchemy import Table
from sqlalchemy.exc import DBAPIError

from flask_uow.audit_table import AuditEntry
from flask_uow.cli.chosen import FORMAT, NAME, chosen

__all__ = ["audit_command"]


@runtime_checkable
class _Trail(Protocol):
    """An audit trail."""

    @property
    def table(self) -> Table:
        """Return where they are."""
        ...

    @property
    def tables(self) -> list[str]:
        """Return the tables whose changes they are."""
        ...

    def entries(self, *, table: str | None, keys: Sequence[Sequence[object]], limit: int) -> list[AuditEntry]:
        """Return its last entries."""
        ...


@click.command("audit")
@click.argument("table", required=False)
@click.argument("key", nargs=-1)
@NAME
@click.option("--trail", "log", help="The name of the trail's table, where there are several.")
@click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 1_000_000), help="How many entries at most."
)
@FORMAT
@with_appcontext
def audit_command(table: str | None, key: tuple[str, ...], **options: Any) -> None:
    """Print the last entries of the audit trail, the newest last.

    TABLE keeps to one table, and KEY to the row with that primary key; one KEY for each of its columns. A KEY that
    begins with a minus comes after two of them: uow audit entry -- -1
    """
    trail = _trail(options["name"], options["log"])
    keys = list(product(*map(_readings, key))) if key else []
    try:
        entries = trail.entries(table=table, keys=keys, limit=options["limit"])
    except DBAPIError as error:
        raise click.ClickException(
            f"The trail cannot be read: {error.orig}. Is its table there? create_all() or a migration makes it."
        ) from error
    if table is not None and not entries and table not in trail.tables:
        raise click.ClickException(f"There is no table {table!r} in this trail. It has: {', '.join(trail.tables)}.")
    for line in _LINES[options["form"]](entries):
        click.echo(line)


def _trail(name: str | None, log: str | None) -> _Trail:
    """Return the audit trail that is meant.

    Raises:
        ClickException: There is none, or more than one.
    """
    names = [managed.name for managed in chosen(name)]
    every = [
        (managed.name, recorder)
        for managed in chosen(None)
        for recorder in managed.runtime.recorders
        if isinstance(recorder, _Trail)
    ]
    if not every:
        raise click.ClickException(
            "There is no audit trail. Make one where the UnitOfWork is: AuditTrail(uow, Base), from flask_uow.audit."
        )
    meant = [each for each in every if each[0] in names and log in (None, each[1].table.name)]
    if len(meant) != 1:
        several = ", ".join(f"--name {owner} --trail {trail.table.name}" for owner, trail in meant or every)
        beginning = "There are several audit trails." if meant else "There is no such audit trail."
        raise click.ClickException(f"{beginning} Add one of: {several}.")
    return meant[0][1]


def _printable(line: str) -> str:
    """Return *line* so that nothing in it can pretend to be another, or move the cursor."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def _readings(text: str) -> list[object]:
    """Return what somebody can mean by a part of a key: a string, and a number if it reads like one."""
    readings: list[object] = [text]
    for number in (int, float):
        with suppress(ValueError):
            readings.append(number(text))
    return readings


def _as_text(entries: Iterable[AuditEntry]) -> Iterator[str]:
    yield from map(_printable, _text(entries))


def _text(entries: Iterable[AuditEntry]) -> Iterator[str]:
    none = True
    for entry in entries:
        none = False
        where = f" in {entry.endpoint}" if entry.endpoint else ""
        lost = "" if entry.outcome == "committed" else " ROLLED BACK"
        why = f" ({entry.error})" if entry.error else ""
        yield (
            f"{entry.recorded_at:%Y-%m-%d %H:%M:%S} {entry.actor or '-'}{where}: {entry.operation} "
            f"{_subject(entry)}{lost}{why}"
        )
        yield from (f"    {line}" for line in _details(entry))
    if none:
        yield "No entries."


def _subject(entry: AuditEntry) -> str:
    if entry.primary_key is None:
        return entry.table or "(a table that the statement does not name plainly)"
    return f"{entry.table} {', '.join(map(str, entry.primary_key))}"


def _details(entry: AuditEntry) -> Iterator[str]:
    if entry.statement is not None:
        count = entry.rowcount
        rows = "an unknown number of rows" if count == -1 else "1 row" if count == 1 else f"{count} rows"
        yield f"{rows}: {' '.join(entry.statement.split())}"
    before, after = entry.before or {}, entry.after or {}
    for column in dict.fromkeys((*before, *after)):
        old, new = (
            json.dumps(each[column], ensure_ascii=False) if column in each else None for each in (before, after)
        )
        if old is None:
            yield f"{column}: {'? -> ' if entry.operation == 'update' else ''}{new}"
        else:
            yield f"{column}: {old}{'' if new is None else f' -> {new}'}"


def _as_json(entries: Iterable[AuditEntry]) -> Iterator[str]:
    for entry in entries:
        values: dict[str, Any] = asdict(entry)
        yield json.dumps({**values, "recorded_at": entry.recorded_at.isoformat()})


_LINES = {"text": _as_text, "json": _as_json}
