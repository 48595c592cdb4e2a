"""Who takes part, and by which routes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from sqlalchemy import URL

from tests.benchmarks.models import ROUTES, Made

BY_HAND: Final = "by-hand"
"""Whom the others are compared with."""

BARE: Final = "flask"
"""Whom they are compared with where there is no database to use."""


@dataclass(frozen=True)
class Contender:
    """One way to write the app."""

    key: str
    label: str
    maker: str
    """Module and function, which is imported where it is needed."""

    routes: tuple[str, ...] = tuple(ROUTES)

    @property
    def make(self) -> Callable[[URL], Made]:
        """What makes the app on a database."""
        module, _, function = self.maker.partition(":")
        make: Callable[[URL], Made] = getattr(import_module(f"tests.benchmarks.contenders.{module}"), function)
        return make


CONTENDERS: Final = {
    contender.key: contender
    for contender in (
        Contender(BARE, "Flask alone", "bare_flask:make", ("nothing",)),
        Contender(BY_HAND, "by hand", "by_hand:make"),
        Contender("beside", "by hand, flask_uow in use elsewhere", "by_hand:make_beside_flask_uow"),
        Contender("begin", "with sessions.begin()", "session_begin:make"),
        Contender("scoped-session", "scoped_session recipe", "scoped_session_recipe:make"),
        Contender("flask-sqlalchemy", "Flask-SQLAlchemy", "with_flask_sqlalchemy:make"),
        Contender("lite", "Flask-SQLAlchemy-Lite", "with_flask_sqlalchemy_lite:make"),
        Contender(
            "lite-without-async",
            "Flask-SQLAlchemy-Lite, async teardown taken out",
            "with_flask_sqlalchemy_lite:make_without_async",
        ),
        Contender("advanced-alchemy", "Advanced Alchemy, autocommit", "with_advanced_alchemy:make"),
        Contender("policy", "flask_uow, UOW_AUTO_COMMIT", "with_policy:make"),
        Contender("decorators", "flask_uow, @transactional", "with_decorators:make"),
        Contender("read-only", "flask_uow, read_only=True", "with_decorators:make_read_only", ("read",)),
        Contender("everything", "flask_uow, hook and change sets", "with_everything:make"),
    )
}


def base_of(route: str) -> str:
    """Return whom a route's times are compared with."""
    return BARE if route == "nothing" else BY_HAND
