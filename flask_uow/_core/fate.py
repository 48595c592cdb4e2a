"""What became of a COMMIT whose answer was lost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from time import monotonic
from typing import Any, Final

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

__all__ = ["Fate", "Ticket", "ask_postgresql", "ask_user", "is_gone", "session_of", "take_ticket"]

logger = logging.getLogger("flask_uow.commit")

_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25
"""In seconds, between two questions."""

About = Mapping[str, Any] | None
Sleep = Callable[[float], None]
Answer = tuple["Fate", str]
"""What became of it, and why that is not known, where it is not."""


class Fate(Enum):
    """What became of a COMMIT."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled back"
    IN_PROGRESS = "in progress"
    """The server has not heard of the end of the transaction yet, or is about to carry it out."""

    FORGOTTEN = "forgotten"
    """The server that answers does not know of the transaction, or may mean another by its id."""

    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What is kept of a transaction of PostgreSQL to ask for it after its connection is lost."""

    xact_id: str | None
    """None is a transaction that has written to no table."""

    server: str
    """When the server was started, and when it has last recovered from a crash. Ids can be given anew then."""


def take_ticket(connection: Connection) -> Ticket | None:
    """Ask for the id of a transaction that is about to commit, where the database is PostgreSQL. It costs a round trip.

    It is to be asked after the last flush, for a transaction has no id before it writes. See "Transaction ID and
    Snapshot Information Functions" in PostgreSQL's documentation.
    """
    if connection.dialect.name != "postgresql":
        return None
    row = connection.exec_driver_sql(f"SELECT CAST({_function(connection, 'current')}() AS text), {_SERVER}").one()
    return Ticket(row[0], row[1])


_SERVER: Final = (
    "concat(extract(epoch FROM pg_postmaster_start_time()), ' ', "
    "(SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter))"
)
"""A crash of one backend leaves the postmaster, and takes the statistics. Everybody may see them."""

_IN_THE_FUTURE: Final = "22023"
"""invalid_parameter_value: the id is in the future, so this server has never had it."""


def _function(connection: Connection, which: str) -> str:
    """Return the name of a function; it was another before PostgreSQL 13."""
    is_old = (connection.dialect.server_version_info or (13,)) < (13,)
    if which == "current":
        return "txid_current_if_assigned" if is_old else "pg_current_xact_id_if_assigned"
    return "txid_status" if is_old else "pg_xact_status"


def ask_postgresql(ticket: Ticket, engine: Engine, patience: float, sleep: Sleep, about: About = None) -> Answer:
    """Return what became of a transaction with an id.

    Args:
        ticket: What is known of it.
        engine: Where to get another connection to its server.
        patience: For how many seconds to ask again. It does not end a connection attempt that takes longer.
        sleep: Waits for some seconds.
        about: Says what is logged of the transaction.
    """
    answer = Fate.UNKNOWN, "nobody has answered"
    for _ in _looks(patience, sleep):
        try:
            with engine.connect() as connection:
                status, server = connection.exec_driver_sql(
                    f"SELECT {_function(connection, 'status')}('{ticket.xact_id}'), {_SERVER}"
                ).one()
        except Exception as error:
            logger.info("Could not ask what became of transaction %s", ticket.xact_id, exc_info=True, extra=about)
            if getattr(getattr(error, "orig", None), "sqlstate", None) == _IN_THE_FUTURE:
                return Fate.FORGOTTEN, "the server does not know of it"
            answer = Fate.UNKNOWN, f"the database could not be asked ({type(error).__name__})"
            continue
        if server != ticket.server:
            return (
                Fate.FORGOTTEN,
                "another server has answered since, or it was started anew",
            )
        if status == "committed":
            return Fate.COMMITTED, ""
        if status == "aborted":
            return Fate.ROLLED_BACK, ""
        if status is None:
            return Fate.FORGOTTEN, "PostgreSQL has forgotten it"
        answer = Fate.IN_PROGRESS, f"PostgreSQL said {status!r} of it for {patience:g} s"
    return answer


_OWN_ID: Final = {"postgresql": "SELECT pg_backend_pid()", "mysql": "SELECT CONNECTION_ID()"}

_IS_THERE: Final = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE pid = {}",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE id = {}",
}
"""Everybody can see whether a process of PostgreSQL is there, and a user of MySQL the sessions of his own."""


def session_of(connection: Connection) -> int | None:
    """Return the server's number of a session, where it has one. It costs a round trip.

    The driver has one, too, but a proxy can have made that up.
    """
    query = _OWN_ID.get(_family(connection.engine))
    return None if query is None else int(connection.exec_driver_sql(query).scalar_one())


def is_gone(session: int, engine: Engine) -> bool:
    """Whether the session with a number is over, so that its COMMIT can no longer be carried out."""
    with engine.connect() as connection:
        return not connection.exec_driver_sql(_IS_THERE[_family(engine)].format(session)).scalar()


def _family(engine: Engine) -> str:
    return "mysql" if engine.dialect.name == "mariadb" else engine.dialect.name


def ask_user(
    verify: Callable[[], object],
    is_over: Callable[[], bool] | None,
    patience: float,
    sleep: Sleep,
    about: About = None,
) -> Answer:
    """Return what a function of the user's finds out about a transaction.

    Args:
        verify: Calls the function with a fresh session.
        is_over: Whether the COMMIT can no longer be carried out. Before that "not stored" is not believed. None is
            that nobody can tell; then it has to hold as long as patience lasts.
        patience: For how many seconds to ask again.
        sleep: Waits for some seconds.
        about: Says what is logged of the transaction.
    """
    answer = Fate.UNKNOWN, "verify said nothing"
    denies = False
    for _ in _looks(patience, sleep):
        try:
            over = is_over is not None and is_over()
            stored = verify()
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            logger.info("verify could not ask the database", exc_info=True, extra=about)
            denies, answer = False, (Fate.UNKNOWN, f"verify could not ask the database ({type(error).__name__})")
            continue
        except Exception as error:
            logger.exception("verify failed, and does not say what became of a COMMIT", extra=about)
            return Fate.UNKNOWN, f"verify failed with {type(error).__name__}"
        if stored is True:
            return Fate.COMMITTED, ""
        if stored is not False:
            return Fate.UNKNOWN, f"verify returned {stored!r} instead of True or False"
        if over:
            return Fate.ROLLED_BACK, ""
        denies, answer = True, (Fate.UNKNOWN, "verify said False, but the COMMIT may still be carried out")
    return (Fate.ROLLED_BACK, "") if denies and is_over is None else answer


def _looks(patience: float, sleep: Sleep) -> Iterator[None]:
    """Yield again and again, with longer and longer pauses, as long as patience lasts."""
    end, pause = monotonic() + patience, _FIRST_PAUSE
    yield
    while monotonic() < end:
        sleep(pause)
        yield
        pause = min(2 * pause, _LONGEST_PAUSE)
