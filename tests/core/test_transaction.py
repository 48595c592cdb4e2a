from __future__ import annotations

import re
import weakref
from uuid import UUID

import pytest

from flask_uow._core.options import Options
from flask_uow._core.transaction import Doom, Joined, Outcome, State, Transaction


def transaction(label: str = "transfer()", parent: Transaction | None = None) -> Transaction:
    return Transaction(Options(), label, parent)


def test_id() -> None:
    """Each transaction has an id of its own, which stays."""
    first, second = transaction(), transaction()

    assert UUID(hex=first.id).version == 4
    assert first.id == first.id
    assert first.id != second.id


@pytest.mark.parametrize(("option", "name"), [(None, "transfer()"), ("payday", "payday")])
def test_name(option: str | None, name: str) -> None:
    """It is called what the user called it, or else what the block is."""
    named = Transaction(Options(name=option), "transfer()")

    assert named.name == name


def test_family() -> None:
    """A savepoint knows what encloses it, and how deep it is."""
    outer = transaction()
    middle = transaction(parent=outer)
    inner = transaction(parent=middle)

    assert [member.parent for member in (outer, middle, inner)] == [None, outer, middle]
    assert [member.depth for member in (outer, middle, inner)] == [0, 1, 2]


def test_attempt() -> None:
    """The first attempt is number 1."""
    assert transaction().attempt == 1


def test_info() -> None:
    """The user's dict is the same at each look, and nobody else's."""
    first, second = transaction(), transaction()

    first.info["actor"] = "Ada"

    assert first.info == {"actor": "Ada"}
    assert second.info == {}


def test_states() -> None:
    """It is active, then perhaps doomed, and completed once it has an outcome."""
    subject = transaction()
    states = [subject.state]

    subject._doom_by(Doom("it was late", None))
    states.append(subject.state)
    subject._outcome = Outcome.ROLLED_BACK
    states.append(subject.state)

    assert states == [State.ACTIVE, State.DOOMED, State.COMPLETED]
    assert subject.outcome is Outcome.ROLLED_BACK


@pytest.mark.parametrize("outcome", [None, Outcome.COMMITTED, Outcome.ROLLED_BACK])
def test_outcome_of_a_released_savepoint(outcome: Outcome | None) -> None:
    """A released savepoint ends as what encloses it does."""
    outer = transaction()
    inner = transaction(parent=outer)
    inner._released = True

    outer._outcome = outcome

    assert inner.outcome is outcome
    assert inner.state is State.COMPLETED


def test_first_doom_stays() -> None:
    """The first reason is the one that is told."""
    subject = transaction()
    error = ValueError()

    subject._doom_by(Doom("first", error))
    subject._doom_by(Doom("second", None))

    assert subject._doom is not None
    assert (subject._doom.reason, subject._doom.error) == ("first", error)


def test_no_doom_after_the_end() -> None:
    """What has ended cannot be doomed."""
    subject = transaction()
    subject._outcome = Outcome.COMMITTED

    subject._doom_by(Doom("too late", None))

    assert subject._doom is None


@pytest.mark.parametrize(("blocks", "state"), [([], State.ACTIVE), (["audit()"], State.DOOMED)])
def test_set_rollback_only(blocks: list[str], state: State) -> None:
    """The block that began it rolls back quietly; one that joined it dooms it."""
    subject = transaction()
    subject._blocks = tuple(Joined(label, Options(), None) for label in blocks)

    subject.set_rollback_only()

    assert subject.state is state
    assert subject._rollback_only is not bool(blocks)


def test_duration() -> None:
    """A transaction that never began took no time."""
    subject = transaction()

    assert subject._duration() == 0.0


def test_repr() -> None:
    """It shows its id, its block and how it stands or ended."""
    subject = transaction()
    before = repr(subject)

    subject._outcome = Outcome.COMMITTED

    assert re.fullmatch(r"<Transaction [0-9a-f]{32} of transfer\(\), active>", before)
    assert re.fullmatch(r"<Transaction [0-9a-f]{32} of transfer\(\), committed>", repr(subject))


def test_weak_references() -> None:
    """Subscribers can hold it weakly."""
    subject = transaction()

    reference = weakref.ref(subject)

    assert reference() is subject
