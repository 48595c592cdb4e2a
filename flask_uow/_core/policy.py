"""Decide, from how a block ended, whether its work is kept. Values in, a decision out."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final

from flask_uow._core.options import Options

__all__ = ["COMMIT", "ROLLBACK", "Decision", "Judge", "no_opinion", "on_error", "on_status"]

FIRST_ERROR_STATUS: Final = 400
"""RFC 9110, section 15: 4xx and 5xx are the classes of errors."""


class Decision(Enum):
    """Whether the work is kept."""

    COMMIT = "commit"
    ROLLBACK = "rollback"


# Each access of a member through its class costs more than a dict, before Python 3.12.
COMMIT: Final = Decision.COMMIT
ROLLBACK: Final = Decision.ROLLBACK


Judge = Callable[[BaseException], Decision | None]
"""Somebody outside who knows an exception that the core does not, such as Flask's ``abort()``. None is no opinion."""


def no_opinion(error: BaseException) -> Decision | None:  # noqa: ARG001 - the signature of a Judge
    """Know no exception."""
    return None


def on_error(error: BaseException, options: Options, judge: Judge) -> Decision:
    """Decide for a block that raised.

    The class nearest to the error's own in its method resolution order decides, then *judge*, and then the rule
    that every exception rolls back.
    """
    if options.rollback_for or options.no_rollback_for:
        for cls in type(error).__mro__:
            if cls in options.rollback_for:
                return ROLLBACK
            if cls in options.no_rollback_for:
                return COMMIT

    return judge(error) or ROLLBACK


def on_status(status: int) -> Decision:
    """Decide for a response, by its status code: errors roll back."""
    return ROLLBACK if status >= FIRST_ERROR_STATUS else COMMIT
