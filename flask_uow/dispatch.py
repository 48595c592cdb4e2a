"""What Flask does with a request, and when the transactions in it begin and end.

The methods of the application are wrapped on the instance, so that a request is settled inside its dispatch: after
the view's value has become a response, and before error handlers, ``after_request`` functions and the first byte.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from flask import Flask, Response
from werkzeug.exceptions import HTTPException, InternalServerError

from flask_uow._core.policy import Decision, on_error, on_status
from flask_uow._core.scope import HookErrors, Plan, Runtime, Scope
from flask_uow._core.session import SessionSource
from flask_uow.context import (
    AFTER_VIEW,
    BEFORE_VIEW,
    VIEW,
    VIEW_ENTERED,
    Slot,
    bound_late,
    current_request,
    current_slot,
    on_leaving,
)
from flask_uow.errors import HookError, NoScopeError, PartialCommitError
from flask_uow.plans import Policy, RequestPlan, plan_request
from flask_uow.settings import KNOWN_METHODS, Settings
from flask_uow.signals import Publisher

__all__ = ["Dispatch", "Managed"]

logger = logging.getLogger("flask_uow")

_NOTHING: Final = object()

_IN_VIEW: Final = (VIEW, VIEW_ENTERED)


class Managed:
    """One UnitOfWork in one application."""

    __slots__ = ("_app", "_owner", "_plans", "name", "runtime", "settings")

    def __init__(self, app: Flask, owner: object, name: str, source: SessionSource, settings: Settings) -> None:
        self._app = app
        self._owner = owner
        self._plans: dict[tuple[str | None, str], RequestPlan] = {}
        self.name = name
        self.settings = settings
        self.runtime = Runtime(
            source,
            Publisher(app, self._synchronise),
            self._judge,
            settings.manual_commit,
            self._hook_errors,
        )

    def scope(self) -> Scope:
        """Return the scope of the current context, made on first use."""
        slot = current_slot()
        scope = slot.scopes.get(self)
        if scope is None:
            scope = slot.scopes[self] = Scope(self.runtime, self.plan_in(slot))
        return scope

    def request_plan(self, slot: Slot) -> RequestPlan:
        """Return what is done with the request of *slot*; found once for each endpoint and method."""
        plan: RequestPlan | None = slot.plans.get(self)
        if plan is None:
            request = current_request()
            key = request.endpoint, request.method
            plan = self._plans.get(key)
            if plan is None:
                plan = plan_request(self._app, request, self._owner, self.name, self.settings)
                # A client can invent methods without end, and endpoints not.
                if request.method in KNOWN_METHODS and request.endpoint is not None:
                    self._plans[key] = plan
            slot.plans[self] = plan
        return plan

    def plan_in(self, slot: Slot) -> Plan | None:
        """Return the transaction that is there without a block, as far as the request has come."""
        if slot.phase is None:
            return None
        plan = self.request_plan(slot)
        return plan.rest if slot.phase is AFTER_VIEW else plan.view

    def enter_view(self, policy: Policy) -> bool:
        """Whether the decorator with *policy* is the current request's own, and starts now. Dispatch ends it."""
        slot = current_slot()
        if slot.phase is not VIEW or self.request_plan(slot).policy is not policy:
            return False
        slot.phase = VIEW_ENTERED
        return True

    def view_failed(self, error: BaseException) -> None:
        """End the view's transaction at once, for what is outside its decorator may swallow *error*."""
        slot = current_slot()
        slot.phase = AFTER_VIEW
        scope = slot.scopes.get(self)
        if scope is not None:
            scope.settle(self.on_error(slot, error), error, self.request_plan(slot).rest)

    def on_response(self, slot: Slot, response: Any) -> Decision:
        """Decide by a response."""
        commit_if = self.request_plan(slot).commit_if
        if commit_if is None:
            return on_status(response.status_code)
        return Decision.COMMIT if commit_if(response) else Decision.ROLLBACK

    def on_error(self, slot: Slot, error: BaseException) -> Decision:
        """Decide by what a view raised."""
        plan = self.request_plan(slot).view
        return Decision.ROLLBACK if plan is None else on_error(error, plan.options, self._judge)

    def _judge(self, error: BaseException) -> Decision | None:
        """Judge ``abort()`` by its own response, like a response that is returned."""
        if not isinstance(error, HTTPException):
            return None
        slot = _slot_or_none()
        response = error.get_response()
        if slot is None or slot.phase is None:
            return on_status(response.status_code)
        return self.on_response(slot, response)

    def _synchronise(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self._app.ensure_sync(function)

    def _hook_errors(self) -> HookErrors:
        return self.settings.hook_errors or ("raise" if self._app.testing else "log")


class Dispatch:
    """The wrappers around one application's methods, and the UnitOfWork objects that they serve, in order."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._lock = threading.Lock()
        self.managed: dict[object, Managed] = {}

        self._full_dispatch = bound_late(app, "full_dispatch_request")
        self._user_exception = bound_late(app, "handle_user_exception")
        self._exception = bound_late(app, "handle_exception")
        self._dispatch_request: Callable[..., Any] | None = None
        self._wrap_dispatch()
        for name in ("full_dispatch_request", "handle_user_exception", "handle_exception"):
            setattr(app, name, getattr(self, name))
        on_leaving(app, _close)

    # The wrappers. They pass on whatever arguments Flask gives: 3.2 puts the context first.

    def full_dispatch_request(self, *args: Any, **kwargs: Any) -> Response:
        """Handle a request, and settle at its end what is left."""
        if vars(self._app).get("dispatch_request") is not self._dispatch_request:
            self._wrap_dispatch()

        slot = current_slot()
        slot.phase = BEFORE_VIEW
        if slot.scopes:
            self._replan(slot)
        try:
            response: Response = self._full_dispatch(*args, **kwargs)
            if slot.scopes:
                try:
                    self._settle_rest(slot, response)
                except BaseException:
                    response.close()
                    raise
        except BaseException as error:
            self._roll_back(slot, error)
            raise
        finally:
            slot.phase = None
            if slot.scopes:
                self._replan(slot)
        return response

    def _wrap_dispatch(self) -> None:
        """Be outermost around ``dispatch_request()``, also when another extension has wrapped it since."""
        with self._lock:
            if vars(self._app).get("dispatch_request", _NOTHING) is self._dispatch_request:
                return  # another thread was faster
            dispatch_request = self._around(bound_late(self._app, "dispatch_request"))
            self._dispatch_request = dispatch_request
            setattr(self._app, "dispatch_request", dispatch_request)  # noqa: B010 - mypy refuses assigning to a method

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def dispatch_request(*args: Any, **kwargs: Any) -> Any:
            slot = current_slot()
            before = slot.phase
            if before in _IN_VIEW:
                return original(*args, **kwargs)

            slot.phase = VIEW
            if slot.scopes:
                self._replan(slot)
            try:
                value = original(*args, **kwargs)
                if slot.scopes and any(scope.needs_settling() for scope in slot.scopes.values()):
                    value = self._settle_view(slot, value)
            except BaseException as error:
                self._settle_error(slot, error)
                raise
            finally:
                # Where nobody has come by full_dispatch_request(), dispatch was called by hand.
                slot.phase = None if before is None else AFTER_VIEW
                if slot.scopes:
                    self._replan(slot)
            return value

        return dispatch_request

    def handle_user_exception(self, *args: Any) -> Any:
        """Undo the work of a ``before_request`` function that raised, before its error handler runs."""
        error: BaseException = args[-1]
        slot = _slot_or_none()
        if slot is not None and slot.phase is BEFORE_VIEW:
            try:
                self._settle_error(slot, error)
            except Exception as worse:  # noqa: BLE001 - handed to the error handlers in its place
                return self._user_exception(*args[:-1], worse)
        return self._user_exception(*args)

    def handle_exception(self, *args: Any) -> Response:
        """Let the handler of a 500 work in a clean session, and settle its work by its response."""
        slot = _slot_or_none()
        if slot is None:
            return self._exception(*args)  # type: ignore[no-any-return]

        slot.phase = AFTER_VIEW
        self._replan(slot)
        try:
            response: Response = self._exception(*args)
            try:
                self._settle_rest(slot, response)
            except HookError:
                logger.exception("Hooks failed while an error was handled")
            except Exception:
                # Nobody handles an error from here on, and the client must not be told of work that is lost.
                logger.exception("The work of the handler of a 500 could not be stored")
                response.close()
                response = self._app.make_response(InternalServerError())
        except BaseException as error:
            self._roll_back(slot, error)
            raise
        finally:
            slot.phase = None
            self._replan(slot)
        return response

    # Settling

    def _replan(self, slot: Slot) -> None:
        """Let the scopes know how far the request has come."""
        for managed in self.managed.values():
            scope = slot.scopes.get(managed)
            if scope is not None:
                scope.replan(managed.plan_in(slot))

    def _settle_view(self, slot: Slot, value: Any) -> Response:
        response = self._app.make_response(value)
        slot.phase = AFTER_VIEW
        try:
            self._settle(slot, lambda managed: managed.on_response(slot, response), None)
        except BaseException:
            response.close()
            raise
        return response

    def _settle_error(self, slot: Slot, error: BaseException) -> None:
        slot.phase = AFTER_VIEW
        self._settle(slot, lambda managed: managed.on_error(slot, error), error)

    def _settle_rest(self, slot: Slot, response: Response) -> None:
        """Settle what was done outside the view, which only the app-wide policy covers."""

        def decide(managed: Managed) -> Decision:
            return Decision.ROLLBACK if managed.request_plan(slot).rest is None else managed.on_response(slot, response)

        slot.phase = AFTER_VIEW
        self._settle(slot, decide, None)

    def _roll_back(self, slot: Slot, error: BaseException) -> None:
        self._settle(slot, lambda _: Decision.ROLLBACK, error)

    def _settle(self, slot: Slot, decide: Callable[[Managed], Decision], error: BaseException | None) -> None:
        """End the planned transactions of all, in the order in which they were initialised.

        Raises:
            PartialCommitError: One failed after another had committed.
            HookError: Hooks failed, and are to raise.
        """
        if not slot.scopes:
            return
        settlement = _Settlement(slot, decide, error)
        for managed in self.managed.values():
            scope = slot.scopes.get(managed)
            if scope is not None:
                settlement.end(managed, scope)
        settlement.tell()


class _Settlement:
    """The end of one request's planned transactions, one UnitOfWork after the other."""

    __slots__ = ("_committed", "_decide", "_error", "_failure", "_hook_error", "_slot")

    def __init__(self, slot: Slot, decide: Callable[[Managed], Decision], error: BaseException | None) -> None:
        self._slot = slot
        self._decide = decide
        self._error = error
        self._committed: list[str] = []
        self._failure: tuple[str, BaseException] | None = None
        self._hook_error: HookError | None = None

    def end(self, managed: Managed, scope: Scope) -> None:
        """End the transaction of *managed*; after a failure, by a rollback."""
        then = managed.plan_in(self._slot)
        try:
            decision = Decision.ROLLBACK
            if self._failure is None and scope.needs_settling():
                decision = self._decide(managed)
            if scope.settle(decision, self._error, then) and decision is Decision.COMMIT:
                self._committed.append(managed.name)
        except HookError as error:
            self._hook_error = self._hook_error or error
            self._committed.append(managed.name)
        except BaseException as error:  # noqa: BLE001 - raised by tell(), when the others are settled too
            self._failure = self._failure or (managed.name, error)
            self._error = error
            scope.settle(Decision.ROLLBACK, error, then)

    def tell(self) -> None:
        """Raise what has to be raised, now that all are settled."""
        if self._failure is not None:
            name, error = self._failure
            if self._committed and isinstance(error, Exception):
                raise PartialCommitError(self._committed, name) from error
            raise error
        if self._hook_error is not None:
            raise self._hook_error


def _slot_or_none() -> Slot | None:
    """Return the current slot, or None where a request failed before its context was there."""
    try:
        return current_slot()
    except NoScopeError:
        return None


def _close(slot: Slot | None, error: BaseException | None) -> None:
    if slot is None or not slot.scopes:
        return
    for scope in reversed(slot.scopes.values()):
        try:
            scope.close(error)
        except Exception:
            logger.exception("Closing a session at teardown failed")
