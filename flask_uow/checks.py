"""What is wrong with an app as it was put together, as far as that can be known before anything goes wrong."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

from flask import Flask
from sqlalchemy import Connection, Engine
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from flask_uow._core.connection import commits_by_itself, is_set_to_autocommit
from flask_uow._core.faults import said
from flask_uow._core.pool import capacity
from flask_uow._core.propagation import Propagation
from flask_uow.dispatch import Managed
from flask_uow.order import decorated, find_misplaced
from flask_uow.plans import Policy, policies_of

__all__ = ["Code", "Finding", "find"]

Doubt = Callable[[str], None]
"""Told what could not be looked at."""


Code = Literal[
    "pool-too-small",
    "sqlite-memory",
    "shared-connection",
    "autocommit",
    "sqlite-savepoints",
    "decorator-order",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, and what to do about it."""

    code: Code
    subject: str
    problem: str
    cure: str
    unit_of_work: str | None = None
    """The name of the one that it is about, if it is about one."""


def find(app: Flask, units: Iterable[Managed], threads: int, doubt: Doubt) -> Iterator[Finding]:
    """Yield what is wrong.

    Args:
        app: The application. It has a current context.
        units: Its UnitOfWork objects in question.
        threads: How many requests one process handles at the same time.
        doubt: Told what could not be looked at.
    """
    # What nobody uses any more is no part of the app.
    gc.collect()
    for managed in units:
        binds = managed.source.binds()
        if not binds:
            doubt(f"the engines of the UnitOfWork {managed.name!r}: what its sessions are bound to is not known here.")
        for bind in binds:
            yield from _of_bind(app, managed, bind, threads, doubt)
    yield from _of_order(app)


def _of_bind(app: Flask, managed: Managed, bind: Engine | Connection, threads: int, doubt: Doubt) -> Iterator[Finding]:
    subject = bind.engine.url.render_as_string(hide_password=True)
    if isinstance(bind, Engine):
        yield from _of_pool(app, managed, bind, subject, threads)
    if is_set_to_autocommit(bind):
        yield Finding("autocommit", subject, _AUTOCOMMIT, _NO_AUTOCOMMIT, managed.name)
    if isinstance(bind, Connection):
        if threads > 1:
            yield Finding("shared-connection", subject, _BOUND, "Bind the sessions to the engine.", managed.name)
        return
    try:
        yield from [
            Finding(code, subject, problem, cure, managed.name) for code, problem, cure in _of_engine(bind, threads)
        ]
    except Exception as error:  # noqa: BLE001 - what keeps one database from being looked at is not to hide the others
        doubt(f"{subject} of the UnitOfWork {managed.name!r}, which cannot be reached: {said(error)}")


# The size of the pool


def _of_pool(app: Flask, managed: Managed, engine: Engine, subject: str, threads: int) -> Iterator[Finding]:
    available = capacity(engine.pool)
    if available is None:
        return
    suspending = next(_suspending(app, managed), None)
    needed = threads * (1 if suspending is None else 2)
    if needed > available:
        problem = f"{threads} threads need {needed} connections at once, and the pool has {available}. "
        if suspending is None:
            problem += "The rest wait for one, and fail when their time is over."
        else:
            problem += (
                f"A thread needs two of them where {suspending.label} suspends a transaction "
                f"({suspending.options.propagation.name}). When all have one and wait for another, none can go on."
            )
        cure = f"Give create_engine() pool_size={needed}, or run fewer threads."
        yield Finding("pool-too-small", subject, problem, cure, managed.name)


_SUSPENDING: Final = (Propagation.REQUIRES_NEW, Propagation.NOT_SUPPORTED)


def _suspending(app: Flask, managed: Managed) -> Iterator[Policy]:
    """Yield the policies that may suspend a transaction: those of views, and of functions of the same package."""
    return (policy for policy in _policies(app, managed) if policy.options.propagation in _SUSPENDING)


def _policies(app: Flask, managed: Managed) -> Iterator[Policy]:
    for rule in app.url_map.iter_rules():
        for method in rule.methods or ():
            yield from managed.policies(rule.endpoint, method)

    package = app.import_name.partition(".")[0]
    for function in decorated():
        is_near = str(function.__module__).partition(".")[0] == package
        policies = policies_of([function], managed.owner, managed.name)
        yield from (policy for policy in policies if is_near or policy.owner is not None)


# What a connection shows


def _of_engine(engine: Engine, threads: int) -> Iterator[tuple[Code, str, str]]:
    """Yield code, problem and cure of what is wrong with the connections of *engine*."""
    with engine.connect() as connection, connection.begin():
        stores_at_once = commits_by_itself(connection)
        is_in_memory = engine.dialect.name == "sqlite" and not _file_of(connection)
    if stores_at_once and not is_set_to_autocommit(engine):
        if engine.dialect.name == "sqlite":
            yield "sqlite-savepoints", _NO_BEGIN, _SEND_BEGIN
        else:
            yield "autocommit", _AUTOCOMMIT_OF_DRIVER, _NO_AUTOCOMMIT
    if threads > 1:
        yield from _of_threads(engine, is_in_memory=is_in_memory)


def _file_of(connection: Connection) -> str:
    """Return the file of a SQLite database; a database in memory has none."""
    rows = connection.exec_driver_sql("PRAGMA database_list").all()
    return next(str(file or "") for _, name, file in rows if name == "main")


def _of_threads(engine: Engine, *, is_in_memory: bool) -> Iterator[tuple[Code, str, str]]:
    if isinstance(engine.pool, StaticPool):
        code: Code = "sqlite-memory" if is_in_memory else "shared-connection"
        kind = "The in-memory SQLite database" if is_in_memory else "The engine"
        yield code, f"{kind} has {_STATIC}", _USE_A_FILE if is_in_memory else _USE_A_POOL
    elif is_in_memory and "cache=shared" not in str(engine.url):
        owner = "thread" if isinstance(engine.pool, SingletonThreadPool) else "connection"
        problem = (
            f"Each {owner} has an in-memory SQLite database of its own, which is empty: what one {owner} stores, the "
            "others do not see."
        )
        yield "sqlite-memory", problem, _USE_A_FILE


_AUTOCOMMIT: Final = (
    'The isolation level is "AUTOCOMMIT": each statement would be stored at once, and no rollback could undo it. '
    "Transactions on it are refused."
)

_AUTOCOMMIT_OF_DRIVER: Final = (
    "The driver is in autocommit mode: each statement would be stored at once, and no rollback could undo it. "
    "Transactions on it are refused."
)

_NO_AUTOCOMMIT: Final = (
    "Give UnitOfWork an engine without it, and another engine to what must run outside a transaction: "
    'engine.execution_options(isolation_level="AUTOCOMMIT") makes one with the same pool.'
)

_NO_BEGIN: Final = (
    "Python's sqlite3 is in autocommit mode, and nobody sends BEGIN: each statement would be stored at once, and "
    "neither a rollback nor a savepoint could undo it. Transactions on it are refused."
)

_SEND_BEGIN: Final = (
    "Leave isolation_level=None or autocommit=True out of connect_args, for flask_uow sends BEGIN where the driver "
    'would wait with it; or send it yourself, in a listener to the event "begin" of the engine.'
)

_STATIC: Final = (
    "a StaticPool, which is one connection for all threads. Their transactions mix: a commit of one stores half of "
    "what another has done, and a rollback undoes it."
)

_BOUND: Final = (
    "The sessions are bound to one Connection, which all threads share. Their transactions mix: a commit of one stores "
    "half of what another has done, and a rollback undoes it."
)

_USE_A_FILE: Final = "Use a file, such as sqlite:///shop.db; in tests, one in a temporary folder."

_USE_A_POOL: Final = "Leave poolclass=StaticPool out."


# The order of decorators


def _of_order(app: Flask) -> Iterator[Finding]:
    for each in find_misplaced(app):
        place = f" in {each.place}" if each.place else ""
        problem = (
            f"{each.decorator} of {each.function}(){place} is above @app.route, which had registered the bare function "
            "by then: requests run without it."
        )
        cure = "Write it below @app.route, next to the function."
        yield Finding("decorator-order", f"the endpoint {each.endpoint!r}", problem, cure, each.unit_of_work)
