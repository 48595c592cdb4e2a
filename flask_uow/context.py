"""Where a Flask context keeps its scopes; the only file that knows Flask 3.1 from the line after it.

A context keeps them as its own attributes, so that they can neither be mixed up with another's nor outlive it.

In Flask 3.1 and before, a request made inside an ``app_context()`` shares that app context, and is told apart by its
request context: the key is the pair of both. On the line after it there is one context, and it is the key.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from enum import Enum
from functools import partial
from typing import Any, Final, Protocol

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
    "JOURNAL",
    "MERGED",
    "VIEW",
    "VIEW_ENTERED",
    "Carrier",
    "Phase",
    "RequestState",
    "Slot",
    "StandIn",
    "bound_late",
    "current_app",
    "current_carrier",
    "current_endpoint",
    "current_request",
    "current_slot",
    "enter_request",
    "on_leaving",
    "request_context",
]

logger = logging.getLogger("flask_uow.requests")

MERGED: Final = "request_ctx" not in vars(flask.globals)
"""Whether the request context has become a part of the app context (Flask 3.2)."""

# Each request asks for its contexts some ten times, and Python looks for the method `get` each time, unless it is kept.
app_context: Final = _cv_app.get
"""Returns the current app context."""

_SLOT: Final = "_flask_uow_slot"
_PAIRS: Final = "_flask_uow_pairs"
_OWN: Final = "_flask_uow_own_app_context"
_DISPATCHED_IN: Final = "_flask_uow_dispatched_in"
_TEARDOWN: Final = "_flask_uow_teardown"

PHASE: Final = "_flask_uow_phase"
"""The attribute of what carries the phase of a request."""

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


class Carrier(Protocol):
    """What carries how far a request has come: its context, whose attributes these become, or what stands in for it.

    They are set and read as attributes. To look into the ``__dict__`` of a context makes all that Flask asks of it
    dearer.
    """

    _flask_uow_phase: Phase | None
    _flask_uow_in_use: Slot | None
    """A slot of it, if anybody has asked for one. A request without one pays for looking at this alone."""


class StandIn:
    """Carries what no context is there for."""

    _flask_uow_phase: Phase | None = None
    _flask_uow_in_use: Slot | None = None


class Slot:
    """What belongs to one context; made when somebody asks for it."""

    __slots__ = ("__weakref__", "attempts", "carrier", "ending", "owner", "plans", "request", "scopes")

    def __init__(self, carrier: Carrier, owner: Any, request: Request | None) -> None:
        self.carrier = carrier
        self.owner = owner
        """What represents the request that it is of, or None outside requests on Flask 3.1."""

        self.request = request
        """That of the context, which on Flask 3.1 is gone when the teardown functions of an app context run."""

        self.ending = False
        """Whether the context ends, so that teardown functions of somebody else's run."""

        self.plans: dict[Any, Any] = {}
        """What is done with the request, by the object that manages it."""

        self.scopes: dict[Any, Scope] = {}
        """By the object that manages them, in the order in which they came into use."""

        self.attempts: Attempts | None = None
        """Those at the view that is running, if it may run again."""


def current_app() -> Flask | None:
    """Return the application of the current context, without a proxy."""
    context = app_context(None)
    return None if context is None else context.app


def current_request() -> Request:
    """Return the request of the current context, without a proxy."""
    request: Request = request_context().request
    return request


def current_endpoint() -> str | None:
    """Return the endpoint of the current request, also of one that is being torn down, or None outside requests."""
    if has_request_context():
        return current_request().endpoint
    context = app_context(None)
    slot = None if context is None else slot_in(context)
    return None if slot is None or slot.request is None else slot.request.endpoint


JOURNAL: Final = Journal(current_endpoint)
"""Says what a message in the log is about, in Flask and outside it."""


def current_slot() -> Slot:
    """Return the slot of the current context.

    Raises:
        NoScopeError: There is none, or it has been popped, as in a thread that works in a copy of it.
    """
    context = app_context(None)
    if context is not None:
        # Mostly it is there, and in the place where it is looked for first.
        slot: Slot | None = getattr(context, _SLOT, None)
        if slot is not None and slot.owner is request_context(None) and getattr(context, _tokens):
            return slot
    return _find_slot(context)


def _find_slot(context: Any) -> Slot:
    if context is None:
        raise NoScopeError(
            "The session",
            "no Flask context is active. Push one with 'with app.app_context():', or use 'with uow.transaction():'. A "
            "streamed body has one within stream_with_context().",
        )
    if not getattr(context, _tokens):
        raise NoScopeError(
            "The session",
            "the context has been popped, and its session is closed. Work that outlives its request needs a context "
            "of its own: 'with app.app_context():', or flask.copy_current_request_context().",
        )

    pairs = _pairs(context)
    slot: Slot | None = getattr(context, _SLOT, None) if pairs is None else pairs.get(context)
    if slot is None:
        slot = _new_slot(context)
        if pairs is None:
            context._flask_uow_slot = slot
        else:
            pairs[context] = slot
    return slot


def slot_in(context: Any) -> Slot | None:
    """Return the slot of the current request in an app context, or of that alone, if somebody has asked for it."""
    pairs = _pairs(context)
    slot: Slot | None = getattr(context, _SLOT, None) if pairs is None else pairs.get(context)
    return slot


def current_carrier() -> Carrier:
    """Return what carries the phase of the current request, or a stand-in where none is being dispatched."""
    context = request_context(None)
    carrier: Carrier = context if hasattr(context, PHASE) else StandIn()
    return carrier


request_context: Callable[..., Any]
"""Returns what represents the current request."""

_beside: Callable[..., Any]
"""Returns the request that has a context beside that of its app: on Flask 3.1, and nothing after it."""

if MERGED:  # pragma: no cover - Flask 3.2; the same tests run on both lines, one line at a time
    request_context = _cv_app.get
    _beside = ContextVar[Any]("flask_uow.beside").get
    _tokens = "_cv_token"

    def _pairs(context: Any) -> dict[Any, Slot] | None:  # noqa: ARG001 - the signature of the other line
        """Return where the slot of the current context is kept, if that is not in the context itself."""
        return None

    def _forget_slot(context: Any, slot: Slot, *, is_inside: bool) -> None:  # noqa: ARG001 - as above
        delattr(context, _SLOT)
        context._flask_uow_in_use = None

    def _new_slot(context: Any) -> Slot:
        """Return a new slot, which the context is to keep, and which is to follow its phase."""
        if not hasattr(context, PHASE):
            context._flask_uow_phase = None
        slot: Slot = Slot(context, context, context._request)
        context._flask_uow_in_use = slot
        return slot

    def enter_request() -> Carrier:
        """Note that the current request is being dispatched from here on, and return what carries its phase."""
        context: Any = app_context()
        context._flask_uow_phase = BEFORE_VIEW
        context._flask_uow_in_use = getattr(context, _SLOT, None)
        carrier: Carrier = context
        return carrier

else:
    from flask.globals import _cv_request

    request_context = _beside = _cv_request.get
    _tokens = "_cv_tokens"

    def _pairs(context: Any) -> dict[Any, Slot] | None:
        """Return where the slot of the current context is kept, if that is not in the app context itself.

        Outside a request it is in the app context. So it is for an app context that the request pushed by itself: it
        has no other user, and outlives the request context by its own teardown functions, which are to see the same
        session. For any other pair it is in the request context.
        """
        request: Any = request_context(None)
        if request is None or not request._cv_tokens:
            return None
        if request._cv_tokens[0][1] is context:
            # Remembered, for stream_with_context() and the test client push the two again one by one.
            request._flask_uow_own_app_context = context
            return None
        if getattr(request, _OWN, None) is context:
            return None

        if not hasattr(request, _PAIRS):
            setattr(request, _PAIRS, {})
        pairs: dict[Any, Slot] = getattr(request, _PAIRS)
        return pairs

    def _forget_slot(context: Any, slot: Slot, *, is_inside: bool) -> None:
        """Forget the slot of an app context, or that of the request that is inside it."""
        pairs = _pairs(context) if is_inside else None
        if pairs is None:
            delattr(context, _SLOT)
        else:
            del pairs[context]
        if slot.owner is not None and slot.owner._flask_uow_in_use is slot:
            slot.owner._flask_uow_in_use = None

    def _new_slot(context: Any) -> Slot:
        """Return a new slot, which *context* is to keep. It follows the request that is dispatched in that."""
        request: Any = request_context(None)
        if request is None:
            return Slot(StandIn(), None, None)
        if getattr(request, _DISPATCHED_IN, None) is context:
            own: Slot = Slot(request, request, request.request)
            request._flask_uow_in_use = own
            return own
        slot = Slot(StandIn(), request, request.request)
        if getattr(request, IN_USE, None) is None:
            request._flask_uow_in_use = slot
        return slot

    def enter_request() -> Carrier:
        """Note that the current request is being dispatched from here on, and return what carries its phase."""
        request: Any = request_context()
        request._flask_uow_phase = BEFORE_VIEW
        request._flask_uow_dispatched_in = app_context()
        if getattr(request, IN_USE, None) is None:
            request._flask_uow_in_use = None
        else:
            # A slot from before follows its phase.
            slot = request._flask_uow_in_use = current_slot()
            slot.carrier = request
        carrier: Carrier = request
        return carrier


class RequestState:
    """What a view can leave on the current request, beside its response."""

    __slots__ = ("_attributes", "after_request_functions", "g", "request")

    def __init__(self) -> None:
        context = request_context()
        self._attributes: dict[str, Any] = vars(context)
        self.request: Request = context.request
        self.g: object = app_context().g
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

_MISSING: Final = object()
"""Stands for an argument that was not given."""

Closer = Callable[[Slot | None, BaseException | None], None]
"""Ends what a slot holds; None is a context that nobody used. The context is still current."""


class _Closers:
    """Who is called when a context of one application ends, and the wrappers around its teardown functions.

    Most requests have nothing to end, and pay for each argument that the wrappers take: they have the signatures of
    Flask's own methods.
    """

    def __init__(self) -> None:
        self._closers: list[Closer] = []
        self._always = False

    def add(self, closer: Closer, *, always: bool) -> None:
        # Registries come last: they cannot remove a session that a transaction is still in.
        self._closers.insert(len(self._closers) if always else 0, closer)
        self._always = self._always or always

    def _leave(self, slot: Slot | None, error: BaseException | None) -> None:
        for close in self._closers:
            try:
                close(slot, error)
            except Exception:
                logger.exception("Closing a session at teardown failed", extra=JOURNAL.about(None))

    def around_appcontext(self, original: Callable[..., Any]) -> Callable[..., None]:
        def do_teardown_appcontext(exc: Any = _MISSING) -> None:
            if exc is _MISSING:
                exc = sys.exception()
            context = app_context()
            # Inside a request it may be kept there.
            is_inside = _beside(None) is not None
            slot: Slot | None = slot_in(context) if is_inside else getattr(context, _SLOT, None)
            if slot is not None and not slot.ending:
                _prepare(slot, exc)
            try:
                original(exc)
            finally:
                slot = slot_in(context) if is_inside else getattr(context, _SLOT, None)
                if slot is not None or self._always:
                    self._leave(slot, exc)
                    if slot is not None:
                        _forget_slot(context, slot, is_inside=is_inside)

        return do_teardown_appcontext

    def around_merged(self, original: Callable[..., Any]) -> Callable[..., None]:  # pragma: no cover - as above
        def do_teardown_appcontext(context: Any, exc: Any = _MISSING) -> None:
            self.around_appcontext(partial(original, context))(exc)

        return do_teardown_appcontext

    def around_request(self, original: Callable[..., Any]) -> Callable[..., None]:
        def do_teardown_request(exc: Any = _MISSING) -> None:
            request = request_context()
            if exc is _MISSING:
                exc = sys.exception()
            try:
                slot: Slot | None = request._flask_uow_in_use
            except AttributeError:
                # Nobody has dispatched it, nor used it.
                slot = request._flask_uow_in_use = None
            if slot is not None:
                _prepare(slot if slot.carrier is request else slot_in(app_context()) or slot, exc)
            try:
                original(exc)
            finally:
                # It can share its app context, so that no app context ends with it.
                if request._flask_uow_in_use is not None and hasattr(request, _PAIRS):
                    context = app_context()
                    slot = slot_in(context)
                    if slot is not None and context in getattr(request, _PAIRS):
                        self._leave(slot, exc)
                        _forget_slot(context, slot, is_inside=True)

        return do_teardown_request


def _prepare(slot: Slot, error: BaseException | None) -> None:
    """Let the scopes know that their context ends: a teardown function of somebody else's may close their sessions."""
    slot.ending = True
    has_failed = error is not None and is_failure(error)
    for scope in slot.scopes.values():
        scope.ending = True
        if has_failed:
            scope.expects_rollback = True


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

    around_appcontext = closers.around_merged if MERGED else closers.around_appcontext
    appcontext = around_appcontext(bound_late(app, "do_teardown_appcontext"))
    setattr(app, "do_teardown_appcontext", appcontext)  # noqa: B010 - mypy refuses assigning to a method
    if not MERGED:  # pragma: no branch - as above
        request = closers.around_request(bound_late(app, "do_teardown_request"))
        setattr(app, "do_teardown_request", request)  # noqa: B010 - as above


def bound_late(app: Flask, name: str) -> Callable[..., Any]:
    """Return a function that calls the app's method *name*, as it is before we put ours in its place.

    What another extension has put on the instance is kept. What is in the class is looked up at each call on Flask
    3.2, which replaces methods of the class when a subclass is defined with the signatures of Flask 3.1.
    """
    if MERGED and name not in vars(app):  # pragma: no cover - as above
        return lambda *args, **kwargs: getattr(type(app), name)(app, *args, **kwargs)
    method: Callable[..., Any] = getattr(app, name)
    return method
