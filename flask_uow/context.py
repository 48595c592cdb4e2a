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

__all__ = ["Phase", "Slot", "bound_late", "current_app", "current_request", "current_slot", "on_leaving"]

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


class Slot:
    """What belongs to one context."""

    __slots__ = ("__weakref__", "phase", "scopes")

    def __init__(self) -> None:
        self.phase: Phase | None = None
        """None where no request is being dispatched."""

        self.scopes: dict[object, Scope] = {}
        """By the object that manages them, in the order in which they came into use."""


def current_app() -> Flask | None:
    """Return the application of the current context, without a proxy."""
    context = _cv_app.get(None)
    return None if context is None else context.app


def current_request() -> Request:
    """Return the request of the current context, without a proxy."""
    context: Any = (_cv_app if MERGED else _cv_request).get()
    request: Request = context.request
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

    found = _find(context)
    return _make(context) if found is None else found


if MERGED:  # pragma: no cover - Flask 3.2; the same tests run on both lines, one line at a time

    def _is_pushed(context: Any) -> bool:
        return context._cv_token is not None

    def _find(context: Any) -> Slot | None:
        slot: Slot | None = vars(context).get(_SLOT)
        return slot

    def _make(context: Any) -> Slot:
        slot = vars(context)[_SLOT] = Slot()
        return slot

    def _forget(context: Any) -> None:
        vars(context).pop(_SLOT, None)

    def _request_is_its_own() -> bool:
        return False

else:
    from flask.globals import _cv_request

    def _is_pushed(context: Any) -> bool:
        return bool(context._cv_tokens)

    def _pairs(context: Any) -> dict[Any, Slot] | None:
        """Return the slots of the current request by app context, or None if *context* is all there is to know.

        That is so outside a request, and for an app context that the request pushed by itself: it has no other user,
        and outlives the request context by its own teardown functions, which are to see the same session.
        """
        request = _cv_request.get(None)
        if request is None or not request._cv_tokens:
            return None

        attributes = vars(request)
        if any(pushed is context for _, pushed in request._cv_tokens):
            # Remembered, for stream_with_context() and the test client push the two again one by one.
            attributes[_OWN] = context
        if attributes.get(_OWN) is context:
            return None

        pairs: dict[Any, Slot] = attributes.setdefault(_PAIRS, {})
        return pairs

    def _find(context: Any) -> Slot | None:
        pairs = _pairs(context)
        return vars(context).get(_SLOT) if pairs is None else pairs.get(context)

    def _make(context: Any) -> Slot:
        slot = Slot()
        pairs = _pairs(context)
        if pairs is None:
            vars(context)[_SLOT] = slot
        else:
            pairs[context] = slot
        return slot

    def _forget(context: Any) -> None:
        pairs = _pairs(context)
        if pairs is None:
            vars(context).pop(_SLOT, None)
        else:
            pairs.pop(context, None)

    def _request_is_its_own() -> bool:
        """Whether the request that ends shares its app context, so that no app context ends with it."""
        return _pairs(_cv_app.get()) is not None


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
        context = _cv_app.get()
        slot = _find(context)
        error = arguments[-1] if arguments and isinstance(arguments[-1], BaseException) else None
        for close in closers:
            try:
                close(slot, error)
            except Exception:
                logger.exception("Closing a session at teardown failed")
        _forget(context)

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        try:
            original_appcontext(app, *args, **kwargs)
        finally:
            leave((*args, *kwargs.values()))

    def do_teardown_request(*args: Any, **kwargs: Any) -> None:
        try:
            original_request(app, *args, **kwargs)
        finally:
            if _request_is_its_own():
                leave((*args, *kwargs.values()))

    original_appcontext = bound_late(app, "do_teardown_appcontext")
    setattr(app, "do_teardown_appcontext", do_teardown_appcontext)  # noqa: B010 - mypy refuses assigning to a method
    if not MERGED:  # pragma: no branch - as above
        original_request = bound_late(app, "do_teardown_request")
        setattr(app, "do_teardown_request", do_teardown_request)  # noqa: B010 - as above


def bound_late(app: Flask, name: str) -> Callable[..., Any]:
    """Return a function of an app and arguments that calls the app's method as it is now, or will be in its class.

    What another extension has put on the instance is kept. What is in the class is looked up at each call, for
    Flask 3.2 replaces methods of the class when a subclass has the signatures of Flask 3.1.
    """
    replaced = vars(app).get(name)
    if replaced is not None:
        return lambda _, *args, **kwargs: replaced(*args, **kwargs)
    return lambda owner, *args, **kwargs: getattr(type(owner), name)(owner, *args, **kwargs)
