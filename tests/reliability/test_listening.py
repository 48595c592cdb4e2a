"""Random work of a view, once with somebody who listens and once with nobody: what becomes of it is the same.

Where nobody listens, and nothing else is asked of a transaction, there is no object of it. Nobody is to notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, delete, event, insert, select, text
from sqlalchemy.orm import Session

from flask_uow._core.events import Completed, Event, Started
from flask_uow._core.options import Options
from flask_uow._core.policy import COMMIT, ROLLBACK, Decision
from flask_uow._core.propagation import Propagation
from flask_uow._core.runtime import Plan
from flask_uow._core.scope import Scope
from flask_uow.errors import ManualTransactionControlError
from tests.core.conftest import NESTED, Base, Book, Deaf, Events, block, make_runtime, on_commit, on_rollback, source_of
from tests.reliability.programs import PROGRAMS

pytestmark = pytest.mark.filterwarnings("ignore:Session's state has been changed on a non-active transaction")


class Watching(Events):
    """Listens to how transactions begin and end, and does not let them flush before their COMMIT."""

    def wants(self, kind: type[Event], /) -> bool:
        return kind in (Started, Completed)


Story = list[object]
"""What a program has seen, in order."""


class Run:
    """One run of a program: a request's scope, and the session that it keeps."""

    def __init__(self, engine: Engine, notify: Watching | Deaf, plan: Plan) -> None:
        self.story: Story = []
        self.scope = Scope(make_runtime(source_of(engine), notify, manual_commit="allow"), plan)
        self._kept: Session | None = None
        self._number = 0

    @property
    def session(self) -> Session:
        """The session, as a view has it that asks for it once."""
        if self._kept is None:
            self._kept = self.scope.session
        return self._kept

    def title(self) -> str:
        """Return a title that no other book has."""
        self._number += 1
        return f"book {self._number}"

    def do(self, name: str) -> None:
        """Take one step, and note what it raises."""
        try:
            self.story.append((name, STEPS[name](self)))
        except Exception as error:  # noqa: BLE001 - it is a part of the story
            self.story.append((name, type(error).__name__))

    def end(self, decision: Decision, then: Plan | None) -> None:
        """End the planned transaction."""
        try:
            self.scope.settle(decision, None, then)
        except Exception as error:  # noqa: BLE001 - as above
            self.story.append(("settle", type(error).__name__, str(error)))
        self.story.append(("open", self.scope.is_open()))


def _flush(run: Run) -> None:
    run.session.add(Book(title=run.title()))
    run.session.flush()


def _break(run: Run) -> None:
    with suppress(Exception):
        run.session.execute(text("SELECT * FROM nothing"))


def _break_a_flush(run: Run) -> None:
    run.session.add(Book(title="stored"))
    run.session.flush()


def _savepoint(run: Run) -> None:
    with run.session.begin_nested():
        _flush(run)


def _undone_savepoint(run: Run) -> None:
    with suppress(LookupError), run.session.begin_nested():
        _flush(run)
        raise LookupError


def _savepoint_of_the_connection(run: Run) -> None:
    savepoint = run.session.connection().begin_nested()
    run.session.execute(insert(Book).values(title=run.title()))
    savepoint.rollback()


def _block(run: Run) -> None:
    with block(run.scope):
        _flush(run)


def _nested_block(run: Run) -> None:
    with suppress(LookupError), block(run.scope, propagation=NESTED):
        _flush(run)
        raise LookupError


def _failing_block(run: Run) -> None:
    with suppress(LookupError), block(run.scope):
        raise LookupError


def _block_of_its_own(run: Run) -> None:
    with block(run.scope, propagation=Propagation.NOT_SUPPORTED) as session:
        session.scalars(select(Book)).all()


def _look(run: Run) -> str:
    transaction = run.scope.current()
    return "" if transaction is None else f"{transaction.name} {transaction.state} {transaction.depth}"


def _listen(run: Run, name: str) -> None:
    def listen(session: Session, *_: object) -> None:
        run.story.append((name, _look(run)))
        if run.scope._is_committing:
            with suppress(ManualTransactionControlError):
                session.commit()

    event.listen(run.session, name, listen, once=True)


STEPS: Final[dict[str, Callable[[Run], Any]]] = {
    "add": lambda run: run.session.add(Book(title=run.title())),
    "flush": _flush,
    "insert": lambda run: len(run.session.scalars(insert(Book).values(title=run.title()).returning(Book)).all()),
    "read": lambda run: len(run.session.scalars(select(Book)).all()),
    "delete": lambda run: len(run.session.scalars(delete(Book).where(Book.title != "stored").returning(Book.id)).all()),
    "break": _break,
    "break a flush": _break_a_flush,
    "look": _look,
    "only": lambda run: run.scope.active("a test").set_rollback_only(),
    "on_commit": lambda run: on_commit(run.scope, run.story.append, "on_commit"),
    "on_rollback": lambda run: on_rollback(run.scope, lambda error: run.story.append(type(error).__name__)),
    "savepoint": _savepoint,
    "undone savepoint": _undone_savepoint,
    "savepoint of the connection": _savepoint_of_the_connection,
    "block": _block,
    "nested block": _nested_block,
    "failing block": _failing_block,
    "block of its own": _block_of_its_own,
    "commit": lambda run: run.session.commit(),
    "rollback": lambda run: run.session.rollback(),
    "close": lambda run: run.session.close(),
    "invalidate": lambda run: run.session.invalidate(),
    "rollback past us": lambda run: Session.rollback(run.session),
    "commit past us": lambda run: Session.commit(run.session),
    "before_commit": lambda run: _listen(run, "before_commit"),
    "after_commit": lambda run: _listen(run, "after_commit"),
    "after_flush": lambda run: _listen(run, "after_flush"),
    "after_rollback": lambda run: _listen(run, "after_rollback"),
    "open": lambda run: run.scope.session is run.session,
}

PLANS: Final = [Plan(Options(), "index()", by_block=True), Plan(Options(), "the request to 'index'", by_block=False)]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    path: Path = tmp_path_factory.mktemp("listening") / "books.db"
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _hurry(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


def tell(engine: Engine, notify: Watching | Deaf, plan: Plan, views: list[tuple[list[str], Decision]]) -> Story:
    """Run a program, and return what it has seen, and what is stored in the end."""
    with Session(engine) as session, session.begin():
        session.execute(delete(Book))
        session.add(Book(title="stored"))
    run = Run(engine, notify, plan)
    for steps, decision in views:
        for step in steps:
            run.do(step)
        run.end(decision, PLANS[1])
    run.scope.close()
    with Session(engine) as session:
        run.story.append(sorted(session.scalars(select(Book.title))))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool counts
    return run.story


@settings(
    max_examples=PROGRAMS // 4,
    derandomize=False,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.sampled_from(PLANS),
    views=st.lists(
        st.tuples(st.lists(st.sampled_from(sorted(STEPS)), max_size=6), st.sampled_from([COMMIT, COMMIT, ROLLBACK])),
        min_size=1,
        max_size=3,
    ),
)
def test_random_views(engine: Engine, plan: Plan, views: list[tuple[list[str], Decision]]) -> None:
    """Whatever a view does, listeners make no difference to what is raised, told to hooks, and stored."""
    assert tell(engine, Deaf(), plan, views) == tell(engine, Watching(), plan, views)
