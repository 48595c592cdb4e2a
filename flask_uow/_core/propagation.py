"""How a block relates to the transaction that is active when it starts: a table."""

from __future__ import annotations

from enum import Enum
from typing import Final

from flask_uow.errors import TransactionRequiredError

__all__ = ["AVAILABLE", "Propagation", "Step", "decide"]


class Propagation(Enum):
    """What a block asks of its surroundings.

    The terms are those of Jakarta Transactions and Spring.
    """

    REQUIRED = "required"
    """Join the active transaction, or begin one. The default."""

    NESTED = "nested"
    """Be a savepoint in the active transaction, or begin one."""

    REQUIRES_NEW = "requires_new"
    """Begin another transaction, on a session of its own. Not available yet."""

    MANDATORY = "mandatory"
    """Join the active transaction; it is an error if there is none."""

    SUPPORTS = "supports"
    """Join the active transaction, or run without one. Not available yet."""

    NOT_SUPPORTED = "not_supported"
    """Run without a transaction. Not available yet."""

    NEVER = "never"
    """Run without a transaction; it is an error if there is one. Not available yet."""


class Step(Enum):
    """What a block does first."""

    BEGIN = "begin"
    JOIN = "join"
    NEST = "nest"
    REFUSE = "refuse"


_WHEN_ACTIVE: Final = {
    Propagation.REQUIRED: Step.JOIN,
    Propagation.NESTED: Step.NEST,
    Propagation.MANDATORY: Step.JOIN,
}

_WHEN_NONE: Final = {
    Propagation.REQUIRED: Step.BEGIN,
    Propagation.NESTED: Step.BEGIN,
    Propagation.MANDATORY: Step.REFUSE,
}

AVAILABLE: Final = tuple(_WHEN_ACTIVE)
"""The modes that this version carries out. What is missing from the table is refused when it is asked for."""


def decide(propagation: Propagation, *, active: bool, wanted_by: str) -> Step:
    """Return the first step of a block.

    Args:
        propagation: What the block asks for.
        active: Whether a transaction is active.
        wanted_by: The block, for the message.

    Raises:
        TransactionRequiredError: *propagation* needs a transaction, and none is active.
    """
    step = (_WHEN_ACTIVE if active else _WHEN_NONE)[propagation]

    if step is Step.REFUSE:
        raise TransactionRequiredError(wanted_by)

    return step
