"""The drop-in for Flask-SQLAlchemy-Session: a registry of sessions by Flask context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from flask import Flask
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from werkzeug.local import LocalProxy

from flask_uow.context import Slot, current_app, current_slot, on_leaving
from flask_uow.errors import ConfigurationError

__all__ = ["current_session", "flask_scoped_session"]


class flask_scoped_session(scoped_session[Any]):  # noqa: N801 - the name is that of the package it stands in for
    """A ``scoped_session`` whose scope is the Flask context.

    Each request, and each ``app_context()``, has a session of its own, which is removed when the context ends.

    Args:
        session_factory: A ``sessionmaker``, or another callable that returns a ``Session``.
        app: The application, or None to call `init_app` later.
        scopefunc: What tells scopes apart, if not the Flask context: a function that returns something hashable.
    """

    def __init__(
        self,
        session_factory: sessionmaker[Any] | Callable[..., Session],
        app: Flask | None = None,
        scopefunc: Callable[[], Any] = current_slot,
    ) -> None:
        if not callable(session_factory):
            raise ConfigurationError(
                "session_factory",
                f"is {session_factory!r}; it must be a sessionmaker, or a function that returns a Session.",
            )

        super().__init__(cast("sessionmaker[Any]", session_factory), scopefunc=scopefunc)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Remove the session when a context of *app* ends, and let `current_session` find it.

        Args:
            app: The application; it gets an attribute ``scoped_session``.

        Raises:
            ConfigurationError: *app* is no Flask application, or has one already.
        """
        if not isinstance(app, Flask):
            raise ConfigurationError("app", f"is {app!r}; it must be a Flask application.")
        if hasattr(app, "scoped_session"):
            raise ConfigurationError(
                "init_app()",
                f"was called for {app.name!r} before. An app has one flask_scoped_session; call init_app() once.",
            )

        setattr(app, "scoped_session", self)  # noqa: B010 - Flask declares no such attribute

        def remove(_slot: Slot | None, _error: BaseException | None) -> None:
            self.remove()

        on_leaving(app, remove, always=True)


def _find_session() -> flask_scoped_session:
    app = current_app()
    if app is None:
        raise RuntimeError(
            "current_session is not available outside an app context. Push one with 'with app.app_context():'."
        )

    registry = getattr(app, "scoped_session", None)
    if registry is None:
        raise AttributeError(
            f"{app!r} has no attribute 'scoped_session'. Initialise it with flask_scoped_session(session_factory, app)."
        )
    return cast(flask_scoped_session, registry)


current_session: flask_scoped_session = LocalProxy(_find_session)  # type: ignore[assignment] # a proxy is what it stands for
"""The registry of the current app, and through it the current context's session."""
