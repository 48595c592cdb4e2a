"""What a statement changes that goes through the session, and past its objects."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import CursorResult, Delete, Insert, TextClause, Update

from flask_uow._core.changes import BulkChange, Operation

__all__ = ["bulk_change"]


def bulk_change(statement: object, result: object) -> BulkChange | None:
    """Return what *statement* has changed, or None if it is no INSERT, UPDATE or DELETE, or has touched no row.

    Args:
        statement: What the session was given.
        result: What it has returned.
    """
    described = _described(statement)
    if described is None:
        return None
    # The result of an ORM statement with RETURNING has the cursor's inside.
    cursor = result if isinstance(result, CursorResult) else getattr(result, "raw", None)
    rowcount = _rowcount(cursor)
    if rowcount == 0:
        return None
    sent = getattr(getattr(cursor, "context", None), "statement", None)
    operation, table = described
    return BulkChange(operation, table, rowcount, str(statement) if sent is None else str(sent))


def _described(statement: object) -> tuple[Operation, str | None] | None:
    for kind, operation in _KINDS:
        if isinstance(statement, kind):
            table: Any = statement.table
            return operation, getattr(table, "fullname", None) or getattr(table, "name", None)
    if isinstance(statement, TextClause):
        found = _TEXT.match(statement.text)
        if found is not None:
            name = found["table"]
            return _WORDS[found["word"].upper()], name and re.sub(r'["`\[\]]', "", name)
    return None


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

_SKIPPED: Final = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
"""What can stand before and between the words of a statement."""

_TEXT: Final = re.compile(
    rf"""
    {_SKIPPED}*
    (?:WITH\b.*?\)\s*)?
    (?P<word>{"|".join(_WORDS)})\b
    (?:{_SKIPPED}+(?:OR\s+\w+|LOW_PRIORITY|HIGH_PRIORITY|DELAYED|QUICK|IGNORE|INTO|FROM|ONLY|TABLE)\b)*
    {_SKIPPED}*
    (?P<table>(?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\])(?:\.(?:[\w$]+|"[^"]+"|`[^`]+`|\[[^\]]+\]))*)?
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
