"""What tests of an app need: isolation, recordings, and faults."""

from __future__ import annotations

from flask_uow.testing.isolation import Isolation, isolate

__all__ = ["Isolation", "isolate"]
