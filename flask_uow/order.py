"""Decorators in the wrong order: above ``@app.route``, which has registered the function below them by then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from flask import Flask

from flask_uow._core.options import name_of
from flask_uow.plans import Policy, handlers, policies_of
from flask_uow.settings import DEFAULT_NAME

__all__ = ["Misplaced", "advice", "decorated", "find_misplaced", "remember"]


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A decorator that has no effect on the requests to an endpoint."""

    endpoint: str
    decorator: str
    function: str
    place: str | None
    """The file and the line where the function is, if it says."""

    unit_of_work: str | None
    """The name of the UnitOfWork that the decorator is of, if it is one of the app's."""

    def __str__(self) -> str:
        place = f", in {self.place}" if self.place else ""
        return f"{self.function}(), the endpoint {self.endpoint!r}{place}"


@dataclass(frozen=True, slots=True, eq=False)
class _Use:
    """One use of a decorator. It refers to nothing of the user's, which may refer to the function in turn."""

    decorator: str
    belongs_to: Callable[[object, str], bool]
    """Whether it is about a UnitOfWork with a name."""

    target: Callable[[], Any]
    wrapper: Callable[[], Any]
    """These two return None when it is gone."""


_uses: Final[WeakKeyDictionary[Any, list[_Use]]] = WeakKeyDictionary()
"""By the function that was decorated, and by those that it wraps."""

_DEPTH: Final = 12
"""How many frames are searched for who defines a function. Decorators that use ours are among them."""


def remember(target: Any, wrapper: Any, decorator: str, policy: Policy | None) -> None:
    """Remember that *decorator* has made *wrapper* of *target*, if that happened where *target* is defined.

    A function that is decorated elsewhere can be in use as it is as well, such as in another app.
    """
    layers = list(handlers(target, "GET"))
    if not _is_being_defined(layers):
        return
    for layer in layers:
        with suppress(TypeError):  # not everything that can be called can be referred to
            use = _Use(decorator, _belonging(policy), ref(target), ref(wrapper))
            # Those whose wrapper is gone make room, for a function can be decorated without end.
            _uses[layer] = [*(each for each in _uses.get(layer, ()) if each.wrapper() is not None), use]


def _belonging(policy: Policy | None) -> Callable[[object, str], bool]:
    """Return what `Policy.belongs_to` is, without the policy; none belongs to nobody."""
    if policy is None:
        return lambda _owner, _name: False
    if policy.owner is not None:
        kept = ref(policy.owner)
        return lambda owner, _name: kept() is owner
    wanted = policy.options.using or DEFAULT_NAME
    return lambda _owner, name: name == wanted


def decorated() -> Iterator[Any]:
    """Yield the decorated functions that are still there."""
    for uses in list(_uses.values()):
        yield from (wrapper for use in uses if (wrapper := use.wrapper()) is not None)


def _is_being_defined(layers: Iterable[Any]) -> bool:
    """Whether the code that has the 'def' of one of these functions in it is still running."""
    codes = [code for layer in layers if (code := _code_of(layer)) is not None]
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return False
        if any(constant is code for constant in frame.f_code.co_consts for code in codes):
            return True
        frame = frame.f_back
    return False


def find_misplaced(app: Flask) -> list[Misplaced]:
    """Return the decorators that have no effect, because *app* has registered what is below them as a view.

    A view that is registered with its decorator, too, is meant to be there both ways. One that has another policy of
    the same UnitOfWork may be decorated once more for other callers.
    """
    views = {endpoint: list(_layers(view)) for endpoint, view in app.view_functions.items()}
    registered = {id(layer) for layers in views.values() for layer in layers}

    found: dict[Misplaced, None] = {}
    for endpoint, layers in views.items():
        for layer, use in _uses_of(layers):
            if id(use.wrapper()) not in registered:
                name, owner = _owner(app, use)
                if owner is None or not any(policies_of(layers, owner, name)):
                    found[_misplaced(endpoint, layer, use, name or None)] = None
    return list(found)


def _owner(app: Flask, use: _Use) -> tuple[str, object | None]:
    """Return the UnitOfWork of *app* that a decorator is of, and its name, if there is one."""
    owners: dict[str, object] = app.extensions["uow"]
    return next(((name, owner) for name, owner in owners.items() if use.belongs_to(owner, name)), ("", None))


def _layers(view: Any) -> Iterator[Any]:
    """Yield what stands for a view; of one that is a class, for each of its methods."""
    methods = view.methods if isinstance(getattr(view, "view_class", None), type) else None
    for method in methods or ("GET",):
        yield from handlers(view, method)


def _uses_of(layers: Sequence[Any]) -> Iterator[tuple[Any, _Use]]:
    """Yield the uses of decorators on a view, on what it wraps, and on what wraps it."""
    view = layers[0]
    for layer in layers:
        uses: Sequence[_Use] = ()
        with suppress(TypeError):
            uses = _uses.get(layer, ())
        yield from ((layer, use) for use in uses if layer is view or use.target() is layer)


def _misplaced(endpoint: str, layer: Any, use: _Use, name: str | None) -> Misplaced:
    *_, function = handlers(layer, "GET")
    code = _code_of(function)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code is not None else None
    called = name_of(function)
    return Misplaced(endpoint, use.decorator, called, place, name)


def _code_of(function: Any) -> CodeType | None:
    code = getattr(function, "__code__", None)
    return code if isinstance(code, CodeType) else None


def advice(found: Sequence[Misplaced]) -> tuple[str, str]:
    """Return which decorators have no effect, and what to do about it."""
    decorators = list(dict.fromkeys(each.decorator for each in found))
    return " and ".join(decorators), (
        f"{'are' if len(decorators) > 1 else 'is'} above @app.route, which had registered the bare function by then, "
        f"so that requests run without: {'; '.join(map(str, found))}. Write it below @app.route, next to the function."
    )
