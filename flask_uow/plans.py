"""Which policy covers a request, and where it comes from: the view, a blueprint, the app, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from flask import Blueprint, Flask, Request

from flask_uow._core.options import CommitIf, Options
from flask_uow._core.propagation import can_begin
from flask_uow._core.runtime import Plan
from flask_uow.settings import DEFAULT_NAME, Settings

__all__ = ["Policy", "RequestPlan", "add_policy", "exempt", "plan_request"]

_POLICIES: Final = "__uow_policies__"
_EXEMPT: Final = "__uow_exempt__"


@dataclass(frozen=True, slots=True, eq=False)
class Policy:
    """One use of a decorator, on a view or on a blueprint."""

    options: Options
    label: str
    owner: object | None
    """The UnitOfWork whose decorator it is; None for the module's own decorator, which looks for it by name."""

    def belongs_to(self, owner: object, name: str) -> bool:
        """Whether it is about the UnitOfWork *owner*, called *name*."""
        return self.owner is owner or (self.owner is None and (self.options.using or DEFAULT_NAME) == name)


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """What is done with the requests to one endpoint by one method."""

    policy: Policy | None
    """The decorator, where there is one."""

    view: Plan | None
    """The transaction up to the end of the view; None is none."""

    rest: Plan | None
    """The transaction of what comes after the view; None is none."""

    commit_if: CommitIf | None


def add_policy(target: Any, policy: Policy, below: object) -> None:
    """Remember *policy* on *target*, above those that *below* has already."""
    setattr(target, _POLICIES, (policy, *getattr(below, _POLICIES, ())))


def exempt(target: Any, owner: object) -> None:
    """Remember that the policies of *owner* do not cover *target*."""
    setattr(target, _EXEMPT, (owner, *getattr(target, _EXEMPT, ())))


def plan_request(app: Flask, request: Request, owner: object, name: str, settings: Settings) -> RequestPlan:
    """Find the policy of *request*: the nearest wins.

    Args:
        app: The application that handles it.
        request: The request, matched already.
        owner: The UnitOfWork in question.
        name: Its name.
        settings: Its settings in *app*.
    """
    endpoint = request.endpoint
    label = f"the request to {endpoint!r}" if endpoint else f"the request to {request.path!r}"
    targets = list(_handlers(app.view_functions.get(endpoint or ""), request.method))
    blueprints = [app.blueprints[blueprint] for blueprint in request.blueprints if blueprint in app.blueprints]

    is_exempt = _is_exempt(targets, owner)
    covered = settings.matches(request.method) and not is_exempt and not _is_exempt(blueprints, owner)
    read_only = settings.is_read_only(request.method) or None
    rest = Plan(Options(read_only=read_only), label, by_block=False) if covered else None

    policy = _policy_of(targets, owner, name)
    if policy is not None:
        view = Plan(_completed(policy.options, read_only), policy.label, by_block=True)
        return RequestPlan(policy, view, rest, policy.options.commit_if or settings.commit_if)

    for blueprint in () if is_exempt else blueprints:
        policy = _policy_of([blueprint], owner, name)
        if _is_exempt([blueprint], owner):
            break
        if policy is not None:
            view = Plan(_completed(policy.options, read_only), label, by_block=True)
            return RequestPlan(policy, view, rest, policy.options.commit_if or settings.commit_if)

    return RequestPlan(None, rest, rest, settings.commit_if)


def _completed(options: Options, read_only: bool | None) -> Options:  # noqa: FBT001 - the value of an option
    """Return *options*, read-only by the request's method where they do not say."""
    return options if options.read_only is not None else replace(options, read_only=read_only)


def _handlers(view: Any, method: str) -> Iterator[Any]:
    """Yield what stands for a view: the function, what it wraps, and the method of its class."""
    while view is not None:
        yield view
        view_class = getattr(view, "view_class", None)
        if view_class is not None:
            yield view_class
            handler = getattr(view_class, method.lower(), None)
            if handler is None and method == "HEAD":
                handler = getattr(view_class, "get", None)
            yield from _handlers(handler, method)
            return
        view = view.func if isinstance(view, partial) else getattr(view, "__wrapped__", None)


def _policy_of(targets: list[Any], owner: object, name: str) -> Policy | None:
    """Return the nearest policy that can begin a transaction. Others are blocks, in what is active when they start."""
    policies: Iterator[Policy] = (policy for target in targets for policy in getattr(target, _POLICIES, ()))
    return next(
        (policy for policy in policies if policy.belongs_to(owner, name) and can_begin(policy.options.propagation)),
        None,
    )


def _is_exempt(targets: list[Any] | list[Blueprint], owner: object) -> bool:
    return any(owner in getattr(target, _EXEMPT, ()) for target in targets)
