"""A small bank that shows when its work is kept, and when not.

::

    flask --app docs/examples/bank run --port 8000

It stores its accounts in a SQLite file, or where ``BANK_DATABASE_URL`` says: ``postgresql+psycopg://...``
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    abort,
    current_app,
    g,
    has_request_context,
    jsonify,
    render_template,
    request,
)
from flask.logging import default_handler
from flask.typing import ResponseReturnValue
from sqlalchemy import Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from werkzeug.exceptions import HTTPException

from flask_uow import BulkChange, Change, ChangeSet, Outcome, Propagation, Transaction, UnitOfWork, signals
from flask_uow.audit import AuditTrail

from .models import ADA, GRACE, Account, Base, Receipt, Transfer, restore

# One UnitOfWork serves every app that create_app() makes: each has its own engine, and its sessions are opened there.
uow = UnitOfWork(lambda: Session(current_app.extensions["bank.engine"]))

# Who has changed what is stored with the change: "flask --app docs/examples/bank uow audit" prints it.
AuditTrail(uow, Base, actor=lambda: actor())  # noqa: PLW0108 - it is defined below

bank = Blueprint("bank", __name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """Make the app; *config* goes before the environment."""
    app = Flask(__name__, instance_path=str(Path(__file__).parent / "instance"))
    app.config["UOW_AUTO_COMMIT"] = {"POST"}  # every POST is one transaction
    app.config["UOW_HOOK_ERRORS"] = "log"  # what a hook raises never turns stored work into an error
    app.config.from_prefixed_env("BANK")
    app.config.from_mapping(config or {})
    app.register_blueprint(bank)
    app.register_error_handler(IntegrityError, commit_refused)
    app.register_error_handler(Overdrawn, overdrawn)
    app.register_error_handler(HTTPException, refused)

    engine = app.extensions["bank.engine"] = open_database(app.config.get("DATABASE_URL") or default_url(app))
    uow.init_app(app)

    Base.metadata.create_all(engine)
    with app.app_context(), uow.transaction() as session:
        if not session.scalar(select(func.count(Account.id))):
            restore(session)

    keep_journal(app)
    return app


def default_url(app: Flask) -> str:
    """Return the URL of a SQLite file, beside this one if that is possible."""
    folder = Path(app.instance_path if os.access(app.root_path, os.W_OK) else tempfile.mkdtemp(prefix="bank-"))
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder / 'bank.db'}"


def open_database(url: str) -> Engine:
    """Return an engine, whose database checks foreign keys."""
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url)

    # A transaction takes SQLite's one write lock at its BEGIN: two that have read could not both go on to write.
    engine = create_engine(url, connect_args={"isolation_level": "IMMEDIATE"})

    @event.listens_for(engine, "connect")
    def check_foreign_keys(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    return engine


def actor() -> str:
    """Return who does something: the customer whose money is moved, if there is one."""
    name: str = g.get("actor", "The bank")
    return name


# Moving money


class Overdrawn(Exception):  # noqa: N818 - it is what happened
    """Somebody has not got what was to be paid."""

    def __init__(self, payer: Account, amount: int) -> None:
        super().__init__(f"{payer.name} cannot pay {euros(amount)}. Nothing was changed.")


@uow.transactional(propagation=Propagation.MANDATORY)
def move(payer_id: int, payee_id: int, amount: int) -> Transfer:
    """Move *amount* from one account to the other, in the transaction of the caller, who writes the receipt."""
    session = uow.session
    both = select(Account).where(Account.id.in_((payer_id, payee_id))).order_by(Account.id).with_for_update()
    accounts = {account.id: account for account in session.scalars(both)}
    if len(accounts) < 2:
        abort(400, "Choose two different accounts that exist.")
    payer, payee = accounts[payer_id], accounts[payee_id]
    g.actor = payer.name

    uow.on_commit(send_mail, payee.name, amount)
    uow.on_rollback(send_no_mail, payee.name)

    payer.balance -= amount
    session.flush()
    note("view", f"{euros(amount)} was taken from {payer.name} and flushed: {euros(payer.balance)} left.")
    if payer.balance < 0:
        note("view", f"That is less than nothing, so the view raises {Overdrawn.__name__}.")
        raise Overdrawn(payer, amount)

    payee.balance += amount
    transfer = Transfer(payer=payer, payee=payee, amount=amount)
    session.add(transfer)
    session.flush()
    note("view", f"It was given to {payee.name} and flushed: {euros(payee.balance)} now.")
    return transfer


def write_receipt(transfer: Transfer) -> None:
    """Write the receipt that *transfer* refers to."""
    uow.session.add(Receipt(number=transfer.receipt_number, text=sentence(transfer)))


def send_mail(payee: str, amount: int) -> None:
    """Tell the payee. It is registered with ``on_commit()``: nobody is told of money that did not come."""
    note("on_commit hook", f"{payee} is told that {euros(amount)} came.")


def print_letter(payee: str) -> None:
    """Fail. The work is stored, and what a hook raises cannot undo it."""
    note("on_commit hook", f"A letter to {payee} goes to the printer, which fails.")
    raise OSError("The printer is out of paper.")


def send_no_mail(error: BaseException | None, payee: str) -> None:
    """Do without. It is registered with ``on_rollback()``, and told why."""
    note("on_rollback hook", f"{payee} is told nothing, because of {type(error).__name__}.")


# Pages


@bank.get("/")
def index() -> str:
    """Show the page."""
    return render_template("index.html", accounts=list_accounts())


@bank.get("/state")
def state() -> Response:
    """Return the balances, and the log."""
    return jsonify(
        accounts=[{"id": account.id, "name": account.name, "balance": account.balance} for account in list_accounts()],
        transfers=uow.session.scalar(select(func.count(Transfer.id))),
        log=current_app.extensions["bank.journal"].newest_first(),
    )


@bank.post("/transfer")
def transfer() -> ResponseReturnValue:
    """Make the transfer in the form."""
    transfer = move(chosen_account("payer"), chosen_account("payee"), chosen_amount())
    write_receipt(transfer)
    return accept(transfer)


@bank.post("/overdraw")
def overdraw() -> ResponseReturnValue:
    """Take 50 euros more than there are."""
    ada = uow.session.get_one(Account, ADA)
    return accept(move(ADA, GRACE, ada.balance + 50_00))


@bank.post("/forget-receipt")
def forget_receipt() -> ResponseReturnValue:
    """Make a transfer whose receipt does not exist, which the database notices at COMMIT."""
    return accept(move(ADA, GRACE, 10_00))


@bank.post("/failing-hook")
def failing_hook() -> ResponseReturnValue:
    """Make a transfer after which something fails that is not part of it."""
    transfer = move(ADA, GRACE, 10_00)
    write_receipt(transfer)
    uow.on_commit(print_letter, transfer.payee.name)
    return accept(transfer)


@bank.post("/reset")
def reset() -> ResponseReturnValue:
    """Put everything back to how it was at the start."""
    restore(uow.session)
    uow.on_commit(current_app.extensions["bank.journal"].clear)
    return {"message": "Everything is as it was at the start."}


def accept(transfer: Transfer) -> ResponseReturnValue:
    """Answer that *transfer* was made, as far as the view knows."""
    note("view", "The view returned 201 CREATED. Nothing is sent yet.")
    return {"message": sentence(transfer)}, 201


def commit_refused(error: IntegrityError) -> ResponseReturnValue:
    """Answer that COMMIT failed."""
    reason = str(error.orig).partition("\n")[0]
    note("error handler", f"COMMIT failed: {reason}. The handler of IntegrityError returned 409 CONFLICT.")
    return {"message": "The database refused the COMMIT. Nothing was changed."}, 409


def overdrawn(error: Overdrawn) -> ResponseReturnValue:
    """Answer that the payer has not got it."""
    note("error handler", "The handler of Overdrawn returned 422 UNPROCESSABLE ENTITY.")
    return {"message": str(error)}, 422


def refused(error: HTTPException) -> ResponseReturnValue:
    """Answer what ``abort()`` was given."""
    return {"message": error.description}, error.code or 500


def list_accounts() -> list[Account]:
    return list(uow.session.scalars(select(Account).order_by(Account.id)))


def chosen_account(name: str) -> int:
    text = request.form.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", text):
        abort(400, f"Choose the account of the {name}.")
    return int(text)


def chosen_amount() -> int:
    """Return cents."""
    found = re.fullmatch(r"([0-9]{1,7})(?:\.([0-9]{2}))?", request.form.get("amount", ""))
    amount = int(found[1]) * 100 + int(found[2] or 0) if found else 0
    if not amount:
        abort(400, "The amount must be more than nothing, less than ten million, and look like 25 or 25.50.")
    return amount


def sentence(transfer: Transfer) -> str:
    return f"{euros(transfer.amount)} went from {transfer.payer.name} to {transfer.payee.name}."


def euros(cents: int) -> str:
    sign = "\N{MINUS SIGN}" if cents < 0 else ""
    return f"{sign}€{abs(cents) // 100:,}.{abs(cents) % 100:02}"


# The log on the page: what signals, hooks and views tell while a request is handled


@dataclass(frozen=True)
class Line:
    source: str
    text: str


@dataclass
class Entry:
    """What happened in one request that may write."""

    title: str
    time: str
    lines: list[Line] = field(default_factory=list)
    status: int = 0
    number: int = 0


class Journal:
    """The last requests, each of them finished: one thread makes an entry, and all may read it."""

    def __init__(self, size: int = 25) -> None:
        self._entries: deque[Entry] = deque(maxlen=size)
        self._count = 0
        self._lock = threading.Lock()

    def add(self, entry: Entry) -> None:
        with self._lock:
            self._count += 1
            entry.number = self._count
            self._entries.appendleft(entry)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def newest_first(self) -> list[Entry]:
        with self._lock:
            return list(self._entries)


def keep_journal(app: Flask) -> None:
    """Let *app* keep a journal of the requests that may write."""
    journal = app.extensions["bank.journal"] = Journal()

    @app.before_request
    def open_entry() -> None:
        if request.method == "POST" and request.endpoint:
            g.entry = Entry(f"{request.method} {request.path}", datetime.now(UTC).isoformat(timespec="seconds"))

    @app.after_request
    def close_entry(response: Response) -> Response:
        if "entry" in g:
            note("response", f"The client is answered {response.status}.")
            g.entry.status = response.status_code
            journal.add(g.entry)
        return response

    signals.transaction_started.connect(tell_started, app)
    signals.before_commit.connect(tell_before_commit, app)
    signals.after_commit.connect(tell_after_commit, app)
    signals.after_rollback.connect(tell_after_rollback, app)
    signals.transaction_completed.connect(tell_completed, app)

    for handler in (default_handler, journal_handler):
        logging.getLogger("flask_uow").addHandler(handler)


def note(source: str, text: str) -> None:
    """Add a line to the entry of the current request, if it has one."""
    if has_request_context() and "entry" in g:
        g.entry.lines.append(Line(source, text))


def tell_started(_app: Flask, transaction: Transaction, **_extra: object) -> None:
    note("transaction_started", f"Transaction {transaction.id[:8]} began when the session was first used.")


def tell_before_commit(_app: Flask, transaction: Transaction, **_extra: object) -> None:
    note("before_commit", f"Transaction {transaction.id[:8]} was flushed. COMMIT is next.")


def tell_after_commit(_app: Flask, transaction: Transaction, changes: ChangeSet, **_extra: object) -> None:
    note("after_commit", f"COMMIT has returned. The work of {transaction.id[:8]} is stored.")
    for change in changes:
        note("change", f"{actor()} {description(change)}.")


def tell_after_rollback(
    _app: Flask, transaction: Transaction, error: BaseException | None, changes: ChangeSet, **_extra: object
) -> None:
    why = f" because of {type(error).__name__}" if error else ""
    note("after_rollback", f"The work of {transaction.id[:8]} was rolled back{why}. Nothing of it is stored.")
    for change in changes:
        note("rollback of a change", f"Undone: {actor()} {description(change)}.")


def description(change: Change | BulkChange) -> str:
    """Return what was done, from what, to what."""
    if isinstance(change, BulkChange):
        return f"{PAST[change.operation]} {change.rowcount} rows of {change.table}"
    if change.operation == "update":
        columns = [f"{name} from {shown(name, change.before)} to {shown(name, change.after)}" for name in change.after]
    else:
        row = change.after or change.before
        columns = [f"{name} {shown(name, row)}" for name in row if name not in ("id", "number")]
    key = ", ".join(map(str, change.identity))
    return f"{PAST[change.operation]} {change.table} {key}: {', '.join(columns)}".rstrip(".")


PAST = {"insert": "inserted", "update": "updated", "delete": "deleted"}


def shown(column: str, values: Mapping[str, Any]) -> str:
    return euros(values[column]) if column in ("balance", "amount") else str(values[column])


def tell_completed(_app: Flask, transaction: Transaction, outcome: Outcome, duration: float, **_extra: object) -> None:
    how = outcome.replace("_", " ")
    note("transaction_completed", f"Transaction {transaction.id[:8]} is over: {how} after {duration * 1000:.1f} ms.")


class JournalHandler(logging.Handler):
    """Shows on the page what flask_uow logs during a request."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        note(f"log, {record.levelname}", record.getMessage() + (f" {type(error).__name__}: {error}" if error else ""))


journal_handler = JournalHandler()
