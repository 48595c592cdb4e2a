"""What users write above their functions, and the proxies that find the current app's UnitOfWork."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Generator, Hashable, Iterator
from functools import wraps
from types import CoroutineType
from typing import Any, Final, Literal, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from click import Command
from flask import Blueprint, has_request_context
from werkzeug.local import LocalProxy

from flask_uow._core.block import Block, Home, innermost_standalone
from flask_uow._core.hooks import Hook, Moment, check_callback
from flask_uow._core.options import StreamOptions, TransactionalOptions, check_options, name_of
from flask_uow._core.propagation import can_begin
from flask_uow._core.retry import Attempt, Attempts
from flask_uow._core.scope import Scope
from flask_uow._core.stack import run_now
from flask_uow._core.stream import Stream
from flask_uow._core.transaction import Transaction
from flask_uow.context import current_app
from flask_uow.errors import ConfigurationError, NoScopeError, TransactionRequiredError
from flask_uow.order import remember
from flask_uow.plans import Policy, add_policy
from flask_uow.reruns import NoSnapshot, Snapshot
from flask_uow.settings import DEFAULT_NAME

__all__ = [
    "BELOW",
    "Decorator",
    "IfInactive",
    "Owner",
    "StreamDecorator",
    "T",
    "current_transaction",
    "on_commit",
    "on_rollback",
    "register_hook",
    "transactional",
]

BELOW: Final = object()
"""Stands for the function below, where ``on_commit`` is used as a decorator."""

IfInactive = Literal["error", "run"]

P = ParamSpec("P")
Y = TypeVar("Y")
T = TypeVar("T", bound=Callable[..., Any] | Blueprint)
F = TypeVar("F", bound=Callable[..., Any])


class Call(Protocol):
    """A call of a decorated function that has entered its transaction."""

    @property
    def attempts(self) -> Attempts | None:
        """Those of which it is one, if the function is to be run again where that helps."""
        ...

    def leave(self, error: BaseException | None, /) -> None:
        """End it, with what the function raised."""

    def discard(self) -> None:
        """Undo what is left of it, so that another attempt can begin."""


class Owner(Protocol):
    """What a decorator needs of a UnitOfWork when the decorated function is called."""

    def _enter(self, policy: Policy, attempts: Attempts | None = None, /) -> Call: ...

    def _scope_or_none(self) -> Scope | None: ...


class _Surroundings:
    """The ``with uow.transaction():`` block around us, where there is no app to ask for a UnitOfWork."""

    __slots__ = ("_scope",)

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def _enter(self, policy: Policy, attempts: Attempts | None = None, /) -> Call:
        block = Block(
            lambda: (self._scope.runtime, self._scope),
            policy.options,
            policy.label,
            can_repeat=True,
            attempts=attempts,
        )
        block.enter()
        return block

    def _scope_or_none(self) -> Scope | None:
        return self._scope


class Decorator:
    """What ``transactional(…)`` returns: give it a function, a method, or a Blueprint."""

    __slots__ = ("_find", "_options", "_owner")

    def __init__(self, find: Callable[[Policy], Owner], owner: object | None, options: TransactionalOptions) -> None:
        self._find = find
        self._owner = owner
        self._options = check_options(options, decorator=True)
        if owner is not None and self._options.using is not None:
            raise ConfigurationError(
                "using", "is an option of flask_uow.transactional(); uow.transactional() has its UnitOfWork already."
            )

    def __call__(self, target: T, /) -> T:
        """Decorate *target*, which keeps its signature."""
        _check_target(target)
        label = f"{name_of(target)}()"
        policy = Policy(self._options, self._options.name or label, self._owner)

        if isinstance(target, Blueprint):
            mode = self._options.propagation
            if not can_begin(mode):
                raise ConfigurationError(
                    "propagation",
                    f"of a Blueprint is Propagation.{mode.name}; its policy begins a transaction for each request. "
                    "Decorate the views, or use uow.exempt() to keep the app-wide policy away.",
                )
            add_policy(target, policy, target)
            return cast(T, target)

        wrapper = (
            self._wrap_async(target, policy) if inspect.iscoroutinefunction(target) else self._wrap(target, policy)
        )
        add_policy(wrapper, policy, target)
        remember(target, wrapper, "@transactional", policy)
        return cast(T, wrapper)

    def _wrap(self, function: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
        def run(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                value = function(*args, **kwargs)
            except BaseException as error:
                call.leave(error)
                raise
            if type(value) is CoroutineType:
                value.close()
                problem = _not_awaited(policy.label)
                call.leave(problem)
                raise problem
            call.leave(None)
            return value

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = self._find(policy)._enter(policy)
            attempts = call.attempts
            if attempts is None:
                return run(call, args, kwargs)
            snapshot = _snapshot(attempts)
            while True:
                with Attempt(attempts) as attempt:
                    attempt.value = run(call, args, kwargs)
                if attempt.is_last:
                    return attempt.value
                call.discard()
                snapshot.restore()
                attempts.wait()
                call = self._find(policy)._enter(policy, attempts)

        return wrapper

    def _wrap_async(self, function: Callable[..., Any], policy: Policy) -> Callable[..., Any]:
        async def run(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            try:
                value = await function(*args, **kwargs)
            except BaseException as error:
                call.leave(error)
                raise
            call.leave(None)
            return value

        @wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = self._find(policy)._enter(policy)
            attempts = call.attempts
            if attempts is None:
                return await run(call, args, kwargs)
            snapshot = _snapshot(attempts)
            while True:
                with Attempt(attempts) as attempt:
                    attempt.value = await run(call, args, kwargs)
                if attempt.is_last:
                    return attempt.value
                call.discard()
                snapshot.restore()
                await asyncio.sleep(attempts.count())
                call = self._find(policy)._enter(policy, attempts)

        return wrapper


def _snapshot(attempts: Attempts) -> Snapshot | NoSnapshot:
    """Return the current request as it is, if there is one; a function can change it as a view can."""
    if not has_request_context():
        return NoSnapshot()
    snapshot = Snapshot()
    attempts.add_obstacle(snapshot.obstacle)
    return snapshot


class StreamDecorator:
    """What ``uow.stream(…)`` returns: give it a generator function."""

    __slots__ = ("_home", "_options")

    def __init__(self, home: Home, options: StreamOptions) -> None:
        self._home = home
        if "propagation" in options:
            raise ConfigurationError(
                "propagation", "is not an option of uow.stream(): its transaction is always one of its own."
            )
        self._options = check_options(options, decorator=False, called="uow.stream()")

    def __call__(self, function: Callable[P, Iterator[Y]], /) -> Callable[P, Stream[Y]]:
        """Decorate *function*, which keeps its signature."""
        name = name_of(function)
        if not inspect.isgeneratorfunction(function):
            raise ConfigurationError(
                "stream", f"was given {name}; it decorates generator functions, which have a plain 'def' and a 'yield'."
            )
        label = self._options.name or f"the stream {name}()"

        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> Stream[Y]:
            generator = cast(Generator[Y, Any, Any], function(*args, **kwargs))
            return Stream(generator, self._home, self._options, label)

        remember(function, wrapper, "@uow.stream", None)
        return wrapper


def _not_awaited(label: str) -> ConfigurationError:
    return ConfigurationError(
        "transactional",
        f"decorates {label}, a plain function that returned a coroutine, which would run after the transaction has "
        "ended. Make it an 'async def'.",
    )


def _check_target(target: object) -> None:
    """Refuse what a decorator would silently get wrong."""
    name = name_of(target)

    call = type(target).__call__ if callable(target) and not inspect.isroutine(target) else None
    if inspect.iscoroutinefunction(call):
        raise ConfigurationError(
            "transactional", f"cannot decorate {name}, whose __call__ is a coroutine function. Decorate the method."
        )
    if any(inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body) for body in (target, call)):
        raise ConfigurationError(
            "transactional",
            f"cannot decorate the generator function {name}: its body runs when somebody iterates over it, after the "
            "transaction has ended. Use @uow.stream, which gives it a transaction of its own, or return a list.",
        )
    if isinstance(target, type):
        raise ConfigurationError(
            "transactional",
            f"cannot decorate the class {name}. Decorate its methods, or put it into 'decorators' of a View.",
        )
    if isinstance(target, (classmethod, staticmethod)):
        raise ConfigurationError(
            "transactional", f"is above @{type(target).__name__}. Write it below, next to the function."
        )
    if isinstance(target, Command):
        raise ConfigurationError(
            "transactional",
            f"is above the decorator of the command {target.name!r}, which runs the bare function. Write it below, "
            "next to the function.",
        )
    if not callable(target) and not isinstance(target, Blueprint):
        raise ConfigurationError(
            "transactional", f"was given {target!r}; it decorates functions, methods and Blueprints."
        )


def current_owner(using: str | None, wanted: str) -> Owner:
    """Return the UnitOfWork of the current app, or the surroundings where there is no app.

    Raises:
        NoScopeError: There is neither, or the app has none of that name.
    """
    app = current_app()
    if app is None:
        scope = innermost_standalone()
        if scope is None:
            raise NoScopeError(
                wanted,
                "no app context is active that would say which UnitOfWork is meant. Push one with "
                "'with app.app_context():', or use the methods of your UnitOfWork.",
            )
        return _Surroundings(scope)

    owners: dict[str, Owner] = app.extensions.get("uow", {})
    name = using or DEFAULT_NAME
    if name not in owners:
        known = ", ".join(repr(owner) for owner in owners) or "none"
        raise NoScopeError(
            wanted,
            f"the app {app.name!r} has no UnitOfWork named {name!r}; it has {known}. Call uow.init_app(app), or say "
            "using=.",
        )
    return owners[name]


@overload
def transactional(target: T, /) -> T: ...
@overload
def transactional(**options: Unpack[TransactionalOptions]) -> Decorator: ...
def transactional(target: Any = None, /, **options: Unpack[TransactionalOptions]) -> Any:
    """Run a function in a transaction of the current app's UnitOfWork.

    The work is committed when the function returns and rolled back when it raises. On a view this happens when its
    value has become a response, whose status has a say too; on a Blueprint it holds for all of its views.

    It is used with and without parentheses, below ``@app.route``, on functions, methods and coroutine functions.

    Args:
        target: A function, a method, or a Blueprint.
        options: propagation (`Propagation`, default REQUIRED): what to do where a transaction is active already.
            isolation_level (str), read_only (bool), timeout (seconds): see `UnitOfWork.transaction`.
            attempts (int, default the setting UOW_ATTEMPTS): how often the function, or the whole view, is run at most,
            again after a serialization failure or a deadlock. retry_on (exception classes, or a function of an
            exception to bool): after which others. backoff (`Backoff`): how long to wait in between.
            verify, resolve_commit: what to do if the answer to COMMIT is lost; see `UnitOfWork.transaction`.
            rollback_for, no_rollback_for (exception classes): exceptions that roll back, as all do by default, or do
            not. commit_if (function of the response to bool): replaces the rule by status for a view.
            manual_commit ("error", "flush" or "allow"): what ``session.commit()`` inside does; the default is the
            setting UOW_MANUAL_COMMIT. name (str): what to call it in messages. using (str): the name of the
            UnitOfWork, default "default".

    Raises:
        ConfigurationError: An option, or what is decorated, cannot be right.
        NoScopeError: When the function is called and there is no current app, or it has no such UnitOfWork.
    """
    decorator = Decorator(lambda policy: current_owner(policy.options.using, policy.label), None, options)
    return decorator if target is None else decorator(target)


def register_hook(
    scope: Scope | None,
    moment: Moment,
    callback: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    key: Hashable,
    if_inactive: IfInactive,
) -> Any:
    """Register *callback*, and return it; without one, return a decorator that does.

    Raises:
        ConfigurationError: *callback* cannot be called when the time comes.
        TransactionRequiredError: There is no transaction, and *if_inactive* is not "run".
    """
    if if_inactive not in ("error", "run"):
        raise ConfigurationError("if_inactive", f'is {if_inactive!r}; it must be "error" or "run".')
    if callback is BELOW and not args and not kwargs:
        return lambda function: register_hook(scope, moment, function, args, kwargs, key=key, if_inactive=if_inactive)

    check_callback(moment, callback)
    hook = Hook(moment, cast(Callable[..., object], callback), args, kwargs, key)
    if scope is not None:
        scope.add_hook(hook, run_if_inactive=if_inactive == "run")
    elif if_inactive == "run":
        run_now(hook)
    else:
        raise TransactionRequiredError(f"{moment.value}()")
    return callback


def _current_scope(wanted: str, if_inactive: IfInactive) -> Scope | None:
    try:
        return current_owner(None, wanted)._scope_or_none()
    except NoScopeError:
        if if_inactive == "run":
            return None
        raise


@overload
def on_commit(
    callback: F, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
) -> F: ...
@overload
def on_commit(*, key: Hashable = None, if_inactive: IfInactive = "error") -> Callable[[F], F]: ...
def on_commit(
    callback: Any = BELOW, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
) -> Any:
    """Call a function after the current transaction of the current app's UnitOfWork has been committed.

    It runs after COMMIT has returned, outside the transaction, in the order of registration, and not at all if its
    block is rolled back. It can be used as a decorator. What it raises never undoes the work: see UOW_HOOK_ERRORS.

    Args:
        callback: The function.
        *args: Positional arguments for it.
        **kwargs: Keyword arguments for it.
        key: Something hashable: a second hook with the same key is not registered in the same transaction.
        if_inactive: Where there is no transaction: "error" refuses, "run" calls it at once.

    Raises:
        TransactionRequiredError: There is no transaction.
        NoScopeError: There is no current app, and no ``with uow.transaction():`` around.
    """
    scope = _current_scope("on_commit()", if_inactive)
    return register_hook(scope, Moment.COMMIT, callback, args, kwargs, key=key, if_inactive=if_inactive)


@overload
def on_rollback(
    callback: F, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
) -> F: ...
@overload
def on_rollback(*, key: Hashable = None, if_inactive: IfInactive = "error") -> Callable[[F], F]: ...
def on_rollback(
    callback: Any = BELOW, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
) -> Any:
    """Call a function when the block in which this is called is rolled back.

    Its first argument is the exception, or None; then come *args* and *kwargs*. See `on_commit`.
    """
    scope = _current_scope("on_rollback()", if_inactive)
    return register_hook(scope, Moment.ROLLBACK, callback, args, kwargs, key=key, if_inactive=if_inactive)


def _find_transaction() -> Transaction | None:
    try:
        scope = current_owner(None, "current_transaction")._scope_or_none()
    except NoScopeError:
        return None
    return None if scope is None else scope.current()


current_transaction: Final[Transaction] = cast(Transaction, LocalProxy(_find_transaction))
"""The innermost transaction of the current app's UnitOfWork; false where there is none."""
