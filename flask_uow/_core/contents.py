"""What is in plain containers, so that it can be put back."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["Contents"]

_CONTAINERS: Final = (dict, list, set)


class Contents:
    """What was in a dict, a list or a set, and in those inside it. Putting it back leaves each the object that it is.

    Args:
        container: The outermost one; of a subclass, what it does at a change is not called.
    """

    def __init__(self, container: Any) -> None:
        self._kept: list[tuple[Any, Any]] = []
        self._seen: set[int] = set()
        self._keep(container)

    def _keep(self, container: Any) -> None:
        if id(container) in self._seen:
            return
        self._seen.add(id(container))
        base = next(base for base in _CONTAINERS if isinstance(container, base))
        content = base(container)
        self._kept.append((container, content))
        for value in content.values() if isinstance(content, dict) else content:
            self._look_into(value)

    def _look_into(self, value: Any) -> None:
        if type(value) in _CONTAINERS:
            self._keep(value)
        elif type(value) is tuple:
            for each in value:
                self._look_into(each)

    def put_back(self) -> None:
        """Let each container have what it had."""
        for container, content in self._kept:
            if isinstance(container, dict):
                dict.clear(container)
                dict.update(container, content)
            elif isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
