"""Where a Flask context keeps its scopes; the only file that knows Flask 3.1 from the line after it.

A context keeps them in its own ``__dict__``, so that they can neither be mixed up with another's nor outlive it.

In Flask 3.1 and before, a request made inside an ``app_context()`` shares that app context, and is told apart by its
request context: the key is the pair of both. On the line after it there is one context, and it is the key.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from enum import Enum
from typing import Any, Final

import flask.globals
from flask import Flask, Request, has_request_context
from flask.globals import _cv_app

from flask_uow._core.journal import Journal
from flask_uow._core.leftovers import is_failure
from flask_uow._core.retry import Attempts
from flask_uow._core.scope import Scope
from flask_uow.errors import NoScopeError

__all__ = [
    "AFTER_VIEW",
    "BEFORE_VIEW",
    "IN_USE",
    "JOURNAL",
    "PHASE",
    "REQUEST_CONTEXT",
    "VIEW",
    "VIEW_ENTERED",
    "Attributes",
    "Phase",
    "RequestState",
    "Slot",
    "bound_late",
    "current_app",
    "current_endpoint",
    "current_request",
    "current_slot",
    "enter_request",
    "on_leaving",
]

logger = logging.getLogger("flask_uow.requests")

MERGED: Final = "request_ctx" not in vars(flask.globals)
"""Whether the request context has become a part of the app context (Flask 3.2)."""

_SLOT: Final = "_flask_uow_slot"
_PAIRS: Final = "_flask_uow_pairs"
_OWN: Final = "_flask_uow_own_app_context"
_DISPATCHED_IN: Final = "_flask_uow_dispatched_in"
_TEARDOWN: Final = "_flask_uow_teardown"

PHASE: Final = "_flask_uow_phase"
"""The key of a request's phase in the attributes of its context."""

IN_USE: Final = "_flask_uow_in_use"


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


Attributes = dict[str, Any]
"""The ``__dict__`` of a request context."""


class Slot:
    """What belongs to one context; made when somebody asks for it."""

    __slots__ = ("__weakref__", "_attributes", "attempts", "plans", "request", "scopes")

    def __init__(self, attributes: Attributes) -> None:
        self._attributes = attributes
        self.request = current_request() if has_request_context() else None
        """That of the context, which on Flask 3.1 is gone when the teardown functions of an app context run."""

        self.plans: dict[object, Any] = {}
        """What is done with the request, by the object that manages it."""

        self.scopes: dict[object, Scope] = {}
        """By the object that manages them, in the order in which they came into use."""

        self.attempts: Attempts | None = None
        """Those at the view that is running, if it may run again."""

    @property
    def phase(self) -> Phase | None:
        """How far the request has come, or None where none is being dispatched."""
        return self._attributes.get(PHASE)


def current_app() -> Flask | None:
    """Return the application of the current context, without a proxy."""
    context = _cv_app.get(None)
    return None if context is None else context.app


def current_request() -> Request:
    """Return the request of the current context, without a proxy."""
    request: Request = REQUEST_CONTEXT.get().request
    return request


def current_endpoint() -> str | None:
    """Return the endpoint of the current request, also of one that is being torn down, or None outside requests."""
    if has_request_context():
        return current_request().endpoint
    context = _cv_app.get(None)
    slot: Slot | None = None
    if context is not None:
        place, key = _place(context)
        slot = place.get(key)
    return None if slot is None or slot.request is None else slot.request.endpoint


JOURNAL: Final = Journal(current_endpoint)
"""Says what a message in the log is about, in Flask and outside it."""


def current_slot() -> Slot:
    """Return the slot of the current context.

    Raises:
        NoScopeError: There is none, or it has been popped, as in a thread that works in a copy of it.
    """
    context = _cv_app.get(None)
    if context is None:
        raise NoScopeError(
            "The session",
            "no Flask context is active. Push one with 'with app.app_context():', or use 'with uow.transaction():'. A "
            "streamed body has one within stream_with_context().",
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
        slot = place[key] = Slot(_attributes_for(context))
    return slot


def enter_request() -> Attributes:
    """Note that the current request is being dispatched from here on, and return what carries its phase.

    A request that nobody has a slot for carries its phase alone: that is all it costs.
    """
    attributes: Attributes = vars(REQUEST_CONTEXT.get())
    attributes[PHASE] = BEFORE_VIEW
    _enter(attributes)
    return attributes


if MERGED:  # pragma: no cover - Flask 3.2; the same tests run on both lines, one line at a time
    _variable: ContextVar[Any] = _cv_app

    def _is_pushed(context: Any) -> bool:
        return context._cv_token is not None

    def _place(context: Any) -> tuple[dict[Any, Any], Any]:
        """Return the dict and the key under which the slot of the current context is kept."""
        return vars(context), _SLOT

    def _attributes_for(context: Any) -> Attributes:
        """Return what carries the phase of a new slot."""
        attributes: Attributes = vars(context)
        attributes[IN_USE] = True
        return attributes

    def _enter(attributes: Attributes) -> None:
        """Nothing: a slot from before the dispatch has the context's own attributes."""

    def _ends(context: Any) -> bool:
        """Whether there is anything to end with an app context."""
        return _SLOT in vars(context)

    def _ends_with_its_request() -> bool:
        return False

else:
    from flask.globals import _cv_request

    _variable = _cv_request

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

    def _attributes_for(context: Any) -> Attributes:
        """Return what carries the phase of a new slot: the request's attributes, if it is dispatched in *context*."""
        request = _cv_request.get(None)
        if request is None:
            return {}
        attributes: Attributes = vars(request)
        attributes[IN_USE] = True
        return attributes if attributes.get(_DISPATCHED_IN) is context else {}

    def _enter(attributes: Attributes) -> None:
        """Remember where the request is dispatched, and let a slot from before follow its phase."""
        attributes[_DISPATCHED_IN] = _cv_app.get()
        if IN_USE in attributes:
            current_slot()._attributes = attributes

    def _ends(context: Any) -> bool:
        """Whether there is anything to end with an app context. Inside a request it may be kept there."""
        return _SLOT in vars(context) or _cv_request.get(None) is not None

    def _ends_with_its_request() -> bool:
        """Whether the request that ends shares its app context, so that no app context ends with it."""
        pairs = vars(_cv_request.get()).get(_PAIRS)
        return pairs is not None and _cv_app.get() in pairs


REQUEST_CONTEXT: Final = _variable
"""The context variable of what represents a request."""


class RequestState:
    """What a view can leave on the current request, beside its response."""

    __slots__ = ("_attributes", "after_request_functions", "g", "request")

    def __init__(self) -> None:
        context = REQUEST_CONTEXT.get()
        self._attributes: dict[str, Any] = vars(context)
        self.request: Request = context.request
        self.g: object = _cv_app.get().g
        self.after_request_functions: list[Callable[..., Any]] = context._after_request_functions

    @property
    def session(self) -> MutableMapping[str, Any]:
        """The cookie session. The context's own property would count as an access to it."""
        name = "_session" if "_session" in self._attributes else "session"
        session: MutableMapping[str, Any] = self._attributes[name]
        return session

    @property
    def flashes(self) -> Any:
        """The messages that were taken out of the session to be shown, or None."""
        return self._attributes.get(_FLASHES)

    @flashes.setter
    def flashes(self, flashes: Any) -> None:
        self._attributes[_FLASHES] = flashes


_FLASHES: Final = "_flashes" if MERGED else "flashes"

Closer = Callable[[Slot | None, BaseException | None], None]
"""Ends what a slot holds; None is a context that nobody used. The context is still current."""


def _error_in(arguments: tuple[Any, ...]) -> BaseException | None:
    """Return the error among the arguments of a method that runs teardown functions."""
    return arguments[-1] if arguments and isinstance(arguments[-1], BaseException) else None


class _Closers:
    """Who is called when a context of one application ends."""

    def __init__(self) -> None:
        self._closers: list[Closer] = []
        self.always = False

    def add(self, closer: Closer, *, always: bool) -> None:
        # Registries come last: they cannot remove a session that a transaction is still in.
        self._closers.insert(len(self._closers) if always else 0, closer)
        self.always = self.always or always

    def prepare(self, arguments: tuple[Any, ...]) -> None:
        """Let the scopes know, for a teardown function of somebody else's may close their sessions."""
        place, key = _place(_cv_app.get())
        slot: Slot | None = place.get(key)
        for scope in slot.scopes.values() if slot is not None else ():
            scope.ending = True
            scope.expects_rollback = scope.expects_rollback or is_failure(_error_in(arguments))

    def leave(self, arguments: tuple[Any, ...]) -> None:
        place, key = _place(_cv_app.get())
        slot = place.get(key)
        error = _error_in(arguments)
        for close in self._closers:
            try:
                close(slot, error)
            except Exception:
                logger.exception("Closing a session at teardown failed", extra=JOURNAL.about(None))
        place.pop(key, None)
        place.pop(IN_USE, None)


def on_leaving(app: Flask, closer: Closer, *, always: bool) -> None:
    """Call *closer* once for each context of *app* that ends, after all of its teardown functions.

    Args:
        app: The application.
        closer: What to call, with the slot and the error that the context ended with.
        always: Whether to call it for a context that nobody has used, too.

    The methods that run the teardown functions are wrapped on the instance, because a teardown function that raises
    keeps the ones registered before it from running, in Flask 3.1 and before.
    """
    closers: _Closers | None = app.extensions.get(_TEARDOWN)
    if closers is not None:
        closers.add(closer, always=always)
        return

    closers = app.extensions[_TEARDOWN] = _Closers()
    closers.add(closer, always=always)

    def do_teardown_appcontext(*args: Any, **kwargs: Any) -> None:
        if _ends(_cv_app.get()):
            closers.prepare((*args, *kwargs.values()))
        try:
            original_appcontext(*args, **kwargs)
        finally:
            if closers.always or _ends(_cv_app.get()):
                closers.leave((*args, *kwargs.values()))

    def do_teardown_request(*args: Any, **kwargs: Any) -> None:
        if IN_USE in vars(REQUEST_CONTEXT.get()):
            closers.prepare((*args, *kwargs.values()))
        try:
            original_request(*args, **kwargs)
        finally:
            if _ends_with_its_request():
                closers.leave((*args, *kwargs.values()))

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
