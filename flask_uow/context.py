"""Where a Flask context keeps its scopes; the only file that knows Flask 3.1 from the line after it.

A context keeps them in its own ``__dict__``, so that they can neither be mixed up with another's nor outlive it.

In Flask 3.1 and before, a request made inside an ``app_context()`` shares that app context, and is told apart by its
request context: the key is the pair of both. On the line after it there is one context, and it is the key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum
from typing import Any, Final

import flask.globals
from flask import Flask, Request
from flask.globals import _cv_app

from flask_uow._core.scope import Scope
from flask_uow.errors import NoScopeError

__all__ = [
    "AFTER_VIEW",
    "BEFORE_VIEW",
    "VIEW",
    "VIEW_ENTERED",
    "Phase",
    "Slot",
    "bound_late",
    "current_app",
    "current_request",
    "current_slot",
    "on_leaving",
]

logger = logging.getLogger("flask_uow")

MERGED: Final = "request_ctx" not in vars(flask.globals)
"""Whether the request context has become a part of the app context (Flask 3.2)."""

_SLOT: Final = "_flask_uow_slot"
_PAIRS: Final = "_flask_uow_pairs"
_OWN: Final = "_flask_uow_own_app_context"
_TEARDOWN: Final = "_flask_uow_teardown"


class Phase(Enum):
    """How far a request has come."""

    BEFORE_VIEW = "before_view"
    VIEW = "view"
    VIEW_ENTERED = "view_entered"
    """The decorator that made the policy is running."""

    AFTER_VIEW = "after_view"


# Each access of a member through its class costs more than a dict, before Python 3.12.
BEFORE_VIEW: Final = Phase.BEFORE_VIEW
VIEW: Final = Phase.VIEW
VIEW_ENTERED: Final = Phase.VIEW_ENTERED
AFTER_VIEW: Final = Phase.AFTER_VIEW


class Slot:
    """What belongs to one context."""

    __slots__ = ("__weakref__", "phase", "plans", "scopes")

    def __init__(self) -> None:
        self.phase: Phase | None = None
        """None where no request is being dispatched."""

        self.plans: dict[object, Any] = {}
        """What is done with the request, by the object that manages it."""

        self.scopes: dict[object, Scope] = {}
        """By the object that manages them, in the order in which they came into use."""


def current_app() -> Flask | None:
    """Return the application of the current context, without a proxy."""
    context = _cv_app.get(None)
    return None if context is None else context.app


def current_request() -> Request:
    """Return the request of the current context, without a proxy."""
    request: Request = _request_context().request
    return request


def current_slot() -> Slot:
    """Return the slot of the current context.

    Raises:
        NoScopeError: There is none, or it has been popped, as in a thread that works in a copy of it.
    """
    context = _cv_app.get(None)
    if context is None:
        raise NoScopeError(
            "The session",
            "no Flask context is active. Push one with 'with app.app_context():', or use 'with uow.transaction():'.",
        )
    if not _is_pushed(context):
        raise NoScopeError(
            "The session",
            "the context has been popped, and its session is closed. Work that outlives its request needs a context "
            "of its own: 'with app.app_context():', or flask.copy_current_request_context().",
        )

    place, key = _place(context)
    slot: Slot | None = place.get(key)
    if slot is None:
        slot = place[key] = Slot()
    return slot


if MERGED:  # pragma: no cover - Flask 3.2; the same tests run on both lines, one line at a time

    def _is_pushed(context: Any) -> bool:
        return context._cv_token is not None

    def _place(context: Any) -> tuple[dict[Any, Any], Any]:
        """Return the dict and the key under which the slot of the current context is kept."""
        return vars(context), _SLOT

    def _request_context() -> Any:
        return _cv_app.get()

    def _request_has_a_pair() -> bool:
        return False

else:
    from flask.globals import _cv_request

    def _is_pushed(context: Any) -> bool:
        return bool(context._cv_tokens)

    def _place(context: Any) -> tuple[dict[Any, Any], Any]:
        """Return the dict and the key under which the slot of the current context is kept.

        Outside a request it is in the app context. So it is for an app context that the request pushed by itself: it
        has no other user, and outlives the request context by its own teardown functions, which are to see the same
        session. For any other pair it is in the request context.
        """
        request = _cv_request.get(None)
        if request is None:
            return vars(context), _SLOT

        attributes = vars(request)
        if attributes.get(_OWN) is context or not request._cv_tokens:
            return vars(context), _SLOT

        for _, pushed in request._cv_tokens:
            if pushed is context:
                # Remembered, for stream_with_context() and the test client push the two again one by one.
                attributes[_OWN] = context
                return vars(context), _SLOT

        return attributes.setdefault(_PAIRS, {}), context

    def _request_context() -> Any:
        return _cv_request.get()

    def _request_has_a_pair() -> bool:
        """Whether the request that ends shares its app context, so that no app context ends with it."""
        pairs: dict[Any, Slot] = vars(_cv_request.get()).get(_PAIRS, {})
        return _cv_app.get() in pairs


Closer = Callable[[Slot | None, BaseException | None], None]
"""Ends what a slot holds; None is a context that nobody used. The context is still current."""


def on_leaving(app: Flask, closer: Closer) -> None:
    """Call *closer* once for each context of *app* that ends, after all of its teardown functions.

    The methods that run the teardown functions are wrapped on the instance, because a teardown function that raises
    keeps the ones registered before it from running, in Flask 3.1 and before.
    """
    closers: list[Closer] | None = app.extensions.get(_TEARDOWN)
    if closers is not None:
        closers.append(closer)
        return

    closers = app.extensions[_TEARDOWN] = [closer]

    def leave(arguments: tuple[Any, ...]) -> None:
        place, key = _place(_cv_app.get())
        slot = place.get(key)
        error = arguments[-1] if arguments and isinstance(arguments[-1], BaseException) else None
        for close in closers:
            try:
                close(slot, error)
            except Exception:
                logger.exception("Closing a session at teardown failed")
        place.pop(key, None)

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        try:
            original_appcontext(*args, **kwargs)
        finally:
            leave((*args, *kwargs.values()) if kwargs else args)

    def do_teardown_request(*args: Any, **kwargs: Any) -> None:
        try:
            original_request(*args, **kwargs)
        finally:
            if _request_has_a_pair():
                leave((*args, *kwargs.values()) if kwargs else args)

    original_appcontext = bound_late(app, "do_teardown_appcontext")
    setattr(app, "do_teardown_appcontext", do_teardown_appcontext)  # noqa: B010 - mypy refuses assigning to a method
    if not MERGED:  # pragma: no branch - as above
        original_request = bound_late(app, "do_teardown_request")
        setattr(app, "do_teardown_request", do_teardown_request)  # noqa: B010 - as above


def bound_late(app: Flask, name: str) -> Callable[..., Any]:
    """Return a function that calls the app's method *name*, as it is before we put ours in its place.

    What another extension has put on the instance is kept. What is in the class is looked up at each call on Flask
    3.2, which replaces methods of the class when a subclass is defined with the signatures of Flask 3.1.
    """
    if MERGED and name not in vars(app):  # pragma: no cover - as above
        return lambda *args, **kwargs: getattr(type(app), name)(app, *args, **kwargs)
    method: Callable[..., Any] = getattr(app, name)
    return method
