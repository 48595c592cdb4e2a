"""Which policy covers a request, and where it comes from: the view, a blueprint, the app, or nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal

from flask import Flask

from flask_uow._core.options import CommitIf, Options
from flask_uow._core.propagation import can_begin
from flask_uow._core.retry import retry_of
from flask_uow._core.runtime import Plan
from flask_uow.settings import DEFAULT_NAME, Settings

__all__ = [
    "REPEATING",
    "Asked",
    "Origin",
    "Policy",
    "RequestPlan",
    "add_policy",
    "exempt",
    "handlers",
    "plan_request",
    "plan_to_repeat",
    "policies_of",
]

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
class Origin:
    """Where a policy was found."""

    place: Literal["view", "blueprint", "app"]
    blueprint: str | None = None
    """The name of the blueprint, if it was one."""


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

    origin: Origin | None
    """Where the policy is, or the exemption from it."""


REPEATING: Final[list[bool]] = []
"""Whether there is any policy by which a view may have to run again, as one item. Most programs have none."""


def plan_to_repeat(plans: Sequence[RequestPlan]) -> Plan | None:
    """Return the plan by which a view is run again, if it may be: one, whatever UnitOfWork objects it has.

    The view's own decorator says how often, or else the nearest there is; and of several, the one that says least.
    """
    said = [plan.view for plan in plans if plan.view and plan.view.options.attempts is not None]
    nearest = said or [plan.view for plan in plans if plan.view is not None and plan.view.retry is not None]
    chosen = min(nearest, key=lambda plan: plan.retry.attempts if plan.retry else 1, default=None)
    return chosen if chosen is not None and chosen.retry is not None else None


def add_policy(target: Any, policy: Policy, below: object) -> None:
    """Remember *policy* on *target*, above those that *below* has already."""
    setattr(target, _POLICIES, (policy, *getattr(below, _POLICIES, ())))
    if (policy.options.attempts or 1) > 1 and not REPEATING:
        REPEATING.append(True)


def exempt(target: Any, owner: object) -> None:
    """Remember that the policies of *owner* do not cover *target*."""
    setattr(target, _EXEMPT, (owner, *getattr(target, _EXEMPT, ())))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for, as far as a policy can depend on it."""

    endpoint: str | None
    method: str
    path: str = ""

    @property
    def label(self) -> str:
        """What to call the request in messages."""
        return f"the request to {self.endpoint or self.path!r}"

    @property
    def blueprints(self) -> list[str]:
        """The names of those that the endpoint is in, the innermost first."""
        names = (self.endpoint or "").split(".")[:-1]
        return [".".join(names[:count]) for count in range(len(names), 0, -1)]


def plan_request(app: Flask, asked: Asked, owner: object, name: str, settings: Settings) -> RequestPlan:
    """Find the policy of a request: the nearest wins.

    Args:
        app: The application that handles it.
        asked: What it asks for.
        owner: The UnitOfWork in question.
        name: Its name.
        settings: Its settings in *app*.
    """
    targets = list(handlers(app.view_functions.get(asked.endpoint or ""), asked.method))
    blueprints = {each: app.blueprints[each] for each in asked.blueprints if each in app.blueprints}

    is_exempt = _is_exempt(targets, owner)
    covered = settings.matches(asked.method) and not is_exempt and not _is_exempt(blueprints.values(), owner)
    read_only = settings.is_read_only(asked.method) or None
    rest = Plan(Options(read_only=read_only), asked.label, by_block=False) if covered else None

    policy = _policy_of(targets, owner, name)
    if policy is not None:
        view = _plan_of(policy, policy.label, read_only, settings)
        return RequestPlan(policy, view, rest, policy.options.commit_if or settings.commit_if, Origin("view"))
    if is_exempt:
        return RequestPlan(None, None, None, settings.commit_if, Origin("view"))

    for each, blueprint in blueprints.items():
        origin = Origin("blueprint", each)
        if _is_exempt([blueprint], owner):
            return RequestPlan(None, None, None, settings.commit_if, origin)
        policy = _policy_of([blueprint], owner, name)
        if policy is not None:
            view = _plan_of(policy, asked.label, read_only, settings)
            return RequestPlan(policy, view, rest, policy.options.commit_if or settings.commit_if, origin)

    if rest is None:
        return RequestPlan(None, None, None, settings.commit_if, None)
    view = replace(rest, retry=retry_of(Options(), settings.attempts))
    return RequestPlan(None, view, rest, settings.commit_if, Origin("app"))


def _plan_of(policy: Policy, label: str, read_only: bool | None, settings: Settings) -> Plan:  # noqa: FBT001 - the value of an option
    """Return the plan of a view; where it does not say, the request's method and the settings do."""
    options = policy.options
    if options.read_only is None:
        options = replace(options, read_only=read_only)
    return Plan(options, label, by_block=True, retry=retry_of(options, settings.attempts))


def handlers(view: Any, method: str) -> Iterator[Any]:
    """Yield what stands for a view: the function, what it wraps, and the method of its class."""
    while view is not None:
        yield view
        view_class = getattr(view, "view_class", None)
        if isinstance(view_class, type):
            yield view_class
            handler = getattr(view_class, method.lower(), None)
            if handler is None and method == "HEAD":
                handler = getattr(view_class, "get", None)
            yield from handlers(handler, method)
            return
        view = view.func if isinstance(view, partial) else getattr(view, "__wrapped__", None)


def policies_of(targets: Iterable[Any], owner: object, name: str) -> Iterator[Policy]:
    """Yield what decorators of *owner*, called *name*, have put on *targets*, the outermost first."""
    for target in targets:
        yield from (policy for policy in getattr(target, _POLICIES, ()) if policy.belongs_to(owner, name))


def _policy_of(targets: Iterable[Any], owner: object, name: str) -> Policy | None:
    """Return the nearest policy that can begin a transaction. Others are blocks, in what is active when they start."""
    policies = policies_of(targets, owner, name)
    return next((policy for policy in policies if can_begin(policy.options.propagation)), None)


def _is_exempt(targets: Iterable[Any], owner: object) -> bool:
    return any(owner in getattr(target, _EXEMPT, ()) for target in targets)
