"""What a statement does, by the words that it begins with."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["changes", "defines", "is_control", "only_reads", "writes"]

_QUERIES: Final = frozenset(
    {"SELECT", "WITH", "EXPLAIN", "TABLE", "VALUES", "SHOW", "PRAGMA", "SAVEPOINT", "RELEASE", "ROLLBACK"}
)

_MANIPULATES: Final = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE", "TRUNCATE"})
_DEFINES: Final = frozenset({"CREATE", "ALTER", "DROP"})
_WRITES: Final = _MANIPULATES | _DEFINES
_DEFINES_NOTHING: Final = _QUERIES | _MANIPULATES

_CONTROL: Final = re.compile(r"BEGIN\b|SAVEPOINT\b|RELEASE SAVEPOINT\b|ROLLBACK\b|COMMIT\b|XA ")

_BLANK: Final = re.compile(r"(?:\s|\(|--[^\n]*(?:\n|\Z))*+")
"""What can stand before the first word, and is no comment that has an end of its own."""

_WORD: Final = re.compile(r"\w*")
_EDGE: Final = re.compile(r"/\*|\*/")

_WRITING: Final = r"INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|MERGE\s+INTO"

_LOCKS_OR_WRITES: Final = re.compile(
    rf"\b({_WRITING}|FOR\s+(NO\s+KEY\s+)?(UPDATE|SHARE)|LOCK\s+IN\s+SHARE\s+MODE)\b|"
    r"\b(SET_CONFIG|PG_NOTIFY|PG_(TRY_)?ADVISORY_XACT_LOCK)",
    re.IGNORECASE,
)

_WRITES_WITHIN: Final = re.compile(rf"\b({_WRITING})\b", re.IGNORECASE)

_TEMPORARY: Final = re.compile(r"\w+\s+(\w+\s+){0,3}?TEMP", re.IGNORECASE)

_ROLLS_BACK_DEFINITIONS: Final = ("sqlite", "postgresql", "mssql")
"""Dialects of databases that do not commit before they create or drop something."""


def is_control(statement: str) -> bool:
    """Whether SQLAlchemy or we send *statement* to begin or end something, where the driver has no method for it."""
    return _CONTROL.match(statement) is not None


def only_reads(statement: str) -> bool:
    """Whether *statement* begins like a query; in doubt it does not."""
    return _verbs(statement).issubset(_QUERIES) and _LOCKS_OR_WRITES.search(statement) is None


def writes(statement: str) -> bool:
    """Whether *statement* begins like one that a read-only transaction refuses; in doubt it does."""
    return not _verbs(statement).isdisjoint(_WRITES)


def defines(statement: str) -> bool:
    """Whether *statement* may create, change or drop something; in doubt it does."""
    return not _verbs(statement).issubset(_DEFINES_NOTHING)


def changes(statement: str, dialect: str) -> bool:
    """Whether *statement* changes something for certain that a rollback undoes; in doubt it does not.

    Args:
        statement: The statement.
        dialect: The name of SQLAlchemy's dialect.
    """
    verbs = _verbs(statement)
    if verbs.issubset(_MANIPULATES):
        return True
    if verbs == {"WITH"}:
        return _WRITES_WITHIN.search(statement) is not None
    return (
        dialect in _ROLLS_BACK_DEFINITIONS
        and verbs.issubset(_DEFINES)
        and _TEMPORARY.match(statement, _skip(statement, nests=False)) is None
    )


def _verbs(statement: str) -> set[str]:
    """Return the word that *statement* begins with; two, where that hangs on whether comments nest.

    They do in PostgreSQL and SQL Server, and do not in SQLite, MySQL and Oracle.
    """
    verbs = {_word_at(statement, _skip(statement, nests=False))}
    if "/*" in statement:
        verbs.add(_word_at(statement, _skip(statement, nests=True)))
    return verbs


def _word_at(statement: str, position: int) -> str:
    word = _WORD.match(statement, position)
    return "" if word is None else word[0].upper()


def _skip(statement: str, *, nests: bool) -> int:
    """Return where the first word of *statement* is. It takes time in proportion to what is skipped."""
    position = 0
    while True:
        blank = _BLANK.match(statement, position)
        position = position if blank is None else blank.end()
        if not statement.startswith("/*", position):
            return position
        position = _end_of_comment(statement, position, nests=nests)


def _end_of_comment(statement: str, start: int, *, nests: bool) -> int:
    depth = 0
    for edge in _EDGE.finditer(statement, start):
        if edge[0] == "/*":
            depth = depth + 1 if nests else 1
        else:
            depth -= 1
            if not depth:
                return edge.end()
    return len(statement)
