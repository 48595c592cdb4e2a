"""``flask uow check``: what is wrong with an app, for people and for CI."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Final

import click
from flask import current_app
from flask.cli import with_appcontext

from flask_uow.checks import Finding, find
from flask_uow.cli.chosen import FORMAT, NAME, chosen

__all__ = ["check_command"]

_USUAL_THREADS: Final = 4


def _threads() -> int:
    """Return how many threads gunicorn was told to have, or else what is usual."""
    found = re.findall(r"--threads[=\s]+(\d+)", os.environ.get("GUNICORN_CMD_ARGS", ""))
    return int(found[-1]) if found else _USUAL_THREADS


@click.command("check")
@click.option(
    "--threads",
    type=click.IntRange(1, 1_000_000),
    default=_threads,
    show_default=f"that of GUNICORN_CMD_ARGS, or else {_USUAL_THREADS}",
    help="How many threads one process has.",
)
@NAME
@FORMAT
@click.pass_context
@with_appcontext
def check_command(context: click.Context, threads: int, name: str | None, form: str) -> None:
    """Look for what is wrong with the app's engines and decorators.

    The exit status is 1 if anything is. Each engine is connected to.
    """
    app = current_app._get_current_object()  # type: ignore[attr-defined] # what the proxy stands for
    findings = list(find(app, chosen(name), threads, _tell_doubt))
    for line in _LINES[form](findings):
        click.echo(line)
    context.exit(1 if findings else 0)


def _tell_doubt(doubt: str) -> None:
    click.echo(f"Not looked at: {doubt}", err=True)


def _as_text(findings: Sequence[Finding]) -> Iterator[str]:
    # Lines are broken for people alone: what is piped can be searched.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for finding in findings:
        owner = f", of the UnitOfWork {finding.unit_of_work!r}" if finding.unit_of_work else ""
        yield f"{click.style(finding.code, fg='red', bold=True)}: {finding.subject}{owner}"
        yield _wrapped(finding.problem, width)
        yield click.style(_wrapped(finding.cure, width), fg="green")
        yield ""
    if findings:
        yield click.style("1 finding." if len(findings) == 1 else f"{len(findings)} findings.", bold=True)
    else:
        yield click.style("No findings.", fg="green")


def _wrapped(text: str, width: int | None) -> str:
    indent = "    "
    if width is None:
        return f"{indent}{text}"
    return textwrap.fill(
        text,
        max(width, 40),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _as_json(findings: Sequence[Finding]) -> Iterator[str]:
    yield json.dumps([asdict(finding) for finding in findings], indent=2)


_LINES: Final[Mapping[str, Callable[[Sequence[Finding]], Iterator[str]]]] = {"text": _as_text, "json": _as_json}
