"""The extension: what users hold in their hands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from flask import Blueprint, Flask, has_request_context
from sqlalchemy.orm import Session

from flask_uow._core.block import Block, standalone_scope
from flask_uow._core.events import Observer
from flask_uow._core.hooks import Moment
from flask_uow._core.options import Options, StreamOptions, TransactionalOptions, TransactionOptions, check_options
from flask_uow._core.policy import no_opinion
from flask_uow._core.propagation import Propagation
from flask_uow._core.recording import Recorder
from flask_uow._core.retry import Attempts
from flask_uow._core.runtime import Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.stream import Stream
from flask_uow._core.transaction import Transaction
from flask_uow.adapters import Sessions, session_source
from flask_uow.cli import uow as commands
from flask_uow.context import JOURNAL, current_app
from flask_uow.decorators import BELOW, Call, Decorator, IfInactive, StreamDecorator, T, register_hook
from flask_uow.dispatch import Dispatch, Managed
from flask_uow.errors import ConfigurationError, NoScopeError
from flask_uow.plans import Policy, exempt
from flask_uow.settings import DEFAULT_NAME, check_name, from_arguments, from_config
from flask_uow.signals import Publisher

__all__ = ["UnitOfWork"]

P = ParamSpec("P")
Y = TypeVar("Y")
F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V", bound=Callable[..., Any] | Blueprint)

_SAVEPOINT = Options(propagation=Propagation.NESTED)


class _Registry(dict[str, "UnitOfWork"]):
    """``app.extensions["uow"]``: an app's UnitOfWork objects by name, and the one that serves them."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__()
        self.dispatch = dispatch


class _ViewCall:
    """A call of a view whose transaction the request's dispatch ends."""

    __slots__ = ("_managed",)

    attempts: Attempts | None = None
    """It is dispatch that runs a view again."""

    def __init__(self, managed: Managed) -> None:
        self._managed = managed

    def discard(self) -> None:
        """Nothing: dispatch does."""

    def leave(self, error: BaseException | None, /) -> None:
        if error is not None:
            self._managed.view_failed(error)


class UnitOfWork:
    """A session for each Flask context, and a policy for when its work is committed and when rolled back.

    Without an app it gives scripts, workers and notebooks `transaction` alone.

    Args:
        sessions: A ``sessionmaker``, a function without arguments that returns a ``Session``, a ``scoped_session``,
            an ``Engine``, or the ``db`` of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite.
        app: The application, or None to call `init_app` later, once for each application.
        name: Tells several objects of one app apart. One called "reports" reads ``UOW_REPORTS_AUTO_COMMIT`` where the
            one called "default" reads ``UOW_AUTO_COMMIT``.
        settings: Defaults for every app, and what counts where there is none: the settings in lower case without the
            prefix, such as ``auto_commit=True``.

    Raises:
        ConfigurationError: An argument cannot be what was meant.
    """

    def __init__(
        self, sessions: Sessions, app: Flask | None = None, *, name: str = DEFAULT_NAME, **settings: Any
    ) -> None:
        self._name = check_name(name)
        self._source = session_source(sessions, self._adopt)
        self._settings = from_arguments(settings)
        self._recorders: list[Recorder] = []
        """Who writes down what is changed, in all apps: audit trails."""

        self._observers: list[Observer] = []
        """Who is told what happens in all apps, beside the signals: tests."""

        self._runtime = Runtime(
            self._source,
            Publisher(self, journal=JOURNAL, observers=self._observers),
            no_opinion,
            self._settings.manual_commit,
            lambda: self._settings.hook_errors or "log",
            strict=self._settings.strict,
            isolation_level=self._settings.isolation_level,
            timeout=self._settings.timeout,
            slow_transaction=self._settings.slow_transaction,
            uncommitted=self._settings.uncommitted,
            attempts=self._settings.attempts,
            resolve_commit=self._settings.resolve_commit,
            recorders=self._recorders,
            journal=JOURNAL,
        )
        if app is not None:
            self.init_app(app)

    def __repr__(self) -> str:
        return f"<UnitOfWork {self._name!r}>"

    @property
    def name(self) -> str:
        """What tells it from others in one app."""
        return self._name

    def init_app(self, app: Flask) -> None:
        """Read the app's configuration, and take care of its requests from now on.

        Args:
            app: The application. One object can serve many, and one app many differently named objects.

        Raises:
            ConfigurationError: A setting is wrong or unknown, the app has one of that name already, or it has
                handled a request already. Nothing is installed then.
        """
        if not isinstance(app, Flask):
            raise ConfigurationError("app", f"is {app!r}; it must be a Flask application.")

        registry: _Registry | None = app.extensions.get("uow")
        if registry is not None and registry.get(self._name) is self:
            raise ConfigurationError(
                "init_app()", f"was called for {app.name!r} before. Call it once, where the app is made."
            )
        if registry is not None and self._name in registry:
            raise ConfigurationError(
                "name",
                f"is {self._name!r}, which another UnitOfWork of {app.name!r} has already. Give each its own: "
                'UnitOfWork(sessions, name="reports").',
            )
        if app._got_first_request:
            raise ConfigurationError(
                "init_app()",
                f"was called after {app.name!r} had handled its first request, which nobody looked after. Call it "
                "where the app is made.",
            )
        settings = from_config(app.config, self._name, self._settings)

        if registry is None:
            registry = app.extensions["uow"] = _Registry(Dispatch(app))
            if "uow" not in app.cli.commands:
                app.cli.add_command(commands)
        managed = Managed(
            app, self, self._name, self._source, settings, recorders=self._recorders, observers=self._observers
        )
        registry.dispatch.add(self, managed)
        registry[self._name] = self

    @property
    def session(self) -> Session:
        """The session of the current scope, opened on first use.

        Raises:
            NoScopeError: There is no Flask context, and no ``with uow.transaction():`` around.
        """
        managed = self._managed()
        scope = managed.scope() if managed is not None else standalone_scope(self._runtime)
        if scope is None:
            raise NoScopeError("uow.session", self._advice())
        return scope.opened().session

    def transaction(self, **options: Unpack[TransactionOptions]) -> Block:
        """Return a context manager that runs its block in a transaction, and yields the session.

        The block's work is committed when it ends, and rolled back when it raises. It works in requests, in commands,
        in tasks, and without any Flask; there the session is closed with the outermost block.

        Args:
            options: propagation (`Propagation`, default REQUIRED): what to do where a transaction is active already.
                isolation_level (str, default the setting UOW_ISOLATION_LEVEL): such as "SERIALIZABLE".
                read_only (bool): refuse to write. timeout (seconds, default the setting UOW_TIMEOUT): when the
                transaction is to be done at the latest, from its beginning.
                rollback_for, no_rollback_for (exception classes): exceptions that roll back, as all do by default, or
                do not. manual_commit ("error", "flush" or "allow"): what ``session.commit()`` inside does.
                verify (function of a fresh session to bool): whether the work is stored, if the answer to COMMIT was
                lost. resolve_commit (bool, default the setting UOW_RESOLVE_COMMIT): whether PostgreSQL is asked for
                that; it costs a round trip.
                name (str): what to call it in messages.

        Raises:
            ConfigurationError: An option cannot be right.
            TransactionRequiredError: On entry: ``Propagation.MANDATORY``, and no transaction is active.
            TransactionForbiddenError: On entry: ``Propagation.NEVER``, and a transaction is active.
            IncompatibleTransactionError: On entry: the active transaction is not as the options demand.
            TransactionDoomedError: On entry of a savepoint: an error was caught in the active transaction.
            CommitOutcomeUnknownError: At the end: the answer to COMMIT was lost, and nobody knows what became of it.
            UnexpectedRollbackError: At the end: something inside failed, and the failure was caught.
        """
        checked = check_options(options, decorator=False)
        return Block(self._home, checked, f"the block {checked.name!r}" if checked.name else "a transaction() block")

    def savepoint(self) -> Block:
        """Return a context manager that runs its block in a savepoint, and yields the session.

        What the block raises rolls back to its start, and the transaction can go on.

        Raises:
            TransactionRequiredError: On entry: no transaction is active.
            TransactionDoomedError: On entry: an error was caught in the active transaction.
        """

        def home() -> tuple[Runtime, Scope | None]:
            runtime, scope = self._home()
            if scope is None or scope.current() is None:
                (scope or Scope(runtime)).active("uow.savepoint()")
            return runtime, scope

        return Block(home, _SAVEPOINT, "a savepoint() block")

    @overload
    def transactional(self, target: T, /) -> T: ...
    @overload
    def transactional(self, /, **options: Unpack[TransactionalOptions]) -> Decorator: ...
    def transactional(self, target: Any = None, /, **options: Unpack[TransactionalOptions]) -> Any:
        """Run a function in a transaction of this UnitOfWork; see `flask_uow.transactional`, which looks for it."""
        decorator = Decorator(lambda _: self, self, options)
        return decorator if target is None else decorator(target)

    @overload
    def stream(self, function: Callable[P, Iterator[Y]], /) -> Callable[P, Stream[Y]]: ...
    @overload
    def stream(self, /, **options: Unpack[StreamOptions]) -> StreamDecorator: ...
    def stream(self, function: Any = None, /, **options: Unpack[StreamOptions]) -> Any:
        """Give what a generator function yields a session and a transaction of its own.

        A streamed body is made after the request's transaction has ended. The transaction of the stream begins with
        its first item. It is committed when the generator is exhausted, and rolled back when it raises, or when the
        client goes away. Between two items it is not current, so that nothing else gets into it.

        It is used with and without parentheses; a view can be such a function itself.

        Args:
            function: A generator function.
            options: isolation_level (str), read_only (bool), timeout (seconds), rollback_for, no_rollback_for
                (exception classes), manual_commit ("error", "flush" or "allow"), name (str); see `transaction`.

        Raises:
            ConfigurationError: An option, or what is decorated, cannot be right. When the stream is read: a
                transaction is active, and a second connection cannot exist.
        """
        decorator = StreamDecorator(self._home, options)
        return decorator if function is None else decorator(function)

    def exempt(self, target: V) -> V:
        """Keep the app-wide policy, and a blueprint's, away from a view or a Blueprint.

        Args:
            target: A view function, a ``View`` class, or a Blueprint. Its own ``@transactional`` still counts.

        Raises:
            ConfigurationError: *target* is none of these.
        """
        given: Any = target
        is_function = callable(given) and hasattr(given, "__dict__") and not inspect.ismethod(given)
        if not isinstance(given, Blueprint) and not is_function:
            raise ConfigurationError(
                "exempt()", f"was given {given!r}; it takes a view function, a View class, or a Blueprint."
            )
        exempt(given, self)
        return target

    @overload
    def on_commit(
        self, callback: F, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
    ) -> F: ...
    @overload
    def on_commit(self, /, *, key: Hashable = None, if_inactive: IfInactive = "error") -> Callable[[F], F]: ...
    def on_commit(
        self,
        callback: Any = BELOW,
        /,
        *args: Any,
        key: Hashable = None,
        if_inactive: IfInactive = "error",
        **kwargs: Any,
    ) -> Any:
        """Call a function after the current transaction has been committed; see `flask_uow.on_commit`."""
        return register_hook(
            self._scope_or_none(), Moment.COMMIT, callback, args, kwargs, key=key, if_inactive=if_inactive
        )

    @overload
    def on_rollback(
        self, callback: F, /, *args: Any, key: Hashable = None, if_inactive: IfInactive = "error", **kwargs: Any
    ) -> F: ...
    @overload
    def on_rollback(self, /, *, key: Hashable = None, if_inactive: IfInactive = "error") -> Callable[[F], F]: ...
    def on_rollback(
        self,
        callback: Any = BELOW,
        /,
        *args: Any,
        key: Hashable = None,
        if_inactive: IfInactive = "error",
        **kwargs: Any,
    ) -> Any:
        """Call a function when the current block is rolled back; see `flask_uow.on_rollback`."""
        return register_hook(
            self._scope_or_none(), Moment.ROLLBACK, callback, args, kwargs, key=key, if_inactive=if_inactive
        )

    def set_rollback_only(self) -> None:
        """Let the current transaction roll back when it ends; see `Transaction.set_rollback_only`.

        Raises:
            TransactionRequiredError: There is none.
        """
        scope = self._scope_or_none() or Scope(self._runtime)
        scope.active("set_rollback_only()").set_rollback_only()

    @property
    def current_transaction(self) -> Transaction | None:
        """The innermost transaction of the current scope, or None."""
        scope = self._scope_or_none()
        return None if scope is None else scope.current()

    def _adopt(self, session: Session) -> None:
        """Take care of a session that somebody else has made the registry open."""
        scope = self._scope_or_none()
        if scope is not None:
            scope.adopt(session)

    def _managed(self) -> Managed | None:
        """Return its part in the current app, if there is one that it was initialised with."""
        app = current_app()
        registry: _Registry | None = None if app is None else app.extensions.get("uow")
        return None if registry is None else registry.dispatch.managed.get(self)

    def _home(self) -> tuple[Runtime, Scope | None]:
        managed = self._managed()
        if managed is not None:
            return managed.runtime, managed.scope()
        return self._runtime, standalone_scope(self._runtime)

    def _scope_or_none(self) -> Scope | None:
        try:
            return self._home()[1]
        except NoScopeError:
            return None

    def _enter(self, policy: Policy, attempts: Attempts | None = None, /) -> Call:
        managed = self._managed()
        if managed is not None and managed.enter_view(policy):
            return _ViewCall(managed)
        if managed is None and has_request_context():
            # A view without its policy would commit whatever it answers.
            raise NoScopeError(policy.label, self._advice())
        block = Block(self._home, policy.options, policy.label, can_repeat=True, attempts=attempts)
        block.enter()
        return block

    def _advice(self) -> str:
        app = current_app()
        if app is not None:
            return (
                f"init_app() was not called for the current app {app.name!r}. Call it where the app is made, or use "
                "'with uow.transaction():'."
            )
        return (
            "no Flask context is active. Push one with 'with app.app_context():', or use "
            "'with uow.transaction() as session:'. A generator that is streamed needs @uow.stream."
        )
