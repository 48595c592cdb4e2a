from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tests.core.conftest import Book, block, make_runtime, titles


def test_connection_that_cannot_be_put_back(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A connection whose settings cannot be put back is not used again."""
    runtime = make_runtime(engine)
    caplog.set_level(logging.DEBUG)

    with block(runtime, read_only=True) as session:
        driver: Any = session.connection().connection.driver_connection
        # Like a server that goes away between COMMIT and the return to the pool.
        event.listen(engine, "checkin", lambda dbapi, _record: dbapi.close(), insert=True, once=True)
    with block(runtime) as session:
        session.add(Book(title="Emma"))
        other = session.connection().connection.driver_connection

    assert other is not driver
    assert titles(engine) == ["Emma"]
