"""What Flask does with a request, and when the transactions in it begin and end.

The methods of the application are wrapped on the instance, so that a request is settled inside its dispatch: after
the view's value has become a response, and before error handlers, ``after_request`` functions and the first byte.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final

from flask import Flask, Request, Response
from werkzeug.exceptions import HTTPException, InternalServerError

from flask_uow._core.events import Observer
from flask_uow._core.once import once
from flask_uow._core.policy import COMMIT, ROLLBACK, Decision, on_error, on_status
from flask_uow._core.recording import Recorder
from flask_uow._core.retry import NOTHING_BEFORE, Attempt, Attempts
from flask_uow._core.runtime import HookErrors, Plan, Runtime
from flask_uow._core.scope import Scope
from flask_uow._core.session import SessionSource
from flask_uow.context import (
    AFTER_VIEW,
    BEFORE_VIEW,
    JOURNAL,
    MERGED,
    VIEW,
    VIEW_ENTERED,
    Carrier,
    Slot,
    StandIn,
    bound_late,
    current_carrier,
    current_endpoint,
    current_request,
    current_slot,
    enter_request,
    on_leaving,
    request_context,
)
from flask_uow.errors import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    HookError,
    PartialCommitError,
    UncommittedChangesError,
)
from flask_uow.order import advice, find_misplaced
from flask_uow.plans import (
    REPEATING,
    Asked,
    Policy,
    RequestPlan,
    handlers,
    plan_request,
    plan_to_repeat,
    policies_of,
)
from flask_uow.reruns import Snapshot
from flask_uow.settings import KNOWN_METHODS, Settings
from flask_uow.signals import Publisher

__all__ = ["Dispatch", "Managed"]

logger = logging.getLogger("flask_uow.requests")

_NOTHING: Final = object()


Decide = Callable[["Managed", Slot, Any], Decision]
"""Decides for one UnitOfWork, whose place is in the slot, by a response or an error."""


class Managed:
    """One UnitOfWork in one application."""

    __slots__ = ("_app", "_plans", "name", "owner", "runtime", "settings", "source")

    def __init__(
        self,
        app: Flask,
        owner: object,
        name: str,
        source: SessionSource,
        settings: Settings,
        *,
        recorders: Sequence[Recorder],
        observers: Collection[Observer],
    ) -> None:
        self._app = app
        self.owner = owner
        self._plans: dict[tuple[str | None, str], RequestPlan] = {}
        self.name = name
        self.settings = settings
        self.source = source
        self.runtime = Runtime(
            source,
            Publisher(app, self._synchronise, journal=JOURNAL, observers=observers),
            self._judge,
            settings.manual_commit,
            self._hook_errors,
            strict=settings.strict,
            isolation_level=settings.isolation_level,
            timeout=settings.timeout,
            slow_transaction=settings.slow_transaction,
            uncommitted=settings.uncommitted,
            attempts=settings.attempts,
            resolve_commit=settings.resolve_commit,
            recorders=recorders,
            journal=JOURNAL,
        )

    def scope(self) -> Scope:
        """Return the scope of the current context, made on first use, or what has its place at the moment."""
        slot = current_slot()
        scope = slot.scopes.get(self)
        if scope is not None:
            return scope.innermost()
        scope = slot.scopes[self] = Scope(self.runtime, self.plan_in(slot))
        if slot.ending:
            scope.ending = True
        if slot.attempts is not None:
            scope.attempt(slot.attempts)
        return scope

    @property
    def has_registry(self) -> bool:
        """Whether its sessions can be open before anybody asks for one."""
        return self.source.find_open is not None

    def adopt_open(self) -> None:
        """Take care of a session that a registry has open from before the request."""
        session = None if self.source.find_open is None else self.source.find_open()
        if session is not None:
            self.scope().adopt(session)

    def request_plan(self, slot: Slot) -> RequestPlan:
        """Return what is done with the request of *slot*; found once for each endpoint and method."""
        plan: RequestPlan | None = slot.plans.get(self)
        if plan is None:
            request = slot.request or current_request()
            plan = slot.plans[self] = self.find_plan(request)
        return plan

    def find_plan(self, request: Request) -> RequestPlan:
        """Return what is done with *request*."""
        key = request.endpoint, request.method
        plan = self._plans.get(key)
        if plan is None:
            plan = self.plan(Asked(request.endpoint, request.method, request.path))
            # A client can invent methods without end, and endpoints not.
            if request.method in KNOWN_METHODS and request.endpoint is not None:
                self._plans[key] = plan
        return plan

    def plan(self, asked: Asked) -> RequestPlan:
        """Return what is done with a request that asks for *asked*."""
        return plan_request(self._app, asked, self.owner, self.name, self.settings)

    def policies(self, endpoint: str, method: str) -> Iterator[Policy]:
        """Yield what decorators have put on a view, the outermost first."""
        return policies_of(handlers(self._app.view_functions.get(endpoint), method), self.owner, self.name)

    def plan_in(self, slot: Slot) -> Plan | None:
        """Return the transaction that is there without a block, as far as the request has come."""
        phase = slot.carrier._flask_uow_phase
        if phase is None:
            return None
        plan = self.request_plan(slot)
        return plan.rest if phase is AFTER_VIEW else plan.view

    def enter_view(self, policy: Policy) -> bool:
        """Whether the decorator with *policy* is the current request's own, and starts now. Dispatch ends it."""
        carrier = current_carrier()
        if carrier._flask_uow_phase is not VIEW or self.find_plan(current_request()).policy is not policy:
            return False
        carrier._flask_uow_phase = VIEW_ENTERED
        slot = carrier._flask_uow_in_use
        if slot is not None and slot.attempts is not None:
            # A decorator outside may run the view again by itself.
            slot.attempts.reopen()
        return True

    def view_failed(self, error: BaseException) -> None:
        """End the view's transaction at once, for what is outside its decorator may swallow *error*."""
        carrier = current_carrier()
        # It may call the view again, as a retry does.
        carrier._flask_uow_phase = VIEW
        slot = carrier._flask_uow_in_use
        scope = None if slot is None else slot.scopes.get(self)
        if slot is not None and scope is not None:
            scope.settle(self.on_error(slot, error), error, self.request_plan(slot).view)

    def on_response(self, slot: Slot, response: Any) -> Decision:
        """Decide by a response."""
        commit_if = self.request_plan(slot).commit_if
        if commit_if is None:
            return on_status(response.status_code)
        if not isinstance(response, self._app.response_class):
            # That of an HTTPException, as the error handler of Flask would see it.
            response = self._app.response_class.force_type(response, current_request().environ)
        return COMMIT if commit_if(response) else ROLLBACK

    def on_error(self, slot: Slot, error: BaseException) -> Decision:
        """Decide by what a view raised."""
        plan = self.request_plan(slot).view
        return ROLLBACK if plan is None else on_error(error, plan.options, self._judge)

    def on_rest(self, slot: Slot, response: Response) -> Decision:
        """Decide for what was done outside the view, which only the app-wide policy covers."""
        return ROLLBACK if self.request_plan(slot).rest is None else self.on_response(slot, response)

    def on_failure(self, _slot: Slot, _error: BaseException) -> Decision:
        """Keep nothing."""
        return ROLLBACK

    def end(self, scope: Scope, slot: Slot, decide: Decide, subject: Any, error: BaseException | None) -> None:
        """End the planned transaction, if there is anything to end; after a failure, by a rollback.

        Args:
            scope: The scope of the UnitOfWork.
            slot: The slot that it is in.
            decide: Decides whether to keep the work.
            subject: By what: a response, or an error.
            error: What was raised, if it was.

        Raises:
            HookError: Hooks failed, and are to raise.
        """
        then = self.plan_in(slot)
        if not scope.has_planned():
            scope.settle(ROLLBACK, error, then)
            return
        try:
            follows = slot.attempts is not None and slot.attempts.follows
            scope.settle(ROLLBACK if follows else decide(self, slot, subject), error, then)
        except HookError:
            raise
        except BaseException as failure:
            scope.settle(ROLLBACK, failure, then)
            raise

    def _judge(self, error: BaseException) -> Decision | None:
        """Judge ``abort()`` by its own response, like a response that is returned."""
        if not isinstance(error, HTTPException):
            return None
        response = error.get_response()
        if current_carrier()._flask_uow_phase is None:
            return on_status(response.status_code)
        return self.on_response(current_slot(), response)

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
        self._repeats = False
        """Whether a setting says that views may have to run again."""

        self._repeatable: dict[tuple[str | None, str], Plan | None] = {}
        """The plan by which a view may have to run again, by endpoint and method."""

        self._with_registries: list[Managed] = []
        self._raising: list[Managed] = []
        """Those for which a request fails at changes that nobody has settled."""

        self._look_for_order = once(self._tell_of_order)
        self._full_dispatch: Callable[..., Any] = self._dispatch_first
        self._bare_full_dispatch = bound_late(app, "full_dispatch_request")
        self._exception = bound_late(app, "handle_exception")
        self._dispatch_request: Callable[..., Any] | None = None
        self._handle_user_exception: Callable[..., Any] | None = None
        self._wrap()
        for name in ("full_dispatch_request", "handle_exception"):
            setattr(app, name, getattr(self, name))
        on_leaving(app, _close, always=False)

    def add(self, owner: object, managed: Managed) -> None:
        """Serve another UnitOfWork, after those that are there."""
        self.managed[owner] = managed
        self._repeats = self._repeats or managed.settings.attempts > 1
        if managed.has_registry:
            self._with_registries.append(managed)
        if managed.settings.uncommitted == "raise":
            self._raising.append(managed)

    # The wrappers. What each request comes by has the signature of Flask's own, for to pass on whatever is given costs
    # as much again as to be called: 3.2 puts the context first.

    def full_dispatch_request(self, context: Any = None) -> Response:
        """Handle a request, and settle at its end what is left."""
        app = self._app
        if (
            app.dispatch_request is not self._dispatch_request
            or app.handle_user_exception is not self._handle_user_exception
        ):
            self._wrap()

        carrier = enter_request()
        if carrier._flask_uow_in_use is not None:
            self._replan(carrier)
        try:
            if self._with_registries:
                for managed in self._with_registries:
                    managed.adopt_open()
            response: Response = self._full_dispatch(context) if MERGED else self._full_dispatch()
            slot = carrier._flask_uow_in_use
            if slot is not None:
                self._settle_all(slot, carrier, response)
        except BaseException as error:
            slot = carrier._flask_uow_in_use
            if slot is not None:
                _expect_rollback(slot)
                self._roll_back(carrier, error)
            raise
        finally:
            carrier._flask_uow_phase = None
            slot = carrier._flask_uow_in_use
            if slot is not None:
                for scope in slot.scopes.values():
                    scope.replan(None)
        return response

    def _dispatch_first(self, *args: Any) -> Response:
        """Look for decorators in the wrong order before the first request is handled; those after it pay nothing."""
        self._look_for_order()
        self._full_dispatch = self._bare_full_dispatch
        response: Response = self._bare_full_dispatch(*args)
        return response

    def _tell_of_order(self) -> None:
        app = self._app
        found = find_misplaced(app)
        if found and (app.testing or app.debug):
            # At each request, so that no test passes by luck.
            raise ConfigurationError(*advice(found))
        if found:
            logger.warning("%s %s", *advice(found), extra=JOURNAL.about(None))

    def _wrap(self) -> None:
        """Be outermost around what an extension may have replaced since, as some do for every app they are given."""
        app = self._app
        with self._lock:
            # Another thread may have been faster.
            if vars(app).get("dispatch_request", _NOTHING) is not self._dispatch_request:
                self._dispatch_request = self._around_dispatch(bound_late(app, "dispatch_request"))
                setattr(app, "dispatch_request", self._dispatch_request)  # noqa: B010 - mypy refuses to assign methods
            if vars(app).get("handle_user_exception", _NOTHING) is not self._handle_user_exception:
                self._handle_user_exception = self._around_handling(bound_late(app, "handle_user_exception"))
                setattr(app, "handle_user_exception", self._handle_user_exception)  # noqa: B010 - as above

    def _around_dispatch(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def dispatch_request(context: Any = None) -> Any:
            view = partial(original, context) if MERGED else original
            carrier: Any = request_context(None)
            try:
                is_before = carrier._flask_uow_phase is BEFORE_VIEW
            except AttributeError:
                is_before = False
            if not is_before:
                return self._dispatch_again(view)
            if (self._repeats or REPEATING) and (plan := self._plan_to_repeat()) is not None:
                return self._repeat(plan, carrier, view)

            # As in _run_view(): the way of most requests, and each call costs them more than all the rest of this.
            carrier._flask_uow_phase = VIEW
            try:
                value = view()
                slot = carrier._flask_uow_in_use
                if slot is not None:
                    value = self._settle_view(slot, carrier, value)
            except BaseException as error:
                self._settle_error(carrier, error)
                raise
            finally:
                carrier._flask_uow_phase = AFTER_VIEW
            return value

        return dispatch_request

    def _dispatch_again(self, original: Callable[[], Any]) -> Any:
        """Dispatch a request whose view is running or has run, or that nobody has entered."""
        carrier = current_carrier()
        before = carrier._flask_uow_phase
        if before is VIEW or before is VIEW_ENTERED:
            return original()
        if before is None:
            # Nobody has come by full_dispatch_request(): dispatch is called by hand.
            carrier = enter_request()
            self._replan(carrier)
        try:
            plan = self._plan_to_repeat() if self._repeats or REPEATING else None
            return self._run_view(carrier, original) if plan is None else self._repeat(plan, carrier, original)
        finally:
            carrier._flask_uow_phase = AFTER_VIEW
            if before is None:
                carrier._flask_uow_phase = None
                self._replan(carrier)

    def _run_view(self, carrier: Carrier, view: Callable[[], Any]) -> Any:
        """Run the view, and settle its work."""
        carrier._flask_uow_phase = VIEW
        try:
            value = view()
            slot = carrier._flask_uow_in_use
            if slot is not None:
                value = self._settle_view(slot, carrier, value)
        except BaseException as error:
            self._settle_error(carrier, error)
            raise
        return value

    def _plan_to_repeat(self) -> Plan | None:
        """Return the plan by which the current request's view may run again; found once for each endpoint."""
        request = current_request()
        key = request.endpoint, request.method
        if key in self._repeatable:
            return self._repeatable[key]
        plan = plan_to_repeat([managed.find_plan(request) for managed in self.managed.values()])
        if request.method in KNOWN_METHODS and request.endpoint is not None:
            self._repeatable[key] = plan
        return plan

    def _repeat(self, plan: Plan, carrier: Carrier, view: Callable[[], Any]) -> Any:
        """Run the view as often as its transaction asks for it, and as it may."""
        retry = plan.retry
        assert retry is not None
        runtime = next(iter(self.managed.values())).runtime
        attempts = Attempts(retry, plan.label, runtime.sleep, runtime.journal)
        repetition = _Repetition(attempts, current_slot())
        try:
            while True:
                # As if it came from before_request functions again.
                carrier._flask_uow_phase = VIEW
                self._replan(carrier)
                repetition.begin()
                with Attempt(attempts) as attempt:
                    attempt.value = self._run_view(carrier, view)
                if attempt.is_last:
                    return attempt.value
                _close_answer(attempt.value)
                repetition.undo()
        finally:
            carrier._flask_uow_phase = AFTER_VIEW
            repetition.end()

    def _around_handling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def handle_user_exception(*args: Any, **kwargs: Any) -> Any:
            args = (*args, *kwargs.values())
            try:
                carrier = current_carrier()
                if carrier._flask_uow_phase is BEFORE_VIEW:
                    # A before_request function has raised: undo its work before its error handler runs.
                    try:
                        self._settle_error(carrier, args[-1])
                    except Exception as worse:  # noqa: BLE001 - handed to the error handlers in its place
                        args = (*args[:-1], worse)
                return original(*args)
            finally:
                # The error's traceback has this frame.
                del args

        return handle_user_exception

    def handle_exception(self, *args: Any, **kwargs: Any) -> Response:
        """Let the handler of a 500 work in a clean session, and settle its work by its response."""
        # A request whose context failed to come up has not been entered yet.
        carrier: Carrier = StandIn() if request_context(None) is None else enter_request()
        carrier._flask_uow_phase = AFTER_VIEW
        self._replan(carrier)
        try:
            response: Response = self._exception(*args, **kwargs)
            try:
                self._settle_rest(carrier, response)
            except HookError:
                logger.exception("Hooks failed while an error was handled", extra=JOURNAL.about(None))
            except Exception:
                # Nobody handles an error from here on, and the client must not be told of work that is lost.
                logger.exception("The work of the handler of a 500 could not be stored", extra=JOURNAL.about(None))
                response.close()
                response = self._app.make_response(InternalServerError())
        except BaseException as error:
            self._roll_back(carrier, error)
            raise
        finally:
            carrier._flask_uow_phase = None
            self._replan(carrier)
        return response

    # Settling

    def _replan(self, carrier: Carrier) -> None:
        """Let the scopes know how far the request has come."""
        slot = carrier._flask_uow_in_use
        if slot is not None:
            for managed, scope in self._scopes_in(slot):
                scope.replan(managed.plan_in(slot))

    def _scopes_in(self, slot: Slot) -> list[tuple[Managed, Scope]]:
        """Return the scopes of *slot*, in the order in which the UnitOfWork objects were initialised."""
        scopes = slot.scopes
        return [(managed, scopes[managed]) for managed in self.managed.values() if managed in scopes]

    def _settle_view(self, slot: Slot, carrier: Carrier, value: Any) -> Any:
        for scope in slot.scopes.values():
            if scope.has_planned():
                break
        else:
            carrier._flask_uow_phase = AFTER_VIEW
            self._replan(carrier)
            return value

        response = self._app.make_response(value)
        carrier._flask_uow_phase = AFTER_VIEW
        try:
            self._settle(slot, Managed.on_response, response, None)
        except BaseException:
            response.close()
            raise
        return response

    def _roll_back(self, carrier: Carrier, error: BaseException) -> None:
        slot = carrier._flask_uow_in_use
        if slot is not None:
            self._settle(slot, Managed.on_failure, error, error)

    def _settle_error(self, carrier: Carrier, error: BaseException) -> None:
        carrier._flask_uow_phase = AFTER_VIEW
        slot = carrier._flask_uow_in_use
        if slot is None:
            return
        self._settle(slot, Managed.on_error, error, error)
        # What its handler does in a session that is clean is another matter.
        left = [scope for scope in slot.scopes.values() if scope.leftovers() is not None]
        if left and not (isinstance(error, HTTPException) and _is_success(error.get_response())):
            for scope in left:
                scope.write_off()

    def _look_for_leftovers(self, response: Response) -> None:
        """Look for what nobody has settled, at the end of a request. Most of it is told at teardown.

        Raises:
            UncommittedChangesError: There is something, and it is to raise. It is rolled back.
        """
        if not _is_success(response):
            _expect_rollback(current_slot())
            return

        objects: list[str] = []
        more = 0
        for managed in self._raising:
            scope = current_slot().scopes.get(managed)
            if scope is not None and (left := scope.leftovers()) is not None:
                scope.undo()
                objects += left.objects
                more += left.more
        if objects:
            raise UncommittedChangesError(current_endpoint(), objects, more)

    def _settle_all(self, slot: Slot, carrier: Carrier, response: Response) -> None:
        """Settle what is left at the end of a request. Mostly there is nothing."""
        for scope in slot.scopes.values():
            if scope.is_open():
                break
        else:
            if not _is_success(response):
                _expect_rollback(slot)
            return
        try:
            self._settle_rest(carrier, response)
            self._look_for_leftovers(response)
        except BaseException:
            response.close()
            raise

    def _settle_rest(self, carrier: Carrier, response: Response) -> None:
        """Settle what was done outside the view."""
        carrier._flask_uow_phase = AFTER_VIEW
        slot = carrier._flask_uow_in_use
        if slot is not None:
            self._settle(slot, Managed.on_rest, response, None)

    def _settle(self, slot: Slot, decide: Decide, subject: Any, error: BaseException | None) -> None:
        """End the planned transactions of all, in the order in which they were initialised.

        Raises:
            PartialCommitError: One failed after another had committed.
            HookError: Hooks failed, and are to raise.
        """
        if len(slot.scopes) == 1:
            # Hooks may use another meanwhile, which has nothing to settle here.
            [(managed, scope)] = slot.scopes.items()
            managed.end(scope, slot, decide, subject, error)
            return
        settlement = _Settlement(slot, decide, subject, error)
        # What cannot commit is known before anything does.
        for managed, scope in sorted(self._scopes_in(slot), key=lambda each: not each[1].is_doomed):
            settlement.end(managed, scope)
        settlement.tell()


class _Repetition:
    """What is undone between two attempts at one view."""

    __slots__ = ("_attempts", "_baselines", "_slot", "_snapshot")

    def __init__(self, attempts: Attempts, slot: Slot) -> None:
        self._attempts = slot.attempts = attempts
        self._slot = slot
        self._snapshot = Snapshot()
        self._baselines = {managed: scope.look() for managed, scope in slot.scopes.items()}
        for baseline in self._baselines.values():
            attempts.add_obstacle(baseline.obstacle)
        attempts.add_obstacle(self._snapshot.obstacle)

    def begin(self) -> None:
        """Let the scopes know that an attempt begins."""
        for scope in self._slot.scopes.values():
            scope.attempt(self._attempts)

    def undo(self) -> None:
        """Undo what an attempt has left, and wait."""
        for managed, scope in self._slot.scopes.items():
            scope.discard(self._baselines.get(managed, NOTHING_BEFORE))
        self._snapshot.restore()
        self._attempts.wait()

    def end(self) -> None:
        """Let what comes after the view be no attempt."""
        self._slot.attempts = None
        for scope in self._slot.scopes.values():
            scope.attempt(None)


def _close_answer(value: Any) -> None:
    """Close what a view has returned in vain: a response, perhaps in a tuple, or a generator."""
    body = value[0] if isinstance(value, tuple) and value else value
    close = getattr(body, "close", None)
    if callable(close):
        close()


class _Settlement:
    """The end of one request's planned transactions, one UnitOfWork after the other."""

    __slots__ = ("_committed", "_decide", "_error", "_failure", "_hook_error", "_slot", "_subject")

    def __init__(self, slot: Slot, decide: Decide, subject: Any, error: BaseException | None) -> None:
        self._slot = slot
        self._decide = decide
        self._subject = subject
        self._error = error
        self._committed: list[str] = []
        self._failure: tuple[str, BaseException] | None = None
        self._hook_error: HookError | None = None

    def end(self, managed: Managed, scope: Scope) -> None:
        """End the transaction of *managed*; after a failure, by a rollback."""
        transaction = scope.planned
        decide = self._decide if self._failure is None else Managed.on_failure
        try:
            managed.end(scope, self._slot, decide, self._subject, self._error)
        except HookError as error:
            self._hook_error = self._hook_error or error
        except BaseException as error:  # noqa: BLE001 - raised by tell(), when the others are settled too
            self._failure = self._failure or (managed.name, error)
            self._error = error
        if transaction is not None and transaction._stored:
            self._committed.append(managed.name)

    def tell(self) -> None:
        """Raise what has to be raised, now that all are settled."""
        if self._failure is not None:
            name, error = self._failure
            # Its traceback will have our frame, and we are not to have the error then.
            self._failure = self._error = self._subject = None
            if self._committed and isinstance(error, CommitOutcomeUnknownError):
                error.add_note(f"Committed before it: {', '.join(map(repr, self._committed))}.")
            elif self._committed and name not in self._committed and isinstance(error, Exception):
                raise PartialCommitError(self._committed, name) from error
            try:
                raise error
            finally:
                del error
        if self._hook_error is not None:
            raise self._hook_error


def _is_success(response: Any) -> bool:
    return on_status(response.status_code) is COMMIT


def _expect_rollback(slot: Slot) -> None:
    for scope in slot.scopes.values():
        scope.expects_rollback = True


def _close(slot: Slot | None, error: BaseException | None) -> None:
    for scope in [*reversed(slot.scopes.values())] if slot is not None else ():
        try:
            scope.close(error)
        except Exception:
            logger.exception("Closing a session at teardown failed", extra=JOURNAL.about(None))
