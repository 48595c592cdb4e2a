"""What type checkers make of the public names. mypy and pyright read it, and nobody runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from typing import Any, Literal, assert_type

from flask import Blueprint, Flask
from flask.views import MethodView
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from flask_uow import (
    Backoff,
    BulkChange,
    Change,
    ChangeSet,
    HookError,
    Outcome,
    Propagation,
    State,
    Transaction,
    UnitOfWork,
    current_session,
    current_transaction,
    flask_scoped_session,
    on_commit,
    on_rollback,
    transactional,
)
from flask_uow.audit import AuditEntry, AuditTrail


class OwnSession(Session):
    pass


def open_session() -> OwnSession:
    return OwnSession()


# What a UnitOfWork can be given

app = Flask(__name__)
engine = create_engine("sqlite://")

uow = UnitOfWork(sessionmaker(engine))
UnitOfWork(sessionmaker(engine, class_=OwnSession), app)
UnitOfWork(scoped_session(sessionmaker(engine)), app, name="scoped")
UnitOfWork(flask_scoped_session(sessionmaker(engine)), app, name="by_context")
UnitOfWork(flask_scoped_session(open_session, app), name="by_function")
UnitOfWork(engine, app, name="engine", auto_commit={"POST"}, hook_errors="raise")
UnitOfWork(open_session, name="function")
UnitOfWork(OwnSession, name="class")

assert_type(uow.init_app(app), None)
assert_type(uow.name, str)
assert_type(uow.session, Session)


# Decorators keep the signature


@transactional
def bare(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@transactional()
def called(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@transactional(
    propagation=Propagation.NESTED,
    rollback_for=ValueError,
    no_rollback_for=(KeyError, IndexError),
    manual_commit="flush",
    name="options",
    commit_if=lambda response: response.status_code == 404,
    using="reports",
)
def with_options(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@uow.transactional
def bare_method(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@uow.transactional(propagation=Propagation.MANDATORY)
def called_method(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@transactional(isolation_level="SERIALIZABLE", read_only=True, timeout=2.5, propagation=Propagation.REQUIRES_NEW)
def demanding(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


@uow.stream
def streamed(title: str, *, price: int = 0) -> Iterator[bytes]:
    yield title.encode() * price


@uow.stream(read_only=True, timeout=60, name="export")
def streamed_with_options(title: str) -> Generator[str, None, None]:
    yield title


assert_type(demanding("Emma", price=1), list[str])
assert_type(next(streamed("Emma", price=1)), bytes)
assert_type(list(streamed_with_options("Emma")), list[str])
streamed("Emma").close()
streamed(7)  # type: ignore[arg-type]
uow.transaction(timeout="5")  # type: ignore[arg-type]
uow.transaction(isolation_level=3)  # type: ignore[arg-type]
uow.stream(propagation=Propagation.NESTED)  # type: ignore[call-overload]


@uow.exempt
def exempted(title: str, *, price: int = 0) -> list[str]:
    return [title] * price


assert_type(bare("Emma", price=1), list[str])
assert_type(called("Emma", price=1), list[str])
assert_type(with_options("Emma", price=1), list[str])
assert_type(bare_method("Emma", price=1), list[str])
assert_type(called_method("Emma", price=1), list[str])
assert_type(exempted("Emma", price=1), list[str])

bare(title="Emma")
bare(7)  # type: ignore[arg-type]
called("Emma", cost=1)  # type: ignore[call-arg]
bare_method()  # type: ignore[call-arg]
called_method("Emma", price="1")  # type: ignore[arg-type]


@transactional
async def bare_async(title: str) -> int:
    return len(title)


@transactional()
async def called_async(title: str) -> int:
    return len(title)


@uow.transactional(name="async")
async def async_method(title: str) -> int:
    return len(title)


async def awaiting() -> None:
    assert_type(await bare_async("Emma"), int)
    assert_type(await called_async("Emma"), int)
    assert_type(await async_method("Emma"), int)


def takes_coroutine_function(function: Callable[[str], Awaitable[int]]) -> None: ...


takes_coroutine_function(bare_async)


class Shop:
    @transactional
    def rename(self, title: str) -> int:
        return len(title)

    @uow.transactional(propagation=Propagation.NESTED)
    def reprice(self, price: int) -> str:
        return str(price)

    @classmethod
    @transactional
    def open(cls, name: str) -> Shop:
        return cls()

    @staticmethod
    @transactional()
    def close(hour: int) -> bool:
        return hour > 18


assert_type(Shop().rename("Emma"), int)
assert_type(Shop().reprice(7), str)
assert_type(Shop.open("Bath"), Shop)
assert_type(Shop.close(20), bool)


class Books(MethodView):
    decorators = [transactional, uow.transactional(name="books")]

    @transactional
    def get(self, book_id: int) -> str:
        return str(book_id)


assert_type(Books().get(7), str)


blueprint = Blueprint("shop", __name__)

assert_type(transactional(blueprint), Blueprint)
assert_type(transactional(name="shop")(blueprint), Blueprint)
assert_type(uow.transactional(blueprint), Blueprint)
assert_type(uow.transactional(rollback_for=KeyError)(blueprint), Blueprint)
assert_type(uow.exempt(blueprint), Blueprint)


@app.post("/")
@transactional
def view() -> tuple[str, int]:
    return "", 201


assert_type(view(), tuple[str, int])

transactional(7)  # type: ignore[call-overload]
transactional(propagation="nested")  # type: ignore[call-overload]
uow.transactional(attempts="3")  # type: ignore[call-overload]
uow.transaction(attempts=3)  # type: ignore[call-arg]


@app.put("/")
@uow.transactional(attempts=3, retry_on=(KeyError, OSError), backoff=Backoff(base=0.1), verify=lambda session: True)
def put() -> str:
    return ""


assert_type(put(), str)
transactional(retry_on=lambda error: isinstance(error, KeyError))(put)
transactional(backoff=0.1)  # type: ignore[call-overload]


# Blocks yield the session, and swallow nothing

with uow.transaction() as session:
    assert_type(session, Session)

with uow.transaction(propagation=Propagation.NESTED, manual_commit="allow", name="payday") as session:
    assert_type(session, Session)

with uow.savepoint() as session:
    assert_type(session, Session)


def reached() -> int:
    with uow.transaction():
        return 1


uow.transaction(commit_if=bool)  # type: ignore[call-arg]
uow.transaction(manual_commit="never")  # type: ignore[typeddict-item,arg-type,unused-ignore]


# Hooks


@on_commit
def bare_hook() -> int:
    return 1


@on_commit(key="mail", if_inactive="run")
def called_hook() -> int:
    return 1


@uow.on_commit
def bare_method_hook() -> int:
    return 1


@uow.on_commit(key=("mail", 7))
def called_method_hook() -> int:
    return 1


@on_rollback
def rollback_hook(error: BaseException | None) -> str:
    return repr(error)


@uow.on_rollback(if_inactive="run")
def called_rollback_hook(error: BaseException | None) -> str:
    return repr(error)


def send(title: str, *, copies: int) -> bool:
    return bool(title) and copies > 1


assert_type(bare_hook(), int)
assert_type(called_hook(), int)
assert_type(bare_method_hook(), int)
assert_type(called_method_hook(), int)
assert_type(rollback_hook(None), str)
assert_type(called_rollback_hook(None), str)
assert_type(on_commit(send, "Emma", copies=2)("Emma", copies=2), bool)
assert_type(uow.on_commit(send, "Emma", copies=2, key="mail")("Emma", copies=2), bool)
assert_type(uow.on_rollback(rollback_hook)(None), str)

on_commit(7)  # type: ignore[call-overload]
uow.on_commit(send, if_inactive="never")  # type: ignore[call-overload]


# Transactions

assert_type(uow.current_transaction, Transaction | None)
assert_type(current_transaction.id, str)
assert_type(current_transaction.parent, Transaction | None)
assert_type(current_transaction.depth, int)
assert_type(current_transaction.attempt, int)
assert_type(current_transaction.state, State)
assert_type(current_transaction.outcome, Outcome | None)
assert_type(current_transaction.set_rollback_only(), None)
assert_type(uow.set_rollback_only(), None)


# Changes, and the audit trail

changes = current_transaction.changes

assert_type(changes, ChangeSet)
assert_type(changes[0], Change | BulkChange)
assert_type(changes[:2], tuple[Change | BulkChange, ...])
assert_type(len(changes), int)
assert_type(changes.is_complete, bool)


def looking() -> None:
    for change in changes:
        if isinstance(change, BulkChange):
            assert_type(change.rowcount, int)
        else:
            assert_type(change.operation, Literal["insert", "update", "delete"])
            assert_type(change.entity, str | None)
            assert_type(change.identity, tuple[Any, ...])
            assert_type(change.before, Mapping[str, Any])


class Base(DeclarativeBase):
    pass


trail = AuditTrail(uow, Base, actor=lambda: "jane", independent=True)
assert_type(trail.history(Base, 1), list[AuditEntry])
assert_type(trail.history(Base, 1)[0].before, Mapping[str, Any] | None)
AuditTrail(app, Base)  # type: ignore[arg-type]
AuditTrail(uow, Base, actor="jane")  # type: ignore[arg-type]


# The drop-in, and errors

assert_type(current_session, flask_scoped_session)


def catching() -> None:
    try:
        uow.set_rollback_only()
    except HookError as error:
        assert_type(error.committed, bool)
