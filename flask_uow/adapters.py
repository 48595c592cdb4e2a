"""What a UnitOfWork can be given, as a source of sessions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow._core.session import OVERSEEN, SessionSource
from flask_uow.context import Slot, current_app, current_slot
from flask_uow.errors import ConfigurationError

__all__ = ["Sessions", "session_source"]


class SessionExtension(Protocol):
    """Another extension's object with a session for each context: Flask-SQLAlchemy, Flask-SQLAlchemy-Lite."""

    @property
    def session(self) -> Any:
        """The session, or the registry of sessions."""


Sessions = sessionmaker[Any] | scoped_session[Any] | Engine | Callable[[], Session] | SessionExtension

_ALLOWED: Final = (
    "give it a sessionmaker, a scoped_session, an Engine, Flask-SQLAlchemy's db, or a function without arguments that "
    "returns a new Session"
)


def session_source(sessions: Any) -> SessionSource:
    """Return the source of sessions that *sessions* is.

    Args:
        sessions: A ``sessionmaker``, any callable without arguments that returns a ``Session``, a ``scoped_session``,
            an ``Engine``, or the object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(sessions, sessionmaker):
        return SessionSource(sessions, _close, sessions)
    if isinstance(sessions, scoped_session):
        return _of_registry(sessions)
    if isinstance(sessions, Engine):
        # Ours alone: use after close() is an error and not a second, forgotten transaction; and what a committed
        # view returned can be rendered without reading it again.
        maker = sessionmaker(sessions, expire_on_commit=False, close_resets_only=False)
        return SessionSource(maker, _close, maker)

    if isinstance(registry := inspect.getattr_static(sessions, "session", None), scoped_session):
        return _of_flask_sqlalchemy(registry)
    if any(cls.__module__.startswith("flask_sqlalchemy_lite") for cls in type(sessions).__mro__):
        return _of_flask_sqlalchemy_lite(sessions)

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


def _of_registry(registry: scoped_session[Any]) -> SessionSource:
    # The annotation promises a sessionmaker, and scoped_session() takes any callable.
    factory: object = registry.session_factory
    source = SessionSource(
        registry, _RemoveFrom(registry), factory if isinstance(factory, sessionmaker) else None, is_registry=True
    )
    create = registry.registry.createfunc

    def create_and_tell() -> Session:
        return _tell(source, create())

    # Others use the registry without asking us, and their work is a part of the transaction all the same.
    registry.registry.createfunc = create_and_tell
    return source


def _tell(source: SessionSource, session: Session) -> Session:
    for tell in source.on_open:
        tell(session)
    return session


def _of_flask_sqlalchemy_lite(db: Any) -> SessionSource:
    """Return the source that is Flask-SQLAlchemy-Lite's ``db.session``, with a session for each context.

    It keeps its own on g, which a request inside an ``app_context()`` shares with it on Flask 3.1.
    """
    get_session: Callable[..., Session] = db.get_session
    sessions: WeakKeyDictionary[Slot, Session] = WeakKeyDictionary()

    def get_and_tell(name: str = "default") -> Session:
        if name != "default":
            return get_session(name)

        slot = current_slot()
        session = sessions.get(slot)
        if session is None:
            session = _tell(source, db.sessionmaker())
            if OVERSEEN not in session.info:
                # An app that the UnitOfWork was not initialised with: nobody but its owner would close it.
                session.close()
                return get_session(name)
            sessions[slot] = session
        return session

    source = SessionSource(get_and_tell, _close, is_registry=True)
    db.get_session = get_and_tell
    return source


def _of_flask_sqlalchemy(registry: scoped_session[Any]) -> SessionSource:
    """Return the source that is Flask-SQLAlchemy's ``db.session``, with a session for each context as ours have it.

    Its own scope is the id() of the app context. Another context can have that id later, and on Flask 3.1 a request
    inside an ``app_context()`` has it too. A scope function of the user's own is left alone.
    """
    scopefunc = getattr(registry.registry, "scopefunc", None)
    if getattr(scopefunc, "__module__", "").partition(".")[0] == "flask_sqlalchemy":
        setattr(registry.registry, "scopefunc", current_slot)  # noqa: B010 - not every kind of registry has one
    return _of_registry(registry)


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
