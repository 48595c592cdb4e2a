"""Requests of many kinds, in an app of ours and in one that is written by hand: what the soak test sends."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

from flask import Blueprint, Flask, abort
from sqlalchemy import Engine, ForeignKey, String, event, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from werkzeug.test import create_environ

from flask_uow import Backoff, ChangeSet, Propagation, UnitOfWork, UnitOfWorkError, signals

__all__ = ["ACCOUNTS", "KINDS", "Base", "Kind", "Note", "by_hand", "of_ours", "prepare", "quiet", "send", "total"]

ACCOUNTS: Final = 20
BALANCE: Final = 1000


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "uow_soak_account"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    balance: Mapped[int]


class Note(Base):
    __tablename__ = "uow_soak_note"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


class Remark(Base):
    """Its foreign key is checked at COMMIT."""

    __tablename__ = "uow_soak_remark"

    id: Mapped[int] = mapped_column(primary_key=True)
    note_id: Mapped[int] = mapped_column(ForeignKey("uow_soak_note.id", deferrable=True, initially="DEFERRED"))


def prepare(engine: Engine) -> Engine:
    """Make the tables, with their accounts; SQLite is made to take several writers and to check foreign keys."""
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=OFF", "foreign_keys=ON", "busy_timeout=60000"):
                connection.execute(f"PRAGMA {pragma}")

    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all(Account(id=number, balance=BALANCE) for number in range(ACCOUNTS))
    return engine


def total(engine: Engine) -> int:
    """How much money is missing, or is there that never was."""
    with Session(engine) as session:
        return sum(session.scalars(select(Account.balance))) - ACCOUNTS * BALANCE


class BusyError(Exception):
    """What a view raises at its first attempt."""


class RefusedError(Exception):
    """What a view raises and an error handler answers."""


# What the views do, with a session that somebody gives them


def read(session: Session, number: int) -> str:
    account = session.get_one(Account, number % ACCOUNTS)
    return str(account.balance)


def write(session: Session, number: int) -> str:
    note = Note(text=f"note {number}")
    session.add(note)
    session.flush()
    note.text += "!"
    return str(note.id)


def transfer(session: Session, number: int) -> str:
    # Always in the same order, so that no two of them wait for each other; and the write lock of SQLite comes first.
    first, second = sorted((number % ACCOUNTS, (number // ACCOUNTS) % ACCOUNTS))
    if first != second:
        session.execute(update(Account).where(Account.id == first).values(balance=Account.balance - 1))
        session.get_one(Account, second, with_for_update=True).balance += 1
    return "done"


def break_rule(session: Session) -> None:
    """Let the database refuse a statement."""
    session.execute(insert(Account).values(id=0, balance=0))


def stream(session: Session, number: int) -> Iterator[str]:
    session.add(Note(text=f"streamed {number}"))
    for id_ in session.scalars(select(Account.id).order_by(Account.id).limit(3)):
        yield f"{id_};"


# Ours


def count_changes(_sender: object, changes: ChangeSet, **_extra: object) -> None:
    """Look at all that a transaction has changed."""
    for change in changes:
        repr(change)


def _watch(app: Flask) -> None:
    for signal in (signals.before_commit, signals.after_commit, signals.after_rollback):
        signal.connect(count_changes, sender=app)


def of_ours(engine: Engine, *, watched: bool) -> Flask:  # noqa: C901, PLR0915 - many kinds of views, each short
    """Make an app with flask_uow; *watched* by receivers that read what is changed."""
    app = Flask("uow_soak_ours")
    app.config["UOW_AUTO_COMMIT"] = True
    uow = UnitOfWork(sessionmaker(engine), app)
    if watched:
        _watch(app)

    @app.get("/nothing/<int:number>")
    def nothing(number: int) -> str:
        return ""

    @app.get("/read/<int:number>")
    def read_one(number: int) -> str:
        return read(uow.session, number)

    @app.get("/read-only/<int:number>")
    @uow.transactional(read_only=True)
    def read_only(number: int) -> str:
        return read(uow.session, number)

    @app.post("/write/<int:number>")
    def write_one(number: int) -> str:
        return write(uow.session, number)

    @app.post("/transfer/<int:number>")
    @uow.transactional(timeout=600)
    def transfer_one(number: int) -> str:
        return transfer(uow.session, number)

    @app.post("/raise/<int:number>")
    def raise_error(number: int) -> str:
        write(uow.session, number)
        raise LookupError(number)

    @app.post("/handle/<int:number>")
    def handle(number: int) -> str:
        write(uow.session, number)
        raise RefusedError(number)

    @app.errorhandler(RefusedError)
    def answer(_error: RefusedError) -> tuple[str, int]:
        return read(uow.session, 0), 409

    @app.post("/abort/<int:number>")
    def abort_it(number: int) -> str:
        write(uow.session, number)
        abort(404)

    @app.post("/savepoint/<int:number>")
    def savepoint(number: int) -> str:
        with uow.savepoint() as session:
            write(session, number)
        with suppress(IntegrityError), uow.savepoint() as session:
            break_rule(session)
        return ""

    @app.post("/suspend/<int:number>")
    def suspend(number: int) -> str:
        read(uow.session, number)
        with uow.transaction(propagation=Propagation.REQUIRES_NEW) as session:
            write(session, number)
        return read(uow.session, number)

    @app.post("/hooks/<int:number>")
    def hooks(number: int) -> str:
        told: list[str] = []

        def tell() -> None:
            told.append(read(uow.session, number))
            uow.on_commit(told.append, "again", if_inactive="run")

        uow.on_commit(tell)
        uow.on_commit(told.append, "once", key="once")
        uow.on_rollback(lambda _error: told.append("never"))
        return write(uow.session, number)

    @app.post("/undone/<int:number>")
    def undone(number: int) -> tuple[str, int]:
        told: list[object] = []
        uow.on_rollback(told.append)
        uow.on_commit(lambda: told.append("never"))
        return write(uow.session, number), 422

    @app.get("/stream/<int:number>")
    @uow.stream
    def stream_all(number: int) -> Iterator[str]:
        yield from stream(uow.session, number)

    def be_busy_at_first(number: int) -> str:
        transaction = uow.current_transaction
        assert transaction is not None
        write(uow.session, number)
        if transaction.attempt == 1:
            raise BusyError
        return ""

    retried = uow.transactional(attempts=3, retry_on=BusyError, backoff=Backoff(base=0))
    app.add_url_rule("/again/<int:number>", "again", retried(be_busy_at_first), methods=["POST"])
    work = retried(be_busy_at_first)

    @app.post("/function-again/<int:number>")
    @uow.exempt
    def function_again(number: int) -> str:
        work(number)
        return ""

    @app.post("/commit-fails/<int:number>")
    def commit_fails(number: int) -> str:
        uow.session.add(Remark(note_id=-1))
        return ""

    @app.post("/swallow/<int:number>")
    def swallow(number: int) -> str:
        write(uow.session, number)
        with suppress(IntegrityError):
            break_rule(uow.session)
        return ""

    @app.post("/forget/<int:number>")
    @uow.exempt
    def forget(number: int) -> str:
        uow.session.add(Note(text="forgotten"))
        return ""

    @app.post("/by-hand/<int:number>")
    @uow.exempt
    def commit_by_hand(number: int) -> str:
        write(uow.session, number)
        uow.session.commit()
        return read(uow.session, number)

    handled = Blueprint("handled", __name__)

    @handled.errorhandler(UnitOfWorkError)
    @handled.errorhandler(BusyError)
    def answer_error(_error: Exception) -> tuple[str, int]:
        return read(uow.session, 0), 409

    @handled.post("/doomed/<int:number>")
    def doomed(number: int) -> str:
        with suppress(LookupError), uow.transaction():
            write(uow.session, number)
            raise LookupError
        return ""

    @handled.post("/inner-fails/<int:number>")
    def inner_fails(number: int) -> str:
        with uow.transaction(propagation=Propagation.REQUIRES_NEW), suppress(LookupError), uow.transaction():
            write(uow.session, number)
            raise LookupError
        return ""

    @handled.post("/read-only-writes/<int:number>")
    @uow.transactional(read_only=True)
    def read_only_writes(number: int) -> str:
        return write(uow.session, number)

    @handled.post("/too-late/<int:number>")
    @uow.transactional(timeout=1e-9)
    def too_late(number: int) -> str:
        return write(uow.session, number)

    @handled.post("/in-vain/<int:number>")
    @uow.transactional(attempts=2, retry_on=BusyError, backoff=Backoff(base=0))
    def in_vain(number: int) -> str:
        write(uow.session, number)
        raise BusyError

    @handled.post("/function-in-vain/<int:number>")
    @uow.exempt
    def function_in_vain(number: int) -> str:
        work_in_vain(number)
        return ""

    @uow.transactional(attempts=2, retry_on=BusyError, backoff=Backoff(base=0))
    def work_in_vain(number: int) -> None:
        write(uow.session, number)
        raise BusyError

    @app.post("/hook-fails/<int:number>")
    def hook_fails(number: int) -> str:
        @uow.on_commit
        def fail() -> None:
            raise LookupError

        return write(uow.session, number)

    app.register_blueprint(handled)
    return app


# The same by hand


class Work:
    """A session and its transaction, with no more than is right."""

    __slots__ = ("_session",)

    def __init__(self, sessions: sessionmaker[Session]) -> None:
        self._session = sessions()

    def __enter__(self) -> Session:
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._session.commit()
        except BaseException:
            # Without this the pool takes the connection back with the transaction still open in SQLite.
            self._session.rollback()
            raise
        else:
            if error is not None:
                self._session.rollback()
        finally:
            self._session.close()


def by_hand(engine: Engine) -> Flask:  # noqa: C901, PLR0915 - as above
    """Make an app that does the same without flask_uow."""
    app = Flask("uow_soak_by_hand")
    sessions = sessionmaker(engine)

    @app.get("/nothing/<int:number>")
    def nothing(number: int) -> str:
        return ""

    @app.get("/read/<int:number>")
    @app.get("/read-only/<int:number>")
    def read_one(number: int) -> str:
        with Work(sessions) as session:
            return read(session, number)

    @app.post("/write/<int:number>")
    @app.post("/by-hand/<int:number>")
    def write_one(number: int) -> str:
        with Work(sessions) as session:
            return write(session, number)

    @app.post("/transfer/<int:number>")
    def transfer_one(number: int) -> str:
        with Work(sessions) as session:
            return transfer(session, number)

    @app.post("/raise/<int:number>")
    def raise_error(number: int) -> str:
        with Work(sessions) as session:
            write(session, number)
            raise LookupError(number)

    @app.post("/handle/<int:number>")
    def handle(number: int) -> str:
        with Work(sessions) as session:
            write(session, number)
            raise RefusedError(number)

    @app.errorhandler(RefusedError)
    def answer(_error: RefusedError) -> tuple[str, int]:
        with Work(sessions) as session:
            return read(session, 0), 409

    @app.post("/abort/<int:number>")
    def abort_it(number: int) -> str:
        with Work(sessions) as session:
            write(session, number)
            abort(404)

    @app.post("/savepoint/<int:number>")
    def savepoint(number: int) -> str:
        with Work(sessions) as session:
            with session.begin_nested():
                write(session, number)
            with suppress(IntegrityError), session.begin_nested():
                break_rule(session)
        return ""

    @app.post("/suspend/<int:number>")
    def suspend(number: int) -> str:
        with Work(sessions) as session:
            read(session, number)
            with Work(sessions) as inner:
                write(inner, number)
            return read(session, number)

    @app.post("/hooks/<int:number>")
    def hooks(number: int) -> str:
        told: list[str] = []
        with Work(sessions) as session:
            text = write(session, number)
        with Work(sessions) as session:
            told.append(read(session, number))
        return text

    @app.post("/doomed/<int:number>")
    @app.post("/inner-fails/<int:number>")
    @app.post("/read-only-writes/<int:number>")
    @app.post("/too-late/<int:number>")
    @app.post("/in-vain/<int:number>")
    @app.post("/function-in-vain/<int:number>")
    def refuse(number: int) -> str:
        with Work(sessions) as session:
            write(session, number)
            raise RefusedError

    @app.post("/hook-fails/<int:number>")
    def hook_fails(number: int) -> str:
        with Work(sessions) as session:
            text = write(session, number)
        try:
            raise LookupError
        except LookupError:
            app.logger.exception("A hook failed")
        return text

    @app.post("/undone/<int:number>")
    def undone(number: int) -> tuple[str, int]:
        with sessions() as session:
            text = write(session, number)
            session.rollback()
        return text, 422

    @app.get("/stream/<int:number>")
    def stream_all(number: int) -> Iterator[str]:
        with Work(sessions) as session:
            yield from stream(session, number)

    @app.post("/again/<int:number>")
    @app.post("/function-again/<int:number>")
    def again(number: int) -> str:
        for attempt in (1, 2):
            with suppress(BusyError), Work(sessions) as session:
                write(session, number)
                if attempt == 1:
                    raise BusyError
        return ""

    @app.post("/commit-fails/<int:number>")
    def commit_fails(number: int) -> str:
        with Work(sessions) as session:
            session.add(Remark(note_id=-1))
        return ""

    @app.post("/swallow/<int:number>")
    def swallow(number: int) -> str:
        with Work(sessions) as session:
            write(session, number)
            try:
                break_rule(session)
            except IntegrityError as error:
                raise LookupError from error
        return ""

    @app.post("/forget/<int:number>")
    def forget(number: int) -> str:
        with sessions() as session:
            session.add(Note(text="forgotten"))
        return ""

    return app


# Sending them


@dataclass(frozen=True)
class Kind:
    """One kind of request."""

    path: str
    status: int = 200
    method: str = "POST"
    share: int = 2
    leaves: bool = False
    """Whether the client goes away after the first chunk."""

    @property
    def name(self) -> str:
        name = self.path.split("/")[1] if "{" not in self.method else "unknown method"
        return f"{name}, left" if self.leaves else name


KINDS: Final = [
    Kind("/nothing/{}", method="GET", share=10),
    Kind("/read/{}", method="GET", share=10),
    Kind("/read-only/{}", method="GET", share=5),
    Kind("/write/{}", share=10),
    Kind("/transfer/{}", share=10),
    Kind("/raise/{}", 500),
    Kind("/handle/{}", 409),
    Kind("/abort/{}", 404),
    Kind("/savepoint/{}", share=5),
    Kind("/suspend/{}", share=5),
    Kind("/hooks/{}", share=5),
    Kind("/undone/{}", 422),
    Kind("/stream/{}", method="GET"),
    Kind("/stream/{}", method="GET", leaves=True),
    Kind("/again/{}"),
    Kind("/function-again/{}"),
    Kind("/commit-fails/{}", 500),
    Kind("/swallow/{}", 500),
    Kind("/forget/{}"),
    Kind("/by-hand/{}"),
    Kind("/doomed/{}", 409),
    Kind("/inner-fails/{}", 409),
    Kind("/read-only-writes/{}", 409),
    Kind("/too-late/{}", 409),
    Kind("/in-vain/{}", 409),
    Kind("/function-in-vain/{}", 409),
    Kind("/hook-fails/{}"),
    # What a client can invent without end.
    Kind("/missing/{}", 404, method="GET"),
    Kind("/write/1", 405, method="METHOD{}"),
]


def send(app: Callable[..., Any], kind: Kind, number: int) -> None:
    """Send a request as a server does, and check how it is answered."""
    environ = dict(_ENVIRON, PATH_INFO=kind.path.format(number), REQUEST_METHOD=kind.method.format(number))
    environ["wsgi.input"] = io.BytesIO()
    told: list[str] = []

    def start_response(status: str, _headers: object, _error: object = None) -> Callable[[bytes], None]:
        told.append(status)
        return lambda _chunk: None

    body = app(environ, start_response)
    try:
        for _ in body:
            if kind.leaves:
                break
    finally:
        body.close()
    if int(told[0][:3]) != kind.status:
        raise AssertionError(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} was answered by {told[0]}.")


_ENVIRON: Final = create_environ()


@contextmanager
def quiet() -> Iterator[None]:
    """Let messages in the log be made, and go nowhere."""
    loggers = [logging.getLogger(name) for name in ("flask_uow", "uow_soak_ours", "uow_soak_by_hand")]
    nowhere = logging.NullHandler()
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(nowhere)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(nowhere)
            logger.propagate = propagate
