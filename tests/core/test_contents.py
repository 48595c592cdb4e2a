from __future__ import annotations

from typing import Any

from flask_uow._core.contents import Contents


def test_everything_is_put_back_in_place() -> None:
    """Each container has what it had, and is the object that it was."""
    inner: list[Any] = [1]
    names: dict[str, Any] = {"list": inner, "tuple": ({"set": {2}},), "text": "old"}
    contents = Contents(names)
    deep = names["tuple"][0]["set"]

    inner.append(2)
    deep.clear()
    names["text"] = "new"
    names["more"] = 3
    del names["list"]
    contents.put_back()

    assert names == {"list": [1], "tuple": ({"set": {2}},), "text": "old"}
    assert names["list"] is inner
    assert names["tuple"][0]["set"] is deep


def test_container_in_itself() -> None:
    """It is looked into once."""
    ring: list[Any] = []
    ring.append(ring)
    contents = Contents(ring)

    ring.append(1)
    contents.put_back()

    assert len(ring) == 1
    assert ring[0] is ring


def test_other_kinds_of_containers() -> None:
    """What is none of the three is not looked into."""
    values = (frozenset({1}), "text")
    contents = Contents({"values": values})

    contents.put_back()

    assert values == (frozenset({1}), "text")
