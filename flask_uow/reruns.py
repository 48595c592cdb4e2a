"""What a view leaves on its request, and how that is undone before the view runs again.

The cookie session, flashed messages and ``after_this_request`` functions are put back as they were, and so is what was
on ``g``: plain data, containers, and rows, which have left their session. Whatever else is new there stays, for it may
be a resource that a teardown function closes.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping
from copy import deepcopy
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final
from uuid import UUID

from flask import Request
from sqlalchemy import Row, inspect
from sqlalchemy.orm import InstanceState
from werkzeug.datastructures import FileStorage

from flask_uow._core.contents import Contents
from flask_uow.context import RequestState

__all__ = ["NoSnapshot", "Snapshot"]


class NoSnapshot:
    """Stands in where there is no request."""

    def restore(self) -> None:
        """Do nothing."""


class Snapshot:
    """A request as it was before its view ran."""

    def __init__(self) -> None:
        state = self._state = RequestState()
        self._session = _SessionCopy(state.session)
        self._flashes = state.flashes
        self._after = list(state.after_request_functions)
        self._g = _Names(vars(state.g))
        self._attributes = set(vars(state.request))
        self._lost = _lost_of_body(state.request)
        self._positions = {id(file): _position(file.stream) for file in _files(state.request)}

    def obstacle(self) -> str | None:
        """Return why the view cannot be run again as if for the first time, if it cannot."""
        if self._session.problem is not None:
            return f"the cookie session could not be copied ({self._session.problem}), and so cannot be put back"
        lost = _lost_of_body(self._state.request)
        if _CANNOT_TELL in lost or lost != self._lost:
            return (
                "the body of its request was read as a raw stream, which cannot be read twice; request.get_data(), "
                "get_json() and form keep it"
            )
        if any(_position(file.stream) == _CANNOT_TELL for file in _files(self._state.request)):
            return "an uploaded file was closed, and cannot be read twice"
        return None

    def restore(self) -> None:
        """Put back what the view has changed. Its rows have left their sessions."""
        state = self._state
        self._session.restore()
        state.flashes = self._flashes
        state.after_request_functions[:] = self._after
        self._g.restore()
        _drop_rows(vars(state.request), self._attributes)
        for file in _files(state.request):
            file.stream.seek(self._positions.get(id(file), 0))


class _Names:
    """What ``g`` had, and what was in it, as far as it is a plain container."""

    def __init__(self, names: dict[str, Any]) -> None:
        self._names = names
        self._values = dict(names)
        self._contents = Contents(names)

    def restore(self) -> None:
        """Put that back, but for what may be a resource: a teardown function has to close the one that is there now."""
        now = dict(self._names)
        self._contents.put_back()
        for name, value in now.items():
            if value is not self._values.get(name) and not _is_data(value, set()):
                self._names[name] = value


class _SessionCopy:
    """A cookie session, or another in its place, and what was in it. To look at it is no access, nor a change."""

    def __init__(self, session: MutableMapping[str, Any]) -> None:
        self._session = session
        self._attributes = dict(_attributes(session))
        self._items = dict(session)
        self._contents = Contents(self._items)
        self._others: dict[str, Any] = {}
        self.problem: str | None = None
        try:
            # What is neither plain nor a container of that may change inside, as well.
            self._others = {name: deepcopy(value) for name, value in self._items.items() if not _is_data(value, set())}
        except Exception as error:  # noqa: BLE001 - told if it comes to another attempt
            self.problem = type(error).__name__
        self._restore_attributes()

    def restore(self) -> None:
        """Put everything back, past what would take that for a change."""
        self._contents.put_back()
        items = {**self._items, **deepcopy(self._others)}
        if isinstance(self._session, dict):
            dict.clear(self._session)
            dict.update(self._session, items)
        else:
            self._session.clear()
            self._session.update(items)
        self._restore_attributes()

    def _restore_attributes(self) -> None:
        """Put back the marks of an access and of a change, among others."""
        attributes = _attributes(self._session)
        attributes.clear()
        attributes.update(self._attributes)


def _attributes(session: object) -> dict[str, Any]:
    attributes: dict[str, Any] = getattr(session, "__dict__", {})
    return attributes


_PLAIN: Final = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    NoneType,
    Decimal,
    date,
    time,
    timedelta,
    tzinfo,
    UUID,
    Enum,
)


def _is_data(value: object, seen: set[int]) -> bool:
    """Whether *value* is plain, a row that has left its session, or a container of such: nothing to be closed."""
    if isinstance(value, _PLAIN) or id(value) in seen:
        return True
    seen.add(id(value))
    if isinstance(value, dict):
        return all(_is_data(each, seen) for each in value.values())
    if isinstance(value, (list, tuple, set, frozenset, Row)):
        return all(_is_data(each, seen) for each in value)
    state = inspect(value, raiseerr=False)
    return isinstance(state, InstanceState) and state.session is None


_FORMS: Final = ("multipart/form-data", "application/x-www-form-urlencoded")
"""What werkzeug parses, and then keeps."""

_NOTHING_LOST: Final = (0, 0)
_CANNOT_TELL: Final = -1


def _lost_of_body(request: Request) -> tuple[int, int]:
    """Return how much was read of a request's body and is kept by nobody, as positions in its two streams."""
    attributes = vars(request)
    is_kept = attributes.get("_cached_data") is not None or ("form" in attributes and request.mimetype in _FORMS)
    if is_kept or "wsgi.input" not in request.environ:
        return _NOTHING_LOST
    if "stream" in attributes:
        return _position(attributes["stream"]), 0
    # It can be read past werkzeug. Most servers have no position for it.
    return 0, max(0, _position(request.environ["wsgi.input"]))


def _position(stream: Any) -> int:
    try:
        return int(stream.tell())
    except (AttributeError, OSError, ValueError):
        return _CANNOT_TELL


def _files(request: Request) -> list[FileStorage]:
    """Return the uploaded files, if anybody has asked for them."""
    if "files" not in vars(request):
        return []
    return [file for files in request.files.listvalues() for file in files]


def _drop_rows(names: dict[str, Any], known: Collection[str]) -> None:
    """Take away new rows that have left their session. The rest is the request's own, and whatever it has kept."""
    for name in [name for name in names if name not in known]:
        state = inspect(names[name], raiseerr=False)
        if isinstance(state, InstanceState) and state.session is None:
            del names[name]
