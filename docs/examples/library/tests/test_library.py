"""What the library promises to its members."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import Connection, select
from sqlalchemy.orm import Session

from flask_uow import Outcome
from flask_uow.testing import Injection, Recording

from ..models import Book, Loan
from .conftest import Shelf

Mails = list[tuple[str, str]]


def copies(connection: Connection, title: str) -> int | None:
    """How many copies are on the shelf, seen by a session of the test."""
    with Session(connection) as session:
        return session.scalar(select(Book.copies).where(Book.title == title))


# A loan


def test_loan_is_stored(client: FlaskClient, connection: Connection, shelf: Shelf, uow_record: Recording) -> None:
    """A loan and the copy that is missing are stored together."""
    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert response.status_code == 201
    uow_record.assert_committed()
    assert copies(connection, "Emma") == 0
    assert client.get("/loans").json == [{"book": "Emma", "member": "Ada"}]


def test_mail_comes_after_the_commit(client: FlaskClient, shelf: Shelf, outbox: Mails, uow_record: Recording) -> None:
    """The member is told when the loan is stored."""
    client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert outbox == [("ada@example.org", "Please bring Emma back in four weeks.")]
    assert [(hook.moment, hook.name, hook.error) for hook in uow_record.hooks] == [("on_commit", "send_mail", None)]


def test_what_a_loan_changes(client: FlaskClient, shelf: Shelf, uow_record: Recording) -> None:
    """A loan adds one row and changes another one, and nothing else."""
    client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert sorted((change.operation, change.table) for change in uow_record.changes) == [
        ("insert", "loan"),
        ("update", "book"),
    ]


def test_last_copy_goes_to_one(
    client: FlaskClient, connection: Connection, shelf: Shelf, outbox: Mails, uow_record: Recording
) -> None:
    """Of two who want the last copy the second one is refused, and nothing of it is stored or sent."""
    client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})
    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.grace})

    assert response.status_code == 409
    assert copies(connection, "Emma") == 0
    assert [address for address, _ in outbox] == ["ada@example.org"]
    assert [transaction.outcome for transaction in uow_record.transactions] == [Outcome.COMMITTED, Outcome.ROLLED_BACK]


def test_nobody_has_two_of_one_title(client: FlaskClient, shelf: Shelf, uow_record: Recording) -> None:
    """A constraint of the database is told as a conflict."""
    client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})
    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert response.json == {"message": "That is not possible."}
    uow_record.assert_rolled_back()


def test_copy_comes_back(client: FlaskClient, connection: Connection, shelf: Shelf) -> None:
    """What was lent can be brought back."""
    client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})
    with Session(connection) as session:
        loan = session.scalars(select(Loan.id)).one()

    response = client.delete(f"/loans/{loan}")

    assert response.status_code == 204
    assert copies(connection, "Emma") == 1


# When the database fails


def test_deadlock_is_tried_again(
    client: FlaskClient, shelf: Shelf, outbox: Mails, uow_record: Recording, uow_inject: Callable[..., Injection]
) -> None:
    """After a deadlock the whole loan is made again, and the mail is sent once."""
    fault = uow_inject("deadlock", at="UPDATE book")

    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert response.status_code == 201
    assert fault.struck == 1
    assert len(outbox) == 1
    assert [(transaction.attempt, transaction.outcome) for transaction in uow_record.transactions] == [
        (1, Outcome.ROLLED_BACK),
        (2, Outcome.COMMITTED),
    ]


def test_it_gives_up_after_three_attempts(
    client: FlaskClient, shelf: Shelf, outbox: Mails, uow_record: Recording, uow_inject: Callable[..., Injection]
) -> None:
    """If the database is never free, the member is asked to come again, and is told nothing else."""
    uow_inject("serialization_failure", times=3)

    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert (response.status_code, response.json) == (503, {"message": "Please try again."})
    assert outbox == []
    uow_record.assert_committed(times=0)
    uow_record.assert_rolled_back(times=3)


def test_lost_answer_to_commit(
    client: FlaskClient, shelf: Shelf, outbox: Mails, uow_record: Recording, uow_inject: Callable[..., Injection]
) -> None:
    """If nobody knows whether a loan is stored, it is not made again, and no mail says that it is."""
    uow_inject("disconnect_at_commit")

    response = client.post("/loans", json={"book": shelf.emma, "member": shelf.ada})

    assert response.json == {"message": "Please look at your loans before you try again."}
    assert outbox == []
    assert [transaction.outcome for transaction in uow_record.transactions] == [Outcome.UNKNOWN]


# Books


@pytest.mark.usefixtures("shelf")
def test_known_titles_are_left_out(client: FlaskClient, connection: Connection, uow_record: Recording) -> None:
    """A title that is there already takes none of the others along: one commit, with what is new."""
    response = client.post("/books", json=["Persuasion", "Emma", "Sanditon"])

    assert response.json == {"added": ["Persuasion", "Sanditon"], "known": ["Emma"]}
    assert copies(connection, "Sanditon") == 1
    uow_record.assert_committed()
    assert len(uow_record.changes) == 2


def test_list_takes_one_statement(
    client: FlaskClient, connection: Connection, shelf: Shelf, uow_record: Recording
) -> None:
    """However many loans there are, one SELECT lists them."""
    with Session(connection) as session:
        session.add_all([Loan(book_id=shelf.emma, member_id=member) for member in (shelf.ada, shelf.grace)])
        session.commit()

    response = client.get("/loans")

    assert len(response.get_json()) == 2
    assert len(uow_record.statements) == 1


def test_hours_need_no_database(client: FlaskClient, uow_record: Recording) -> None:
    """A page that needs no database uses none."""
    assert client.get("/hours").status_code == 200

    uow_record.assert_no_database()
