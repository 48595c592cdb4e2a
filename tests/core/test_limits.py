from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.dialects import mysql, oracle

from flask_uow._core.limits import Limit, _MariaDBLimit, limit_of
from flask_uow._core.propagation import Propagation
from flask_uow.errors import TransactionTimeoutError
from tests.core.conftest import SLOW, Book, block, make_runtime, titles


def test_timeout_after_a_rolled_back_savepoint(engine: Engine) -> None:
    """Rolling back a savepoint needs no time, and what follows has what is left."""
    runtime = make_runtime(engine)

    with block(runtime, timeout=60) as session:
        with pytest.raises(LookupError), block(runtime, propagation=Propagation.NESTED):
            session.add(Book(title="lost"))
            session.flush()
            raise LookupError
        session.add(Book(title="kept"))

    assert titles(engine) == ["kept"]


def test_rolling_back_late(engine: Engine) -> None:
    """A savepoint that has used up its time can be rolled back."""
    runtime = make_runtime(engine)

    with block(runtime) as session:
        session.add(Book(title="kept"))
        with (
            pytest.raises(TransactionTimeoutError),
            block(runtime, propagation=Propagation.NESTED, timeout=0.05),
        ):
            session.add(Book(title="lost"))
            session.execute(text(SLOW))

    assert titles(engine) == ["kept"]


def test_limits_of_other_databases(engine: Engine) -> None:
    """MySQL and others have no limit of the server's; the time is looked at between statements all the same."""
    kinds: dict[str, Any] = {"mysql": mysql.dialect, "oracle": oracle.dialect}
    limit = limit_of(kinds["mysql"]())

    assert type(limit) is type(limit_of(kinds["oracle"]())) is Limit
    assert isinstance(limit_of(kinds["mysql"](is_mariadb=True)), _MariaDBLimit)
    with engine.connect() as connection:
        limit.apply(connection, 0.001)
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5000
    assert limit.after_rollback() is limit
