from __future__ import annotations

import pytest

from flask_uow._core.propagation import Propagation, Step, can_begin, can_have, decide
from flask_uow.errors import TransactionForbiddenError, TransactionRequiredError

# SPEC 4: what a block does where a transaction is active, and where none is.
TABLE = [
    ("REQUIRED", Step.JOIN, Step.BEGIN),
    ("NESTED", Step.NEST, Step.BEGIN),
    ("REQUIRES_NEW", Step.BEGIN_ANOTHER, Step.BEGIN),
    ("MANDATORY", Step.JOIN, TransactionRequiredError),
    ("SUPPORTS", Step.JOIN, Step.STAY_OUT),
    ("NOT_SUPPORTED", Step.STEP_OUT, Step.STAY_OUT),
    ("NEVER", TransactionForbiddenError, Step.STAY_OUT),
]
CELLS = [(mode, active, cell) for mode, *cells in TABLE for active, cell in zip(("a view", None), cells, strict=True)]


@pytest.mark.parametrize(("mode", "active", "step"), [cell for cell in CELLS if isinstance(cell[2], Step)])
def test_first_step(mode: str, active: str | None, step: Step) -> None:
    """A block does what its mode says of where it stands."""
    decided = decide(Propagation[mode], active=active, wanted_by="pay()")

    assert decided is step


def test_mandatory_without_a_transaction() -> None:
    """MANDATORY refuses to run without a transaction, names the block, and says how to get one."""
    with pytest.raises(
        TransactionRequiredError, match=r"^pay\(\) needs an active transaction.*@transactional"
    ) as caught:
        decide(Propagation.MANDATORY, active=None, wanted_by="pay()")

    assert caught.value.wanted_by == "pay()"


def test_never_in_a_transaction() -> None:
    """NEVER refuses to run in a transaction, names both, and says what to do."""
    with pytest.raises(
        TransactionForbiddenError, match=r"^mail\(\) must not run inside a transaction .*that of pay\(\) is.*on_commit"
    ) as caught:
        decide(Propagation.NEVER, active="pay()", wanted_by="mail()")

    assert (caught.value.wanted_by, caught.value.transaction) == ("mail()", "pay()")


def test_the_table_is_whole() -> None:
    """Every mode of Jakarta Transactions is there, and its value is its name in lower case."""
    assert [mode for mode, *_ in TABLE] == [mode.name for mode in Propagation]
    assert all(mode.value == mode.name.lower() for mode in Propagation)


@pytest.mark.parametrize(
    ("mode", "begins", "has"),
    [
        ("REQUIRED", True, True),
        ("NESTED", True, True),
        ("REQUIRES_NEW", True, True),
        ("MANDATORY", False, True),
        ("SUPPORTS", False, True),
        ("NOT_SUPPORTED", False, False),
        ("NEVER", False, False),
    ],
)
def test_what_a_mode_can_come_to(mode: str, begins: bool, has: bool) -> None:
    """A mode tells whether its blocks begin transactions, and whether they are ever in one."""
    assert (can_begin(Propagation[mode]), can_have(Propagation[mode])) == (begins, has)
