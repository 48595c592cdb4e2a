"""What is put back when a connection is returned to its pool."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Connection, event
from sqlalchemy.pool import ConnectionPoolEntry, Pool, QueuePool

__all__ = ["capacity", "put_back_later", "send"]

_PUT_BACK: Final = "flask_uow.put_back"

# event.contains() goes by id(), and takes a new pool at an old address for one that is listened to.
_pools_listened_to: WeakSet[Pool] = WeakSet()


def put_back_later(connection: Connection, put_back: Callable[[Any], None]) -> None:
    """Call *put_back* with the driver's connection when it is returned to its pool."""
    connection.info.setdefault(_PUT_BACK, []).append(put_back)
    pool = connection.engine.pool
    if pool not in _pools_listened_to:
        event.listen(pool, "checkin", _put_back)
        _pools_listened_to.add(pool)


def _put_back(dbapi: Any, record: ConnectionPoolEntry) -> None:
    for put_back in record.info.pop(_PUT_BACK, ()) if dbapi is not None else ():
        try:
            put_back(dbapi)
        except Exception as error:  # noqa: BLE001 - a connection that cannot be put back is not used again
            record.invalidate(error)
            return


def send(dbapi: Any, statement: str) -> None:
    """Send a statement past SQLAlchemy, whose connection is closed already."""
    cursor = dbapi.cursor()
    try:
        cursor.execute(statement)
    finally:
        cursor.close()


def capacity(pool: Pool) -> int | None:
    """Return how many connections a pool gives at the same time, or None where it has no limit of that kind."""
    if not isinstance(pool, QueuePool) or pool._max_overflow < 0:
        return None
    return pool.size() + pool._max_overflow
