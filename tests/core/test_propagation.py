from __future__ import annotations

import pytest

from flask_uow._core.propagation import AVAILABLE, Propagation, Step, decide
from flask_uow.errors import TransactionRequiredError


@pytest.mark.parametrize(
    ("propagation", "active", "step"),
    [
        (Propagation.REQUIRED, True, Step.JOIN),
        (Propagation.REQUIRED, False, Step.BEGIN),
        (Propagation.NESTED, True, Step.NEST),
        (Propagation.NESTED, False, Step.BEGIN),
        (Propagation.MANDATORY, True, Step.JOIN),
    ],
)
def test_first_step(propagation: Propagation, active: bool, step: Step) -> None:
    """A block joins, nests or begins as its propagation says."""
    decided = decide(propagation, active=active, wanted_by="pay()")

    assert decided is step


def test_mandatory_without_a_transaction() -> None:
    """MANDATORY refuses to run without a transaction, names the block, and says how to get one."""
    with pytest.raises(
        TransactionRequiredError, match=r"^pay\(\) needs an active transaction.*@transactional"
    ) as caught:
        decide(Propagation.MANDATORY, active=False, wanted_by="pay()")

    assert caught.value.wanted_by == "pay()"


def test_available_modes() -> None:
    """The modes that can be asked for are those that the table decides."""
    assert AVAILABLE == (Propagation.REQUIRED, Propagation.NESTED, Propagation.MANDATORY)


@pytest.mark.parametrize(
    "name", ["REQUIRED", "NESTED", "REQUIRES_NEW", "MANDATORY", "SUPPORTS", "NOT_SUPPORTED", "NEVER"]
)
def test_members(name: str) -> None:
    """Every mode of Jakarta Transactions has its name, in lower case, as its value."""
    assert Propagation[name].value == name.lower()
