from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest

import flask_uow

ROOT = Path(flask_uow.__file__).parent.parent


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {name_of(path): ast.parse(path.read_text("utf-8"), path) for path in sorted(ROOT.glob("flask_uow/**/*.py"))}

CORE = [name for name in TREES if name.startswith("flask_uow._core")]

every_module = pytest.mark.parametrize("module", TREES)


def imports_in(tree: ast.AST) -> Iterator[str]:
    """Every import, those in functions and under TYPE_CHECKING included, by the module or the name that it names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in TREES else node.module


def circle_in(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A way from a module back to itself, if there is one."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str] | None:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                if circle := walk(imported, [*way, module]):
                    return circle
            done.add(module)
        return None

    return next((circle for module in graph if (circle := walk(module, []))), None)


@pytest.mark.parametrize(
    ("graph", "circle"),
    [
        ({}, None),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, None),
        ({"a": {"a"}}, ["a", "a"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"elsewhere"}, "b": {"a", "c"}, "c": {"b"}}, ["b", "c", "b"]),
    ],
)
def test_finding_circles(graph: Mapping[str, set[str]], circle: list[str] | None) -> None:
    """A circle is found wherever it is."""
    found = circle_in(graph)

    assert found == circle


def test_no_circle() -> None:
    """No module imports, over any number of others, itself."""
    graph = {name: {imported for imported in imports_in(tree) if imported in TREES} for name, tree in TREES.items()}

    circle = circle_in(graph)

    assert len(graph) > 15
    assert circle is None


@pytest.mark.parametrize("module", CORE)
def test_core(module: str) -> None:
    """The core knows the standard library, SQLAlchemy, itself and the errors."""
    allowed = sys.stdlib_module_names | {"sqlalchemy"}

    foreign = [
        name
        for name in imports_in(TREES[module])
        if name.partition(".")[0] not in allowed
        and name != "flask_uow.errors"
        and not name.startswith("flask_uow._core.")
    ]

    assert foreign == []


def test_errors_know_nobody() -> None:
    """The errors need nothing but the standard library."""
    assert {name.partition(".")[0] for name in imports_in(TREES["flask_uow.errors"])} <= sys.stdlib_module_names


@every_module
def test_absolute_imports(module: str) -> None:
    """Every import says in full where from."""
    relative = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.ImportFrom) and node.level]

    assert relative == []


@every_module
def test_no_star_imports(module: str) -> None:
    """Every import says in full what."""
    stars = [
        node
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]

    assert stars == []


def test_documented() -> None:
    """The page on the architecture has each module."""
    page = (ROOT / "docs/explanation/architecture.md").read_text("utf-8")
    listed = set(re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE))
    names = (module.removeprefix("flask_uow.").replace(".", "/") for module in TREES if module != "flask_uow")

    assert listed == set(names) - {"_core"}


@every_module
def test_docstring(module: str) -> None:
    """Every module opens with what belongs in it."""
    assert ast.get_docstring(TREES[module])


@every_module
def test_all(module: str) -> None:
    """Every module lists names that it has, and none twice."""
    listed = getattr(import_module(module), "__all__", [])

    assert len(listed) == len(set(listed))
    assert [name for name in listed if not hasattr(import_module(module), name)] == []


@every_module
def test_nothing_for_type_checkers_alone(module: str) -> None:
    """No import is hidden from the program."""
    names = [node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)]

    assert "TYPE_CHECKING" not in names


LEVELS = ("debug", "info", "warning", "error", "exception", "critical", "log")


@every_module
def test_records(module: str) -> None:
    """Whatever is logged says which transaction it is about, and where; and each topic has a logger of its own."""
    calls = [node for node in ast.walk(TREES[module]) if isinstance(node, ast.Call)]
    named = [(call, call.func) for call in calls if isinstance(call.func, ast.Attribute)]
    silent = [
        call.lineno
        for call, function in named
        if function.attr in LEVELS
        and ast.unparse(function.value).endswith("logger")
        and "extra" not in {keyword.arg for keyword in call.keywords}
    ]
    names = [ast.literal_eval(call.args[0]) for call, function in named if function.attr == "getLogger"]

    assert silent == []
    assert not {"addHandler", "addFilter", "setLevel"} & {function.attr for _, function in named}
    assert all(name.startswith("flask_uow.") for name in names)
