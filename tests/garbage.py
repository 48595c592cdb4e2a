"""What work leaves behind: what is still there, what the garbage collector has to find, and in which cycles."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, FunctionType
from typing import Any
from weakref import ReferenceType

__all__ = ["Garbage", "garbage_of", "kept_by"]


@dataclass(frozen=True)
class Garbage:
    """What the collector has found, as names, so that nothing of it is kept."""

    types: Counter[str]
    """All that could not be reached any more, by type."""

    cycles: Counter[tuple[str, ...]]
    """Each cycle, by the types of what is in it. Most garbage is in none, and hangs on one."""

    @property
    def ours(self) -> list[str]:
        """The types of this package in it."""
        return sorted(name for name in self.types if name.startswith("flask_uow."))


def garbage_of(work: Callable[[], object], times: int, knots: Collection[str] = ()) -> Garbage:
    """Run *work*, and return what that has left in cycles.

    It runs once before, so that what is made on first use does not count.

    Args:
        work: What to run.
        times: How often.
        knots: Types at which others tie cycles. A cycle counts if it is still one without these.
    """
    work()
    with _apart():
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for _ in range(times):
                work()
            gc.collect()
            return Garbage(Counter(map(_name_of, gc.garbage)), _cycles_in(gc.garbage, knots))
        finally:
            gc.set_debug(0)
            gc.garbage.clear()


def kept_by(work: Callable[[], object], times: int) -> Counter[str]:
    """Run *work*, and return what is still there after it, by type, of what there is at least one for each time.

    It runs once before. Weak references do not count: sqlite3 keeps some to cursors that are gone.
    """
    work()
    with _apart():
        for _ in range(times):
            work()
        gc.collect()
        kept = Counter(_name_of(each) for each in gc.get_objects() if type(each) is not ReferenceType)
    return Counter({name: count for name, count in kept.items() if count >= times})


@contextmanager
def _apart() -> Iterator[None]:
    """Let the collector see what is made from now on alone, and only when it is asked to."""
    was_enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()


def _name_of(each: object) -> str:
    """Say what an object is: where it comes from, if it is code or is being run."""
    kind = type(each)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(each, FrameType):
        return f"{name} of {each.f_globals.get('__name__')}.{each.f_code.co_qualname}"
    if isinstance(each, FunctionType):
        return f"{name} {each.__module__}.{each.__qualname__}"
    return name


def _cycles_in(objects: list[Any], knots: Collection[str]) -> Counter[tuple[str, ...]]:
    """Find the cycles: the strongly connected components, by Kosaraju's two walks."""
    known = {id(each): each for each in objects if _name_of(each) not in knots}
    leads_to = {
        number: [id(other) for other in gc.get_referents(each) if id(other) in known] for number, each in known.items()
    }
    comes_from: dict[int, list[int]] = {number: [] for number in known}
    for number, others in leads_to.items():
        for other in others:
            comes_from[other].append(number)

    seen: set[int] = set()
    order = [number for start in known for number in _walk(leads_to, start, seen)]
    cycles: Counter[tuple[str, ...]] = Counter()
    seen.clear()
    for start in reversed(order):
        members = list(_walk(comes_from, start, seen))
        if len(members) > 1 or (members and start in leads_to[start]):
            cycles[tuple(sorted(_name_of(known[number]) for number in members))] += 1
    return cycles


def _walk(graph: dict[int, list[int]], start: int, seen: set[int]) -> Iterator[int]:
    """Yield what can be reached from *start* and was not *seen*, each after what it leads to; without recursion."""
    if start in seen:
        return
    seen.add(start)
    way = [(start, iter(graph[start]))]
    while way:
        number, following = way[-1]
        for other in following:
            if other not in seen:
                seen.add(other)
                way.append((other, iter(graph[other])))
                break
        else:
            way.pop()
            yield number
