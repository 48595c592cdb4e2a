from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from flask_uow._core.fate import Fate, Ticket, ask_postgresql, ask_user, is_gone, session_of, take_ticket


class Clock(list[float]):
    """How long somebody would have waited."""


def ticket_of(engine: Engine, *, commit: bool) -> Ticket:
    """The ticket of a transaction that has written, and is over."""
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        ticket = take_ticket(connection)
        assert ticket is not None
        if commit:
            connection.commit()
    return ticket


def test_ticket_of_a_transaction(postgresql: Engine, engine: Engine) -> None:
    """A transaction of PostgreSQL has an id when it has written, and the server's start with it; others have none."""
    with postgresql.connect() as connection:
        before = take_ticket(connection)
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        after = take_ticket(connection)
        connection.rollback()
    with engine.connect() as connection:
        assert take_ticket(connection) is None

    assert before is not None
    assert after is not None
    assert before.xact_id is None
    assert (after.xact_id or "").isdigit()
    assert before.server == after.server


@pytest.mark.parametrize(("commit", "fate"), [(True, Fate.COMMITTED), (False, Fate.ROLLED_BACK)])
def test_postgresql_knows(postgresql: Engine, commit: bool, fate: Fate) -> None:
    """What has ended is known at once."""
    clock = Clock()

    assert ask_postgresql(ticket_of(postgresql, commit=commit), postgresql, 5, clock.append) == (fate, "")
    assert clock == []


def test_before_postgresql_13(postgresql: Engine) -> None:
    """The functions had other names there, and later versions have them still."""
    old = create_engine(postgresql.url)
    with old.connect() as connection:
        connection.execute(text("SELECT 1"))
    old.dialect.server_version_info = (12, 22)

    assert ask_postgresql(ticket_of(old, commit=True), old, 5, Clock().append) == (Fate.COMMITTED, "")
    old.dispose()


def test_postgresql_is_asked_until_it_knows(postgresql: Engine) -> None:
    """As long as the transaction is in progress it is asked again, with longer and longer pauses."""
    pauses = Clock()
    with postgresql.connect() as connection:
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        ticket = take_ticket(connection)
        assert ticket is not None

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 7:
                connection.commit()

        assert ask_postgresql(ticket, postgresql, 60, sleep) == (Fate.COMMITTED, "")
    assert pauses == [0.01, 0.02, 0.04, 0.08, 0.16, 0.25, 0.25]


def test_patience_ends(postgresql: Engine) -> None:
    """Then it is not known, and the reason says what PostgreSQL has said."""
    with postgresql.connect() as connection:
        connection.execute(text("INSERT INTO book (title) VALUES ('Emma')"))
        ticket = take_ticket(connection)
        assert ticket is not None
        fate, reason = ask_postgresql(ticket, postgresql, 0.05, lambda _: None)

    assert fate is Fate.IN_PROGRESS
    assert reason == "PostgreSQL said 'in progress' of it for 0.05 s"


def test_another_server(postgresql: Engine) -> None:
    """The id means something else to it, so nothing is concluded."""
    ticket = ticket_of(postgresql, commit=True)

    fate, reason = ask_postgresql(Ticket(ticket.xact_id, "1.5"), postgresql, 5, lambda _: None)

    assert fate is Fate.FORGOTTEN
    assert "another server" in reason


def test_database_that_cannot_be_asked(postgresql: Engine) -> None:
    """It is tried again for as long as patience lasts."""
    ticket = ticket_of(postgresql, commit=True)
    nowhere = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/nowhere")

    fate, reason = ask_postgresql(ticket, nowhere, 0.05, lambda _: None)

    assert (fate, reason) == (Fate.UNKNOWN, "the database could not be asked (OperationalError)")


def test_transaction_in_the_future(postgresql: Engine) -> None:
    """A server that has never had the id has lost the transaction, and cannot tell what its client was told."""
    ticket = ticket_of(postgresql, commit=True)

    def ask(xact_id: int) -> tuple[Fate, str]:
        return ask_postgresql(Ticket(str(xact_id), ticket.server), postgresql, 60, lambda _: None)

    assert ask(int(ticket.xact_id or 0) + 1_000_000) == (Fate.FORGOTTEN, "the server does not know of it")


def test_transaction_that_is_too_old(postgresql: Engine) -> None:
    """PostgreSQL does not remember for ever; 3 is the first id there was."""
    ticket = ticket_of(postgresql, commit=True)

    fate = ask_postgresql(Ticket("3", ticket.server), postgresql, 60, lambda _: None)

    assert fate == (Fate.FORGOTTEN, "PostgreSQL has forgotten it")


def test_creator_that_fails_in_its_own_way(postgresql: Engine) -> None:
    """What a function of the user's raises is no answer, and no reason to believe anything."""

    def creator() -> None:
        raise ConnectionRefusedError

    broken = create_engine(postgresql.url, creator=creator)

    fate, reason = ask_postgresql(ticket_of(postgresql, commit=True), broken, 0.05, lambda _: None)

    assert (fate, reason) == (Fate.UNKNOWN, "the database could not be asked (ConnectionRefusedError)")


def test_sessions_of_servers(postgresql: Engine, mariadb: Engine, engine: Engine) -> None:
    """A server's session is there until it is over, which everybody can see; SQLite has none."""
    for server in (postgresql, mariadb):
        with server.connect() as connection:
            number = session_of(connection)
            assert number is not None
            assert not is_gone(number, server)
            connection.invalidate()
        end = monotonic() + 10
        while not is_gone(number, server):
            assert monotonic() < end
    with engine.connect() as connection:
        assert session_of(connection) is None


def test_false_is_believed_when_the_session_is_over() -> None:
    """Before that the COMMIT can still be carried out."""
    over = iter([False, False, True])
    pauses = Clock()

    assert ask_user(lambda: False, lambda: next(over), 60, pauses.append) == (Fate.ROLLED_BACK, "")
    assert len(pauses) == 2


def test_commit_that_is_carried_out_meanwhile() -> None:
    """True is believed at once."""
    answers = iter([False, False, True])

    assert ask_user(lambda: next(answers), lambda: False, 60, lambda _: None) == (Fate.COMMITTED, "")


def test_session_that_does_not_end() -> None:
    """Then it is not known."""
    fate, reason = ask_user(lambda: False, lambda: False, 0.05, lambda _: None)

    assert (fate, reason) == (Fate.UNKNOWN, "verify said False, but the COMMIT may still be carried out")


def test_false_where_nobody_can_tell() -> None:
    """On another database it has to hold as long as patience lasts."""
    assert ask_user(lambda: False, None, 0.05, lambda _: None) == (Fate.ROLLED_BACK, "")


@pytest.mark.parametrize("is_over", [None, lambda: False])
def test_false_before_an_error(is_over: Callable[[], bool] | None) -> None:
    """A database that could not be asked in the end has not said False to the end."""
    answers = iter([False])

    def verify() -> bool:
        for answer in answers:
            return answer
        raise OperationalError("SELECT", {}, Exception("gone"))

    fate, reason = ask_user(verify, is_over, 0.05, lambda _: None)

    assert (fate, reason) == (Fate.UNKNOWN, "verify could not ask the database (OperationalError)")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(None, "verify returned None instead of True or False"), (1, "verify returned 1 instead of True or False")],
)
def test_verify_that_says_nothing(answer: object, reason: str) -> None:
    """What is neither True nor False may be a forgotten return."""
    assert ask_user(lambda: answer, None, 60, lambda _: None) == (Fate.UNKNOWN, reason)
