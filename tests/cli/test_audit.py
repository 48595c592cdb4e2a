"""The commands of ``flask uow``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import Engine, ForeignKey, String, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from flask_uow import UnitOfWork
from flask_uow.audit import AuditTrail


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    balance: Mapped[int]


class Entry(Base):
    __tablename__ = "entry"

    account_id: Mapped[int] = mapped_column(ForeignKey("account.id"), primary_key=True)
    number: Mapped[str] = mapped_column(String(10), primary_key=True)


@pytest.fixture
def trail(app: Flask, uow: UnitOfWork, engine: Engine) -> Iterator[AuditTrail]:
    uow.init_app(app)
    trail = AuditTrail(uow, Base, actor=lambda: "jane", independent=True)
    Base.metadata.create_all(engine)
    yield trail
    Base.metadata.drop_all(engine)


def run(app: Flask, *arguments: str) -> Result:
    return app.test_cli_runner().invoke(args=["uow", *arguments])


def work(app: Flask, uow: UnitOfWork) -> None:
    """Make one entry of each kind."""
    with app.app_context():
        with uow.transaction() as session:
            session.add(Account(id=1, name="Ada", balance=100))
        with uow.transaction() as session:
            session.get_one(Account, 1).balance = 75
            session.add(Entry(account_id=1, number="7"))
        with suppress(LookupError), uow.transaction() as session:
            session.get_one(Account, 1).balance = -5
            session.flush()
            raise LookupError
        with uow.transaction() as session:
            session.execute(text("UPDATE account\n SET balance = 0"))
            session.delete(session.get_one(Entry, (1, "7")))
        with app.test_request_context("/"), uow.transaction() as session:
            session.execute(text("DELETE FROM 'account'"))


def without_times(output: str) -> list[str]:
    return [line if line.startswith(" ") else line.partition(" ")[2].partition(" ")[2] for line in output.splitlines()]


def test_other_apps_have_no_commands(app: Flask) -> None:
    """An app without a UnitOfWork is left alone."""
    assert "No such command 'uow'" in run(app, "audit").output


def test_audit(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """The trail is printed with who changed what, from what, to what, the newest last."""
    work(app, uow)

    result = run(app, "audit")

    assert result.exit_code == 0
    assert without_times(result.output) == [
        "jane: insert account 1",
        "    id: 1",
        '    name: "Ada"',
        "    balance: 100",
        "jane: update account 1",
        "    balance: 100 -> 75",
        "jane: insert entry 1, 7",
        "    account_id: 1",
        '    number: "7"',
        "jane: update account 1 ROLLED BACK (LookupError)",
        "    balance: 75 -> -5",
        "jane: update account",
        "    1 row: UPDATE account SET balance = 0",
        "jane: delete entry 1, 7",
        "    account_id: 1",
        '    number: "7"',
        "jane: delete (a table that the statement does not name plainly)",
        "    1 row: DELETE FROM 'account'",
    ]
    assert datetime.fromisoformat(" ".join(result.output.split()[:2])).replace(tzinfo=UTC) <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("arguments", "operations"),
    [
        (["account"], ["insert", "update", "update", "update"]),
        (["account", "1"], ["insert", "update", "update"]),
        (["entry", "1", "7"], ["insert", "delete"]),
        (["entry", "1", "8"], []),
        (["account", "Ada"], []),
        (["--limit", "2"], ["delete", "delete"]),
    ],
)
@pytest.mark.usefixtures("trail")
def test_which_entries(app: Flask, uow: UnitOfWork, arguments: list[str], operations: list[str]) -> None:
    """A table, a row and a limit keep to the entries that are asked for."""
    work(app, uow)

    result = run(app, "audit", *arguments, "--format", "json")

    assert [json.loads(line)["operation"] for line in result.output.splitlines()] == operations


def test_json(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """As JSON each entry is one line with all there is."""
    work(app, uow)

    [line] = run(app, "audit", "account", "1", "--limit", "1", "--format", "json").output.splitlines()

    entry: dict[str, Any] = json.loads(line)
    assert datetime.fromisoformat(entry.pop("recorded_at")).tzinfo is UTC
    assert len(entry.pop("transaction_id")) == 32
    assert entry == {
        "id": 4,
        "request_id": None,
        "endpoint": None,
        "actor": "jane",
        "operation": "update",
        "entity": "Account",
        "table": "account",
        "primary_key": [1],
        "before": {"balance": 75},
        "after": {"balance": -5},
        "rowcount": None,
        "statement": None,
        "outcome": "rolled_back",
        "error": "LookupError",
    }


def test_json_of_odd_text(app: Flask, uow: UnitOfWork, trail: AuditTrail) -> None:
    """Text that cannot be printed as it is is JSON all the same."""
    with app.app_context(), uow.transaction() as session:
        session.add(Account(id=1, name="10\u00a0000 €", balance=0))

    [line] = run(app, "audit", "--format", "json").output.splitlines()

    assert json.loads(line)["after"]["name"] == "10\u00a0000 €"


def test_command_of_the_users_own(app: Flask) -> None:
    """An app's own command of that name is left alone."""

    @app.cli.command("uow")
    def own() -> None:
        click.echo("mine")

    UnitOfWork(sessionmaker(), app)

    assert run(app).output == "mine\n"


def test_less_is_known(app: Flask, uow: UnitOfWork, trail: AuditTrail, engine: Engine) -> None:
    """What is not known of an entry is printed as that."""
    common = {
        "recorded_at": datetime(2026, 1, 2, tzinfo=UTC),
        "transaction_id": "0" * 32,
        "table_name": "account",
        "outcome": "committed",
    }
    with engine.begin() as connection:
        for values in (
            {
                "operation": "update",
                "table_name": "account",
                "primary_key": "[1]",
                "before": {},
                "after": {"name": "x"},
            },
            {
                "operation": "delete",
                "table_name": "account",
                "rowcount": -1,
                "statement": "DELETE",
                "endpoint": "purge",
            },
            {"operation": "delete", "table_name": "account", "primary_key": "[1]", "outcome": "rolled_back"},
        ):
            connection.execute(insert(trail.table).values({**common, **values}))

    assert run(app, "audit").output.splitlines() == [
        "2026-01-02 00:00:00 -: update account 1",
        '    name: ? -> "x"',
        "2026-01-02 00:00:00 - in purge: delete account",
        "    an unknown number of rows: DELETE",
        "2026-01-02 00:00:00 -: delete account 1 ROLLED BACK",
    ]


def test_no_entries(app: Flask, trail: AuditTrail) -> None:
    """An empty trail says so."""
    assert run(app, "audit").output == "No entries.\n"
    assert run(app, "audit", "--format", "json").output == ""


def test_no_trail(app: Flask) -> None:
    """An app without a trail says how to make one."""
    UnitOfWork(sessionmaker(), app)

    result = run(app, "audit")

    assert result.exit_code == 1
    assert "There is no audit trail. Make one where the UnitOfWork is: AuditTrail(uow, Base)" in result.output


def test_several_trails(app: Flask, trail: AuditTrail, engine: Engine) -> None:
    """Of several trails one has to be named, and a name that there is not is told with those that there are."""
    reports = UnitOfWork(sessionmaker(engine), app, name="reports")
    AuditTrail(reports, Base)
    AuditTrail(reports, Base, table_name="another_log")
    Base.metadata.tables["another_log"].create(engine)

    ambiguous = run(app, "audit")
    still_ambiguous = run(app, "audit", "--name", "reports")
    named = run(app, "audit", "--name", "reports", "--trail", "another_log")
    wrong = run(app, "audit", "--name", "report")
    wrong_too = run(app, "audit", "--trail", "log")
    Base.metadata.tables["another_log"].drop(engine)
    Base.metadata.remove(Base.metadata.tables["another_log"])

    assert (
        "There are several audit trails. Add one of: --name default --trail audit_log, --name reports --trail "
        "audit_log, --name reports --trail another_log." in ambiguous.output
    )
    assert "Add one of: --name reports --trail audit_log, --name reports" in still_ambiguous.output
    assert named.output == "No entries.\n"
    assert "The app has no UnitOfWork called 'report'. It has: 'default', 'reports'." in wrong.output
    assert "There is no such audit trail. Add one of: --name default --trail audit_log, --name" in wrong_too.output


def test_forged_lines(app: Flask, trail: AuditTrail, engine: Engine) -> None:
    """What somebody has put into a value can neither look like another line nor move the cursor."""
    values = {"recorded_at": datetime(2026, 1, 2, tzinfo=UTC), "transaction_id": "0" * 32, "outcome": "committed"}
    forged = {
        "operation": "delete",
        "table_name": "account",
        "actor": "bob\n2026-01-01 admin\x1b[2K",
        "primary_key": "[1]",
    }
    with engine.begin() as connection:
        connection.execute(insert(trail.table).values({**values, **forged}))

    assert run(app, "audit").output == "2026-01-02 00:00:00 bob\\n2026-01-01 admin\\x1b[2K: delete account 1\n"


def test_table_that_is_not_there(app: Flask, trail: AuditTrail) -> None:
    """A misspelt table is an error, and not an empty trail."""
    assert "There is no table 'acount' in this trail. It has: account, entry." in run(app, "audit", "acount").output
    assert run(app, "audit", "entry").output == "No entries.\n"


def test_missing_table(app: Flask, trail: AuditTrail, engine: Engine) -> None:
    """A trail whose table is not there says what makes it."""
    trail.table.drop(engine)

    result = run(app, "audit")

    assert result.exit_code == 1
    assert "The trail cannot be read: no such table: audit_log. Is its table there? create_all() or a" in result.output


def test_keys_like_numbers(app: Flask, trail: AuditTrail, engine: Engine) -> None:
    """A key can be a string, a number or a negative one."""
    values = {"recorded_at": datetime(2026, 1, 2, tzinfo=UTC), "transaction_id": "0" * 32, "outcome": "committed"}
    with engine.begin() as connection:
        for key in ('["1"]', "[1.5]", "[-1]"):
            row = {"operation": "delete", "table_name": "account", "primary_key": key}
            connection.execute(insert(trail.table).values({**values, **row}))

    found = [run(app, "audit", "account", *key).output for key in (["1"], ["1.5"], ["--", "-1"])]

    assert [output.split()[-1] for output in found] == ["1", "1.5", "-1"]
