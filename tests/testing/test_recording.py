from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import scoped_session, sessionmaker

from flask_uow import ConfigurationError, HookError, Outcome, ReadOnlyTransactionError, UnitOfWork
from flask_uow.testing import HookCall, Recording, inject, isolate, record
from tests.conftest import Book
from tests.testing.conftest import Shop, make_shop


def test_request_that_commits(any_shop: Shop) -> None:
    """A request that commits is one transaction, with its endpoint, statements, hooks and changes."""
    with record(any_shop.uow) as recording:
        any_shop.client.post("/Emma")

    [transaction] = recording.transactions
    assert (transaction.outcome, transaction.error, transaction.attempt) == (Outcome.COMMITTED, None, 1)
    assert (transaction.endpoint, transaction.name) == ("add", "the request to 'add'")
    assert [statement.split()[0] for statement in transaction.statements] == ["INSERT"]
    assert [(hook.moment, hook.args, hook.error) for hook in transaction.hooks] == [
        ("on_commit", ("stored Emma",), None)
    ]
    assert [(change.operation, change.after["title"]) for change in transaction.changes] == [("insert", "Emma")]  # type: ignore[union-attr] # no BulkChange
    assert transaction.duration > 0
    assert re.fullmatch("[0-9a-f]{32}", transaction.id)


def test_all_of_them(any_shop: Shop) -> None:
    """Statements, hooks and changes are there over all transactions, with those that were lost."""
    with record(any_shop.uow) as recording:
        any_shop.client.post("/Emma")
        any_shop.client.post("/refused/Sanditon")

    assert [transaction.outcome for transaction in recording.transactions] == ["committed", "rolled_back"]
    assert len(recording.statements) == 2
    assert [(hook.moment, hook.name.rpartition(".")[2]) for hook in recording.hooks] == [
        ("on_commit", "append"),
        ("on_rollback", "<lambda>"),
    ]
    assert len(recording.changes) == 2


def test_inside_isolation_it_is_the_same(any_shop: Shop) -> None:
    """What is recorded of isolated requests is what is recorded of others."""

    def run() -> list[Any]:
        any_shop.done.clear()
        with record(any_shop.uow) as recording:
            any_shop.client.post("/Emma")
            any_shop.client.post("/nested/Sanditon")
            any_shop.client.post("/refused/Persuasion")
            any_shop.client.get("/")
        return [
            (each.outcome, each.endpoint, each.statements, [hook.name for hook in each.hooks], len(each.changes))
            for each in recording.transactions
        ]

    with isolate(any_shop.uow):
        inside = run()
    outside = run()

    assert inside == outside
    assert len(inside) == 4


def test_attempts(any_shop: Shop) -> None:
    """Each attempt is a transaction, and says which."""
    with isolate(any_shop.uow), record(any_shop.uow) as recording, inject(any_shop.uow, "deadlock", times=2):
        any_shop.client.post("/again/Emma")

    assert [(each.attempt, each.outcome) for each in recording.transactions] == [
        (1, "rolled_back"),
        (2, "rolled_back"),
        (3, "committed"),
    ]
    assert [hook.args for hook in recording.hooks if hook.moment == "on_commit"] == [("stored Emma",)]
    recording.assert_committed()
    recording.assert_rolled_back(times=2)


def test_savepoints_are_no_transactions(shop: Shop) -> None:
    """Hooks and statements of a savepoint are those of the transaction around it, and it is none itself."""
    with record(shop.uow) as recording, shop.uow.transaction() as session:
        with pytest.raises(LookupError), shop.uow.savepoint():
            shop.uow.on_rollback(shop.done.append)
            session.add(Book(title="Emma"))
            session.flush()
            raise LookupError
        session.add(Book(title="Sanditon"))

    [transaction] = recording.transactions
    assert len(transaction.statements) == 2
    assert [hook.moment for hook in transaction.hooks] == ["on_rollback"]


def test_hook_that_fails(shop: Shop) -> None:
    """A hook that fails was called, and its error is told."""

    def fail() -> None:
        raise OSError("no mail today")

    with record(shop.uow) as recording, pytest.raises(HookError), shop.app.app_context(), shop.uow.transaction():
        shop.uow.on_commit(fail)

    [hook] = recording.hooks
    assert isinstance(hook.error, OSError)


def test_hook_that_interrupts(shop: Shop) -> None:
    """A hook that interrupts the program was called as well."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    with record(shop.uow) as recording, pytest.raises(KeyboardInterrupt), shop.uow.transaction() as session:
        session.add(Book(title="Emma"))
        shop.uow.on_commit(interrupt)

    assert [type(hook.error) for hook in recording.hooks] == [KeyboardInterrupt]


def test_hook_by_its_name(shop: Shop) -> None:
    """A hook has the name of its function, and one without a name is shown."""

    class Mail:
        def __call__(self) -> None: ...

        def __repr__(self) -> str:
            return "<mail>"

    with record(shop.uow) as recording, shop.uow.transaction():
        shop.uow.on_commit(Mail())
        shop.uow.on_commit(shop.done.append, "done")

    assert [hook.name for hook in recording.hooks] == ["<mail>", "list.append"]
    assert recording.hooks[1] == HookCall("on_commit", shop.done.append, ("done",), {}, None)


def test_statements_outside_a_transaction(any_shop: Shop) -> None:
    """What is read outside any transaction is a statement of none."""
    with record(any_shop.uow) as recording:
        with any_shop.app.app_context():
            any_shop.uow.session.scalars(select(Book)).all()
        any_shop.client.post("/Emma")

    assert [statement.split()[0] for statement in recording.statements] == ["SELECT", "INSERT"]
    assert [len(transaction.statements) for transaction in recording.transactions] == [1]


def test_commit_by_hand(any_shop: Shop) -> None:
    """What was sent before a commit by hand is a part of what it has committed."""
    with record(any_shop.uow) as recording, any_shop.app.app_context():
        any_shop.uow.session.scalars(select(Book)).all()
        any_shop.uow.session.add(Book(title="Emma"))
        any_shop.uow.session.commit()

    [transaction] = recording.transactions
    assert [statement.split()[0] for statement in transaction.statements] == ["SELECT", "INSERT"]
    assert transaction.endpoint is None
    recording.assert_committed()


def test_another_unit_of_work(shop: Shop) -> None:
    """What another UnitOfWork has begun, and goes on with, is not recorded."""
    another = UnitOfWork(sessionmaker(shop.engine))

    with another.transaction() as session:
        session.scalars(select(Book)).all()
        with record(shop.uow) as recording:
            session.scalars(select(Book)).all()

    assert recording.statements == []


def test_statement_that_is_refused_is_not_sent(shop: Shop) -> None:
    """What a read-only transaction refuses was not sent."""
    with (
        record(shop.uow) as recording,
        pytest.raises(ReadOnlyTransactionError),
        isolate(shop.uow),
        shop.uow.transaction(read_only=True) as session,
    ):
        session.execute(text("DELETE FROM book"))

    assert recording.statements == []
    recording.assert_rolled_back()


def test_statements_in_bulk(shop: Shop) -> None:
    """A statement past the objects is recorded, and what it has changed."""
    with record(shop.uow) as recording, shop.uow.transaction() as session:
        session.add(Book(title="Emma"))
        session.flush()
        session.execute(update(Book).values(title="Sanditon"), execution_options={"synchronize_session": False})

    assert [change.operation for change in recording.changes] == ["insert", "update"]


def test_what_goes_on_already(shop: Shop) -> None:
    """What is sent from the beginning of the recording on is recorded, of a transaction that goes on as well."""
    with shop.uow.transaction() as session:
        session.scalars(select(Book)).all()
        with record(shop.uow) as recording:
            session.add(Book(title="Emma"))
            session.flush()
        session.add(Book(title="Sanditon"))

    assert len(recording.statements) == 1
    assert recording.transactions == []


def test_other_objects_are_not_recorded(shop: Shop) -> None:
    """What another UnitOfWork does is its own affair."""
    other = UnitOfWork(shop.engine)

    with record(shop.uow) as recording, other.transaction() as session:
        session.scalars(select(Book)).all()

    recording.assert_no_database()


def test_sessions_that_are_suspended(any_shop: Shop) -> None:
    """A transaction inside another ends before it, and has its own statements."""
    with isolate(any_shop.uow), record(any_shop.uow) as recording:
        any_shop.client.post("/new/Emma/200")

    assert [len(transaction.statements) for transaction in recording.transactions] == [1, 1]
    recording.assert_committed(times=2)


def test_threads(shop: Shop) -> None:
    """What other threads do is recorded."""
    with record(shop.uow) as recording:
        thread = threading.Thread(target=shop.client.post, args=("/Emma",))
        thread.start()
        thread.join()

    assert [transaction.endpoint for transaction in recording.transactions] == ["add"]


def test_one_in_another(shop: Shop) -> None:
    """Two recordings at a time do not know of each other; one object can record again."""
    recorder = record(shop.uow)
    with recorder as outer:
        shop.client.post("/Emma")
        with recorder as inner:
            shop.client.post("/Sanditon")

    assert (len(outer.transactions), len(inner.transactions)) == (2, 1)
    assert shop.uow._observers == []


# What a person reads


def message_of(assertion: Any, *args: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        assertion(*args)
    return str(caught.value)


def test_assert_committed(shop: Shop) -> None:
    """It says how many were expected and seen, and what has happened instead."""
    with record(shop.uow) as recording:
        shop.client.post("/refused/Emma")
        with pytest.raises(LookupError, match="no book"), shop.uow.transaction(name="shelving") as session:
            session.scalars(select(Book)).all()
            raise LookupError("no book")

    assert message_of(recording.assert_committed) == (
        "1 COMMIT expected, and 0 seen. These transactions have ended:\n"
        "  - the request to 'refused' in 'refused': rolled back, 1 statement\n"
        "  - shelving: rolled back, 1 statement (LookupError: no book)"
    )
    recording.assert_committed(0)
    recording.assert_rolled_back(2)


def test_assert_rolled_back(shop: Shop) -> None:
    """It says so too, with the attempts, and not without end."""
    with isolate(shop.uow), record(shop.uow) as recording:
        with inject(shop.uow, "deadlock"):
            shop.client.post("/again/Emma")
        for _ in range(12):
            shop.client.post("/Emma")

    lines = message_of(recording.assert_rolled_back, 3).splitlines()
    assert lines[0] == "3 ROLLBACKs expected, and 1 seen. These transactions have ended:"
    assert lines[1].endswith("again() in 'again': rolled back, 1 statement (OperationalError: database is locked)")
    assert "attempt 2, 1 statement" in lines[2]
    assert lines[-1] == "  - and 4 more"
    assert len(lines) == 12


def test_assert_committed_outside_a_transaction(shop: Shop) -> None:
    """Where there was none it says that a policy may be missing, and what was sent."""
    with record(shop.uow) as recording, shop.app.app_context():
        shop.uow.session.scalars(select(Book)).all()

    message = message_of(recording.assert_committed)
    assert message.startswith(
        "1 COMMIT expected, and 0 seen. No transaction has ended, but statements were sent outside any. Is the request "
        "covered by a policy (@transactional or UOW_AUTO_COMMIT)?\n  - SELECT"
    )


def test_assert_committed_without_a_database(shop: Shop) -> None:
    """Where nothing was done it says that."""
    with record(shop.uow) as recording:
        shop.client.get("/ping")

    assert message_of(recording.assert_committed) == (
        "1 COMMIT expected, and 0 seen. No transaction has ended, and the database was not used."
    )
    recording.assert_no_database()


def test_assert_no_database(shop: Shop) -> None:
    """It says what was sent, also outside a transaction."""
    with record(shop.uow) as recording, shop.app.app_context():
        shop.uow.session.connection()
        shop.uow.session.execute(text("SELECT 1"))

    assert message_of(recording.assert_no_database) == (
        "The database was not to be used, and it was: 1 connection, 1 statement.\n  - SELECT 1"
    )


@pytest.mark.parametrize("times", [-1, 1.0, True, "1"])
def test_times(times: Any) -> None:
    """The number of times is a whole number."""
    with pytest.raises(ConfigurationError, match="whole number"):
        Recording().assert_committed(times)


def test_what_it_takes() -> None:
    """It takes one UnitOfWork."""
    with pytest.raises(ConfigurationError, match=r"record\(uow\)"):
        record(1)  # type: ignore[arg-type] # what is tested


def test_session_that_was_there_before(shop: Shop) -> None:
    """What a request sends with a session that a registry has begun before is recorded."""
    registry = scoped_session(sessionmaker(shop.engine))
    other = make_shop(shop.engine, UnitOfWork(registry))
    registry.scalars(select(Book)).all()

    with record(other.uow) as recording:
        other.client.get("/")

    assert len(recording.statements) == 1
    registry.remove()
