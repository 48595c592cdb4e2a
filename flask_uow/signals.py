"""The signals, and the one place that sends them.

The sender is the Flask application, or the UnitOfWork outside one. Each signal's keyword arguments are listed in
``docs/reference/signals.md``. Accept ``**extra`` in a receiver: later versions may send more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from inspect import iscoroutinefunction
from typing import Any, Final

from blinker import NamedSignal, Namespace, Signal

from flask_uow._core.events import (
    AfterCommit,
    AfterRollback,
    BeforeCommit,
    Completed,
    Event,
    Observer,
    Removed,
    Retried,
    Started,
)
from flask_uow._core.journal import Journal
from flask_uow._core.tracking import listen_to_writes

__all__ = [
    "Publisher",
    "after_commit",
    "after_rollback",
    "before_commit",
    "session_removed",
    "transaction_completed",
    "transaction_retried",
    "transaction_started",
]

logger = logging.getLogger("flask_uow.signals")

_namespace: Final = Namespace()

transaction_started = _namespace.signal("transaction-started", "An outermost transaction began: transaction.")
before_commit = _namespace.signal(
    "before-commit", "Flushed, about to COMMIT; raising is a veto: transaction, session, changes."
)
after_commit = _namespace.signal("after-commit", "COMMIT has returned: transaction, changes.")
after_rollback = _namespace.signal("after-rollback", "Rolled back, for whatever reason: transaction, error, changes.")
transaction_retried = _namespace.signal(
    "transaction-retried", "An attempt failed and another follows: transaction, error, attempt, delay."
)
transaction_completed = _namespace.signal(
    "transaction-completed", "Always last, once: transaction, outcome, error, duration."
)
session_removed = _namespace.signal("session-removed", "Teardown closed a session: session.")

_SIGNALS: Final[dict[type[Event], NamedSignal]] = {
    Started: transaction_started,
    BeforeCommit: before_commit,
    AfterCommit: after_commit,
    AfterRollback: after_rollback,
    Retried: transaction_retried,
    Completed: transaction_completed,
    Removed: session_removed,
}


_LISTENED_TO: Final[set[Signal]] = set()
"""The signals that have had a receiver. Most programs have none."""


def _note(signal: Signal, **_extra: object) -> None:
    _LISTENED_TO.add(signal)


def _listen_for_receivers() -> None:
    for signal in _SIGNALS.values():
        signal.receiver_connected.connect(_note)


_listen_for_receivers()


_AUDIENCE: Final = {kind: signal.receivers for kind, signal in _SIGNALS.items()}
"""Who may listen to an event, whoever sends it. blinker keeps these dicts, and fills and empties them."""


def _prepare(_signal: object, **_extra: object) -> None:
    """Prepare to follow changes, as soon as anybody may want to know of them."""
    listen_to_writes()


# Receivers are connected while there are no requests yet, mostly.
before_commit.receiver_connected.connect(_prepare)
after_commit.receiver_connected.connect(_prepare)
after_rollback.receiver_connected.connect(_prepare)

_ARGUMENTS: Final = {kind: tuple(field.name for field in fields(kind)) for kind in _SIGNALS}

Synchronise = Callable[[Callable[..., Any]], Callable[..., Any]]


def _no_loop(receiver: Callable[..., Any]) -> Callable[..., Any]:
    raise RuntimeError(
        f"The receiver {receiver!r} is a coroutine function, and outside Flask there is no loop to run it in."
    )


class Publisher:
    """Sends events as signals, in the name of one sender.

    Args:
        sender: The Flask application, or the UnitOfWork outside one.
        synchronise: Makes a plain function of a coroutine function, like ``app.ensure_sync()``.
        journal: Says what a message in the log is about.
        observers: Who is told beside the signals, before them, and of more: tests. There can be others later.
    """

    __slots__ = ("_journal", "_sender", "_synchronise", "audience", "observers")

    def __init__(
        self,
        sender: object,
        synchronise: Synchronise = _no_loop,
        *,
        journal: Journal,
        observers: Collection[Observer] = (),
    ) -> None:
        self._journal = journal
        self._sender = sender
        self._synchronise = synchronise
        self.audience: Mapping[type[Event], Collection[Any]] = _AUDIENCE
        self.observers = observers

    def wants(self, kind: type[Event], /) -> bool:
        """Whether the signal has any receiver that would be called for this sender, or anybody observes such events."""
        signal = _SIGNALS.get(kind)
        if signal is not None and signal.receivers and signal.has_receivers_for(self._sender):
            return True
        return bool(self.observers) and any(observer.wants(kind) for observer in tuple(self.observers))

    def wants_changes(self) -> bool:
        """Whether anybody listens to an event that has changes. It is asked when a transaction begins."""
        if self.observers or _LISTENED_TO:
            return self.wants(BeforeCommit) or self.wants(AfterCommit) or self.wants(AfterRollback)
        return False

    def has_listeners(self) -> bool:
        """Whether any signal has any receiver, or anybody observes."""
        return bool(self.observers) or (bool(_LISTENED_TO) and any(self.audience.values()))

    def __call__(self, event: Event, /) -> None:
        """Send *event* as its signal.

        What a receiver of `before_commit` raises is a veto, and goes on. After the fact there is nothing to veto:
        the others are called all the same, and what is raised is logged.
        """
        for observer in tuple(self.observers) if self.observers else ():
            if observer.wants(type(event)):
                observer(event)
        signal = _SIGNALS.get(type(event))
        if signal is None:
            return
        arguments = {name: getattr(event, name) for name in _ARGUMENTS[type(event)]}

        if signal.is_muted:
            return

        for receiver in signal.receivers_for(self._sender):
            try:
                function = self._synchronise(receiver) if iscoroutinefunction(receiver) else receiver
                function(self._sender, **arguments)
            except Exception:
                if signal is before_commit:
                    raise
                logger.exception(
                    "A receiver of the signal %s failed: %r",
                    signal.name.replace("-", "_"),
                    receiver,
                    extra=self._journal.about(getattr(event, "transaction", None)),
                )
