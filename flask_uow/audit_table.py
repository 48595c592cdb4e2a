"""The table of an audit trail: its columns, what may be written in them, and the values in them as JSON has them."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from hashlib import sha256
from typing import Any, Final, Literal

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
)
from sqlalchemy import Enum as SqlEnum
from sqlalchemy.dialects import mysql

from flask_uow.errors import ConfigurationError

__all__ = ["MASK", "AuditEntry", "Rule", "entry_of", "key_text", "short", "table_in"]

MASK: Final = "***"
"""What stands in the trail for a value that is masked, unless it is null."""

_INFO: Final = "audit"
"""The key in the ``info`` of columns and tables."""

_OURS: Final = "flask_uow.audit"
"""The key in the ``info`` of the trail's own table."""

_LONGEST_NAME: Final = 255

LONGEST_TABLE: Final = 128

LONGEST_STATEMENT: Final = 10_000
"""MySQL's TEXT has 65,535 bytes."""

_LONGEST_KEY: Final = 640
"""With the table's name, as much as MySQL indexes: 3,072 bytes."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One row of an audit trail."""

    id: int
    recorded_at: datetime
    """When, in UTC."""

    transaction_id: str
    """`Transaction.id`."""

    request_id: str | None
    endpoint: str | None
    actor: str | None
    operation: str
    """``"insert"``, ``"update"`` or ``"delete"``."""

    entity: str | None
    """The name of the mapped class."""

    table: str | None
    """The name of the table; None where a textual statement does not say it."""

    primary_key: tuple[Any, ...] | None
    """The row's, or None for a statement that has changed many."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    rowcount: int | None
    """How many rows a statement has changed, or -1 where the driver did not say."""

    statement: str | None
    outcome: Literal["committed", "rolled_back"]
    error: str | None
    """The name of the exception because of which it was rolled back."""


def table_in(metadata: MetaData, name: str) -> Table:
    """Return the table of the trail, which several UnitOfWork objects can share."""
    key = name if metadata.schema is None else f"{metadata.schema}.{name}"
    existing = metadata.tables.get(key)
    if existing is not None:
        if not existing.info.get(_OURS):
            raise ConfigurationError(
                "table_name", f"is {name!r}, and the metadata has another table of that name. Choose another name."
            )
        return existing

    def optional(name: str, kind: Any) -> Column[Any]:
        return Column(name, kind, nullable=True)

    # A null is a null, and no JSON that says so.
    document = JSON(none_as_null=True)
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
        Column(
            "recorded_at",
            DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb"),
            nullable=False,
        ),
        Column("transaction_id", String(32), nullable=False, index=True),
        optional("request_id", String(_LONGEST_NAME)),
        optional("endpoint", String(_LONGEST_NAME)),
        optional("actor", String(_LONGEST_NAME)),
        Column("operation", String(10), nullable=False),
        optional("entity", String(_LONGEST_NAME)),
        optional("table_name", String(LONGEST_TABLE)),
        # As text, which every database compares and indexes.
        optional("primary_key", String(_LONGEST_KEY)),
        optional("before", document),
        optional("after", document),
        optional("rowcount", BigInteger()),
        optional("statement", Text()),
        Column("outcome", String(16), nullable=False),
        optional("error", String(_LONGEST_NAME)),
        Index(None, "table_name", "primary_key"),
        info={_OURS: True},
    )


class Rule:
    """What is written of one table."""

    __slots__ = ("_left_out", "_masked", "_names", "hides_key", "is_left_out", "width")

    def __init__(self, table: Table, *, opt_in: bool) -> None:
        said = table.info.get(_INFO)
        _check(f"The table {table.fullname!r}", said, (True, False, None))
        self.is_left_out = not said if opt_in else said is False
        left_out, masked = [], []
        for column in table.columns:
            of_column = column.info.get(_INFO)
            _check(f"The column {table.fullname}.{column.name}", of_column, (True, False, None, "mask"))
            if of_column is False:
                left_out.append(column.name)
            elif of_column == "mask":
                masked.append(column.name)
        kinds = {column.name: column.type for column in table.columns}
        self._names = {name: _names_of(kind) for name, kind in kinds.items() if isinstance(kind, SqlEnum)}
        """What is stored for the members of an Enum, by the columns that have such."""

        self.width = len(table.columns)
        self._left_out, self._masked = frozenset(left_out), frozenset(masked)
        self.hides_key = any(column.name in self._left_out | self._masked for column in table.primary_key)
        """Whether the primary key is not to be seen either."""

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what may be written of *values*, as JSON has it."""
        return {name: self._told(name, value) for name, value in values.items() if name not in self._left_out}

    def _told(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if name in self._masked:
            return MASK
        if isinstance(value, Enum) and name in self._names:
            return self._names[name].get(value, value.name)
        try:
            return _plain(value)
        except RecursionError:
            return _TOO_DEEP


_TOO_DEEP: Final = "(too deep)"


def _names_of(kind: SqlEnum) -> dict[Enum, str]:
    """Return what SQLAlchemy stores for the members of an Enum: their names, or what ``values_callable`` says."""
    if kind.enum_class is None:
        return {}
    members = list(kind.enum_class)
    if len(kind.enums) != len(members):
        # Aliases have names of their own, if the type is told not to omit them; the first is what is stored.
        members = list(kind.enum_class.__members__.values())
    names: dict[Enum, str] = {}
    for member, name in zip(members, kind.enums, strict=False):
        names.setdefault(member, name)
    return names


def _check(what: str, said: object, allowed: tuple[object, ...]) -> None:
    if not any(said is each or (isinstance(each, str) and said == each) for each in allowed):
        raise ConfigurationError(what, f'has info={{"audit": {said!r}}}; it can be one of {allowed!r}.')


# Values


def short(value: object, longest: int = _LONGEST_NAME) -> str | None:
    """Return a value as a string that fits into a column, or None."""
    return None if value is None else _storable(str(value))[:longest]


def _storable(text: str) -> str:
    """Return *text* without what PostgreSQL refuses: the character NUL, and halves of a surrogate pair."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _plain(value: Any) -> Any:
    """Return *value* as JSON has it; what that has no form for is a string."""
    for kinds, form in _FORMS:
        if isinstance(value, kinds):
            return form(value)
    return _storable(str(value))


def _member(value: Enum) -> Any:
    """Return what a member of an Enum is to a column of another type: its value, if it is a string or a number."""
    return _plain(value.value) if isinstance(value, (int, str)) else value.name


def _key(value: object) -> str:
    """Return the key of a dict as JSON has it."""
    return json.dumps(value) if value is None or isinstance(value, (bool, float)) else _storable(str(value))


_FORMS: Final[tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...]] = (
    (Enum, _member),
    ((type(None), bool, int), lambda value: value),
    (str, _storable),
    (float, lambda value: value if math.isfinite(value) else str(value)),
    ((datetime, date, time), lambda value: value.isoformat()),
    (timedelta, lambda value: value.total_seconds()),
    ((bytes, bytearray, memoryview), lambda value: base64.b64encode(value).decode("ascii")),
    (Mapping, lambda value: {_key(key): _plain(each) for key, each in value.items()}),
    ((list, tuple), lambda value: [_plain(each) for each in value]),
    ((set, frozenset), lambda value: sorted((_plain(each) for each in value), key=str)),
)


def key_text(identity: Iterable[object], *, is_hidden: bool = False) -> str:
    """Return a primary key as text; of one that is not to be seen, or too long for an index, its hash."""
    text = json.dumps([_plain(value) for value in identity], separators=(",", ":"))
    if is_hidden or len(text) > _LONGEST_KEY:
        return json.dumps([f"sha256:{sha256(text.encode()).hexdigest()}"])
    return text


def entry_of(row: Row[Any]) -> AuditEntry:
    """Return a row of the table as it was meant."""
    values = dict(row._mapping)
    recorded_at: datetime = values.pop("recorded_at")
    key: str | None = values.pop("primary_key")
    return AuditEntry(
        # SQLite and MySQL have no time zones, and it was UTC.
        recorded_at=recorded_at if recorded_at.tzinfo else recorded_at.replace(tzinfo=UTC),
        primary_key=None if key is None else tuple(json.loads(key)),
        table=values.pop("table_name"),
        **values,
    )
