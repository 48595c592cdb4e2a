"""Who is told of which changes: transactions, receivers and when they connect, and listeners that change more."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, insert, update
from sqlalchemy.orm import Session

from flask_uow import Backoff, Change, ChangeSet, Propagation, UnitOfWork, signals
from tests.databases.changes.conftest import Listen, Told, given, in_order, receiver, so_far, transaction_of
from tests.databases.changes.models import (
    ADA,
    Memo,
    Parcel,
    Person,
    ada,
)

# Transactions


def test_all_receivers_are_told(db: UnitOfWork, told: Told) -> None:
    """Receivers of before_commit and after_commit are told the same, and those of after_rollback what was lost."""
    with db.transaction() as session:
        session.add(ada())
    with pytest.raises(LookupError), db.transaction() as session:
        session.add(ada(id=2))
        session.flush()
        raise LookupError

    assert told.before == told.committed == [[Change("insert", "Person", "person", (1,), {}, ADA)]]
    assert told.lost == [[Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]]
    assert all(changes.is_complete for changes in (*told.before, *told.committed, *told.lost))


def test_transaction_has_its_changes_at_any_time(db: UnitOfWork, told: Told) -> None:
    """The transaction says what was written so far, and has its changes after its end as well."""
    with db.transaction() as session:
        transaction = transaction_of(db)
        seen = [list(transaction.changes)]
        person = ada()
        session.add(person)
        seen.append(list(transaction.changes))
        session.flush()
        early = transaction.changes
        person.age = 37
        session.flush()
        seen.append(list(transaction.changes))

    assert seen == [[], [], [Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 37})]]
    assert early == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert transaction.changes == told.changes == seen[-1]


def test_requires_new_has_its_own(db: UnitOfWork, told: Told) -> None:
    """A transaction of its own has changes of its own, and the one around it is told without them."""
    with db.transaction() as outer:
        with db.transaction(propagation=Propagation.REQUIRES_NEW) as inner:
            inner.add(ada())
            inner.flush()
            inside = so_far(db)
        outer.add(ada(id=2))
        outer.flush()
        outside = so_far(db)

    assert inside == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert outside == [Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]
    assert told.committed == [inside, outside]


def test_joined_block_adds_to_the_transaction(db: UnitOfWork, told: Told) -> None:
    """A block that joins has the changes of the transaction that it has joined."""
    with db.transaction() as session:
        session.add(ada())
        session.flush()
        with db.transaction():
            assert len(so_far(db)) == 1
            session.add(ada(id=2))

    assert [change.identity for change in in_order(told.changes)] == [(1,), (2,)]


def test_settling_by_hand(db: UnitOfWork, app: Flask, told: Told) -> None:
    """Commits and rollbacks by hand in one app context tell of their own changes each."""
    with app.app_context():
        person = ada()
        db.session.add(person)
        db.session.commit()
        person.age = 37
        db.session.execute(update(Person).values(name="Eda"))
        db.session.commit()
        db.session.delete(person)
        db.session.flush()
        db.session.rollback()
        person.age = 38
        db.session.commit()

    first, second, third = told.committed
    assert first == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert second[0] == Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})
    assert second[1][:3] == ("update", "person", 1)
    assert len(second) == 2
    assert told.lost == [[Change("delete", "Person", "person", (1,), {"id": 1, "name": "Eda", "age": 37}, {})]]
    assert third == [Change("update", "Person", "person", (1,), {"age": 37}, {"age": 38})]
    assert all(changes.is_complete for changes in (*told.committed, *told.lost))


def test_request(db: UnitOfWork, told: Told) -> None:
    """A request under a policy tells of its changes."""
    app = Flask("bookshop")
    app.config["UOW_AUTO_COMMIT"] = True
    db.init_app(app)

    @app.post("/")
    def view() -> str:
        db.session.add(ada())
        return ""

    app.test_client().post("/")

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


def test_block_after_a_query_by_hand(db: UnitOfWork, app: Flask, told: Told) -> None:
    """A block that takes up a session that has begun before it tells of all that it commits."""
    with app.app_context():
        db.session.add(ada())
        with db.transaction() as session:
            session.add(ada(id=2))

    assert [change.identity for changes in told.committed for change in in_order(changes)] == [(1,), (2,)]


def test_each_attempt_has_its_own(db: UnitOfWork, told: Told) -> None:
    """An attempt that has failed tells what was lost, and the next one begins with nothing."""
    attempts: list[int] = []

    @db.transactional(attempts=2, retry_on=LookupError, backoff=Backoff(base=0))
    def work() -> None:
        attempts.append(len(attempts) + 1)
        db.session.add(ada(age=attempts[-1]))
        db.session.flush()
        if len(attempts) == 1:
            raise LookupError

    work()

    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 1})]]
    assert told.changes == [Change("insert", "Person", "person", (1,), {}, {**ADA, "age": 2})]


# Receivers


def test_what_receivers_add_is_told_as_well(db: UnitOfWork, told: Told) -> None:
    """What a receiver of before_commit changes is in what is told after the commit."""

    def add(_sender: object, session: Session, changes: ChangeSet, **_extra: object) -> None:
        session.add(Memo(id=1, text=f"{len(changes)} change"))

    with signals.before_commit.connected_to(add), db.transaction() as session:
        session.add(ada())

    assert told.changes == [
        Change("insert", "Person", "person", (1,), {}, ADA),
        Change(
            "insert",
            "Memo",
            "memo",
            (1,),
            {},
            {"id": 1, "text": "1 change", "mood": "calm", "editor": "nobody", "edits": 0},
        ),
    ]
    assert all(changes == told.changes[:1] for changes in told.before)


def test_veto_tells_what_is_lost(db: UnitOfWork, told: Told) -> None:
    """What a receiver keeps from being committed is told as lost."""

    def veto(_sender: object, changes: ChangeSet, **_extra: object) -> None:
        if any(change.table == "person" for change in changes):
            raise LookupError

    with (
        signals.before_commit.connected_to(veto),
        pytest.raises(LookupError),
        db.transaction() as session,
    ):
        session.add(ada())

    assert told.committed == []
    assert told.lost == [[Change("insert", "Person", "person", (1,), {}, ADA)]]


def test_nobody_listens(db: UnitOfWork, any_engine: Engine) -> None:
    """Where nobody listens nothing is followed: there are no changes, and they say that they are not all."""
    given(any_engine, ada())

    with db.transaction() as session:
        transaction = transaction_of(db)
        idle = transaction.changes
        session.get_one(Person, 1).age = 37
        session.flush()
        session.execute(update(Person).values(age=1))
        seen = transaction.changes

    assert idle == seen == transaction.changes == []
    assert idle.is_complete
    assert not seen.is_complete
    assert not transaction.changes.is_complete


@pytest.mark.parametrize("name", ["before_commit", "after_commit", "after_rollback"])
def test_one_listens(db: UnitOfWork, name: str) -> None:
    """A receiver of any one of the signals is enough."""
    with getattr(signals, name).connected_to(receiver([])), db.transaction() as session:
        session.add(ada())
        session.flush()
        seen = so_far(db)

    assert seen == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert seen.is_complete


def test_others_listen(db: UnitOfWork) -> None:
    """Receivers of the other signals are told of no changes, and nothing is followed for them."""

    def ignore(_sender: object, **_extra: object) -> None:
        """Nothing."""

    with (
        signals.transaction_started.connected_to(ignore),
        signals.transaction_retried.connected_to(ignore),
        signals.transaction_completed.connected_to(ignore),
        signals.session_removed.connected_to(ignore),
        db.transaction() as session,
    ):
        session.add(ada())
        session.flush()
        seen = so_far(db)

    assert seen == []
    assert not seen.is_complete


def test_receiver_of_another_app(db: UnitOfWork, app: Flask) -> None:
    """A receiver that was connected for another app causes nothing to be followed for this one."""
    told: list[ChangeSet] = []

    with signals.after_commit.connected_to(receiver(told), Flask("another")), app.app_context():
        with db.transaction() as session:
            session.add(ada())
            session.flush()
            others = so_far(db)
        with signals.after_commit.connected_to(receiver(told), app), db.transaction() as session:
            session.add(ada(id=2))
            session.flush()
            own = so_far(db)

    assert others == []
    assert not others.is_complete
    assert own.is_complete
    assert told == [[Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2})]]


@pytest.mark.parametrize("signal", [signals.before_commit, signals.after_commit])
def test_receiver_that_connects_late(db: UnitOfWork, any_engine: Engine, signal: Any) -> None:
    """A receiver that connects after the first statement is told that something may be missing."""
    given(any_engine, ada())
    told: list[ChangeSet] = []

    with ExitStack() as connected, db.transaction() as session:
        session.get_one(Person, 1).age = 37
        session.flush()
        connected.enter_context(signal.connected_to(receiver(told)))
        session.add(ada(id=2))

    (changes,) = told
    assert not changes.is_complete
    assert Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}) not in changes


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("name", ["before_commit", "after_commit"])
def test_receiver_that_connects_in_time(db: UnitOfWork, name: str, flushed: bool) -> None:
    """A receiver that connects before anything was sent is told everything, although objects are in the session."""
    told: list[ChangeSet] = []

    with ExitStack() as connected, db.transaction() as session:
        session.add(ada())
        connected.enter_context(getattr(signals, name).connected_to(receiver(told)))
        if flushed:
            session.flush()

    (changes,) = told
    assert changes == [Change("insert", "Person", "person", (1,), {}, ADA)]
    assert changes.is_complete


def test_receiver_that_connects_between_transactions(db: UnitOfWork, app: Flask) -> None:
    """A receiver that connects after a commit by hand is told everything of the next one."""
    told: list[ChangeSet] = []

    with app.app_context():
        person = ada()
        db.session.add(person)
        db.session.commit()
        with signals.after_commit.connected_to(receiver(told)):
            person.age = 37
            db.session.commit()
        person.age = 38
        db.session.commit()

    assert told == [[Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37})]]
    assert told[0].is_complete


def test_receiver_that_leaves(db: UnitOfWork) -> None:
    """What was followed from the beginning is followed to the end, whoever still listens."""
    with ExitStack() as connected, db.transaction() as session:
        connected.enter_context(signals.after_commit.connected_to(receiver([])))
        session.add(ada())
        session.flush()
        connected.close()
        session.add(ada(id=2))
        transaction = transaction_of(db)

    assert [change.identity for change in in_order(transaction.changes)] == [(1,), (2,)]
    assert transaction.changes.is_complete


# Listeners of the user's


@pytest.mark.parametrize("expired", [False, True])
def test_listener_of_before_update(
    db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen, expired: bool
) -> None:
    """What a listener writes to an object that is about to be updated is told with what was there, loaded or not."""
    given(any_engine, ada(), ada(id=2, age=99))

    def write(_mapper: object, _connection: object, person: Person) -> None:
        person.age = 99

    listen(Person, "before_update", write)
    with db.transaction() as session:
        one, two = session.get_one(Person, 1), session.get_one(Person, 2)
        if expired:
            session.expire_all()
        one.name = two.name = "Eda"

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"name": "Ada", "age": 36}, {"name": "Eda", "age": 99}),
        Change("update", "Person", "person", (2,), {"name": "Ada"}, {"name": "Eda"}),
    ]


def test_listener_of_before_insert(db: UnitOfWork, told: Told, listen: Listen) -> None:
    """What a listener writes to an object that is about to be inserted is told."""

    def write(_mapper: object, _connection: object, person: Person) -> None:
        person.age = 36

    listen(Person, "before_insert", write)
    with db.transaction() as session:
        session.add(Person(id=1, name="Ada"))

    assert told.changes == [Change("insert", "Person", "person", (1,), {}, ADA)]


@pytest.mark.parametrize("name", ["before_flush", "after_flush", "after_flush_postexec"])
def test_listener_of_flushes(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen, name: str) -> None:
    """What a listener adds to a flush, or after one, is told."""
    given(any_engine, ada())

    def add(session: Session, *_rest: object) -> None:
        if session.get(Parcel, 7) is None and not any(isinstance(each, Parcel) for each in session.new):
            session.add(Parcel(id=7, label="from a listener"))

    with db.transaction() as session:
        listen(session, name, add)
        session.get_one(Person, 1).age = 37

    assert in_order(told.changes) == [
        Change(
            "insert",
            "Parcel",
            "parcel",
            (7,),
            {},
            {"id": 7, "label": "from a listener", "state": "new", "weight": 7},
        ),
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
    ]


def test_listener_of_the_sessions_before_commit(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen) -> None:
    """What a listener changes at the last moment is told after the commit."""
    given(any_engine, ada())

    def write(session: Session) -> None:
        session.get_one(Person, 1).age = 37

    with db.transaction() as session:
        listen(session, "before_commit", write)
        session.add(ada(id=2))

    assert in_order(told.changes) == [
        Change("update", "Person", "person", (1,), {"age": 36}, {"age": 37}),
        Change("insert", "Person", "person", (2,), {}, {**ADA, "id": 2}),
    ]


def test_listener_that_executes_statements(db: UnitOfWork, told: Told, listen: Listen) -> None:
    """What a listener executes through the session inside a flush is told as well."""

    def write(session: Session, *_rest: object) -> None:
        session.execute(insert(Person.__table__), {"id": 9, "name": "Eve"})  # type: ignore[arg-type]

    with db.transaction() as session:
        listen(session, "before_flush", write)
        session.add(ada())

    bulk, change = told.changes
    assert bulk[:3] == ("insert", "person", 1)
    assert change == Change("insert", "Person", "person", (1,), {}, ADA)


def test_listener_that_executes_instead(db: UnitOfWork, any_engine: Engine, told: Told, listen: Listen) -> None:
    """A statement that a listener of do_orm_execute hands on is told once."""
    given(any_engine, ada())

    def hand_on(state: Any) -> Any:
        return state.invoke_statement()

    with db.transaction() as session:
        listen(session, "do_orm_execute", hand_on)
        session.execute(update(Person).values(age=1))

    assert told.bulk == [("update", "person", 1)]
