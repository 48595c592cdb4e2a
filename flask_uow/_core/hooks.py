"""Keep and run the callbacks of one transaction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from flask_uow._core.ledger import Ledger
from flask_uow._core.options import is_plain_function, name_of
from flask_uow.errors import ConfigurationError

__all__ = ["Failure", "Hook", "Hooks", "Moment", "check_callback"]


class Moment(Enum):
    """When a hook runs."""

    COMMIT = "on_commit"
    ROLLBACK = "on_rollback"


@dataclass(frozen=True, slots=True)
class Hook:
    """A callback with its arguments."""

    moment: Moment
    callback: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    key: Hashable = None

    @property
    def name(self) -> str:
        """What to call it in a log."""
        return name_of(self.callback)


Tell = Callable[[Hook, BaseException | None], None]
"""Learns that a hook has run, and what it raised."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A hook, and what it raised."""

    hook: Hook
    error: Exception


def check_callback(moment: Moment, callback: object) -> None:
    """Refuse what cannot be called when the time comes.

    Raises:
        ConfigurationError: *callback* is not callable, or is a coroutine function.
    """
    if not callable(callback):
        raise ConfigurationError(f"{moment.value}()", f"was given {callback!r}; it takes a function and its arguments.")
    if not is_plain_function(callback):
        raise ConfigurationError(
            f"{moment.value}()",
            f"was given the coroutine function {getattr(callback, '__qualname__', callback)!r}, which nobody would "
            "await. Give it a plain function, which may start the coroutine.",
        )


class Hooks:
    """The callbacks of one outermost transaction, those of its savepoints included."""

    __slots__ = ("_ledger",)

    def __init__(self) -> None:
        self._ledger: Ledger[Hook] = Ledger()

    def __len__(self) -> int:
        return len(self._ledger)

    def __iter__(self) -> Iterator[Hook]:
        return iter(self._ledger)

    def add(self, hook: Hook) -> None:
        """Register *hook*, unless one with its key is registered for the same moment already."""
        if hook.key is not None and any(
            hook.key == other.key and hook.moment is other.moment for other in self._ledger
        ):
            return

        self._ledger.add(hook)

    def mark(self) -> int:
        """Return a mark for *drop_since*."""
        return self._ledger.mark()

    def drop_since(self, mark: int) -> Hooks:
        """Take out the hooks of a savepoint that is rolled back, and return them."""
        dropped = Hooks()
        for hook in self._ledger.forget_since(mark):
            dropped._ledger.add(hook)
        return dropped

    def run(self, moment: Moment, *args: Any, tell: Tell | None = None) -> list[Failure]:
        """Run every hook of *moment*, those registered meanwhile included, and return what failed.

        The work is done or undone already, so one failing mail must not keep the next hook from running.

        Args:
            moment: Which hooks.
            args: Positional arguments put before those that the hook was registered with.
            tell: Called with each of them when it has run.
        """
        failures = []
        interrupted: BaseException | None = None

        # A list iterator sees what is appended while it runs: a hook registered by a hook is in the same drain.
        for hook in self._ledger:
            if hook.moment is moment:
                raised: BaseException | None = None
                try:
                    hook.callback(*args, *hook.args, **hook.kwargs)
                except Exception as error:  # noqa: BLE001 - collected and told by the caller
                    raised = error
                    failures.append(Failure(hook, error))
                except BaseException as error:  # noqa: BLE001 - raised when all have run
                    raised = error
                    interrupted = interrupted or error
                if tell is not None:
                    tell(hook, raised)
                # Its traceback has this frame.
                raised = None

        if interrupted is not None:
            try:
                raise interrupted
            finally:
                del interrupted, failures
        return failures
