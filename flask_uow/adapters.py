"""What a UnitOfWork can be given, as a source of sessions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, cast

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow._core.session import SessionSource
from flask_uow.context import current_app
from flask_uow.errors import ConfigurationError

__all__ = ["Sessions", "session_source"]

Sessions = sessionmaker[Any] | scoped_session[Any] | Engine | Callable[[], Session]

_ALLOWED: Final = (
    "give it a sessionmaker, a scoped_session, an Engine, or a function without arguments that returns a new Session"
)


def session_source(sessions: Any) -> SessionSource:
    """Return the source of sessions that *sessions* is.

    Args:
        sessions: A ``sessionmaker``, any callable without arguments that returns a ``Session``, a ``scoped_session``,
            or an ``Engine``.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(sessions, sessionmaker):
        return SessionSource(sessions, _close, sessions)
    if isinstance(sessions, scoped_session):
        return SessionSource(sessions, _RemoveFrom(sessions))
    if isinstance(sessions, Engine):
        # Ours alone: use after close() is an error and not a second, forgotten transaction; and what a committed
        # view returned can be rendered without reading it again.
        maker = sessionmaker(sessions, expire_on_commit=False, close_resets_only=False)
        return SessionSource(maker, _close, maker)

    if _is_asynchronous(sessions):
        raise ConfigurationError(
            "sessions",
            f"is {sessions!r}; asynchronous sessions are not available in this version of flask_uow: {_ALLOWED}.",
        )
    if isinstance(sessions, Session):
        raise ConfigurationError(
            "sessions", f"is one session, which all requests would share: {_ALLOWED}, such as sessionmaker(engine)."
        )
    if not callable(sessions):
        raise ConfigurationError("sessions", f"is {sessions!r}: {_ALLOWED}.")
    if _needs_arguments(sessions):
        raise ConfigurationError("sessions", f"is {sessions!r}, which cannot be called without arguments: {_ALLOWED}.")

    return SessionSource(cast(Callable[[], Session], sessions), _close)


def _is_asynchronous(sessions: object) -> bool:
    # By name: importing sqlalchemy.ext.asyncio needs greenlet, which SQLAlchemy 2.1 does not install by itself.
    modules = {cls.__module__.rpartition(".")[0] for cls in type(sessions).__mro__}
    return "sqlalchemy.ext.asyncio" in modules or inspect.iscoroutinefunction(sessions)


def _close(session: Session) -> None:
    session.close()


class _RemoveFrom:
    """Gives a session back to its registry."""

    __slots__ = ("_registry",)

    def __init__(self, registry: scoped_session[Any]) -> None:
        self._registry = registry

    def __call__(self, session: Session) -> None:
        # remove() is to be called once a context: a flask_scoped_session of this app calls it by itself.
        registry = self._registry
        if registry is getattr(current_app(), "scoped_session", None) or not registry.registry.has():
            session.close()
        else:
            registry.remove()


def _needs_arguments(function: Callable[..., object]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a builtin that does not say
        return False

    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(
        parameter.default is parameter.empty and parameter.kind not in variadic
        for parameter in signature.parameters.values()
    )
