"""What a statement changes that goes through the session, and past its objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    CursorResult,
    Delete,
    Insert,
    LambdaElement,
    TextClause,
    TextualSelect,
    Update,
    inspect,
)
from sqlalchemy.orm import FromStatement, Mapper

from flask_uow._core.changes import BulkChange, Operation

__all__ = ["Described", "bulk_changes", "connection_of", "described"]


Described = tuple[Operation, str | None]
"""What a statement does, and to which table."""


def described(statement: object) -> Described | None:
    """Return what *statement* does, or None if it is no INSERT, UPDATE or DELETE."""
    if isinstance(statement, LambdaElement):
        statement = statement._resolved
    # What is selected from a statement that returns rows.
    if isinstance(statement, (FromStatement, TextualSelect)):
        return described(statement.element)
    for kind, operation in _KINDS:
        if isinstance(statement, kind):
            return operation, _name_of(statement.table)
    if isinstance(statement, TextClause):
        found = _TEXT.match(_NOISE.sub(_without_noise, statement.text))
        if found is not None:
            name = found["table"]
            return _WORDS[found["word"].upper()], name and re.sub(r'["`\[\]]', "", name)
    return None


def _name_of(table: Any) -> str | None:
    # An alias is one of something.
    while hasattr(table, "element"):
        table = table.element
    name: str | None = getattr(table, "fullname", None) or getattr(table, "name", None)
    return name


def bulk_changes(what: Described, statement: Any, parameters: object, result: object) -> Iterator[BulkChange]:
    """Yield what a statement has changed, or nothing if it has touched no row.

    Args:
        what: What it does.
        statement: What the session was given.
        parameters: What it was given with that.
        result: What it has returned.
    """
    mapper = _mapper_of(statement) if isinstance(parameters, (list, tuple)) else None
    # To SQLAlchemy an INSERT with an empty list is one without any.
    if isinstance(parameters, (list, tuple)) and mapper is not None and (parameters or what[0] == "update"):
        yield from _by_rows(what[0], mapper, parameters)
        return

    cursor = _cursor_of(result)
    compiled = getattr(getattr(cursor, "context", None), "compiled", None)
    rowcount = _rowcount(cursor)
    if rowcount == 0 and _TRUNCATE.match(getattr(statement, "text", "")):
        # Some databases do not count them.
        rowcount = -1
    if rowcount != 0:
        # A listener of the user's can have put another statement in its place.
        operation, table = (None if compiled is None else described(compiled.statement)) or what
        sent = str(statement if compiled is None else compiled)
        yield BulkChange(operation, table, rowcount, _EXPANDING.sub("...", sent))


def _mapper_of(statement: object) -> Mapper[Any] | None:
    """Return the mapper of an ORM statement that is carried out row by row, in each of the tables."""
    if not isinstance(statement, (Insert, Update)):
        return None
    entity: object = statement.entity_description.get("entity")
    return None if entity is None else inspect(entity).mapper


def _by_rows(operation: Operation, mapper: Mapper[Any], parameters: Sequence[Any]) -> Iterator[BulkChange]:
    """Yield what an ORM statement has done that was given sets of parameters: one statement for each table."""
    written = {key for each in parameters for key in each}
    for table in mapper.tables:
        keys = {mapper.get_property_by_column(column).key for column in table.columns if column in mapper.c.values()}
        columns = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
        if operation == "insert" or keys & (written - columns):
            name = _name_of(table)
            yield BulkChange(
                operation,
                name,
                len(parameters) if operation == "insert" else -1,
                f"{operation.upper()} of {name} by {len(parameters)} sets of parameters",
            )


def _cursor_of(result: object) -> Any:
    """Return the cursor's own result, which one of an ORM statement with RETURNING has inside."""
    return result if isinstance(result, CursorResult) else getattr(result, "raw", None)


def connection_of(result: object) -> Connection | None:
    """Return the connection that a statement was executed on, where its result says so."""
    return getattr(_cursor_of(result), "connection", None)


def _rowcount(cursor: Any) -> int:
    rowcount = getattr(cursor, "rowcount", -1)
    # One that returns rows may not know before they have been fetched.
    known = isinstance(rowcount, int) and (rowcount > 0 or (rowcount == 0 and not cursor.returns_rows))
    return rowcount if known else -1


_KINDS: Final[tuple[tuple[type[Insert | Update | Delete], Operation], ...]] = (
    (Insert, "insert"),
    (Update, "update"),
    (Delete, "delete"),
)

_WORDS: Final[dict[str, Operation]] = {
    "INSERT": "insert",
    "REPLACE": "insert",
    "UPDATE": "update",
    "MERGE": "update",
    "DELETE": "delete",
    "TRUNCATE": "delete",
}

_NOISE: Final = re.compile(r"('(?:[^']|'')*')|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/")
"""Literals, comments, and quoted names, in which neither of these is one."""


def _without_noise(found: re.Match[str]) -> str:
    if found[1] is not None:
        return "''"
    return " " if found[0].startswith(("--", "/*")) else found[0]


_NAME: Final = r'(?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\])'

_TEXT: Final = re.compile(
    rf"""
    \s*
    (?:WITH\b.*?\)\s*)?
    (?P<word>{"|".join(_WORDS)})\b
    (?:\s+(?:OR\s+\w+|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|QUICK|IGNORE|INTO|FROM|ONLY|TABLE)\b)*
    \s*
    (?P<table>{_NAME}(?:\s*\.\s*{_NAME})*)?
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)

_TRUNCATE: Final = re.compile(r"\s*TRUNCATE\b", re.IGNORECASE)

_EXPANDING: Final = re.compile(r"__\[POSTCOMPILE_[^\]]*\]")
"""What SQLAlchemy has for parameters that are written into the SQL when it is sent, such as those of IN."""
