"""How a block relates to the transaction that is active when it starts: a table."""

from __future__ import annotations

from enum import Enum
from typing import Final

from flask_uow.errors import TransactionForbiddenError, TransactionRequiredError

__all__ = ["Propagation", "Step", "can_begin", "can_have", "decide"]


class Propagation(Enum):
    """What a block asks of its surroundings.

    The terms are those of Jakarta Transactions and Spring.
    """

    REQUIRED = "required"
    """Join the active transaction, or begin one. The default."""

    NESTED = "nested"
    """Be a savepoint in the active transaction, or begin one."""

    REQUIRES_NEW = "requires_new"
    """Begin a transaction; an active one is suspended meanwhile."""

    MANDATORY = "mandatory"
    """Join the active transaction; it is an error if there is none."""

    SUPPORTS = "supports"
    """Join the active transaction, or run without one."""

    NOT_SUPPORTED = "not_supported"
    """Run without a transaction; an active one is suspended meanwhile."""

    NEVER = "never"
    """Run without a transaction; it is an error if there is one."""


class Step(Enum):
    """What a block does first."""

    JOIN = "join"
    NEST = "savepoint"
    BEGIN = "begin"
    BEGIN_ANOTHER = "suspend and begin"
    STEP_OUT = "suspend and run without"
    STAY_OUT = "run without"
    REQUIRE = "TransactionRequiredError"
    FORBID = "TransactionForbiddenError"


_WHEN_ACTIVE: Final = {
    Propagation.REQUIRED: Step.JOIN,
    Propagation.NESTED: Step.NEST,
    Propagation.REQUIRES_NEW: Step.BEGIN_ANOTHER,
    Propagation.MANDATORY: Step.JOIN,
    Propagation.SUPPORTS: Step.JOIN,
    Propagation.NOT_SUPPORTED: Step.STEP_OUT,
    Propagation.NEVER: Step.FORBID,
}

_WHEN_NONE: Final = {
    Propagation.REQUIRED: Step.BEGIN,
    Propagation.NESTED: Step.BEGIN,
    Propagation.REQUIRES_NEW: Step.BEGIN,
    Propagation.MANDATORY: Step.REQUIRE,
    Propagation.SUPPORTS: Step.STAY_OUT,
    Propagation.NOT_SUPPORTED: Step.STAY_OUT,
    Propagation.NEVER: Step.STAY_OUT,
}

_WITH: Final = frozenset({Step.JOIN, Step.NEST, Step.BEGIN, Step.BEGIN_ANOTHER})
"""The steps after which a block is in a transaction."""


def can_begin(propagation: Propagation) -> bool:
    """Whether a block begins a transaction where there is none."""
    return _WHEN_NONE[propagation] is Step.BEGIN


def can_have(propagation: Propagation) -> bool:
    """Whether a block is ever in a transaction."""
    return _WHEN_ACTIVE[propagation] in _WITH or _WHEN_NONE[propagation] in _WITH


def decide(propagation: Propagation, *, active: str | None, wanted_by: str) -> Step:
    """Return the first step of a block.

    Args:
        propagation: What the block asks for.
        active: The transaction that is active, for the message; None where none is.
        wanted_by: The block, for the message.

    Raises:
        TransactionRequiredError: *propagation* needs a transaction, and none is active.
        TransactionForbiddenError: *propagation* forbids a transaction, and one is active.
    """
    step = (_WHEN_NONE if active is None else _WHEN_ACTIVE)[propagation]

    if step is Step.REQUIRE:
        raise TransactionRequiredError(wanted_by)
    if step is Step.FORBID:
        raise TransactionForbiddenError(wanted_by, str(active))

    return step
