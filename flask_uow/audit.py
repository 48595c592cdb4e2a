"""A trail of who has changed what, from what, to what, kept in the transaction that it tells of."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, cast

from flask import has_request_context, request
from sqlalchemy import Connection, Engine, MetaData, Select, Table, and_, false, insert, inspect, or_, select
from sqlalchemy.orm import InstanceState, Mapper

from flask_uow._core.changes import BulkChange, Change, ChangeSet
from flask_uow._core.options import is_plain_function
from flask_uow._core.tracking import listen_to_writes
from flask_uow._core.transaction import Outcome, Transaction
from flask_uow.audit_table import (
    LONGEST_STATEMENT,
    LONGEST_TABLE,
    MASK,
    AuditEntry,
    Rule,
    entry_of,
    key_text,
    short,
    table_in,
)
from flask_uow.errors import ConfigurationError
from flask_uow.extension import UnitOfWork

__all__ = ["MASK", "AuditEntry", "AuditTrail"]

logger = logging.getLogger("flask_uow.audit")

Circumstances = dict[str, Any]
"""What is in all rows of one transaction."""


def _given_request_id() -> str | None:
    return request.headers.get("X-Request-ID")


class AuditTrail:
    """Writes one row for each change into a table, in the same transaction.

    A row is there if and only if its change is committed: it is written when all is flushed, right before COMMIT, and
    if it cannot be written, nothing is committed. `Transaction.changes` has what is written, and the documentation
    what is not seen. A column with ``info={"audit": False}`` is left out, and one with ``info={"audit": "mask"}`` is
    masked; a table with ``info={"audit": False}`` is left out.

    Args:
        uow: The UnitOfWork whose transactions are written down.
        metadata: A ``MetaData``, a declarative base or whatever else has a ``metadata``, or several of them. The table
            is added to the first, where ``create_all()`` and Alembic find it; the models' tables have to be in them.
        actor: Called without arguments in each transaction that has changed something, before its COMMIT. What it
            returns is stored as a string of up to 255 characters; None is nobody.
        request_id: Likewise, in requests alone, for up to 255 characters. By default the header ``X-Request-ID``.
        table_name: The name of the table.
        opt_in: Whether tables are left out that do not have ``info={"audit": True}``.
        independent: Whether what is rolled back is written down as well, in a transaction of its own, as far as it
            was flushed.

    Raises:
        ConfigurationError: An argument cannot be what was meant.
    """

    def __init__(
        self,
        uow: UnitOfWork,
        metadata: Any,
        *,
        actor: Callable[[], object] | None = None,
        request_id: Callable[[], object] = _given_request_id,
        table_name: str = "audit_log",
        opt_in: bool = False,
        independent: bool = False,
    ) -> None:
        if not isinstance(uow, UnitOfWork):
            raise ConfigurationError("uow", f"is {uow!r}; it must be a UnitOfWork.")
        if actor is not None:
            _check_function("actor", actor)
        _check_function("request_id", request_id)

        self._uow = uow
        self._metadata = _all_metadata(metadata)
        self._actor = actor
        self._request_id = request_id
        self._opt_in = opt_in
        self._independent = independent
        self._rules: dict[str, Rule] = {}
        self.table: Table = table_in(self._metadata[0], table_name)
        """The table, for queries of your own."""

        for table in self._every_table():
            # What cannot be understood in them is told now, and not at a commit.
            self._rule(table)
        if any(isinstance(other, AuditTrail) and other.table is self.table for other in uow._recorders):
            raise ConfigurationError(
                "AuditTrail()", f"was called before for {uow!r} and the table {table_name!r}; each row would be twice."
            )
        listen_to_writes()
        uow._recorders.append(self)

    def __repr__(self) -> str:
        return f"<AuditTrail {self.table.fullname!r} of {self._uow!r}>"

    # Writing

    def look(self, transaction: Transaction, /) -> Circumstances:
        """Return who does it, and where; see `Recorder`."""
        try:
            actor = None if self._actor is None else self._actor()
        except Exception as error:
            error.add_note("It was raised by the actor of the audit trail, without whom nothing is committed.")
            raise
        return self._circumstances(transaction, actor)

    def write(
        self,
        changes: ChangeSet,
        seen: Circumstances,
        connect: Callable[[Table], Connection],
        /,
    ) -> None:
        """Write the rows; see `Recorder`."""
        rows = self._rows(changes, seen, Outcome.COMMITTED, None)
        if not changes.is_complete:
            logger.warning(
                "The audit trail may not have all of transaction %s, which had begun before it was looked after",
                seen["transaction_id"],
                extra={"transaction_id": seen["transaction_id"], "endpoint": seen["endpoint"]},
            )
        if rows:
            self._insert(connect(self.table), rows)

    def _insert(self, connection: Connection, rows: list[dict[str, Any]]) -> None:
        for first in range(0, len(rows), _AT_ONCE):
            connection.execute(insert(self.table), rows[first : first + _AT_ONCE])

    def write_lost(
        self,
        transaction: Transaction,
        changes: ChangeSet,
        error: BaseException | None,
        bind: Callable[[Table], Engine | Connection],
        /,
    ) -> None:
        """Write the rows of what was rolled back; see `Recorder`."""
        if not self._independent:
            return
        failure: Exception | None = None
        try:
            seen = self.look(transaction)
        except Exception as failed:  # noqa: BLE001 - raised below, when what is known is stored
            failure, seen = failed, self._circumstances(transaction, None)
        rows = self._rows(changes, seen, Outcome.ROLLED_BACK, error)
        if rows:
            with _transaction_on(bind(self.table)) as connection:
                self._insert(connection, rows)
        if failure is not None:
            raise failure

    def _circumstances(self, transaction: Transaction, actor: object) -> Circumstances:
        in_request = has_request_context()
        return {
            "recorded_at": datetime.now(UTC),
            "transaction_id": transaction.id,
            "request_id": short(self._request_id()) if in_request else None,
            "endpoint": short(request.endpoint) if in_request else None,
            "actor": short(actor),
        }

    def _rows(
        self, changes: ChangeSet, seen: Circumstances, outcome: Outcome, error: BaseException | None
    ) -> list[dict[str, Any]]:
        common = {**seen, "outcome": str(outcome), "error": None if error is None else short(type(error).__name__)}
        return [{**common, **row} for change in changes if (row := self._row(change)) is not None]

    def _row(self, change: Change | BulkChange) -> dict[str, Any] | None:
        """Return what is written of one change, or None if nothing is."""
        if isinstance(change, BulkChange):
            table = None if change.table is None else self._find_like(change.table)
            names_hidden = self._names_what_is_left_out(change.statement)
            if self._is_left_out(table) or (table is None and names_hidden):
                return None
            return {
                **_OF_A_ROW,
                "operation": change.operation,
                "table_name": short(change.table if table is None else table.fullname, LONGEST_TABLE),
                "rowcount": change.rowcount,
                "statement": _WITHHELD if names_hidden else short(change.statement, LONGEST_STATEMENT),
            }
        table = self._find(change.table)
        if self._is_left_out(table):
            return None
        if table is None:
            raise ConfigurationError(
                "metadata",
                f"of the audit trail does not have the table {change.table!r}, which was changed, so that it is "
                "not known what may be written of it. Give AuditTrail all of them: AuditTrail(uow, [Base, another]).",
            )
        rule = self._rule(table)
        before, after = rule.apply(change.before), rule.apply(change.after)
        if not before and not after:
            return None
        return {
            **_OF_A_STATEMENT,
            "operation": change.operation,
            "entity": short(change.entity),
            "table_name": short(change.table, LONGEST_TABLE),
            "primary_key": key_text(change.identity, is_hidden=rule.hides_key),
            "before": None if change.operation == "insert" else before,
            "after": None if change.operation == "delete" else after,
        }

    def _is_left_out(self, table: Table | None) -> bool:
        return self._opt_in if table is None else self._rule(table).is_left_out

    def _rule(self, table: Table) -> Rule:
        """Return what is written of a table."""
        rule = self._rules.get(table.fullname)
        # A mapped class can add columns to the table of another.
        if rule is None or rule.width != len(table.columns):
            rule = self._rules[table.fullname] = Rule(table, opt_in=self._opt_in)
        return rule

    def _find(self, name: str) -> Table | None:
        return next((metadata.tables[name] for metadata in self._metadata if name in metadata.tables), None)

    def _find_like(self, name: str) -> Table | None:
        """Return the table that a statement may mean; it can write the name in other ways."""
        exact = self._find(name)
        if exact is not None:
            return exact
        bare = name.rpartition(".")[2].lower()
        alike = [table for table in self._every_table() if table.name.lower() == bare]
        # Of several that it can be, rather one of which nothing may be written.
        return next(filter(self._is_left_out, alike), alike[0] if alike else None)

    def _names_what_is_left_out(self, statement: str) -> bool:
        text = statement.lower()
        words = set(re.findall(r"\w+", text))
        return any(
            self._is_left_out(table) and (name in words or (re.search(r"\W", name) is not None and name in text))
            for table in self._every_table()
            for name in (table.name.lower(),)
        )

    def _every_table(self) -> Iterator[Table]:
        """Yield the tables of which something is known."""
        for metadata in self._metadata:
            yield from (table for table in metadata.tables.values() if table is not self.table)

    # Reading

    @property
    def tables(self) -> list[str]:
        """The names of the tables whose changes are written, in alphabetical order."""
        return sorted(table.fullname for table in self._every_table() if not self._is_left_out(table))

    def history(self, target: object, identity: object = None) -> list[AuditEntry]:
        """Return what has become of one object, in order: what was committed of the rows that have its primary key.

        Args:
            target: A mapped object; or a mapped class, or the name of a table, whose *identity* is given.
            identity: The primary key, a tuple if it has several columns.

        Returns:
            The entries of its rows, in the order in which they were written. They are read with `UnitOfWork.session`.

        Raises:
            ConfigurationError: *target* is none of these, or has no primary key yet.
            NoScopeError: There is no session.
        """
        keys = _subject(target, identity)
        return self._history({name: self._primary_key_of(name) for name in keys}, keys, None)

    def _history(
        self, tables: Mapping[str, Sequence[str]], keys: Mapping[str, tuple[Any, ...]], until: int | None
    ) -> list[AuditEntry]:
        columns = self.table.c
        rows = (and_(columns.table_name == name, columns.primary_key.in_(_texts_of(key))) for name, key in keys.items())
        query = select(self.table).where(or_(false(), *rows), columns.outcome == str(Outcome.COMMITTED))
        if until is not None:
            query = query.where(columns.id < until)
        entries = self._read(query.order_by(columns.id))
        for entry in reversed(entries):
            before = _key_before(entry, tables)
            if before is not None:
                # It was another row's key until then, and this one had another.
                first = next(place for place, each in enumerate(entries) if each.transaction_id == entry.transaction_id)
                return [*self._history(tables, dict.fromkeys(tables, before), entries[first].id), *entries[first:]]
        return entries

    def _primary_key_of(self, name: str) -> list[str]:
        table = self._find(name)
        return [] if table is None else [column.name for column in table.primary_key]

    def entries(
        self, *, table: str | None = None, keys: Sequence[Sequence[object]] = (), limit: int = 50
    ) -> list[AuditEntry]:
        """Return the last entries, in order.

        Args:
            table: Those of one table alone.
            keys: Those with one of these primary keys alone.
            limit: How many at most.
        """
        columns = self.table.c
        query = select(self.table)
        if table is not None:
            query = query.where(columns.table_name == table)
        if keys:
            query = query.where(columns.primary_key.in_({text for key in keys for text in _texts_of(key)}))
        return self._read(query.order_by(columns.id.desc()).limit(limit))[::-1]

    def _read(self, query: Select[Any]) -> list[AuditEntry]:
        return [entry_of(row) for row in self._uow.session.execute(query)]


_OF_A_ROW: Final = dict.fromkeys(("entity", "primary_key", "before", "after"))
_OF_A_STATEMENT: Final = dict.fromkeys(("rowcount", "statement"))


_WITHHELD: Final = "(withheld: it names a table that is left out)"

_AT_ONCE: Final = 1000
"""Rows in one INSERT."""


def _check_function(name: str, function: object) -> None:
    if not callable(function):
        raise ConfigurationError(name, f"is {function!r}; it must be a function without arguments.")
    if not is_plain_function(function):
        raise ConfigurationError(
            name, f"is the coroutine function {function!r}, which nobody would await. Give it a plain function."
        )


def _all_metadata(given: Any) -> list[MetaData]:
    several = given if isinstance(given, (list, tuple)) else [given]
    found = [each if isinstance(each, MetaData) else getattr(each, "metadata", None) for each in several]
    if not found or not all(isinstance(each, MetaData) for each in found):
        raise ConfigurationError(
            "metadata", f"is {given!r}; it must be a MetaData, a declarative base, or a list of them."
        )
    return cast("list[MetaData]", found)


@contextmanager
def _transaction_on(bind: Engine | Connection) -> Generator[Connection]:
    """Begin a transaction of its own, or where all share a connection, as in a test, a savepoint."""
    if isinstance(bind, Engine):
        with bind.begin() as connection:
            yield connection
    else:
        with bind.begin_nested() if bind.in_transaction() else bind.begin():
            yield bind


def _subject(target: object, identity: Any) -> dict[str, tuple[Any, ...]]:
    """Return the tables that an object has rows in, and the primary key of each.

    Raises:
        ConfigurationError: It is not said which object that is.
    """
    given = inspect(target, raiseerr=False)
    if isinstance(given, InstanceState):
        if given.identity is None:
            raise ConfigurationError(
                "history()", f"was given {target!r}, which has no primary key yet. Flush it first."
            )
        return _keys_of(given)
    if identity is None or (not isinstance(given, Mapper) and not isinstance(target, str)):
        raise ConfigurationError(
            "history()",
            f"was given {target!r}; it takes a mapped object, or a mapped class or the name of a table and a primary "
            "key: history(Book, 1).",
        )
    key = tuple(identity) if isinstance(identity, (list, tuple)) else (identity,)
    if isinstance(given, Mapper):
        # A concrete class has keys of its own.
        mappers = [each for each in given.self_and_descendants if each is given or not each.concrete]
        return {_name(table): key for mapper in mappers for table in mapper.tables}
    return {str(target): key}


def _keys_of(state: InstanceState[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the primary key of each of an object's rows; the mapper's can be another than that of a table."""
    identity = tuple(state.identity or ())
    known = dict(zip((column.key for column in state.mapper.primary_key), identity, strict=True))
    keys = {}
    for table in state.mapper.tables:
        columns = [column for column in table.primary_key if column in state.mapper.c.values()]
        attributes = [state.mapper.get_property_by_column(column).key for column in columns]
        values = [state.dict.get(key, known.get(key)) for key in attributes]
        keys[_name(table)] = tuple(values) if values and None not in values else identity
    return keys


def _name(table: Any) -> str:
    name: str = table.fullname
    return name


def _texts_of(key: Sequence[object]) -> set[str]:
    """Return what a primary key is stored as: when its columns are written, and when they are masked."""
    return {key_text(key), key_text(key, is_hidden=True)}


def _key_before(entry: AuditEntry, tables: Mapping[str, Sequence[str]]) -> tuple[Any, ...] | None:
    """Return the primary key that a row had before an entry has changed it."""
    if entry.operation != "update" or entry.primary_key is None:
        return None
    names, before = tables[str(entry.table)], entry.before or {}
    if not any(name in before for name in names):
        return None
    if len(entry.primary_key) != len(names):
        # It is hidden, or was too long.
        return None
    return tuple(before.get(name, value) for name, value in zip(names, entry.primary_key, strict=True))
