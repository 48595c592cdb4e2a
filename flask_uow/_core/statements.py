"""What a statement changes that goes through the session, and past its objects."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import CursorResult, Delete, Insert, LambdaElement, TextClause, TextualSelect, Update
from sqlalchemy.orm import FromStatement

from flask_uow._core.changes import BulkChange, Operation

__all__ = ["Described", "bulk_change", "described"]


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
            table: Any = statement.table
            return operation, getattr(table, "fullname", None) or getattr(table, "name", None)
    if isinstance(statement, TextClause):
        found = _TEXT.match(_LITERAL.sub("''", statement.text))
        if found is not None:
            name = found["table"]
            return _WORDS[found["word"].upper()], name and re.sub(r'["`\[\]]', "", name)
    return None


def bulk_change(what: Described, statement: object, result: object) -> BulkChange | None:
    """Return what a statement has changed, or None if it has touched no row.

    Args:
        what: What it does.
        statement: What the session was given.
        result: What it has returned.
    """
    # The result of an ORM statement with RETURNING has the cursor's inside.
    cursor = result if isinstance(result, CursorResult) else getattr(result, "raw", None)
    rowcount = _rowcount(cursor)
    if rowcount == 0:
        return None
    sent = getattr(getattr(cursor, "context", None), "statement", None)
    return BulkChange(*what, rowcount, str(statement) if sent is None else str(sent))


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

_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")

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
