"""Which of an app's UnitOfWork objects a command is about, and in which format it answers."""

from __future__ import annotations

from typing import Any, Final

import click
from flask import current_app

from flask_uow.dispatch import Dispatch, Managed

__all__ = ["FORMAT", "NAME", "chosen"]

NAME: Final = click.option("--name", help="The name of the UnitOfWork, where the app has several.")
FORMAT: Final = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)


def chosen(name: str | None) -> list[Managed]:
    """Return the UnitOfWork called *name*, or all that the current app has.

    Raises:
        ClickException: There is none of that name.
    """
    registry: Any = current_app.extensions["uow"]
    dispatch: Dispatch = registry.dispatch
    every = list(dispatch.managed.values())
    found = [managed for managed in every if name in (None, managed.name)]
    if not found:
        raise click.ClickException(
            f"The app has no UnitOfWork called {name!r}. It has: {', '.join(repr(managed.name) for managed in every)}."
        )
    return found
