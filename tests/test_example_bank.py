"""Tests of the demo application in docs/examples/bank."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from docs.examples.bank import create_app, default_url

ROOT = Path(__file__).parent.parent

START = {"Ada": 100_00, "Grace": 50_00, "Alan": 0}


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    app = create_app({"DATABASE_URL": f"sqlite:///{tmp_path / 'bank.db'}"})
    yield app
    app.extensions["bank.engine"].dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def state(client: FlaskClient) -> Any:
    return client.get("/state").json


def balances(client: FlaskClient) -> dict[str, int]:
    return {account["name"]: account["balance"] for account in state(client)["accounts"]}


def sources(client: FlaskClient) -> list[str]:
    """Who told something about the newest request, in order."""
    return [line["source"] for line in state(client)["log"][0]["lines"]]


def text(client: FlaskClient) -> str:
    return " ".join(line["text"] for line in state(client)["log"][0]["lines"])


def form(**changes: str) -> dict[str, str]:
    return {"payer": "1", "payee": "2", "amount": "25.00", **changes}


def test_transfer_commits(client: FlaskClient) -> None:
    """A transfer is stored before its hook runs and before the client is answered."""
    response = client.post("/transfer", data=form())

    assert (response.status_code, response.json) == (201, {"message": "€25.00 went from Ada to Grace."})
    assert balances(client) == {**START, "Ada": 75_00, "Grace": 75_00}
    assert state(client)["transfers"] == 1
    assert sources(client) == [
        "transaction_started",
        "view",
        "view",
        "view",
        "before_commit",
        "after_commit",
        "change",
        "change",
        "change",
        "change",
        "on_commit hook",
        "transaction_completed",
        "response",
    ]


def test_log_says_who_changed_what(app: Flask, client: FlaskClient) -> None:
    """The log has who changed what, from what, to what, and so has the audit trail that is stored with it."""
    client.post("/transfer", data=form())
    changes = [line["text"] for line in state(client)["log"][0]["lines"] if line["source"] == "change"]
    trail = app.test_cli_runner().invoke(args=["uow", "audit", "account", "1"]).output

    assert changes[:2] == [
        "Ada updated account 1: balance from €100.00 to €75.00.",
        "Ada updated account 2: balance from €50.00 to €75.00.",
    ]
    assert changes[2].startswith("Ada inserted transfer 1: payer_id 1, payee_id 2, amount €25.00, receipt_number ")
    assert changes[3].endswith(": text €25.00 went from Ada to Grace.")
    assert "Ada in bank.transfer: update account 1\n    balance: 10000 -> 7500\n" in trail


def test_log_says_what_was_not_changed(client: FlaskClient) -> None:
    """What was rolled back is in the log as that."""
    client.post("/overdraw")

    assert "Undone: Ada updated account 1: balance from €100.00 to \N{MINUS SIGN}€50.00." in text(client)


def test_log_of_a_reset(client: FlaskClient) -> None:
    """A reset is the bank's, and its statements are told by how many rows they have deleted."""
    client.post("/transfer", data=form())
    client.post("/reset")

    # The log is emptied after the COMMIT.
    assert "The bank deleted 3 rows of account." in text(client)


def test_overdraft_rolls_back(client: FlaskClient) -> None:
    """What was flushed before the view raised is gone, and it is gone before the error handler runs."""
    response = client.post("/overdraw")

    assert (response.status_code, response.json) == (422, {"message": "Ada cannot pay €150.00. Nothing was changed."})
    assert balances(client) == START
    assert state(client)["transfers"] == 0
    assert sources(client) == [
        "transaction_started",
        "view",
        "view",
        "after_rollback",
        "rollback of a change",
        "on_rollback hook",
        "transaction_completed",
        "error handler",
        "response",
    ]
    assert "flushed: \N{MINUS SIGN}€50.00 left" in text(client)
    assert "rolled back because of Overdrawn" in text(client)


def test_transfer_of_too_much_rolls_back(client: FlaskClient) -> None:
    """The form cannot overdraw an account either."""
    response = client.post("/transfer", data=form(payer="3", amount="0.01"))

    assert response.status_code == 422
    assert balances(client) == START


def test_failed_commit_is_answered_409(client: FlaskClient) -> None:
    """A COMMIT that fails reaches the error handler, and the view's success is never sent."""
    response = client.post("/forget-receipt")

    assert (response.status_code, response.json) == (
        409,
        {"message": "The database refused the COMMIT. Nothing was changed."},
    )
    assert balances(client) == START
    assert state(client)["transfers"] == 0
    assert sources(client) == [
        "transaction_started",
        "view",
        "view",
        "view",
        "before_commit",
        "after_rollback",
        "rollback of a change",
        "rollback of a change",
        "rollback of a change",
        "on_rollback hook",
        "transaction_completed",
        "error handler",
        "response",
    ]
    assert "The view returned 201 CREATED." in text(client)
    assert "COMMIT failed: FOREIGN KEY constraint failed." in text(client)


@pytest.mark.parametrize("testing", [False, True])
def test_failed_hook_changes_nothing(app: Flask, client: FlaskClient, testing: bool) -> None:
    """A hook that fails after COMMIT is logged, and the client is told of the success all the same."""
    app.testing = testing

    response = client.post("/failing-hook")

    assert (response.status_code, response.json) == (201, {"message": "€10.00 went from Ada to Grace."})
    assert balances(client) == {**START, "Ada": 90_00, "Grace": 60_00}
    assert state(client)["transfers"] == 1
    assert sources(client)[-10:] == [
        "after_commit",
        "change",
        "change",
        "change",
        "change",
        "on_commit hook",
        "on_commit hook",
        "transaction_completed",
        "log, ERROR",
        "response",
    ]
    assert "OSError: The printer is out of paper." in text(client)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payer": ""}, "Choose the account of the payer."),
        ({"payer": "Ada"}, "Choose the account of the payer."),
        ({"payee": "-1"}, "Choose the account of the payee."),
        ({"payee": "9" * 30}, "Choose the account of the payee."),
        ({"payee": "²"}, "Choose the account of the payee."),
        ({"payee": "99"}, "Choose two different accounts that exist."),
        ({"payee": "1"}, "Choose two different accounts that exist."),
        ({"amount": ""}, "The amount must be"),
        ({"amount": "0.00"}, "The amount must be"),
        ({"amount": "-5"}, "The amount must be"),
        ({"amount": "1.234"}, "The amount must be"),
        ({"amount": "1e3"}, "The amount must be"),
        ({"amount": "nan"}, "The amount must be"),
        ({"amount": "9" * 8}, "The amount must be"),
        ({"amount": "25\n"}, "The amount must be"),
        ({"amount": "<b>25</b>"}, "The amount must be"),
    ],
)
def test_bad_input_is_answered_400(client: FlaskClient, changes: dict[str, str], message: str) -> None:
    """Input that makes no sense is refused with a sentence that says what would."""
    response = client.post("/transfer", data=form(**changes))

    assert response.status_code == 400
    assert response.get_json()["message"].startswith(message)
    assert balances(client) == START
    assert "after_commit" not in sources(client)


def test_missing_form_is_answered_400(client: FlaskClient) -> None:
    """An empty request is refused before there is a transaction."""
    response = client.post("/transfer")

    assert response.status_code == 400
    assert sources(client) == ["response"]


def test_reset(client: FlaskClient) -> None:
    """The reset restores accounts and transfers, and the log begins anew with it."""
    client.post("/transfer", data=form())

    response = client.post("/reset")

    assert response.status_code == 200
    assert balances(client) == START
    assert state(client)["transfers"] == 0
    assert [entry["title"] for entry in state(client)["log"]] == ["POST /reset"]


def test_reading_is_not_logged(client: FlaskClient) -> None:
    """The page's own requests, and those that reach no view, leave no trace in the log."""
    for path in ("/", "/state", "/static/bank.js", "/nowhere"):
        client.get(path).close()
    client.post("/nowhere")
    client.post("/")

    assert state(client)["log"] == []


def test_log_is_bounded_and_newest_first(client: FlaskClient) -> None:
    """The log keeps the last 25 requests, the newest on top."""
    for _ in range(30):
        client.post("/overdraw")

    assert [entry["number"] for entry in state(client)["log"]] == list(range(30, 5, -1))


def test_log_names_one_transaction(client: FlaskClient) -> None:
    """Every line about the transaction has the same shortened id."""
    client.post("/transfer", data=form())

    lines = state(client)["log"][0]["lines"]
    told = {line["source"]: line["text"] for line in lines}
    shortened = told["transaction_started"].split()[1]
    assert len(shortened) == 8
    for source in ("before_commit", "after_commit", "transaction_completed"):
        assert shortened in told[source]


def test_two_apps_share_nothing(client: FlaskClient, tmp_path: Path) -> None:
    """Each app has its own database and its own log."""
    other = create_app({"DATABASE_URL": f"sqlite:///{tmp_path / 'other.db'}"})
    other_client = other.test_client()

    client.post("/transfer", data=form())

    assert balances(other_client) == START
    assert state(other_client)["log"] == []
    other_client.post("/failing-hook")
    assert len(state(client)["log"]) == len(state(other_client)["log"]) == 1
    assert sources(other_client).count("log, ERROR") == 1
    other.extensions["bank.engine"].dispose()


def test_restart_keeps_what_is_stored(app: Flask, client: FlaskClient) -> None:
    """Accounts are made once, and not again when the app starts on the same database."""
    client.post("/transfer", data=form())

    restarted = create_app({"DATABASE_URL": app.config["DATABASE_URL"]})

    assert balances(restarted.test_client()) == {**START, "Ada": 75_00, "Grace": 75_00}
    restarted.extensions["bank.engine"].dispose()


def test_database_is_where_one_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the example's own folder is read-only, the SQLite file is a temporary one."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    url = default_url(Flask(__name__))

    assert url.startswith(f"sqlite:///{tmp_path}/bank-")


def test_simultaneous_transfers(app: Flask, client: FlaskClient) -> None:
    """People who press at the same time are all served, and no money appears or is lost."""

    def pay(number: int) -> int:
        there_and_back = form(amount="1.00") if number % 2 else form(payer="2", payee="1", amount="1.00")
        return app.test_client().post("/transfer", data=there_and_back).status_code

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(pay, range(40)))

    assert answers == [201] * 40
    assert balances(client) == START
    assert state(client)["transfers"] == 40


def test_index_has_the_four_forms(client: FlaskClient) -> None:
    """The page has a form for each ending and for the reset, and loads nothing from elsewhere."""
    response = client.get("/")

    assert response.status_code == 200
    for action in ("/transfer", "/overdraw", "/forget-receipt", "/failing-hook", "/reset"):
        assert response.text.count(f'action="{action}" method="post"') == 1
    for name in ("payer", "payee", "amount"):
        assert f'name="{name}"' in response.text
    assert 'src="http' not in response.text
    assert 'href="http' not in response.text


@pytest.mark.parametrize("name", ["bank.css", "bank.js"])
def test_static_files(client: FlaskClient, name: str) -> None:
    """The page's style and script are served, and the script never writes HTML."""
    response = client.get(f"/static/{name}")

    assert response.status_code == 200
    assert "innerHTML" not in response.text
    response.close()


@pytest.mark.parametrize("name", ["docs/examples/bank", "docs.examples.bank"])
def test_flask_command_finds_the_app(name: str, tmp_path: Path) -> None:
    """The documented command finds the app by its path, and the name that Python gives it works as well."""
    environment = {
        **os.environ,
        "BANK_DATABASE_URL": f"sqlite:///{tmp_path / 'bank.db'}",
        "PYTHONPATH": str(ROOT),
    }

    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", name, "routes"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "bank.failing_hook" in done.stdout
    assert (tmp_path / "bank.db").exists()
