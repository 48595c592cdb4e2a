"""Requests that are in each other's way: run again until they succeed, exactly once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from flask import Flask
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from flask_uow import Backoff, UnitOfWork, signals


class Base(DeclarativeBase):
    """The tables of these tests."""


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    balance: Mapped[int]


class Transfer(Base):
    __tablename__ = "transfer"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)


@pytest.fixture(params=["postgresql", "mariadb"])
def bank(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Two accounts, on each database that has several writers at once."""
    database: Engine = request.getfixturevalue(f"{request.param}_database")
    Base.metadata.create_all(database)
    # PostgreSQL looks for a deadlock when it has waited for a second.
    options = {"options": "-c deadlock_timeout=2ms"} if database.dialect.name == "postgresql" else {}
    engine = create_engine(database.url, pool_size=2, max_overflow=0, connect_args=options)
    with Session(engine) as session, session.begin():
        session.add_all([Account(id=1, balance=100), Account(id=2, balance=100)])
    yield engine
    engine.dispose()
    Base.metadata.drop_all(database)


@pytest.mark.usefixtures("unmeasured")
# How many each way; row locks are in each other's way more often.
@pytest.mark.parametrize(("level", "transfers"), [("SERIALIZABLE", 500), ("READ COMMITTED", 150)])
def test_transfers_in_opposite_order(app: Flask, bank: Engine, level: str, transfers: int) -> None:
    """Y1: transfers each way, serialization failures or deadlocks: all answered 200, nothing lost or done twice."""
    uow = UnitOfWork(sessionmaker(bank), app)
    mails: list[int] = []
    attempts: Counter[int] = Counter()
    held: list[int] = []
    mine = threading.local()

    @event.listens_for(bank, "checkout")
    def _taken(*_: object) -> None:
        mine.connections = getattr(mine, "connections", 0) + 1

    @event.listens_for(bank, "checkin")
    def _given_back(*_: object) -> None:
        mine.connections -= 1

    def on_retry(_sender: object, attempt: int, **_: object) -> None:
        held.append(mine.connections)
        attempts[attempt] += 1

    @app.post("/<int:number>/<int:source>/<int:target>")
    @uow.transactional(isolation_level=level, attempts=50, backoff=Backoff(base=0.0005, cap=0.01))
    def transfer(number: int, source: int, target: int) -> str:
        session = uow.session
        uow.on_commit(mails.append, number)
        session.add(Transfer(number=number))
        for account, amount in (source, -1), (target, 1):
            session.get_one(Account, account, with_for_update=level == "READ COMMITTED" or None).balance += amount
            session.flush()
        return "done"

    def serve(numbers: range, source: int, target: int) -> list[int]:
        client = app.test_client()
        return [client.post(f"/{number}/{source}/{target}").status_code for number in numbers]

    with signals.transaction_retried.connected_to(on_retry, app), ThreadPoolExecutor(2) as pool:
        there = pool.submit(serve, range(transfers), 1, 2)
        back = pool.submit(serve, range(transfers, 2 * transfers), 2, 1)
        statuses = Counter(there.result() + back.result())

    assert statuses == {200: 2 * transfers}
    with Session(bank) as session:
        assert [account.balance for account in session.scalars(select(Account).order_by(Account.id))] == [100, 100]
        stored = sorted(session.scalars(select(Transfer.number)))
    assert stored == sorted(mails) == list(range(2 * transfers))
    assert attempts[1] > 0, "they were in each other's way"
    assert set(held) == {0}, "no connection is held while an attempt waits"
    assert bank.pool.checkedout() == 0  # type: ignore[attr-defined] # it is a QueuePool
