"""Connections that a test has put in the place of all others, so that what is committed over them can be undone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakSet

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

__all__ = ["Detour", "current_bind", "is_isolated", "isolated"]

_isolated: WeakSet[Connection] = WeakSet()

_stand_ins: WeakSet[Connection] = WeakSet()
"""Those that are, or were, in the place of their engines: a session that was made then, and is used later, has one."""


class Detour(Protocol):
    """Where sessions are led to while a test has their databases isolated."""

    def __call__(self, session: Session, bind: Engine | Connection, /) -> Connection:
        """Return the connection that *session* is to use in the place of *bind*, for what it sends next."""
        ...


def is_isolated(bind: object) -> bool:
    """Whether *bind* is such a connection: every session has it, and has a savepoint of its own for a transaction."""
    return isinstance(bind, Connection) and bind in _isolated


def current_bind(bind: Engine | Connection) -> Engine | Connection:
    """Return *bind*, or in whose place it was, if it was one of them, and is closed."""
    return bind.engine if isinstance(bind, Connection) and bind.closed and bind in _stand_ins else bind


@contextmanager
def isolated(connection: Connection, original: Engine | Connection) -> Generator[None]:
    """Let *connection* be one of them for a while, in the place of *original*."""
    _isolated.add(connection)
    if original is not connection:
        _stand_ins.add(connection)
    try:
        yield
    finally:
        _isolated.discard(connection)
