from __future__ import annotations

import pytest

from flask_uow._core.ledger import Ledger


def ledger_of(*entries: str) -> Ledger[str]:
    ledger: Ledger[str] = Ledger()
    for entry in entries:
        ledger.add(entry)
    return ledger


def test_entries_stay_in_order() -> None:
    """Entries are read in the order in which they were written."""
    ledger = ledger_of("b", "a", "b")

    entries = list(ledger)

    assert entries == ["b", "a", "b"]
    assert len(ledger) == 3


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([], ["c"]), (["a", "b"], []), (["a"], ["b", "c"]), (["a", "a"], ["a", "a"])]
)
def test_forget_since_a_mark(before: list[str], after: list[str]) -> None:
    """Cutting back to a mark keeps what was there before it, and returns the rest in order."""
    ledger = ledger_of(*before)
    mark = ledger.mark()
    for entry in after:
        ledger.add(entry)

    forgotten = ledger.forget_since(mark)

    assert forgotten == after
    assert list(ledger) == before


def test_writing_while_reading() -> None:
    """What is written while somebody reads is read too."""
    ledger = ledger_of("first")
    read = []

    for entry in ledger:
        read.append(entry)
        if entry == "first":
            ledger.add("second")

    assert read == ["first", "second"]
