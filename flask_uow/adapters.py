"""What a UnitOfWork can be given, as a source of sessions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from operator import methodcaller
from typing import Any, Final, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_uow._core.session import SessionSource, binds_of, distinct_binds, is_watched
from flask_uow.context import Slot, current_app, current_slot
from flask_uow.errors import ConfigurationError, NoScopeError

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


def session_source(sessions: Any, tell: Callable[[Session], None]) -> SessionSource:
    """Return the source of sessions that *sessions* is.

    Args:
        sessions: A ``sessionmaker``, any callable without arguments that returns a ``Session``, a ``scoped_session``,
            an ``Engine``, or the object of Flask-SQLAlchemy or Flask-SQLAlchemy-Lite.
        tell: Called with a session that somebody else has made a registry open.

    Raises:
        ConfigurationError: It is none of these.
    """
    if isinstance(sessions, sessionmaker):
        return SessionSource(sessions, _close, makers=lambda: [sessions], binds=_binds_of_maker(sessions))
    if isinstance(sessions, scoped_session):
        return _of_registry(sessions, tell, _binds_of_maker(sessions.session_factory))
    if isinstance(sessions, Engine):
        # Ours alone: use after close() is an error and not a second, forgotten transaction; and what a committed
        # view returned can be rendered without reading it again.
        maker = sessionmaker(sessions, expire_on_commit=False, close_resets_only=False)
        return SessionSource(maker, _close, makers=lambda: [maker], binds=_binds_of_maker(maker))

    if isinstance(registry := inspect.getattr_static(sessions, "session", None), scoped_session):
        return _of_flask_sqlalchemy(sessions, registry, tell)
    if any(cls.__module__.startswith("flask_sqlalchemy_lite") for cls in type(sessions).__mro__):
        return _of_flask_sqlalchemy_lite(sessions, tell)

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

    return SessionSource(cast(Callable[[], Session], sessions), _close, binds=_binds_of_maker(sessions))


Binds = Callable[[], list[Engine | Connection]]


def _binds_of_maker(make: Callable[[], object]) -> Binds:
    """Return what finds the binds of the sessions that *make* makes: in its settings, or in a session made for that."""
    if isinstance(make, _Announcing):
        make = make._create
    if isinstance(make, sessionmaker):
        settings = make.kw
        return lambda: distinct_binds((settings.get("bind"), *(settings.get("binds") or {}).values()))

    def find() -> list[Engine | Connection]:
        try:
            session = make()
        except Exception:  # noqa: BLE001 - it may need an app context, or whatever else
            return []
        if not isinstance(session, Session):
            return []
        found = binds_of(session)
        # It may be one that is in use.
        if not is_watched(session):
            session.close()
        return found

    return find


def _makers_of(registry: scoped_session[Any]) -> list[sessionmaker[Any]]:
    # That of a registry is covered by our own.
    maker = cast(_Announcing, registry.registry.createfunc)._create
    return [maker] if isinstance(maker, sessionmaker) else []


E = TypeVar("E")


def _of_extension(find: Callable[[], Iterable[E]]) -> list[E]:
    """Return what another extension has for the current app, if there is one that it knows."""
    try:
        return list(find())
    except RuntimeError:
        return []


def _binds_of_extension(db: Any) -> Binds:
    """Return what finds the engines that another extension has for the current app."""
    # They are a property, which is looked at in there. The default is called None by one, and "default" by the other.
    return lambda: distinct_binds(
        engine
        for _, engine in sorted(
            _of_extension(lambda: [*db.engines.items()]), key=lambda each: each[0] not in (None, "default")
        )
    )


def _of_registry(registry: scoped_session[Any], tell: Callable[[Session], None], binds: Binds) -> SessionSource:
    # One that goes by our contexts has no session from before. Any other can have one, of the same thread.
    by_context = getattr(registry.registry, "scopefunc", None) is current_slot
    find_open = None if by_context else lambda: registry() if registry.registry.has() else None

    def exchange(session: Session | None) -> Session | None:
        try:
            previous = registry() if registry.registry.has() else None
        except NoScopeError:
            # One that goes by contexts has nothing to exchange where there is none.
            return None
        if session is None:
            registry.registry.clear()
        else:
            registry.registry.set(session)
        return previous

    source = SessionSource(
        registry,
        _RemoveFrom(registry),
        is_registry=True,
        find_open=find_open,
        tell=tell,
        exchange=exchange,
        makers=lambda: _makers_of(registry),
        binds=binds,
    )

    # Others use the registry without asking us, and their work is a part of the transaction all the same.
    announcing = registry.registry.createfunc
    if not isinstance(announcing, _Announcing):
        announcing = registry.registry.createfunc = _Announcing(announcing)
        # registry(autoflush=False) goes past that.
        setattr(registry, "session_factory", announcing)  # noqa: B010 - it is annotated as a sessionmaker
    announcing.sources.add(source)
    return source


def _tell_all(sources: WeakSet[SessionSource], session: Session) -> None:
    for source in list(sources):
        source.tell(session)


class _Announcing:
    """A registry's way to make a session, and to tell whom it was given to. It is put there once."""

    def __init__(self, create: Callable[..., Session]) -> None:
        self._create = create
        self.sources: WeakSet[SessionSource] = WeakSet()

    def __getattr__(self, name: str) -> Any:
        # What a sessionmaker has beside the call, such as configure().
        return getattr(self._create, name)

    def __call__(self, **options: Any) -> Session:
        session = self._create(**options)
        _tell_all(self.sources, session)
        return session


def _of_flask_sqlalchemy_lite(db: Any, tell: Callable[[Session], None]) -> SessionSource:
    """Return the source that is Flask-SQLAlchemy-Lite's ``db.session``, with a session for each context.

    It keeps its own on g, which a request inside an ``app_context()`` shares with it on Flask 3.1.
    """
    get_session = db.get_session
    if not isinstance(get_session, _OneForEachContext):
        get_session = db.get_session = _OneForEachContext(db, get_session)
    source = SessionSource(
        get_session,
        _close,
        is_registry=True,
        tell=tell,
        exchange=get_session.exchange,
        makers=lambda: _of_extension(lambda: [db.sessionmaker]),
        binds=_binds_of_extension(db),
    )
    get_session.sources.add(source)
    return source


class _OneForEachContext:
    """What stands in for Flask-SQLAlchemy-Lite's ``get_session()``. It is put there once."""

    def __init__(self, db: Any, get_session: Callable[..., Session]) -> None:
        self._db = db
        self._get_session = get_session
        self._sessions: WeakKeyDictionary[Slot, Session] = WeakKeyDictionary()
        self.sources: WeakSet[SessionSource] = WeakSet()

    def __call__(self, name: str = "default") -> Session:
        if name != "default":
            return self._get_session(name)

        slot = current_slot()
        session = self._sessions.get(slot)
        if session is None:
            session = self._db.sessionmaker()
            _tell_all(self.sources, session)
            if not is_watched(session):
                # An app that no UnitOfWork was initialised with: nobody but its owner would close it.
                session.close()
                return self._get_session(name)
            self._sessions[slot] = session
        return session

    def exchange(self, session: Session | None) -> Session | None:
        """Have another session in the current context, or none, and return the one that was there."""
        try:
            slot = current_slot()
        except NoScopeError:
            return None
        previous = self._sessions.pop(slot, None)
        if session is not None:
            self._sessions[slot] = session
        return previous


def _of_flask_sqlalchemy(db: Any, registry: scoped_session[Any], tell: Callable[[Session], None]) -> SessionSource:
    """Return the source that is Flask-SQLAlchemy's ``db.session``, with a session for each context as ours have it.

    Its own scope is the id() of the app context. Another context can have that id later, and on Flask 3.1 a request
    inside an ``app_context()`` has it too. A scope function of the user's own is left alone.
    """
    scopefunc: Any = getattr(registry.registry, "scopefunc", None)
    if getattr(scopefunc, "__module__", "").partition(".")[0] == "flask_sqlalchemy":

        def scope() -> object:
            app = current_app()
            # An app without a UnitOfWork has nobody but Flask-SQLAlchemy to remove its sessions.
            return scopefunc() if app is not None and "uow" not in app.extensions else current_slot()

        setattr(registry.registry, "scopefunc", scope)  # noqa: B010 - not every kind of registry has one
    binds = _binds_of_extension(db) if hasattr(type(db), "engines") else _binds_of_maker(registry.session_factory)
    return _of_registry(registry, tell, binds)


def _is_asynchronous(sessions: object) -> bool:
    # By name: importing sqlalchemy.ext.asyncio needs greenlet, which SQLAlchemy 2.1 does not install by itself.
    modules = {cls.__module__.rpartition(".")[0] for cls in type(sessions).__mro__}
    return "sqlalchemy.ext.asyncio" in modules or inspect.iscoroutinefunction(sessions)


_close: Final[Callable[[Session], None]] = methodcaller("close")


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
