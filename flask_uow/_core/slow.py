"""What is said of a transaction that took too long."""

from __future__ import annotations

import logging
from time import perf_counter

from flask_uow._core.journal import Journal
from flask_uow._core.stopwatch import Stopwatch
from flask_uow._core.transaction import Outcome, Transaction

__all__ = ["tell_if_slow"]

logger = logging.getLogger("flask_uow.slow")


def tell_if_slow(
    transaction: Transaction, outcome: Outcome, stopwatch: Stopwatch, limit: float, journal: Journal
) -> None:
    """Log a transaction that has just ended, if it took longer than *limit*.

    Args:
        transaction: The transaction.
        outcome: How it has ended.
        stopwatch: What was measured.
        limit: In seconds.
        journal: Says what a message in the log is about.
    """
    stopwatch.stop()
    held = perf_counter() - stopwatch.began
    # The session can have begun before the transaction did, and be used without asking for it.
    duration = max(held, transaction._duration())
    if duration <= limit:
        return

    outside = max(0.0, duration - stopwatch.in_database)
    about = journal.about(
        transaction,
        transaction_name=transaction.name,
        outcome=str(outcome),
        duration=duration,
        statements=stopwatch.statements,
        time_in_database=stopwatch.in_database,
        time_outside=outside,
        time_held=held,
    )
    endpoint = about["endpoint"]
    logger.warning(
        "The transaction of %s (%s) took %.3f s until its end (%s), which is more than %g s: %.3f s in the database, "
        "for %d statements, and %.3f s outside it. It has held its connection for %.3f s. Do what needs no transaction "
        "before its first statement, or after the commit: give it to on_commit().",
        transaction.name,
        "outside any request" if endpoint is None else f"endpoint {endpoint!r}",
        duration,
        outcome.replace("_", " "),
        limit,
        stopwatch.in_database,
        stopwatch.statements,
        outside,
        held,
        extra=about,
    )
