"""What the tests of an app need: isolation, recordings, and faults."""

from __future__ import annotations

from flask_uow.testing.faults import Fault, Injection, inject
from flask_uow.testing.isolation import Isolation, isolate
from flask_uow.testing.recording import HookCall, RecordedTransaction, Recording, record

__all__ = [
    "Fault",
    "HookCall",
    "Injection",
    "Isolation",
    "RecordedTransaction",
    "Recording",
    "inject",
    "isolate",
    "record",
]
