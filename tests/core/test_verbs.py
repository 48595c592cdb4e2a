from __future__ import annotations

from time import perf_counter

import pytest

from flask_uow._core.verbs import changes, defines, is_control, only_reads, writes


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        ("select 1", True),
        (" SELECT 1", True),
        ("WITH n AS (SELECT 1) SELECT * FROM n", True),
        ("WITH gone AS (DELETE FROM book RETURNING id) SELECT * FROM gone", False),
        ("", False),
        ("  ", False),
        ("/* why */ SELECT 1", True),
        ("-- why\n(SELECT 1) UNION (SELECT 2)", True),
        ("TABLE book", True),
        ("EXPLAIN SELECT 1", True),
        ("EXPLAIN ANALYZE DELETE FROM book", False),
        ("SET search_path = tenant", False),
        ("CREATE TABLE other (id INTEGER)", False),
        ("CALL transfer()", False),
    ],
)
def test_what_only_reads(statement: str, reads: bool) -> None:
    """A statement that does not begin like a query counts as a change: nothing is thrown away in doubt."""
    assert only_reads(statement) is reads


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("INSERT INTO book DEFAULT VALUES", True),
        ("  -- why\n delete from book", True),
        ("/* a */ /* b */ update book SET id = 1", True),
        ("/* /* a */ b */ DELETE FROM book", True),
        ("/* /* a */ DELETE FROM book", True),
        ("CREATE TABLE other (id INTEGER)", True),
        ("SELECT 1", False),
        ("inserted", False),
        ("/* DELETE", False),
        ("-- DELETE", False),
        ("", False),
    ],
)
def test_what_is_refused(statement: str, expected: bool) -> None:
    """What begins like a change is refused in a read-only transaction, whether or not comments nest."""
    assert writes(statement) is expected


@pytest.mark.parametrize(
    ("statement", "dialect", "expected"),
    [
        ("INSERT INTO book DEFAULT VALUES", "mysql", True),
        ("WITH old AS (SELECT 1) DELETE FROM book", "postgresql", True),
        ("WITH old AS (SELECT 1) SELECT * FROM old", "postgresql", False),
        ("CREATE TABLE other (id INTEGER)", "sqlite", True),
        ("CREATE TEMPORARY TABLE other (id INTEGER)", "sqlite", False),
        ("CREATE TABLE other (id INTEGER)", "mysql", False),
        ("/* /* a */ DELETE FROM book", "sqlite", False),
        ("SET search_path = tenant", "postgresql", False),
        ("SELECT 1", "sqlite", False),
    ],
)
def test_what_changes_for_certain(statement: str, dialect: str, expected: bool) -> None:
    """What would be lost by a rollback is told if it is certain."""
    assert changes(statement, dialect) is expected


@pytest.mark.parametrize("statement", ["BEGIN", "BEGIN IMMEDIATE", "SAVEPOINT a", "RELEASE SAVEPOINT a", "XA END 'a'"])
def test_what_begins_and_ends(statement: str) -> None:
    """What begins and ends transactions and savepoints does nothing else."""
    assert is_control(statement)
    assert not is_control(f"SELECT '{statement}'")


@pytest.mark.parametrize("noise", ["/* a */ ", "-- a\n", "( ", "/* /* ", "*/ /* "])
def test_time_in_proportion(noise: str) -> None:
    """Any number of comments before a statement is skipped in no time."""
    statement = noise * 20_000 + "DELETE FROM book"

    started = perf_counter()
    for function in (only_reads, writes):
        function(statement)

    assert perf_counter() - started < 2


@pytest.mark.parametrize(
    ("statement", "expected"),
    [("ALTER TABLE book ADD x INTEGER", True), ("DO $$ $$", True), ("SELECT 1", False), ("DELETE FROM book", False)],
)
def test_what_defines(statement: str, expected: bool) -> None:
    """What is neither a query nor changes rows may define something."""
    assert defines(statement) is expected
