"""What the tests of random programs share."""

from __future__ import annotations

import os
import tempfile
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Final

from hypothesis.configuration import set_hypothesis_home_dir

PROGRAMS: Final = int(os.environ.get("FLASK_UOW_TEST_PROGRAMS", "1200"))
"""How many random programs there are."""

# Its cache would go into the current folder, as soon as the tests are collected.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "flask_uow_hypothesis")


class Short:
    """A dataclass with the repr that one would write."""

    def __repr__(self) -> str:
        arguments = []
        for each in fields(self):  # type: ignore[arg-type] # all that inherit from it are dataclasses
            value = getattr(self, each.name)
            if each.default is MISSING:
                arguments.append(repr(value))
            elif value != each.default:
                arguments.append(f"{each.name}={value!r}")
        return f"{type(self).__name__}({', '.join(arguments)})"
