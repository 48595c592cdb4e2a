"""The commands of ``flask uow``, which every app has that a UnitOfWork was initialised with."""

from __future__ import annotations

from flask.cli import AppGroup

from flask_uow.cli.audit import audit_command
from flask_uow.cli.check import check_command
from flask_uow.cli.routes import routes_command

__all__ = ["uow"]

uow = AppGroup("uow", help="Look at transactions.")
uow.add_command(audit_command)
uow.add_command(check_command)
uow.add_command(routes_command)
