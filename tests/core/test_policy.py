from __future__ import annotations

import pytest

from flask_uow._core.options import Options
from flask_uow._core.policy import Decision, no_opinion, on_error, on_status

COMMIT, ROLLBACK = Decision.COMMIT, Decision.ROLLBACK

Classes = tuple[type[BaseException], ...]


@pytest.mark.parametrize(
    ("error", "rollback_for", "no_rollback_for", "decision"),
    [
        (ValueError(), (), (), ROLLBACK),
        (KeyboardInterrupt(), (), (), ROLLBACK),
        (ValueError(), (), (ValueError,), COMMIT),
        (UnicodeError(), (), (ValueError,), COMMIT),
        (KeyError(), (), (ValueError,), ROLLBACK),
        (SystemExit(), (), (SystemExit,), COMMIT),
        (KeyError(), (LookupError,), (Exception,), ROLLBACK),
        (ValueError(), (LookupError,), (Exception,), COMMIT),
        (KeyError(), (Exception,), (LookupError,), COMMIT),
        (KeyError(), (KeyError,), (LookupError,), ROLLBACK),
        (ValueError(), (BaseException,), (Exception,), COMMIT),
        (ExceptionGroup("two", [ValueError()]), (), (ValueError,), ROLLBACK),
    ],
)
def test_nearest_class_decides(
    error: BaseException, rollback_for: Classes, no_rollback_for: Classes, decision: Decision
) -> None:
    """Every exception rolls back, unless the class nearest to it in its MRO is one that does not."""
    options = Options(rollback_for=rollback_for, no_rollback_for=no_rollback_for)

    decided = on_error(error, options, no_opinion)

    assert decided is decision


@pytest.mark.parametrize(
    ("opinion", "options", "decision"),
    [
        (COMMIT, Options(), COMMIT),
        (ROLLBACK, Options(), ROLLBACK),
        (None, Options(), ROLLBACK),
        (COMMIT, Options(rollback_for=(Exception,)), ROLLBACK),
        (ROLLBACK, Options(no_rollback_for=(Exception,)), COMMIT),
    ],
)
def test_judge(opinion: Decision | None, options: Options, decision: Decision) -> None:
    """Somebody outside has a say where the options have none."""
    decided = on_error(ValueError(), options, lambda _: opinion)

    assert decided is decision


@pytest.mark.parametrize(
    ("status", "decision"),
    [(200, COMMIT), (204, COMMIT), (302, COMMIT), (399, COMMIT), (400, ROLLBACK), (404, ROLLBACK), (500, ROLLBACK)],
)
def test_status(status: int, decision: Decision) -> None:
    """A response is kept below 400."""
    decided = on_status(status)

    assert decided is decision
