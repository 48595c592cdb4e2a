"""What is in a session that nobody has settled, and how that is told."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from reprlib import Repr
from textwrap import shorten
from typing import Any, Final

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Session, SessionTransaction

from flask_uow._core.journal import Journal
from flask_uow.errors import UncommittedChangesError

__all__ = ["Leftovers", "find_leftovers", "is_failure", "tell_of_leftovers", "transactions"]

logger = logging.getLogger("flask_uow.uncommitted")

_MOST: Final = 5
"""How many objects are named; of the others it is said how many they are."""

_LONGEST: Final = 100
"""In characters, of what is said of one object."""

_keys: Final = Repr()
_keys.maxstring = _keys.maxother = _keys.maxlong = 50

_State = InstanceState[Any]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """What a rollback loses, in words, with the number of those that are not named."""

    objects: tuple[str, ...]
    more: int = 0


def find_leftovers(session: Session, statement: str | None) -> Leftovers | None:
    """Return what *session* has written since it began, and what its next flush would write, or None for nothing.

    Args:
        session: The session. It is not flushed, and nothing is loaded.
        statement: The first that has written something in it, if one is known.
    """
    root = session.get_transaction()
    # After a flush that has failed there is nothing to keep.
    if root is None or not root.is_active:
        return None
    # The common case, and at each teardown.
    nothing_flushed = statement is None and not root._new and not root._deleted
    if nothing_flushed and not session._new and not session._deleted and not session.identity_map._modified:
        return None

    found = _found(session, was_written=statement is not None)
    if found:
        named = islice(found.items(), _MOST)
        return Leftovers(tuple(_described(state, what) for state, what in named), max(0, len(found) - _MOST))
    return None if statement is None else Leftovers((f"the statement {shorten(statement[:1000], _LONGEST)}",))


def _found(session: Session, *, was_written: bool) -> dict[_State, str]:
    """Return the states of what was changed, and how that is called."""
    flushed = list(transactions(session))
    new = {state for transaction in flushed for state in transaction._new}
    deleted = {state for transaction in flushed for state in transaction._deleted}
    found: dict[_State, str] = dict.fromkeys(_in_order(new - deleted), "a new ")
    found |= dict.fromkeys(_in_order(deleted - new), "the deletion of ")
    for instance in session.new:
        found.setdefault(inspect(instance), "a new ")
    for instance in session.deleted:
        found[inspect(instance)] = "the deletion of "
    for instance in session.dirty:
        if _is_modified(session, instance):
            found.setdefault(inspect(instance), "")
    if was_written:
        # What was flushed without an UPDATE is here as well.
        for transaction in flushed:
            for state in transaction._dirty:
                found.setdefault(state, "")
    return found


def transactions(session: Session) -> Iterator[SessionTransaction]:
    """Yield the session's transaction and its open savepoints, the innermost first."""
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        yield transaction
        transaction = transaction.parent


def _in_order(states: Collection[_State]) -> list[_State]:
    """Return the states in the order in which their objects were added, as far as that is known."""
    return sorted(states, key=lambda state: state.insert_order or 0)


def _is_modified(session: Session, instance: object) -> bool:
    try:
        return session.is_modified(instance)
    except Exception:  # noqa: BLE001 - the values cannot be compared, and a flush would write them
        return True


def _described(state: _State, what: str) -> str:
    key = ", ".join(map(_keys.repr, _key(state)))
    text = f"{what}{state.class_.__name__}{key and ' '}{key}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _key(state: _State) -> tuple[Any, ...]:
    """Return the primary key, of a new object if it was given one."""
    if state.key is not None:
        key: tuple[Any, ...] = state.key[1]
        return key
    mapper = state.mapper
    values = tuple(state.dict.get(mapper.get_property_by_column(column).key) for column in mapper.primary_key)
    return () if None in values else values


def is_failure(error: BaseException | None) -> bool:
    """Whether what a context has ended with is a failure, after which nobody expects its work to be kept.

    A command of click's ends with an exception as well, which has an *exit_code*.
    """
    if isinstance(error, SystemExit):
        return bool(error.code)
    return error is not None and getattr(error, "exit_code", None) != 0


def tell_of_leftovers(leftovers: Leftovers, block: str | None, journal: Journal, level: int) -> None:
    """Log what is about to be rolled back.

    Args:
        leftovers: That.
        block: The block that has a session of its own, if it is about one.
        journal: Says what a message in the log is about.
        level: Of the message.
    """
    about = journal.about(None, objects=leftovers.objects, more=leftovers.more)
    forgotten = UncommittedChangesError(about["endpoint"], leftovers.objects, leftovers.more, block)
    logger.log(level, "%s", forgotten, extra=about)
