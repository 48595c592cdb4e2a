"""Follow what a session writes: by its flushes, row by row, and by the statements that it executes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Final

from sqlalchemy import Connection, event, inspect
from sqlalchemy.orm import LoaderCallableStatus, Mapper, Session, UOWTransaction
from sqlalchemy.orm.interfaces import EXT_CONTINUE

from flask_uow._core.changes import NO_VALUE, ChangeSet, Entry, Layout, Row
from flask_uow._core.ledger import Ledger
from flask_uow._core.mapping import Link, Plan, Source, State, forget_plans, plan_of
from flask_uow._core.once import once
from flask_uow._core.statements import Described, bulk_changes, connection_of

__all__ = ["Record", "Span", "listen_to_writes", "track", "untrack"]


class _Kind(Enum):
    """What a flush does to one object."""

    INSERT = "insert"
    GIVE_WAY = "give way"
    """Delete it, and let its row be another's, which is inserted in the same flush: SQLAlchemy makes that an UPDATE."""

    REPLACE = "replace"
    """Insert it in the place of such a one."""

    UPDATE = "update"
    DELETE = "delete"
    REMOVE = "remove"
    """Delete one of which all is known, so that its row is made already."""


_INSERT, _GIVE_WAY, _REPLACE, _UPDATE, _DELETE, _REMOVE = _Kind

_Write = tuple[State, Connection, _Kind, Plan, Any, Source]
"""An object, over which connection, what a flush does to it, how its rows are read, and the values that are replaced or
removed, and others that may be. Of one that is removed it is the row."""

_NOTHING: Final[Source] = {}


class Record:
    """What one transaction of a session has changed so far, cut back with the savepoints that are rolled back.

    It holds values alone: no session, and instances only while a flush is running.

    Args:
        about_to_write: Called before anything is written down, so that marks can be taken.
        is_complete: Whether the transaction has written nothing yet.
    """

    __slots__ = (
        "_about_to_write",
        "_flush",
        "_ledger",
        "_made",
        "_may_replace",
        "_writes",
        "_written",
        "is_complete",
        "is_recorded",
    )

    def __init__(self, about_to_write: Callable[[], None], *, is_complete: bool) -> None:
        self.is_complete = is_complete
        self.is_recorded = False
        """Whether the recorders have written it down: with several databases they could be asked more than once."""

        self._written: list[tuple[int, Connection]] = []
        """The connections that were written over, each with a mark from before that."""

        self._about_to_write = about_to_write
        self._ledger: Ledger[Entry] = Ledger()
        self._made: dict[tuple[int, int], ChangeSet] = {}
        """The net changes between two marks, until more is written down."""

        self._flush: UOWTransaction | None = None
        """The flush that is running, or has failed."""

        self._writes: list[_Write] = []
        """What the flush that is running does, in order."""

        self._may_replace: bool | None = None
        """Whether it also deletes objects, whose rows new ones may take over; None is not known yet."""

    def __len__(self) -> int:
        return len(self._ledger)

    def mark(self) -> int:
        """Return a mark for `forget_since` and `changes`."""
        return self._ledger.mark()

    def forget_since(self, mark: int) -> None:
        """Forget what was done in a savepoint that is rolled back, perhaps because a flush has failed in it."""
        self._ledger.forget_since(mark)
        self._written = [(since, connection) for since, connection in self._written if since < mark]
        self._made.clear()
        self.begin_flush(None)

    def begin_flush(self, flush: UOWTransaction | None) -> None:
        """Learn that a flush begins, or that one that has failed is over."""
        self._flush, self._writes, self._may_replace = flush, [], None

    def changes(self, since: int, until: int | None) -> ChangeSet:
        """Return the net change between two marks; None is the end."""
        place = since, len(self._ledger) if until is None else until
        changes = self._made.get(place)
        if changes is None:
            entries = list(self._ledger)[slice(*place)]
            changes = self._made[place] = ChangeSet.of(entries, is_complete=self.is_complete)
        return changes

    def fresh_changes(self) -> ChangeSet:
        """Return the net change of all, in values that nobody else has."""
        return ChangeSet.of(list(self._ledger), is_complete=self.is_complete)

    @property
    def connections(self) -> list[Connection]:
        """The connections that were written over."""
        return list({connection: None for _, connection in self._written})

    def _add(self, entries: Iterable[Entry], connections: Iterable[Connection]) -> None:
        """Write *entries* down, which came over *connections*."""
        self._made.clear()
        self._about_to_write()
        mark = self._ledger.mark()
        self._written.extend((mark, connection) for connection in connections)
        self._ledger.extend(entries)

    # What the mappers tell, of each object before it is written: as little is done as can be, for there may be many

    def inserts(self, mapper: Mapper[Any], connection: Connection, state: State) -> None:
        """Learn that an object will be inserted."""
        if self._may_replace is None:
            # All that it will delete is known before the first INSERT, orphans included.
            flush = self._flush
            self._may_replace = flush is not None and any(is_deletion for is_deletion, _ in flush.states.values())
        plan = plan_of(mapper)
        replaced = self._replaced_by(mapper, state) if self._may_replace else None
        if replaced is None:
            self._writes.append((state, connection, _INSERT, plan, _NOTHING, _NOTHING))
        else:
            its_plan = plan_of(replaced.mapper)
            given = its_plan.deleted(replaced, connection)
            olds = dict.fromkeys(plan.columns, NO_VALUE) | given
            self._writes.append((replaced, connection, _GIVE_WAY, its_plan, given, _NOTHING))
            self._writes.append((state, connection, _REPLACE, plan, olds, _NOTHING))

    def _replaced_by(self, mapper: Mapper[Any], state: State) -> State | None:
        """Return the object that is deleted in the same flush, and whose row SQLAlchemy lets the new one have."""
        flush = self._flush
        assert flush is not None
        existing = flush.session.identity_map.get(mapper.identity_key_from_instance(state.obj()))
        if existing is None:
            return None
        replaced: State = inspect(existing)
        return replaced if flush.is_deleted(replaced) else None  # type: ignore[no-untyped-call]

    def updates(self, mapper: Mapper[Any], connection: Connection, state: State) -> None:
        """Learn that an object will be updated, if anything of it has changed."""
        plan = plan_of(mapper)
        olds: Source = state.committed_state.copy()
        known = _NOTHING
        if plan.volatile:
            plan.add_volatile(olds, state)
        for value in olds.values():
            # What was not loaded; of a relationship it can be another of these.
            if type(value) is LoaderCallableStatus:
                known = plan.learn(olds, state, connection)
                break
        self._writes.append((state, connection, _UPDATE, plan, olds, known))

    def deletes(self, mapper: Mapper[Any], connection: Connection, state: State) -> None:
        """Learn that an object will be deleted."""
        plan = plan_of(mapper)
        if plan.only is not None and not state.committed_state and not plan.copied and not plan.links:
            try:
                row = plan.only[1](state.dict)
            except KeyError:
                # Not all of it is loaded.
                pass
            else:
                self._writes.append((state, connection, _REMOVE, plan, row, _NOTHING))
                return
        self._writes.append((state, connection, _DELETE, plan, plan.deleted(state, connection), _NOTHING))

    # What the session tells, when it has written

    def flushed(self, session: Session, flush: UOWTransaction) -> None:  # noqa: C901, PLR0912 - a call costs as much
        """Write down what a flush has done."""
        writes = self._writes
        self.begin_flush(None)
        # Most are known as they are.
        late = [write for write in writes if write[0].expired_attributes]
        fetched = _fetch(late) if late else {}
        linked: list[tuple[State, Plan, bool]] = []
        entries: list[Entry] = []
        append = entries.append
        for state, _, kind, plan, olds, known in writes:
            only = plan.only
            if kind is _REMOVE and only is not None:
                append((only[0], plan.entity, olds, None))
                continue
            is_removed = kind is _DELETE or kind is _GIVE_WAY
            if plan.links:
                linked.append((state, plan, is_removed))
            if is_removed:
                before: Source | None = olds
                after: Source | None = None if kind is _DELETE else olds
            else:
                now: Source = fetched.get(state, state.dict)
                before, after = None, now
                if kind is _INSERT:
                    after = plan.fresh | now
                elif kind is _UPDATE:
                    before = now | olds
                    if known or not state.committed_state.keys() <= olds.keys():
                        # What was written since we looked is in the committed state alone.
                        before = {**now, **state.committed_state, **known, **olds}
                else:
                    before, after = olds, olds | now
            if plan.copied:
                written = {**olds, **state.committed_state} if kind is _UPDATE else None
                before = None if before is None else plan.detach(before, written)
                after = None if after is None else plan.detach(after, written)
            if only is not None:
                layout, take = only
                try:
                    was = None if before is None else take(before)
                    append((layout, plan.entity, was, None if after is None else take(after)))
                except KeyError:
                    # Not all of it is loaded.
                    pass
                else:
                    continue
            for layout, read in plan.tables:
                was = None if before is None else read(before)
                append((layout, plan.entity, was, None if after is None else read(after)))
        if linked:
            entries.extend((layout, None, was, has) for layout, was, has in _linked(session, flush, linked))
        self._add(entries, {write[1]: None for write in writes})

    def executed(self, what: Described, statement: object, parameters: object, result: object) -> None:
        """Write down what a statement has done."""
        changes = list(bulk_changes(what, statement, parameters, result))
        connection = connection_of(result)
        if changes:
            self._add(changes, () if connection is None else (connection,))

    def close(self) -> None:
        """Let go of what is needed only as long as more can come."""
        self.begin_flush(None)
        self._written.clear()
        self._about_to_write = _mark_nothing


def _mark_nothing() -> None:
    """Stand in for who takes marks, when there is nothing to mark any more."""


class Span:
    """The part of a record that one transaction has written, a savepoint or the outermost.

    Args:
        record: The record.
        since: Where it begins.
    """

    __slots__ = ("_record", "_since", "_until")

    def __init__(self, record: Record, since: int = 0) -> None:
        self._record = record
        self._since = since
        self._until: int | None = None

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return len(self._record) > self._since

    @property
    def connections(self) -> list[Connection]:
        """The connections that the whole transaction was written over."""
        return self._record.connections

    def nested(self) -> Span:
        """Return what a savepoint writes that begins now."""
        return Span(self._record, self._record.mark())

    def changes(self) -> ChangeSet:
        """Return the net change."""
        return self._record.changes(self._since, self._until)

    def end(self) -> None:
        """Let nothing more be in it."""
        self._until = self._record.mark()

    def close(self) -> None:
        """Let nothing more be in the record."""
        self._record.close()

    def forget(self) -> None:
        """Let nothing be in it: it is rolled back."""
        self._record.forget_since(self._since)
        self._until = self._since


def _fetch(writes: Iterable[_Write]) -> dict[State, Source]:
    """Return the values of the objects that the database has given values, and the session has not fetched them."""
    sources: dict[State, Source] = {}
    missing: dict[tuple[Connection, Plan, tuple[str, ...]], list[Source]] = {}
    for state, connection, kind, plan, olds, _ in writes:
        if kind is not _DELETE and kind is not _GIVE_WAY and kind is not _REMOVE:
            keys = plan.missing(state, None if kind is _INSERT else olds)
            if keys:
                sources[state] = olds | state.dict
                missing.setdefault((connection, plan, keys), []).append(sources[state])
    for (connection, plan, keys), incomplete in missing.items():
        plan.fetch(connection, incomplete, keys)
    return sources


def _linked(
    session: Session, flush: UOWTransaction, linked: Iterable[tuple[State, Plan, bool]]
) -> Iterator[tuple[Layout, Row | None, Row | None]]:
    """Yield what a flush has done to the rows of association tables, before and after.

    A relationship and its reverse tell of the same rows.

    Args:
        session: The session.
        flush: The flush.
        linked: Objects that have such relationships, how they are read, and whether they are deleted.
    """
    told: set[tuple[Layout, Row | None, Row | None]] = set()
    for state, plan, is_deletion in linked:
        for link in plan.links:
            for was, now in _rows(link, session, flush, state, is_deletion=is_deletion):
                if (link.layout, was, now) not in told:
                    told.add((link.layout, was, now))
                    yield link.layout, was, now


def _rows(
    link: Link, session: Session, flush: UOWTransaction, state: State, *, is_deletion: bool
) -> Iterator[tuple[Row | None, Row | None]]:
    """Yield the rows that link an object to others, before and after a flush, where they are not the same."""
    # What it was while flushing: the session would load nothing, and say less.
    history = flush.get_attribute_history(state, link.key)  # type: ignore[no-untyped-call]
    come, gone = ((), history.non_added()) if is_deletion else (history.added, history.deleted)
    for child in come or ():
        if _is_in(session, child):
            yield None, link.row(state, child)
    for child in gone or ():
        if _is_in(session, child):
            yield link.row(state, child), None
    if link.follows_keys and not is_deletion:
        for child in history.unchanged or ():
            was, now = link.row(state, child, committed=True), link.row(state, child)
            if was != now:
                yield was, now


def _is_in(session: Session, state: State | None) -> bool:
    """Whether an object is in the session; SQLAlchemy writes no link to others, nor to None."""
    return state is not None and state.obj() in session


# Who is followed

_records: Final[dict[int | None, Record]] = {}
"""By the number that SQLAlchemy gives to a session, which is in the states of its objects as well."""


def track(session: Session, record: Record) -> None:
    """Write down in *record* what *session* does from now on."""
    listen_to_writes()
    _records[session.hash_key] = record


def untrack(session: Session) -> None:
    """Stop following a session."""
    _records.pop(session.hash_key, None)


@once
def listen_to_writes() -> None:
    """Listen to all mappers and sessions, from the first one on that is followed.

    Call it when it is known that somebody will be, before there are requests: SQLAlchemy does not expect that the
    listeners of a class change while others are called. They come first, for one of the user's may raise.
    """
    event.listen(object, "attribute_instrument", forget_plans, propagate=True)
    for name, listener in (
        ("before_insert", _before_insert),
        ("before_update", _before_update),
        ("before_delete", _before_delete),
    ):
        # With a return value SQLAlchemy calls them directly, which is faster.
        event.listen(Mapper, name, listener, raw=True, retval=True, insert=True)
    event.listen(Session, "before_flush", _before_flush, insert=True)
    event.listen(Session, "after_flush", _after_flush, insert=True)


def _before_flush(session: Session, flush: UOWTransaction, _objects: object) -> None:
    record = _records.get(session.hash_key)
    if record is not None:
        record.begin_flush(flush)


def _before_insert(mapper: Mapper[Any], connection: Connection, state: State) -> object:
    record = _records.get(state.session_id)
    if record is not None:
        record.inserts(mapper, connection, state)
    return EXT_CONTINUE


def _before_update(mapper: Mapper[Any], connection: Connection, state: State) -> object:
    record = _records.get(state.session_id)
    if record is not None:
        record.updates(mapper, connection, state)
    return EXT_CONTINUE


def _before_delete(mapper: Mapper[Any], connection: Connection, state: State) -> object:
    record = _records.get(state.session_id)
    if record is not None:
        record.deletes(mapper, connection, state)
    return EXT_CONTINUE


def _after_flush(session: Session, flush: UOWTransaction) -> None:
    record = _records.get(session.hash_key)
    if record is not None:
        record.flushed(session, flush)
