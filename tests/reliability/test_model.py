"""Random programs of nested blocks, on real databases, against a small model of the rules.

A program is plain data. `Model` interprets it by rules that share no code with flask_uow, `Reality` runs it with the
library on a database, and both must tell the same story: which session was used, what raised which error, which hooks
ran, in order, and which rows are stored in the end. `RULES` has each rule once, with its outcome written out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from typing import Any, Final, Literal, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, delete, event, insert
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import Propagation, UnitOfWork
from tests.conftest import Book
from tests.reliability.programs import PROGRAMS, Short

STORED: Final = 0
"""The key of a row that is stored before every program."""

# SQLAlchemy warns of what is added to a session between a flush that failed and its rollback.
pytestmark = pytest.mark.filterwarnings("ignore:Session's state has been changed on a non-active transaction")


# Programs

Mode = Literal["REQUIRED", "NESTED", "REQUIRES_NEW", "MANDATORY", "SUPPORTS", "NOT_SUPPORTED", "NEVER"]


@dataclass(frozen=True, repr=False)
class Insert(Short):
    """Insert a row that nobody else inserts."""

    row: int
    by_flush: bool = False


@dataclass(frozen=True, repr=False)
class Break(Short):
    """Insert a row that is stored already, which the database refuses."""

    by_flush: bool = False


@dataclass(frozen=True, repr=False)
class OnCommit(Short):
    """Register an on_commit hook."""

    number: int


@dataclass(frozen=True, repr=False)
class OnRollback(Short):
    """Register an on_rollback hook."""

    number: int


@dataclass(frozen=True, repr=False)
class RollbackOnly(Short):
    """Call ``set_rollback_only()``."""


@dataclass(frozen=True, repr=False)
class Raise(Short):
    """Raise `Failed`, or `Kept`."""

    kept: bool = False


@dataclass(frozen=True, repr=False)
class Swallowed(Short):
    """Go on whatever happens."""

    operation: Operation


@dataclass(frozen=True, repr=False)
class Savepoint(Short):
    """A ``with uow.savepoint():`` block."""

    body: Program


@dataclass(frozen=True, repr=False)
class Block(Short):
    """A ``with uow.transaction():`` block, or a function with ``@uow.transactional``."""

    mode: Mode
    body: Program
    keeps: bool = False
    """Whether it has ``no_rollback_for=Kept``."""

    decorated: bool = False


Hook = OnCommit | OnRollback
Operation = Insert | Break | Hook | RollbackOnly | Raise | Swallowed | Savepoint | Block
Program = tuple[Operation, ...]


class Failed(Exception):  # noqa: N818 - it is read in stories
    """An error that rolls back, as all do."""


class Kept(Exception):  # noqa: N818 - as above
    """An error that some blocks list under ``no_rollback_for``."""


# What both interpreters have in common


class Fault(Exception):  # noqa: N818 - it stands for an error, and is none
    """What stands for an error in the model."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class Story:
    """What happened in a program, in order. Errors and sessions have numbers, so that the same one is seen to be it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._errors: list[BaseException] = []
        self._sessions: list[object] = []

    def used(self, operation: Operation, session: object) -> None:
        self.lines.append(f"{_title(operation)} uses session {_number(session, self._sessions)}")

    def raised(self, operation: Operation, error: BaseException) -> None:
        self.lines.append(f"{_title(operation)} raises {self.named(error)}")

    def ran(self, hook: Hook, error: BaseException | None = None) -> None:
        told = f" with {None if error is None else self.named(error)}" if isinstance(hook, OnRollback) else ""
        self.lines.append(f"{hook} runs{told}")

    def named(self, error: BaseException) -> str:
        kind = error.kind if isinstance(error, Fault) else type(error).__name__
        told = len(self._errors)
        name = f"{kind} #{_number(error, self._errors)}"
        # The causes of other errors are none of the library's business.
        if len(self._errors) > told and kind in ("UnexpectedRollbackError", "TransactionDoomedError"):
            name += " without a cause" if error.__cause__ is None else f" from {self.named(error.__cause__)}"
        return name


def _number(thing: Any, seen: list[Any]) -> int:
    for number, other in enumerate(seen, 1):
        if thing is other:
            return number
    seen.append(thing)
    return len(seen)


def _title(operation: Operation) -> str:
    match operation:
        case Block():
            return operation.mode
        case Savepoint():
            return "Savepoint"
        case _:
            return repr(operation)


class Interpreter(ABC):
    """Goes through a program, and writes its story."""

    def __init__(self) -> None:
        self.story = Story()

    def run(self, program: Program) -> str | None:
        """Run a program, and return what it raises."""
        try:
            self.body(program)
        except Exception as error:  # noqa: BLE001 - part of what is compared
            return self.story.named(error)
        return None

    def body(self, program: Program) -> None:
        for operation in program:
            self.perform(operation)

    def perform(self, operation: Operation) -> None:
        match operation:
            case Swallowed():
                with suppress(Exception):
                    self.perform(operation.operation)
            case Raise():
                self.throw(kept=operation.kept)
            case _:
                try:
                    self._perform(operation)
                except Exception as error:
                    self.story.raised(operation, error)
                    raise

    def _perform(self, operation: Insert | Break | Hook | RollbackOnly | Savepoint | Block) -> None:
        match operation:
            case Insert() | Break():
                self.write(operation)
            case OnCommit() | OnRollback():
                self.register(operation)
            case RollbackOnly():
                self.set_rollback_only()
            case Savepoint():
                self.savepoint(operation)
            case Block():
                self.block(operation)

    @abstractmethod
    def write(self, operation: Insert | Break) -> None: ...
    @abstractmethod
    def register(self, hook: Hook) -> None: ...
    @abstractmethod
    def set_rollback_only(self) -> None: ...
    @abstractmethod
    def throw(self, *, kept: bool) -> None: ...
    @abstractmethod
    def savepoint(self, operation: Savepoint) -> None: ...
    @abstractmethod
    def block(self, operation: Block) -> None: ...


# The library


class Reality(Interpreter):
    """Runs a program with the library."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.uow = UnitOfWork(sessionmaker(engine))

    def write(self, operation: Insert | Break) -> None:
        session = self.uow.session
        self.story.used(operation, session)
        key = operation.row if isinstance(operation, Insert) else STORED
        if operation.by_flush:
            session.add(Book(id=key, title="by flush"))
            session.flush()
        else:
            session.execute(insert(Book).values(id=key, title="by statement"))

    def register(self, hook: Hook) -> None:
        if isinstance(hook, OnCommit):
            self.uow.on_commit(self.story.ran, hook)
        else:
            self.uow.on_rollback(lambda error: self.story.ran(hook, error))

    def set_rollback_only(self) -> None:
        self.uow.set_rollback_only()

    def throw(self, *, kept: bool) -> None:
        raise Kept if kept else Failed

    def savepoint(self, operation: Savepoint) -> None:
        with self.uow.savepoint() as session:
            self._inside(session, operation.body)

    def block(self, operation: Block) -> None:
        mode = Propagation[operation.mode]
        kept = (Kept,) if operation.keeps else ()
        if operation.decorated:

            @self.uow.transactional(propagation=mode, no_rollback_for=kept)
            def decorated() -> None:
                self.body(operation.body)

            decorated()
        else:
            with self.uow.transaction(propagation=mode, no_rollback_for=kept) as session:
                self._inside(session, operation.body)

    def _inside(self, session: Session, body: Program) -> None:
        if session is not self.uow.session:
            self.story.lines.append("a block yields another session than the one in use")
        self.body(body)


# The model

FIRST_STEPS: Final[dict[Mode, tuple[str, str]]] = {
    # mode: where a transaction is active, and where none is
    "REQUIRED": ("join", "begin"),
    "NESTED": ("nest", "begin"),
    "REQUIRES_NEW": ("begin elsewhere", "begin"),
    "MANDATORY": ("join", "refuse"),
    "SUPPORTS": ("join", "run without"),
    "NOT_SUPPORTED": ("run without elsewhere", "run without"),
    "NEVER": ("forbid", "run without"),
}


@dataclass(eq=False)
class Level:
    """An outermost transaction, or a savepoint in it."""

    rows: list[int] = field(default_factory=list)
    hooks: list[Hook] = field(default_factory=list)
    joined: int = 0
    """How many blocks that have joined it are running."""

    rollback_only: bool = False
    doomed: bool = False
    first_error: Fault | None = None
    """What has doomed it, if an error has. No SQL is sent from then on."""

    def doom(self, error: Fault | None) -> None:
        self.doomed = True
        self.first_error = self.first_error or error


@dataclass(eq=False)
class Place:
    """A session, with the transaction in it if there is one."""

    levels: list[Level] = field(default_factory=list)
    """The transaction, and the savepoints in it."""

    loose: list[int] = field(default_factory=list)
    """What was inserted without a transaction, and is lost with the session."""

    writes: bool = False
    """Whether it holds the one write lock of SQLite."""


class Model(Interpreter):
    """Interprets a program by the rules."""

    def __init__(self, *, one_writer: bool) -> None:
        super().__init__()
        self.rows: list[int] = []
        self._one_writer = one_writer
        self._places: list[Place] = []
        """The innermost last; the others are suspended."""

    # Statements

    def write(self, operation: Insert | Break) -> None:
        place = self._places[-1]
        self.story.used(operation, place)
        self._refuse_if_doomed()
        if self._one_writer and any(other.writes for other in self._places[:-1]):
            raise self._refused(place, operation, "OperationalError")
        place.writes = True
        if isinstance(operation, Break):
            raise self._refused(place, operation, "IntegrityError")
        rows = place.levels[-1].rows if place.levels else place.loose
        rows.append(operation.row)

    def _refused(self, place: Place, operation: Insert | Break, kind: str) -> Fault:
        """Return an error of the database, which dooms the innermost transaction."""
        error = Fault(kind)
        if place.levels:
            place.levels[-1].doom(error)
        if operation.by_flush and len(place.levels) <= 1:
            # The session rolls a failed flush back at once, and all before it up to the last savepoint.
            place.writes = False
        return error

    def _refuse_if_doomed(self) -> None:
        for level in self._places[-1].levels:
            if level.first_error is not None:
                raise Fault("TransactionDoomedError") from level.first_error

    def register(self, hook: Hook) -> None:
        self._innermost().hooks.append(hook)

    def set_rollback_only(self) -> None:
        level = self._innermost()
        if level.joined:
            level.doom(None)
        else:
            level.rollback_only = True

    def throw(self, *, kept: bool) -> None:
        raise Fault("Kept" if kept else "Failed")

    # Blocks

    def savepoint(self, operation: Savepoint) -> None:
        self._innermost()
        self._nest(operation.body, keeps=False)

    def block(self, operation: Block) -> None:
        step = FIRST_STEPS[operation.mode][0 if self._is_active() else 1]
        if step == "refuse":
            raise Fault("TransactionRequiredError")
        if step == "forbid":
            raise Fault("TransactionForbiddenError")
        if step == "join":
            self._join(operation)
        elif step == "nest":
            self._nest(operation.body, keeps=operation.keeps)
        else:
            elsewhere = not self._places or step.endswith("elsewhere")
            if elsewhere:
                self._places.append(Place())
            try:
                if step.startswith("begin"):
                    self._begin(operation)
                else:
                    self.body(operation.body)
            finally:
                if elsewhere:
                    self._places.pop()

    def _is_active(self) -> bool:
        return bool(self._places and self._places[-1].levels)

    def _innermost(self) -> Level:
        if not self._is_active():
            raise Fault("TransactionRequiredError")
        return self._places[-1].levels[-1]

    def _join(self, operation: Block) -> None:
        level = self._innermost()
        level.joined += 1
        raised = self._outcome(operation.body)
        level.joined -= 1
        if raised is not None and not _keeps(raised, keeps=operation.keeps):
            level.doom(raised)
        self._go_on(raised)

    def _begin(self, operation: Block) -> None:
        place = self._places[-1]
        level = Level(rows=place.loose)
        place.levels = [level]
        raised = self._outcome(operation.body)
        place.levels, place.loose, place.writes = [], [], False

        keep, raised = _verdict(level, raised, keeps=operation.keeps)
        if keep:
            self.rows += level.rows
            self._run(level.hooks, OnCommit)
        else:
            self._run(level.hooks, OnRollback, raised)
        self._go_on(raised)

    def _nest(self, body: Program, *, keeps: bool) -> None:
        self._refuse_if_doomed()
        levels = self._places[-1].levels
        level = Level()
        levels.append(level)
        raised = self._outcome(body)
        levels.pop()

        keep, raised = _verdict(level, raised, keeps=keeps)
        if keep:
            levels[-1].rows += level.rows
            levels[-1].hooks += level.hooks
        else:
            self._run(level.hooks, OnRollback, raised)
        self._go_on(raised)

    def _outcome(self, body: Program) -> Fault | None:
        try:
            self.body(body)
        except Fault as error:
            return error
        return None

    def _run(self, hooks: Sequence[Hook], kind: type[Hook], error: Fault | None = None) -> None:
        for hook in hooks:
            if isinstance(hook, kind):
                self.story.ran(hook, error)

    def _go_on(self, error: Fault | None) -> None:
        if error is not None:
            raise error


def _keeps(error: Fault, *, keeps: bool) -> bool:
    return keeps and error.kind == "Kept"


def _verdict(level: Level, raised: Fault | None, *, keeps: bool) -> tuple[bool, Fault | None]:
    """Return whether the work of a level is kept, and which error goes on."""
    if level.rollback_only or (raised is not None and not _keeps(raised, keeps=keeps)):
        return False, raised
    if level.doomed:
        unexpected = Fault("UnexpectedRollbackError")
        unexpected.__cause__ = level.first_error
        return False, unexpected
    return True, raised


# One against the other


@dataclass(frozen=True)
class End:
    """What is compared."""

    rows: list[int]
    story: list[str]
    raised: str | None
    left_behind: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Arena:
    """A database, and a connection that looks at it from outside."""

    engine: Engine
    observer: Connection

    @property
    def one_writer(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    def really(self, program: Program) -> End:
        reality = Reality(self.engine)
        raised = reality.run(program)
        left_behind = []
        if reality.uow.current_transaction is not None:
            left_behind.append("a transaction")
        if self.engine.pool.checkedout() != 1:  # type: ignore[attr-defined] # that of the observer
            left_behind.append("a connection")
        rows = self.observer.scalars(delete(Book).where(Book.id != STORED).returning(Book.id))
        return End(sorted(rows), reality.story.lines, raised, left_behind)

    def by_the_rules(self, program: Program) -> End:
        model = Model(one_writer=self.one_writer)
        raised = model.run(program)
        return End(sorted(model.rows), model.story.lines, raised)


@pytest.fixture(params=["engine", "postgresql"], ids=["sqlite", "postgresql"])
def arena(request: pytest.FixtureRequest) -> Iterator[Arena]:
    """A database that does not wait for its disk, nor for locks."""
    url = request.getfixturevalue(request.param).url
    sqlite = request.param == "engine"
    engine = create_engine(url, connect_args={"timeout": 0} if sqlite else {"options": "-c synchronous_commit=off"})
    if sqlite:
        event.listen(engine, "connect", lambda connection, _record: connection.execute("PRAGMA synchronous=OFF"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as observer:
        observer.execute(insert(Book).values(id=STORED, title="stored"))
        yield Arena(engine, observer)
    engine.dispose()


# Each rule once


@dataclass(frozen=True)
class Rule:
    """A rule, a program that it decides, and what becomes of that."""

    says: str
    program: Program
    rows: list[int]
    story: list[str]
    """Without the sessions that were used."""


DOOM: Final = Swallowed(Block("REQUIRED", (Raise(),)))
"""Dooms the transaction that it is in, and sends nothing to the database."""


RULES: Final = (
    Rule(
        "A block that ends is committed, and then its hooks run in the order of their registration",
        (Block("REQUIRED", (Insert(1), OnCommit(2), OnRollback(3), OnCommit(4))),),
        [1],
        ["OnCommit(2) runs", "OnCommit(4) runs"],
    ),
    Rule(
        "A block that raises is rolled back, and the error goes on",
        (Block("REQUIRED", (Insert(1), OnCommit(2), OnRollback(3), OnRollback(4), Raise())),),
        [],
        ["OnRollback(3) runs with Failed #1", "OnRollback(4) runs with Failed #1", "REQUIRED raises Failed #1"],
    ),
    Rule(
        "An error under no_rollback_for goes on, and the work is kept",
        (Block("REQUIRED", (Insert(1), OnCommit(2), OnRollback(3), Raise(kept=True)), keeps=True),),
        [1],
        ["OnCommit(2) runs", "REQUIRED raises Kept #1"],
    ),
    Rule(
        "Any other error rolls back there as well",
        (Block("REQUIRED", (Insert(1), Raise()), keeps=True),),
        [],
        ["REQUIRED raises Failed #1"],
    ),
    Rule(
        "A decorated function is a block",
        (Block("REQUIRED", (Insert(1), Swallowed(Block("REQUIRED", (Raise(),), decorated=True))), decorated=True),),
        [],
        ["REQUIRED raises Failed #1", "REQUIRED raises UnexpectedRollbackError #2 from Failed #1"],
    ),
    Rule(
        "A joined block shares the transaction, its end and its session",
        (Block("REQUIRED", (Insert(1), OnCommit(2), Block("REQUIRED", (Insert(3), OnCommit(4))), Insert(5))),),
        [1, 3, 5],
        ["OnCommit(2) runs", "OnCommit(4) runs"],
    ),
    Rule(
        "A joined block that raises dooms it, though somebody swallows the error",
        (Block("REQUIRED", (Insert(1), OnCommit(2), OnRollback(3), DOOM)),),
        [],
        [
            "REQUIRED raises Failed #1",
            "OnRollback(3) runs with UnexpectedRollbackError #2 from Failed #1",
            "REQUIRED raises UnexpectedRollbackError #2",
        ],
    ),
    Rule(
        "A joined block keeps what its own no_rollback_for names",
        (Block("REQUIRED", (Insert(1), Swallowed(Block("REQUIRED", (Insert(2), Raise(kept=True)), keeps=True)))),),
        [1, 2],
        ["REQUIRED raises Kept #1"],
    ),
    Rule(
        "The no_rollback_for of the block that began says nothing about a joined one",
        (Block("REQUIRED", (Swallowed(Block("REQUIRED", (Raise(kept=True),))), Insert(1)), keeps=True),),
        [],
        [
            "REQUIRED raises Kept #1",
            "Insert(1) raises TransactionDoomedError #2 from Kept #1",
            "REQUIRED raises TransactionDoomedError #2",
        ],
    ),
    Rule(
        "A transaction that is doomed does not commit for an error under no_rollback_for",
        (Block("REQUIRED", (Insert(1), Block("REQUIRED", (Raise(kept=True),))), keeps=True),),
        [],
        ["REQUIRED raises Kept #1", "REQUIRED raises UnexpectedRollbackError #2 from Kept #1"],
    ),
    Rule(
        "An error that leaves a doomed transaction is not replaced",
        (Block("REQUIRED", (DOOM, Raise(kept=True))),),
        [],
        ["REQUIRED raises Failed #1", "REQUIRED raises Kept #2"],
    ),
    Rule(
        "The first error is the cause, whatever comes after it",
        (Block("REQUIRED", (DOOM, Swallowed(Block("REQUIRED", (Raise(kept=True),))))),),
        [],
        [
            "REQUIRED raises Failed #1",
            "REQUIRED raises Kept #2",
            "REQUIRED raises UnexpectedRollbackError #3 from Failed #1",
        ],
    ),
    Rule(
        "A released savepoint hands its rows and hooks up",
        (Block("REQUIRED", (OnCommit(1), Savepoint((Insert(2), OnCommit(3))), OnCommit(4))),),
        [2],
        ["OnCommit(1) runs", "OnCommit(3) runs", "OnCommit(4) runs"],
    ),
    Rule(
        "A savepoint that raises is undone alone, with its hooks",
        (
            Block(
                "REQUIRED",
                (
                    Insert(1),
                    OnCommit(2),
                    OnRollback(3),
                    Swallowed(Savepoint((Insert(4), OnCommit(5), OnRollback(6), Raise()))),
                    Insert(7),
                ),
            ),
        ),
        [1, 7],
        ["OnRollback(6) runs with Failed #1", "Savepoint raises Failed #1", "OnCommit(2) runs"],
    ),
    Rule(
        "What a released savepoint has handed up is undone with the one around it",
        (
            Block(
                "REQUIRED",
                (
                    OnRollback(1),
                    Swallowed(Savepoint((Savepoint((Insert(2), OnRollback(3), OnCommit(4))), Raise()))),
                    Insert(5),
                ),
            ),
        ),
        [5],
        ["OnRollback(3) runs with Failed #1", "Savepoint raises Failed #1"],
    ),
    Rule(
        "NESTED in a transaction is a savepoint",
        (Block("NESTED", (Insert(1), Swallowed(Block("NESTED", (Insert(2), Raise()))))),),
        [1],
        ["NESTED raises Failed #1"],
    ),
    Rule(
        "NESTED keeps what its no_rollback_for names",
        (
            Block(
                "REQUIRED",
                (Swallowed(Block("NESTED", (Insert(1), OnCommit(2), Raise(kept=True)), keeps=True)), Insert(3)),
            ),
        ),
        [1, 3],
        ["NESTED raises Kept #1", "OnCommit(2) runs"],
    ),
    Rule(
        "A block that joins inside a savepoint dooms that alone, and its rollback clears the doom",
        (Block("REQUIRED", (Insert(1), Swallowed(Savepoint((Insert(2), DOOM))), Insert(3))),),
        [1, 3],
        ["REQUIRED raises Failed #1", "Savepoint raises UnexpectedRollbackError #2 from Failed #1"],
    ),
    Rule(
        "A doomed savepoint does not end well for an error under no_rollback_for",
        (Block("REQUIRED", (Swallowed(Block("NESTED", (DOOM, Raise(kept=True)), keeps=True)), Insert(1))),),
        [1],
        ["REQUIRED raises Failed #1", "NESTED raises UnexpectedRollbackError #2 from Failed #1"],
    ),
    Rule(
        "A savepoint's error that leaves a joined block dooms what is around",
        (Block("REQUIRED", (Swallowed(Block("REQUIRED", (Savepoint((DOOM,)),))),)),),
        [],
        [
            "REQUIRED raises Failed #1",
            "Savepoint raises UnexpectedRollbackError #2 from Failed #1",
            "REQUIRED raises UnexpectedRollbackError #2",
            "REQUIRED raises UnexpectedRollbackError #3 from UnexpectedRollbackError #2",
        ],
    ),
    Rule(
        "An error of the database dooms, swallowed or not",
        (Block("REQUIRED", (Insert(1), Swallowed(Break()))),),
        [],
        ["Break() raises IntegrityError #1", "REQUIRED raises UnexpectedRollbackError #2 from IntegrityError #1"],
    ),
    Rule(
        "So does a flush that fails",
        (Block("REQUIRED", (Insert(1, by_flush=True), Swallowed(Break(by_flush=True)))),),
        [],
        [
            "Break(by_flush=True) raises IntegrityError #1",
            "REQUIRED raises UnexpectedRollbackError #2 from IntegrityError #1",
        ],
    ),
    Rule(
        "Inside a savepoint it dooms that alone",
        (Block("REQUIRED", (Insert(1), Swallowed(Savepoint((Insert(2), Swallowed(Break())))), Insert(3))),),
        [1, 3],
        ["Break() raises IntegrityError #1", "Savepoint raises UnexpectedRollbackError #2 from IntegrityError #1"],
    ),
    Rule(
        "So does a flush that fails in a savepoint",
        (
            Block(
                "REQUIRED", (Insert(1), Swallowed(Savepoint((Insert(2), Swallowed(Break(by_flush=True))))), Insert(3))
            ),
        ),
        [1, 3],
        [
            "Break(by_flush=True) raises IntegrityError #1",
            "Savepoint raises UnexpectedRollbackError #2 from IntegrityError #1",
        ],
    ),
    Rule(
        "No SQL is sent in a transaction that an error has doomed",
        (
            Block(
                "REQUIRED",
                (
                    Insert(1),
                    DOOM,
                    Swallowed(Insert(2)),
                    Swallowed(Insert(3, by_flush=True)),
                    Swallowed(Break()),
                    Swallowed(Break(by_flush=True)),
                    Block("REQUIRED", (Swallowed(Insert(4)),)),
                ),
            ),
        ),
        [],
        [
            "REQUIRED raises Failed #1",
            "Insert(2) raises TransactionDoomedError #2 from Failed #1",
            "Insert(3, by_flush=True) raises TransactionDoomedError #3 from Failed #1",
            "Break() raises TransactionDoomedError #4 from Failed #1",
            "Break(by_flush=True) raises TransactionDoomedError #5 from Failed #1",
            "Insert(4) raises TransactionDoomedError #6 from Failed #1",
            "REQUIRED raises UnexpectedRollbackError #7 from Failed #1",
        ],
    ),
    Rule(
        "Nor after a statement that failed, nor after a flush that did",
        (
            Swallowed(Block("REQUIRED", (Swallowed(Break()), Insert(1)))),
            Swallowed(Block("REQUIRED", (Swallowed(Break(by_flush=True)), Insert(2)))),
        ),
        [],
        [
            "Break() raises IntegrityError #1",
            "Insert(1) raises TransactionDoomedError #2 from IntegrityError #1",
            "REQUIRED raises TransactionDoomedError #2",
            "Break(by_flush=True) raises IntegrityError #3",
            "Insert(2) raises TransactionDoomedError #4 from IntegrityError #3",
            "REQUIRED raises TransactionDoomedError #4",
        ],
    ),
    Rule(
        "No savepoint begins in it",
        (Block("REQUIRED", (DOOM, Swallowed(Savepoint((OnCommit(1),))), Swallowed(Block("NESTED", (OnCommit(2),))))),),
        [],
        [
            "REQUIRED raises Failed #1",
            "Savepoint raises TransactionDoomedError #2 from Failed #1",
            "NESTED raises TransactionDoomedError #3 from Failed #1",
            "REQUIRED raises UnexpectedRollbackError #4 from Failed #1",
        ],
    ),
    Rule(
        "A block may join it",
        (Block("REQUIRED", (DOOM, Block("REQUIRED", (OnRollback(1),)), Block("MANDATORY", (OnRollback(2),)))),),
        [],
        [
            "REQUIRED raises Failed #1",
            "OnRollback(1) runs with UnexpectedRollbackError #2 from Failed #1",
            "OnRollback(2) runs with UnexpectedRollbackError #2",
            "REQUIRED raises UnexpectedRollbackError #2",
        ],
    ),
    Rule(
        "REQUIRES_NEW and NOT_SUPPORTED work in it, on sessions of their own",
        (
            Block(
                "REQUIRED",
                (
                    DOOM,
                    Block("REQUIRES_NEW", (Insert(1), Savepoint((Insert(2),)))),
                    Block("NOT_SUPPORTED", (Insert(3),)),
                    Swallowed(Insert(4)),
                ),
            ),
        ),
        [1, 2],
        [
            "REQUIRED raises Failed #1",
            "Insert(4) raises TransactionDoomedError #2 from Failed #1",
            "REQUIRED raises UnexpectedRollbackError #3 from Failed #1",
        ],
    ),
    Rule(
        "set_rollback_only() rolls back quietly, and SQL goes on until then",
        (Block("REQUIRED", (RollbackOnly(), Insert(1), Savepoint((Insert(2), OnCommit(3), OnRollback(4))))),),
        [],
        ["OnRollback(4) runs with None"],
    ),
    Rule(
        "set_rollback_only() lets the block's own error go on, one under no_rollback_for as well",
        (Block("REQUIRED", (Insert(1), RollbackOnly(), OnRollback(2), Raise(kept=True)), keeps=True),),
        [],
        ["OnRollback(2) runs with Kept #1", "REQUIRED raises Kept #1"],
    ),
    Rule(
        "set_rollback_only() in a savepoint is about that alone",
        (
            Block(
                "REQUIRED", (Insert(1), Savepoint((Insert(2), RollbackOnly(), OnRollback(3), OnCommit(4))), OnCommit(5))
            ),
        ),
        [1],
        ["OnRollback(3) runs with None", "OnCommit(5) runs"],
    ),
    Rule(
        "set_rollback_only() is stronger than doom",
        (Block("REQUIRED", (RollbackOnly(), DOOM)), Block("REQUIRED", (DOOM, RollbackOnly()))),
        [],
        ["REQUIRED raises Failed #1", "REQUIRED raises Failed #2"],
    ),
    Rule(
        "set_rollback_only() in a joined block dooms without an error: SQL goes on, and savepoints begin",
        (Block("REQUIRED", (Block("REQUIRED", (RollbackOnly(), Insert(1))), Insert(2), Savepoint((Insert(3),)))),),
        [],
        ["REQUIRED raises UnexpectedRollbackError #1 without a cause"],
    ),
    Rule(
        "set_rollback_only() in a savepoint in a joined block is about the savepoint",
        (Block("REQUIRED", (Block("REQUIRED", (Insert(1), Savepoint((Insert(2), RollbackOnly())))),)),),
        [1],
        [],
    ),
    Rule(
        "An error after that stops SQL",
        (Block("REQUIRED", (Block("REQUIRED", (RollbackOnly(),)), Swallowed(Break()), Swallowed(Insert(1)))),),
        [],
        [
            "Break() raises IntegrityError #1",
            "Insert(1) raises TransactionDoomedError #2 from IntegrityError #1",
            "REQUIRED raises UnexpectedRollbackError #3 from IntegrityError #1",
        ],
    ),
    Rule(
        "MANDATORY and SUPPORTS join",
        (Block("REQUIRED", (Insert(1), Block("MANDATORY", (Insert(2),)), Block("SUPPORTS", (Insert(3),)))),),
        [1, 2, 3],
        [],
    ),
    Rule(
        "MANDATORY and SUPPORTS doom",
        (
            Swallowed(Block("REQUIRED", (Swallowed(Block("MANDATORY", (Raise(),))),))),
            Swallowed(Block("REQUIRED", (Swallowed(Block("SUPPORTS", (Raise(),))),))),
        ),
        [],
        [
            "MANDATORY raises Failed #1",
            "REQUIRED raises UnexpectedRollbackError #2 from Failed #1",
            "SUPPORTS raises Failed #3",
            "REQUIRED raises UnexpectedRollbackError #4 from Failed #3",
        ],
    ),
    Rule(
        "MANDATORY refuses to run without a transaction, and NEVER in one, before the body",
        (
            Swallowed(Block("MANDATORY", (Raise(),))),
            Block("REQUIRED", (Insert(1), Swallowed(Block("NEVER", (Raise(),))))),
        ),
        [1],
        ["MANDATORY raises TransactionRequiredError #1", "NEVER raises TransactionForbiddenError #2"],
    ),
    Rule(
        "REQUIRED, NESTED and REQUIRES_NEW begin where there is none",
        (Block("REQUIRED", (Insert(1),)), Block("NESTED", (Insert(2),)), Block("REQUIRES_NEW", (Insert(3),))),
        [1, 2, 3],
        [],
    ),
    Rule(
        "SUPPORTS, NOT_SUPPORTED and NEVER run without a transaction, on sessions of their own, and store nothing",
        (
            Block("SUPPORTS", (Insert(1),)),
            Block("NOT_SUPPORTED", (Insert(2),)),
            Block("NEVER", (Insert(3), Block("NEVER", (Insert(4),)))),
        ),
        [],
        [],
    ),
    Rule(
        "Without a transaction there are no hooks, no savepoint and nothing to roll back",
        (
            Block(
                "SUPPORTS",
                (
                    Swallowed(OnCommit(1)),
                    Swallowed(OnRollback(2)),
                    Swallowed(RollbackOnly()),
                    Swallowed(Savepoint((Insert(3),))),
                    Raise(),
                ),
            ),
        ),
        [],
        [
            "OnCommit(1) raises TransactionRequiredError #1",
            "OnRollback(2) raises TransactionRequiredError #2",
            "RollbackOnly() raises TransactionRequiredError #3",
            "Savepoint raises TransactionRequiredError #4",
            "SUPPORTS raises Failed #5",
        ],
    ),
    Rule(
        "A transaction that begins inside keeps what was inserted before it, and not what comes after",
        (Block("SUPPORTS", (Insert(1), Block("REQUIRED", (Insert(2),)), Insert(3))),),
        [1, 2],
        [],
    ),
    Rule(
        "A transaction that rolls back inside undoes what was inserted before it",
        (Block("NEVER", (Insert(1), DOOM, Block("REQUIRES_NEW", (Insert(2),)))),),
        [2],
        ["REQUIRED raises Failed #1"],
    ),
    Rule(
        "Outside any block there are none either",
        (
            Swallowed(OnCommit(1)),
            Swallowed(OnRollback(2)),
            Swallowed(RollbackOnly()),
            Swallowed(Savepoint((Raise(),))),
            Swallowed(Block("MANDATORY", (Raise(),))),
        ),
        [],
        [
            "OnCommit(1) raises TransactionRequiredError #1",
            "OnRollback(2) raises TransactionRequiredError #2",
            "RollbackOnly() raises TransactionRequiredError #3",
            "Savepoint raises TransactionRequiredError #4",
            "MANDATORY raises TransactionRequiredError #5",
        ],
    ),
    Rule(
        "REQUIRES_NEW is kept or undone by itself, hooks included",
        (
            Block(
                "REQUIRED",
                (
                    OnCommit(1),
                    OnRollback(2),
                    Block("REQUIRES_NEW", (Insert(3), OnCommit(4))),
                    Swallowed(Block("REQUIRES_NEW", (Insert(5), OnRollback(6), Raise()))),
                    Raise(),
                ),
            ),
        ),
        [3],
        [
            "OnCommit(4) runs",
            "OnRollback(6) runs with Failed #1",
            "REQUIRES_NEW raises Failed #1",
            "OnRollback(2) runs with Failed #2",
            "REQUIRED raises Failed #2",
        ],
    ),
    Rule(
        "The transaction that was suspended goes on in its session, whatever happens",
        (
            Block(
                "REQUIRED",
                (
                    Swallowed(Block("REQUIRES_NEW", (Insert(1), Swallowed(Break())))),
                    Swallowed(Block("NOT_SUPPORTED", (Insert(2), Raise()))),
                    Insert(3),
                    Savepoint((Insert(4),)),
                ),
            ),
        ),
        [3, 4],
        [
            "Break() raises IntegrityError #1",
            "REQUIRES_NEW raises UnexpectedRollbackError #2 from IntegrityError #1",
            "NOT_SUPPORTED raises Failed #3",
        ],
    ),
    Rule(
        "Neither doom nor set_rollback_only() crosses over",
        (
            Block("REQUIRED", (RollbackOnly(), Block("REQUIRES_NEW", (Block("REQUIRED", (Insert(1),)),)))),
            Block("REQUIRED", (Block("REQUIRES_NEW", (Insert(2), RollbackOnly())), Insert(3))),
        ),
        [1, 3],
        [],
    ),
    Rule(
        "Inside a savepoint, REQUIRES_NEW suspends all of the transaction",
        (
            Block(
                "REQUIRED",
                (
                    Swallowed(
                        Savepoint((Block("REQUIRES_NEW", (Insert(1), Swallowed(Savepoint((Raise(),))))), Raise()))
                    ),
                    Insert(2),
                ),
            ),
        ),
        [1, 2],
        ["Savepoint raises Failed #1", "Savepoint raises Failed #2"],
    ),
    Rule(
        "In NOT_SUPPORTED there is no transaction, and REQUIRED begins one on its session",
        (
            Block(
                "REQUIRED",
                (
                    Block(
                        "NOT_SUPPORTED", (Swallowed(Block("MANDATORY", ())), Insert(1), Block("REQUIRED", (Insert(2),)))
                    ),
                    Raise(),
                ),
            ),
        ),
        [1, 2],
        ["MANDATORY raises TransactionRequiredError #1", "REQUIRED raises Failed #2"],
    ),
)
ONE_WRITER: Final = (
    Rule(
        "Two transactions write at once, where the database lets them",
        (Block("REQUIRED", (Insert(1), Block("REQUIRES_NEW", (Insert(2),)), Raise())),),
        [],
        [
            "Insert(2) raises OperationalError #1",
            "REQUIRES_NEW raises OperationalError #1",
            "REQUIRED raises OperationalError #1",
        ],
    ),
    Rule(
        "A flush that failed has let go of the write lock, and a statement has not",
        (
            Swallowed(Block("REQUIRED", (Swallowed(Break(by_flush=True)), Block("REQUIRES_NEW", (Insert(1),))))),
            Swallowed(Block("REQUIRED", (Swallowed(Break()), Block("REQUIRES_NEW", (Insert(2),))))),
        ),
        [1],
        [
            "Break(by_flush=True) raises IntegrityError #1",
            "REQUIRED raises UnexpectedRollbackError #2 from IntegrityError #1",
            "Break() raises IntegrityError #3",
            "Insert(2) raises OperationalError #4",
            "REQUIRES_NEW raises OperationalError #4",
            "REQUIRED raises OperationalError #4",
        ],
    ),
)
MANY_WRITERS: Final = (
    Rule(
        "Two transactions write at once, where the database lets them",
        (Block("REQUIRED", (Insert(1), Block("REQUIRES_NEW", (Insert(2),)), Raise())),),
        [2],
        ["REQUIRED raises Failed #1"],
    ),
    Rule(
        "A flush that failed has let go of the write lock, and a statement has not",
        (
            Swallowed(Block("REQUIRED", (Swallowed(Break(by_flush=True)), Block("REQUIRES_NEW", (Insert(1),))))),
            Swallowed(Block("REQUIRED", (Swallowed(Break()), Block("REQUIRES_NEW", (Insert(2),))))),
        ),
        [1, 2],
        [
            "Break(by_flush=True) raises IntegrityError #1",
            "REQUIRED raises UnexpectedRollbackError #2 from IntegrityError #1",
            "Break() raises IntegrityError #3",
            "REQUIRED raises UnexpectedRollbackError #4 from IntegrityError #3",
        ],
    ),
)


def _check(arena: Arena, rule: Rule) -> None:
    end = arena.really(rule.program)

    assert end.rows == rule.rows
    assert [line for line in end.story if " uses session " not in line] == rule.story
    assert end == arena.by_the_rules(rule.program)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.says)
def test_rule(arena: Arena, rule: Rule) -> None:
    """Each rule holds on either database, and in the model."""
    _check(arena, rule)


@pytest.mark.parametrize("arena", ["engine"], indirect=True, ids=["sqlite"])
@pytest.mark.parametrize("rule", ONE_WRITER, ids=lambda rule: rule.says)
def test_rule_of_one_writer(arena: Arena, rule: Rule) -> None:
    """SQLite lets one transaction write at a time: what writes inside a REQUIRES_NEW is told so."""
    _check(arena, rule)


@pytest.mark.parametrize("arena", ["postgresql"], indirect=True)
@pytest.mark.parametrize("rule", MANY_WRITERS, ids=lambda rule: rule.says)
def test_rule_of_many_writers(arena: Arena, rule: Rule) -> None:
    """On other databases a transaction writes while another one that has written is suspended."""
    _check(arena, rule)


# Random programs

WEIGHTS: Final[dict[Mode, int]] = {
    "REQUIRED": 3,
    "NESTED": 2,
    "REQUIRES_NEW": 3,
    "NOT_SUPPORTED": 2,
    "SUPPORTS": 1,
    "NEVER": 1,
    "MANDATORY": 1,
}

T = TypeVar("T")


def weighted(*choices: tuple[int, st.SearchStrategy[T]]) -> st.SearchStrategy[T]:
    """Draw from one of several strategies, some more often than others. The simplest comes first."""
    sack = [strategy for weight, strategy in choices for _ in range(weight)]
    return st.sampled_from(range(len(sack))).flatmap(lambda place: sack[place])


@cache
def bodies(depth: int, *, active: bool) -> st.SearchStrategy[Program]:
    """Draw what is in a block.

    Args:
        depth: How many blocks may be inside one another in it.
        active: Whether a transaction is active there. Where none is, an error of the database would spoil the session,
            which is its user's own affair: nothing is broken there, and nothing is flushed, for a flush fails worse.
    """
    yes_or_no = st.booleans()
    inserts = st.builds(Insert, st.just(0), by_flush=yes_or_no if active else st.just(value=False))
    breaks = st.builds(Break, by_flush=yes_or_no)
    hooks: st.SearchStrategy[Hook] = st.sampled_from((OnCommit(0), OnRollback(0)))
    raises = st.builds(Raise, kept=yes_or_no)
    rollbacks_only = st.just(RollbackOnly())

    inner: list[tuple[int, st.SearchStrategy[Operation]]] = []
    if depth:
        savepoints = st.builds(Savepoint, bodies(depth - 1 if active else 0, active=True))
        inner = [(2, savepoints), (4, blocks(depth, active=active))]

    # An error that nobody swallows ends the story: most are swallowed.
    statements: list[tuple[int, st.SearchStrategy[Operation]]] = [(4, inserts), (1, raises)]
    swallowable: list[tuple[int, st.SearchStrategy[Operation]]] = [(1, inserts), *inner]
    if active:
        statements += [(4, hooks), (2, rollbacks_only), (1, breaks)]
        swallowable += [(2, breaks)]
    else:
        swallowable += [(1, hooks), (1, rollbacks_only)]

    swallowed: st.SearchStrategy[Operation] = weighted(*swallowable).map(Swallowed)
    operations = weighted(*statements, *inner, (14, swallowed))
    return st.lists(operations, min_size=min(depth, 1), max_size=4).map(tuple)


@cache
def blocks(depth: int, *, active: bool) -> st.SearchStrategy[Block]:
    """Draw a block of any mode."""
    choices = []
    for mode, weight in WEIGHTS.items():
        step = FIRST_STEPS[mode][0 if active else 1]
        is_run = step not in ("refuse", "forbid")
        body = bodies(depth - 1 if is_run else 0, active="without" not in step)
        choices.append((weight, st.builds(Block, st.just(mode), body, keeps=st.booleans(), decorated=st.booleans())))
    return weighted(*choices)


def numbered(program: Program) -> Program:
    """Give each row and each hook a number of its own."""
    numbers = count(1)

    def number(operation: Operation) -> Operation:
        match operation:
            case Insert():
                return replace(operation, row=next(numbers))
            case OnCommit() | OnRollback():
                return replace(operation, number=next(numbers))
            case Swallowed():
                return Swallowed(number(operation.operation))
            case Savepoint() | Block():
                return replace(operation, body=tuple(map(number, operation.body)))
            case _:
                return operation

    return tuple(map(number, program))


def programs() -> st.SearchStrategy[Program]:
    """Draw blocks after one another, which are up to four deep."""
    outermost = blocks(4, active=False)
    operations: st.SearchStrategy[Operation] = weighted((1, outermost), (2, outermost.map(Swallowed)))
    return st.lists(operations, min_size=1, max_size=3).map(tuple).map(numbered)


@pytest.mark.usefixtures("unmeasured")
@settings(
    max_examples=PROGRAMS,
    derandomize=False,
    database=None,
    deadline=None,
    print_blob=True,
    # Without the phase that explains: it would name lines of SQLAlchemy.
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(program=programs())
def test_random_programs(arena: Arena, program: Program) -> None:
    """Whatever blocks are put inside one another, and whatever fails in them, ends as the rules say."""
    really, by_the_rules = arena.really(program), arena.by_the_rules(program)

    note(f"{really}\n{by_the_rules}")
    assert really == by_the_rules
