"""Where a transaction has written, and where those who write down what it has changed can do that."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, Table, insert
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session

from flask_uow.errors import ConfigurationError

__all__ = ["Places"]


@dataclass(frozen=True, slots=True)
class Places:
    """The connections that a transaction has written over."""

    session: Session
    connections: Collection[Connection]
    bound: Collection[Connection]
    """Those that the session was given by its maker, and others may be on."""

    def connection_for(self, table: Table) -> Connection:
        """Return the connection by which *table* is written in the same transaction.

        Raises:
            ConfigurationError: There is none that is the same for all that was changed.
        """
        connections = list(self.connections)
        if len(connections) > 1 and self.session.twophase:
            # Those commit together.
            with suppress(UnboundExecutionError):
                bind = self.session.get_bind(clause=insert(table))
                connections = [each for each in connections if bind in (each, each.engine)]
        if len(connections) != 1:
            raise ConfigurationError(
                f"The table {table.fullname!r}",
                f"cannot be written in the same transaction: {len(self.connections)} databases were changed, and each "
                "commits by itself. Use a UnitOfWork for each database, with a trail of its own, or twophase=True and "
                "a bind for this table.",
            )
        return connections[0]

    def bind_for(self, table: Table) -> Engine | Connection:
        """Return what to connect to, to write to *table* where the transaction has written that was rolled back.

        Raises:
            ConfigurationError: That was in several databases.
        """
        connection = self.connection_for(table)
        if connection in self.bound:
            return connection
        schemas = connection.get_execution_options().get("schema_translate_map")
        return connection.engine.execution_options(schema_translate_map=schemas) if schemas else connection.engine
