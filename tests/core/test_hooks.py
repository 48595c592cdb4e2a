from __future__ import annotations

from functools import partial

import pytest

from flask_uow._core.hooks import Hook, Hooks, Moment, check_callback
from flask_uow.errors import ConfigurationError


class Mailer:
    """Callable objects, as hooks sometimes are."""

    def __call__(self) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "<Mailer>"

    async def send(self) -> None:
        raise NotImplementedError


class AsyncMailer:
    async def __call__(self) -> None:
        raise NotImplementedError


async def send_later() -> None:
    raise NotImplementedError


def hook(callback: object, *args: object, moment: Moment = Moment.COMMIT, key: object = None) -> Hook:
    return Hook(moment, callback, args, {}, key)  # type: ignore[arg-type] # callbacks are made by each test


@pytest.mark.parametrize("moment", list(Moment))
@pytest.mark.parametrize("callback", [print, len, Mailer(), Mailer, partial(print, "sent"), [].append])
def test_what_can_be_called_is_accepted(moment: Moment, callback: object) -> None:
    """Functions, methods, classes, partials and callable objects can be hooks."""
    check_callback(moment, callback)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (7, r"^on_commit\(\) was given 7; it takes a function and its arguments"),
        ("print", r"^on_commit\(\) was given 'print'; it takes a function"),
        (send_later, r"^on_commit\(\) was given the coroutine function 'send_later', which nobody would await"),
        (Mailer().send, r"^on_commit\(\) was given the coroutine function 'Mailer.send'"),
        (partial(send_later), r"^on_commit\(\) was given the coroutine function functools\.partial"),
        (AsyncMailer(), r"^on_commit\(\) was given the coroutine function <"),
    ],
)
def test_what_cannot_be_called_is_refused(callback: object, message: str) -> None:
    """What could only fail when it is too late is refused at once."""
    with pytest.raises(ConfigurationError, match=message):
        check_callback(Moment.COMMIT, callback)


def test_hooks_run_in_order_with_their_arguments() -> None:
    """Hooks of the moment run in the order of registration, with the moment's arguments before their own."""
    calls: list[object] = []
    hooks = Hooks()
    hooks.add(hook(lambda *args: calls.append(args), 1))
    hooks.add(hook(lambda *args: calls.append(args), 2, moment=Moment.ROLLBACK))
    hooks.add(Hook(Moment.COMMIT, lambda *args, **kwargs: calls.append((args, kwargs)), (3,), {"by": "mail"}))

    failures = hooks.run(Moment.COMMIT, "error")

    assert calls == [("error", 1), (("error", 3), {"by": "mail"})]
    assert failures == []


def test_a_failure_stops_nobody() -> None:
    """What a hook raises is returned, and the next hook runs all the same."""
    calls: list[str] = []
    error = ConnectionError("no mail today")

    def fail() -> None:
        raise error

    failing = hook(fail)
    hooks = Hooks()
    hooks.add(failing)
    hooks.add(hook(calls.append, "next"))

    failures = hooks.run(Moment.COMMIT)

    assert [(failure.hook, failure.error) for failure in failures] == [(failing, error)]
    assert calls == ["next"]


def test_hooks_registered_by_hooks_run_too() -> None:
    """A hook that a hook registers runs after those that are there already."""
    calls: list[str] = []
    hooks = Hooks()
    hooks.add(hook(lambda: hooks.add(hook(calls.append, "third"))))
    hooks.add(hook(calls.append, "second"))

    hooks.run(Moment.COMMIT)

    assert calls == ["second", "third"]


def test_an_exit_is_no_failure() -> None:
    """An exception that ends the process is not collected."""

    def leave() -> None:
        raise KeyboardInterrupt

    hooks = Hooks()
    hooks.add(hook(leave))

    with pytest.raises(KeyboardInterrupt):
        hooks.run(Moment.COMMIT)


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ([None, None], [0, 1]),
        (["mail", "mail"], [0]),
        (["mail", "fax"], [0, 1]),
        ([("mail", 1), ("mail", 1), ("mail", 2)], [0, 2]),
        ([0, 0], [0]),
    ],
)
def test_key(keys: list[object], kept: list[int]) -> None:
    """A key is registered once; no key at all any number of times."""
    calls: list[int] = []
    hooks = Hooks()
    for number, key in enumerate(keys):
        hooks.add(hook(calls.append, number, key=key))

    hooks.run(Moment.COMMIT)

    assert calls == kept
    assert len(hooks) == len(kept)


def test_key_of_another_moment() -> None:
    """The same key can have a hook for the commit and one for the rollback."""
    hooks = Hooks()

    hooks.add(hook(print, key="mail"))
    hooks.add(hook(print, key="mail", moment=Moment.ROLLBACK))

    assert len(hooks) == 2


def test_drop_since_a_mark() -> None:
    """The hooks since a mark are taken out and returned, and can be run apart."""
    calls: list[str] = []
    hooks = Hooks()
    hooks.add(hook(calls.append, "before"))
    mark = hooks.mark()
    hooks.add(hook(calls.append, "after"))

    dropped = hooks.drop_since(mark)

    assert (len(hooks), len(dropped)) == (1, 1)
    dropped.run(Moment.COMMIT)
    assert calls == ["after"]


def test_a_dropped_key_is_free_again() -> None:
    """A key that went with its savepoint can be registered again."""
    hooks = Hooks()
    hooks.add(hook(print, key="mail"))
    hooks.drop_since(0)

    hooks.add(hook(print, key="mail"))

    assert len(hooks) == 1


@pytest.mark.parametrize(
    ("callback", "name"), [(send_later, "send_later"), (Mailer().send, "Mailer.send"), (Mailer(), "<Mailer>")]
)
def test_name(callback: object, name: str) -> None:
    """A hook is called by its function's name in logs, or by what it shows."""
    assert hook(callback).name == name
