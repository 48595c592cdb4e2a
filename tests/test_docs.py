"""Every code block of README and docs runs, and says what the code says."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args
from weakref import ref

import pytest
from blinker import Signal
from sqlalchemy import event
from sqlalchemy.pool import Pool
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import flask_uow
from flask_uow import audit, errors, pytest_plugin, signals, testing
from flask_uow._core.events import AfterCommit, AfterRollback, BeforeCommit, Completed, Removed, Retried, Started
from flask_uow._core.options import Options
from flask_uow._core.propagation import _WHEN_ACTIVE, _WHEN_NONE, Propagation
from flask_uow.audit import AuditEntry, AuditTrail
from flask_uow.checks import Code
from flask_uow.settings import _RULES
from flask_uow.signals import _ARGUMENTS
from flask_uow.testing import Fault, HookCall, RecordedTransaction, Recording, inject

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
WITHOUT_PYTHON = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/explanation/architecture.md",
    "docs/explanation/life-of-a-request.md",
    "docs/explanation/performance.md",
    "docs/explanation/propagation.md",
    "docs/index.md",
    "docs/reference/audit.md",
    "docs/reference/errors.md",
    "docs/reference/names.md",
    "docs/reference/signals.md",
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(page.read_text()) if language in languages]


def rows(page: str) -> list[list[str]]:
    """The rows of all tables of a page, without their heads."""
    lines = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_cells(page: str) -> set[str]:
    return {name for row in rows(page) for name in re.findall(r"`([^`]*)`", row[0])}


def count_tests(page: Path) -> int:
    """How many functions for pytest a page shows."""
    return sum(len(re.findall(r"^def test_", block, re.MULTILINE)) for block in blocks(page, "python"))


@pytest.fixture
def close_connections() -> Iterator[None]:
    """Close what a page has opened: like a script, it does not dispose of its engines."""
    opened: list[Any] = []

    def remember(connection: Any, _record: object) -> None:
        opened.append(connection)

    event.listen(Pool, "connect", remember)
    yield
    event.remove(Pool, "connect", remember)
    for connection in opened:
        connection.close()


@pytest.fixture
def leave_no_receivers() -> Iterator[None]:
    """Disconnect what a page has connected for good, so that no other test is listened to."""
    found = [signal for signal in vars(signals).values() if isinstance(signal, Signal)]
    before = {signal: set(signal.receivers) for signal in found}
    yield
    for signal in found:
        for key in signal.receivers.keys() - before[signal]:
            kept = signal.receivers[key]
            receiver = kept() if isinstance(kept, ref) else kept
            if receiver is not None:
                signal.disconnect(receiver)


def evaluate(page: Path) -> tuple[int, dict[str, Any]]:
    """Run the Python of a page from top to bottom; return how many examples it has, and what is defined then."""
    document = Sybil(parsers=[PythonCodeBlockParser()]).parse(page)
    document.namespace["__name__"] = "page"
    examples = list(document.examples())
    for example in examples:
        example.evaluate()
    return len(examples), document.namespace


@pytest.mark.usefixtures("close_connections", "leave_no_receivers")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page runs from top to bottom, starting from nothing; a page without any is listed as such."""
    monkeypatch.chdir(tmp_path)

    examples, _ = evaluate(page)

    assert bool(examples) != (name_of(page) in WITHOUT_PYTHON)
    assert len(blocks(page, "python")) <= examples


@pytest.mark.usefixtures("close_connections", "leave_no_receivers")
@pytest.mark.parametrize("page", [page for page in PAGES if count_tests(page)], ids=name_of)
def test_tests_of_a_page_pass(page: Path, pytester: pytest.Pytester) -> None:
    """The blocks of a page that shows tests are one test module, and they pass with the plugin as it is installed."""
    pytester.makepyfile("\n\n".join(blocks(page, "python")))

    result = pytester.runpytest_inprocess("-W", "error", "-pno:cacheprovider", "-pno:faker", "-pno:hypothesispytest")

    outcomes = result.parseoutcomes()
    assert set(outcomes) == {"passed"}
    assert outcomes["passed"] >= count_tests(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_a_kind_that_is_checked(page: Path) -> None:
    """A block is Python, a drawing, or a command that another test knows."""
    languages = {language for language, _ in FENCE.findall(page.read_text())}

    assert languages <= ({"python", "text", "sh"} if page.parent == ROOT else {"python", "text"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file that is there."""
    targets = re.findall(r"\]\(((?!https?:|#)[^)#]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_first_program_of_the_readme_is_near() -> None:
    """A whole program stands before line 40 of the README."""
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])

    assert "```python\n" in head
    assert head.count("```") >= 2


def test_commands_of_the_readme() -> None:
    """Under "Try it" and "Run the tests" is one command each, and CI runs the second as it is printed."""
    readme = (ROOT / "README.md").read_text()
    commands = blocks(ROOT / "README.md", "sh")
    lint = blocks(ROOT / "CONTRIBUTING.md", "sh")
    headings = [section.splitlines()[0] for section in readme.split("\n## ") if "```sh" in section]

    assert headings == ["Try it", "Run the tests"]
    assert [command.count("\n") for command in commands] == [1, 1]
    assert "docs/examples/bank" in shlex.split(commands[0])
    ci = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in ci if line.startswith(("python3 -m venv", "python3 -m pip", ".venv"))] == [
        commands[1].strip(),
        *lint[0].strip().split(" && "),
    ]


@pytest.mark.parametrize("page", ["docs/reference/names.md", "docs/explanation/propagation.md"])
def test_table_of_propagation(page: str) -> None:
    """A documented table of propagation is the code's own, and has all modes."""
    documented = [
        (row[0].strip("`"), row[1], row[2]) for row in rows(page) if len(row) == 3 and row[0].strip("`").isupper()
    ]

    assert documented == [(mode.name, _WHEN_ACTIVE[mode].value, _WHEN_NONE[mode].value) for mode in Propagation]


def test_every_setting_is_documented() -> None:
    """The table of settings has each setting."""
    assert first_cells("docs/reference/settings.md") == {f"UOW_{name.upper()}" for name in _RULES}


def test_every_option_is_documented() -> None:
    """The table of options has each option."""
    cells = first_cells("docs/reference/names.md")

    assert set(Options.__dataclass_fields__) <= cells


def test_every_error_is_documented() -> None:
    """The table of errors has each error but the base."""
    documented = {cell for cell in first_cells("docs/reference/errors.md") if cell in errors.__all__}

    assert documented == set(errors.__all__) - {"UnitOfWorkError"}


def test_every_signal_is_documented() -> None:
    """The table of signals has each signal with its arguments."""
    kinds = (Started, BeforeCommit, AfterCommit, AfterRollback, Retried, Completed, Removed)
    table = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows("docs/reference/signals.md")}

    assert set(table) == set(signals.__all__) - {"Publisher"}
    assert sorted(map(sorted, table.values())) == sorted(sorted(_ARGUMENTS[kind]) for kind in kinds)


def test_everything_of_the_audit_trail_is_documented() -> None:
    """The tables of the reference have each argument of a trail, each of its attributes, and each part of an entry."""
    text = (ROOT / "docs/reference/audit.md").read_text()
    cells = first_cells("docs/reference/audit.md")
    public = {name for name in vars(AuditTrail) if not name.startswith("_")} - {"look", "write", "write_lost"}

    assert set(inspect.signature(AuditTrail).parameters) <= cells
    assert {field.name for field in fields(AuditEntry)} <= cells
    assert all(f"`trail.{name}" in text for name in public | {"table"})
    assert all(f"`{name}`" in text for name in audit.__all__)


@pytest.mark.usefixtures("close_connections", "leave_no_receivers")
def test_output_of_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page on the command line says is printed is printed, by the app that is on it."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/reference/command-line.md"
    _, namespace = evaluate(page)
    documented = [block for block in blocks(page, "text") if block.startswith("$ ")]

    commands = [block.splitlines()[0].removeprefix("$ flask ") for block in documented]
    printed = [namespace["app"].test_cli_runner().invoke(args=command.split()).output for command in commands]

    assert [command.split()[1] for command in commands] == ["routes", "check"]
    assert [block.partition("\n")[2] for block in documented] == printed


def test_every_code_of_a_check_is_documented() -> None:
    """The table of codes has each that a finding can have."""
    cells = first_cells("docs/reference/command-line.md")

    assert set(get_args(Code)) <= cells


def test_everything_of_the_testing_kit_is_documented() -> None:
    """The page on the testing kit has each name, each part of a recording, each argument, and each fixture."""
    text = (ROOT / "docs/reference/testing.md").read_text()
    cells = first_cells("docs/reference/testing.md")
    parts = [field.name for field in fields(RecordedTransaction)] + list(HookCall._fields)
    methods = [name for name in vars(Recording) if not name.startswith("_") and name != "wants"]

    assert {*parts, *(name for name in vars(Recording()) if not name.startswith("_"))} <= cells
    assert all(f"`{name}" in text for name in methods)
    assert set(inspect.signature(inject).parameters) - {"uow"} <= cells
    assert {f'"{name}"' for name in get_args(Fault)} <= cells
    assert set(pytest_plugin.__all__) <= cells
    assert all(f"`{name}" in text for name in set(testing.__all__) - {"Fault"})


def test_every_public_name_is_documented() -> None:
    """The reference mentions each public name."""
    reference = "".join(page.read_text() for page in ROOT.glob("docs/reference/*.md"))

    missing = {name for name in flask_uow.__all__ if f"`{name}" not in reference}

    assert missing - set(errors.__all__) == {"errors", "signals"}
