"""How the rows of a mapped class are read from its instances."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import islice
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from sqlalchemy import (
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Date,
    DateTime,
    Enum,
    Integer,
    Interval,
    Numeric,
    String,
    Table,
    Time,
    Uuid,
    and_,
    literal,
    or_,
    select,
)
from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, RelationshipProperty
from sqlalchemy.orm.exc import UnmappedColumnError

from flask_uow._core.changes import NO_VALUE, UNLOADED, Layout, Row, copy_of, tuple_getter

__all__ = ["Link", "Plan", "Source", "State", "forget_plans", "plan_of"]

State = InstanceState[Any]

Source = dict[Any, Any]
"""Values of an instance by the keys of its attributes. `NO_VALUE` is one that is there, and not known."""

_NOTHING: Final[Source] = {}

_PLAN: Final = "_flask_uow_plan"
"""Where a mapper keeps its own."""

_CHUNK: Final = 200
"""Rows that are fetched with one statement."""


class Plan:
    """How the rows of one mapped class are read from its instances.

    Args:
        mapper: The class's mapper.
    """

    __slots__ = (
        "_asked",
        "_deferred",
        "_key",
        "_mapper",
        "_wanted",
        "columns",
        "copied",
        "entity",
        "fresh",
        "links",
        "only",
        "tables",
        "version",
        "volatile",
    )

    def __init__(self, mapper: Mapper[Any]) -> None:
        self._mapper = mapper
        self.version = _version
        self.entity: str = mapper.class_.__name__
        self.columns: dict[str, Column[Any]] = {}
        """The columns by the keys of the attributes; of one that stands for several, the first."""

        properties: dict[str, ColumnProperty[Any]] = {}
        tables = []
        # Others than tables are not written to.
        for table in cast("Sequence[Table]", mapper.tables):
            keys = []
            for column in table.columns:
                prop = _property_of(mapper, column)
                keys.append(None if prop is None else prop.key)
                if prop is not None:
                    properties[prop.key] = prop
                    self.columns.setdefault(prop.key, column)
            known = [column for column, key in zip(table.columns, keys, strict=True) if key is not None]
            layout = layout_of(table, known, [column for column in mapper.primary_key if column in known])
            take = tuple_getter(keys)
            tables.append((layout, _reader(keys, take), take))
        self.tables: tuple[tuple[Layout, Callable[[Source], Row]], ...] = tuple(each[:2] for each in tables)
        """The tables in which an instance has a row, and how that is made of its values."""

        self.only = (tables[0][0], tables[0][2]) if len(tables) == 1 else None
        """The table, if it is one, and what makes the row if all values are there. It raises KeyError if not."""

        self._key = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
        self._deferred = frozenset(key for key, prop in properties.items() if prop.deferred and not prop.active_history)
        """Attributes that are not loaded merely to be reported, as with ``active_history`` they would be."""

        self._asked = frozenset(key for key, prop in properties.items() if prop.deferred and prop.active_history)
        """Those that are deferred, and loaded for it."""

        self._wanted = self.columns.keys() - self._deferred
        """All others."""

        self.copied = frozenset(key for key, column in self.columns.items() if not isinstance(column.type, _CONSTANTS))
        """Attributes whose values somebody may change in place."""

        self.volatile = tuple(
            key for key, column in self.columns.items() if _changes_by_itself(column) or column is mapper.version_id_col
        )
        """Attributes that an UPDATE of others changes as well."""

        self.fresh: Source = {key: None for key, column in self.columns.items() if column.server_default is None}
        """The source of one that was inserted without any value: SQLAlchemy inserts NULL there."""

        self.links = tuple(
            Link(prop) for prop in mapper.relationships if isinstance(prop.secondary, Table) and not prop.viewonly
        )

    def detach(self, source: Source, written: Collection[str] | None) -> Source:
        """Return *source* without what somebody may change in place, or itself if there is nothing.

        Args:
            source: The values.
            written: The attributes that were written; what others have may have been changed in place, unseen. None is
                all.
        """
        detached = source
        for key in self.copied:
            value = source.get(key)
            copy = copy_of(value)
            if copy is not value:
                if detached is source:
                    detached = source.copy()
                if written is None or key in written:
                    detached[key] = copy
                else:
                    del detached[key]
        return detached

    def add_volatile(self, olds: Source, state: State) -> None:
        """Add what an UPDATE changes that was not written by anybody."""
        for key in self.volatile:
            if key not in olds:
                olds[key] = state.dict.get(key, NO_VALUE)

    def deleted(self, state: State, connection: Connection) -> Source:
        """Return what a DELETE of an instance removes, as far as that is or can be known."""
        source: Source = state.dict | state.committed_state
        if state.committed_state or not self._wanted <= source.keys():
            for key in self._wanted - source.keys():
                source[key] = NO_VALUE
            self.learn(source, state, connection)
        return source

    def learn(self, source: Source, state: State, connection: Connection) -> Source:
        """Put values into *source* that the database has still, and the session has not, and return others.

        What was expired is wanted, and what was changed in place. What is deferred, by the mapper or by the query (then
        the state has a way to load it), was never loaded, and nobody has asked for it.
        """
        unknown = {key for key, value in source.items() if value is NO_VALUE}
        unasked = self._deferred.union(state.callables)
        expired = state.expired_attributes - (source.keys() - unknown)
        wanted = sorted((((unknown | expired) - unasked) | (unknown & self._asked)) & self.columns.keys())
        if not wanted or state.key is None:
            return _NOTHING
        found = self._select_one(connection, tuple(state.key[1]), wanted)
        source.update((key, found[key]) for key in unknown & found.keys())
        return found

    def missing(self, state: State, olds: Source | None) -> tuple[str, ...]:
        """Return the attributes that a flush has written, and of which only the database knows what they are now.

        Args:
            state: The instance's.
            olds: What the flush has replaced; None for an insert.
        """
        written = state.expired_attributes & self.columns.keys()
        if olds is None:
            return tuple(sorted(written - self._deferred))
        unasked = {key for key in self._deferred.intersection(self.volatile) if olds.get(key) is NO_VALUE}
        return tuple(sorted((written & olds.keys()) - unasked))

    def identity(self, source: Source) -> tuple[Any, ...]:
        """Return the primary key of an instance."""
        return tuple(source[key] for key in self._key)

    def fetch(self, connection: Connection, sources: Sequence[Source], keys: Sequence[str]) -> None:
        """Fetch the values of some attributes, of many instances at once."""
        found = self._select(connection, [self.identity(source) for source in sources], keys)
        for source in sources:
            identity = self.identity(source)
            # The database may write a key in another way, as a number or with blanks.
            source.update(found[identity] if identity in found else self._select_one(connection, identity, keys))

    def _select_one(self, connection: Connection, identity: tuple[Any, ...], keys: Sequence[str]) -> Source:
        return next(iter(self._select(connection, [identity], keys).values()), _NOTHING)

    def _select(
        self, connection: Connection, identities: Sequence[tuple[Any, ...]], keys: Sequence[str]
    ) -> dict[tuple[Any, ...], Source]:
        """Return what the database has, by primary keys."""
        primary_key = self._mapper.primary_key
        query = select(*primary_key, *(self.columns[key] for key in keys)).select_from(self._mapper.persist_selectable)
        found: dict[tuple[Any, ...], Source] = {}
        remaining = iter(identities)
        while chunk := list(islice(remaining, _CHUNK)):
            for row in connection.execute(query.where(_is_one_of(primary_key, chunk))):
                found[tuple(row[: len(primary_key)])] = dict(zip(keys, row[len(primary_key) :], strict=True))
        return found


class Link:
    """How the rows of an association table are read from a relationship."""

    __slots__ = ("_child", "_parent", "follows_keys", "key", "layout")

    def __init__(self, prop: RelationshipProperty[Any]) -> None:
        table = prop.secondary
        assert isinstance(table, Table)
        self.key = prop.key
        pairs = (*prop.synchronize_pairs, *(prop.secondary_synchronize_pairs or ()))
        known = [column for _, column in pairs]
        self.layout = layout_of(table, known, known)
        self.follows_keys = not prop.passive_updates
        """Whether SQLAlchemy updates the rows when a primary key changes, and does not leave it to the database."""

        self._parent = {column.name: _key_of(prop.parent, source) for source, column in prop.synchronize_pairs}
        self._child = {
            column.name: _key_of(prop.mapper, source) for source, column in prop.secondary_synchronize_pairs or ()
        }

    def row(self, parent: State, child: State, *, committed: bool = False) -> Row:
        """Return the row that links two instances, perhaps as it was before their keys have changed."""
        values = {
            name: _value(state, key, committed=committed)
            for state, keys in ((parent, self._parent), (child, self._child))
            for name, key in keys.items()
        }
        return tuple(values.get(name, UNLOADED) for name in self.layout.names)


def _value(state: State, key: str, *, committed: bool) -> Any:
    if committed and key in state.committed_state:
        return state.committed_state[key]
    # An instance whose keys are expired is in the session, and loads them.
    return state.dict[key] if key in state.dict else getattr(state.obj(), key)


def _reader(keys: Sequence[str | None], take: Callable[[Source], Row]) -> Callable[[Source], Row]:
    """Return what makes a row of any source; None stands for a column that the class does not map.

    Args:
        keys: The attributes of the columns.
        take: What makes the row of a source that has them all.
    """

    def read(source: Source) -> Row:
        try:
            return take(source)
        except KeyError:
            return tuple(source.get(key, UNLOADED) for key in keys)

    return read


_version = 0
"""Goes up when a class gets an attribute, which can be a column of a table that others are mapped to as well."""


def forget_plans(*_event: object) -> None:
    """Let each plan be made anew."""
    global _version  # noqa: PLW0603 - it is one for the process, as the mappers are
    _version += 1


def plan_of(mapper: Mapper[Any]) -> Plan:
    """Return the plan of a mapper; made once, and again when any class has got more."""
    plan: Plan | None = mapper.__dict__.get(_PLAN)
    if plan is None or plan.version != _version:
        plan = mapper.__dict__[_PLAN] = Plan(mapper)
    return plan


_layouts: WeakKeyDictionary[Table, dict[tuple[tuple[int, ...], int], Layout]] = WeakKeyDictionary()


def layout_of(table: Table, known: Sequence[ColumnElement[Any]], otherwise: Sequence[ColumnElement[Any]]) -> Layout:
    """Return the layout of a table; made once for each key.

    Args:
        table: The table.
        known: The columns that are known of its rows.
        otherwise: Those that tell its rows apart where the primary key is not known.
    """
    key: list[ColumnElement[Any]] = list(table.primary_key)
    if not key or not set(key).issubset(known):
        key = list(otherwise or known)
    # A mapped class can add a column to the table of another.
    columns = list(table.columns)
    place = {column: number for number, column in enumerate(columns)}
    places = tuple(place[cast("Column[Any]", column)] for column in key)
    layouts = _layouts.setdefault(table, {})
    layout = layouts.get((places, len(columns)))
    if layout is None:
        layout = layouts[places, len(columns)] = Layout(
            table.fullname,
            [column.name for column in columns],
            places,
            [column.type.compare_values for column in columns],
            numbers=[number for number, column in enumerate(columns) if isinstance(column.type, Integer)],
            copied=[number for number, column in enumerate(columns) if not isinstance(column.type, _CONSTANTS)],
        )
    return layout


def _property_of(mapper: Mapper[Any], column: Column[Any]) -> ColumnProperty[Any] | None:
    try:
        prop = mapper.get_property_by_column(column)
    except UnmappedColumnError:
        return None
    return prop if isinstance(prop, ColumnProperty) else None


def _key_of(mapper: Mapper[Any], column: ColumnElement[Any]) -> str:
    key: str = mapper.get_property_by_column(column).key
    return key


def _changes_by_itself(column: Column[Any]) -> bool:
    return column.onupdate is not None or column.server_onupdate is not None


def _is_one_of(primary_key: Sequence[ColumnElement[Any]], identities: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    # With the types of the columns: a key can have been given as another, and the database compares it as one.
    if len(primary_key) == 1:
        (column,) = primary_key
        return column.in_([literal(value, column.type) for (value,) in identities])
    return or_(
        *(
            and_(*(column == literal(value, column.type) for column, value in zip(primary_key, identity, strict=True)))
            for identity in identities
        )
    )


_CONSTANTS: Final = (Boolean, Date, DateTime, Enum, Integer, Interval, Numeric, String, Time, Uuid)
"""Types whose values nobody can change in place."""
