"""The benchmarks work: answers, contents, sums and drawings are right. How fast anything is, is not tested."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine

from tests.benchmarks import features, instructions, served
from tests.benchmarks.__main__ import main, parse, selected
from tests.benchmarks.models import BALANCE, ROUTES, Contents, contents, contents_after, fill
from tests.benchmarks.plan import Plan
from tests.benchmarks.results import Spread, percentile, ratios, spread, spreads_of_ratios, table, table_by_route
from tests.benchmarks.roster import CONTENDERS, base_of
from tests.benchmarks.stand import CLOCKS, Stand

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def _nothing_old_to_collect() -> Iterator[None]:
    """The benchmarks collect garbage before each turn, and would look through all that other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def url(tmp_path: Path) -> URL:
    """A filled SQLite file."""
    url = URL.create("sqlite", database=str(tmp_path / "benchmark.db"))
    fill(url)
    return url


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: it forks, which a process with threads should not."""
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


# Advanced Alchemy uses what SQLAlchemy 2.1 deprecates.
@pytest.mark.filterwarnings("ignore:The declarative_mixin decorator:sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("key", CONTENDERS)
def test_contender(key: str, url: URL) -> None:
    """Every contender answers each of its routes as all others do, and stores the same."""
    contender = CONTENDERS[key]
    stand = Stand(contender.make(url), url)
    try:
        stand.warm_up(contender.routes, 1)
        seconds = [stand.time(route, 2) for route in contender.routes]
    finally:
        stand.close()  # checks what is stored
        if listener := stand.app.extensions.get("listener"):
            listener.disconnect()

    assert stand.asked == dict.fromkeys(contender.routes, 5)
    assert all(number > 0 for number in seconds)


def test_everything_is_told(url: URL) -> None:
    """The contender with everything has its hooks run, and reads each change before and after its COMMIT."""
    stand = Stand(CONTENDERS["everything"].make(url), url)
    listener = stand.app.extensions["listener"]
    try:
        for route in ("read", "write", "transfer", "exception", "savepoint"):
            stand.ask(route, 1)
    finally:
        stand.close()
        listener.disconnect()

    # An INSERT each, and two UPDATEs, read twice; the INSERT that was lost is read once.
    assert listener.told == {"hooks": 4, "COMMITTED": 4, "ROLLED_BACK": 1, "changes": 2 * (1 + 2 + 1) + 1}


def test_all_compared(url: URL) -> None:
    """Those whom others are compared with take part in each route that they are compared in."""
    assert all(route in CONTENDERS[base_of(route)].routes for route in ROUTES)
    assert set(CONTENDERS["by-hand"].routes) == set(ROUTES)


def test_wrong_answer() -> None:
    """A benchmark that measures errors fails: status and body are looked at."""
    route = ROUTES["read"]

    route.check(200, b"Ada")
    for answer in ((500, b"Ada"), (200, b"Bob")):
        with pytest.raises(AssertionError, match="was answered with"):
            route.check(*answer)


def test_wrong_answer_of_an_app(url: URL) -> None:
    """The last answer of a turn is looked at, too."""
    stand = Stand(CONTENDERS["flask"].make(url), url)
    stand.app.view_functions["nothing"] = lambda: "something"

    with pytest.raises(AssertionError, match="something"):
        stand.time("nothing", 2)


def test_wrong_contents(url: URL) -> None:
    """A benchmark that loses what it writes fails."""
    stand = Stand(CONTENDERS["by-hand"].make(url), url)
    stand.ask("write", 2)
    stand.asked["write"] += 1

    with pytest.raises(AssertionError, match="is stored after"):
        stand.close()


def test_contents(url: URL) -> None:
    """What is to be stored follows from how often each route was asked for."""
    asked = Counter(read=9, write=3, savepoint=2, exception=7, transfer=4)

    assert contents(url) == contents_after(Counter()) == Contents({}, [BALANCE, BALANCE])
    assert contents_after(asked) == Contents({"write": 3, "savepoint": 2}, [BALANCE - 4, BALANCE + 4])


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([7.0], Spread(7, 7, 7)),
        ([1.0, 2.0], Spread(1.25, 1.5, 1.75)),
        ([5.0, 1.0, 4.0, 2.0, 3.0], Spread(2, 3, 4)),
    ],
)
def test_spread(numbers: Sequence[float], expected: Spread) -> None:
    """The quartiles are those of the numbers themselves."""
    assert spread(numbers) == expected


def test_ratios() -> None:
    """A round that is slow for all changes no ratio."""
    assert ratios([2.0, 20.0, 3.0], [1.0, 10.0, 2.0]) == [2, 2, 1.5]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (100, 100)])
def test_percentile(percent: int, expected: float) -> None:
    """A percentile is one of the numbers."""
    assert percentile(map(float, range(100, 0, -1)), percent) == expected
    assert percentile([4.0], percent) == 4


def test_spreads_of_ratios() -> None:
    """Ratios are to the base of their route, round by round."""
    times = {"nothing": {"flask": [1.0, 2.0], "policy": [2.0, 4.0]}, "read": {"by-hand": [4.0], "policy": [5.0]}}

    found = spreads_of_ratios(times, base_of)

    assert found["nothing"] == {"flask": Spread(1, 1, 1), "policy": Spread(2, 2, 2)}
    assert found["read"]["policy"] == Spread(1.25, 1.25, 1.25)


def test_tables() -> None:
    """Tables are Markdown, with an empty cell for who does not take part."""
    found = table_by_route({"read": {"a": Spread(1, 2, 3)}}, {"a": "A", "b": "B"}, "{:.1f}".format)

    assert table(["", "x"], [["yy", "1"]]) == "|    | x |\n| -- | - |\n| yy | 1 |"
    assert [line.split("|")[2].strip() for line in found.splitlines()][2:] == ["2.0 (1.0 to 3.0)", ""]


def test_selection() -> None:
    """Who is compared with takes part without being asked for."""
    assert [c.key for c in selected(parse(["--contenders", "policy"]))] == ["flask", "by-hand", "policy"]
    assert [c.key for c in selected(parse(["--contenders", "policy", "--routes", "read"]))] == ["by-hand", "policy"]


def test_turns() -> None:
    """Nobody is always first, and everybody has a turn by each of its routes in each round."""
    contenders = [CONTENDERS[key] for key in ("flask", "by-hand", "policy")]

    turns = [(route, contender.key) for route, contender in Plan(2, 1, 1, ["nothing", "read"]).turns(contenders)]

    assert turns[:5] == [
        *(("nothing", key) for key in ("flask", "by-hand", "policy")),
        ("read", "by-hand"),
        ("read", "policy"),
    ]
    assert turns[5:] == [
        *(("nothing", key) for key in ("by-hand", "policy", "flask")),
        ("read", "by-hand"),
        ("read", "policy"),
    ]


def test_command(tmp_path: Path) -> None:
    """The short form prints a row for every contender, with each of its routes, and draws."""
    done = run("--short", "--only", "wsgi", "--clock", "cpu", "--plot", str(tmp_path / "images"))

    assert done.returncode == 0, done.stderr
    ratios_table = done.stdout.split("\n## ")[1]
    rows = {cells[0]: cells[1:] for cells in map(cells_of, ratios_table.splitlines()[2:]) if cells}
    assert rows.pop("") == list(ROUTES)
    assert {label for label in rows if label.strip("- ")} == {c.label for c in CONTENDERS.values()}
    for contender in CONTENDERS.values():
        assert [bool(cell) for cell in rows[contender.label]] == [route in contender.routes for route in ROUTES]
    assert (tmp_path / "images/benchmarks.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "images/benchmarks.svg").read_text("utf-8").rstrip().endswith("</svg>")


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []


def test_failure_in_a_process() -> None:
    """What goes wrong in the process of one contender ends the command, and names it."""
    program = """
from dataclasses import replace
from tests.benchmarks import __main__, roster

roster.CONTENDERS["policy"] = replace(roster.CONTENDERS["policy"], maker="bare_flask:make")
__main__.main(["--short", "--only", "wsgi", "--contenders", "policy", "--routes", "read"])
"""

    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "AssertionError: policy failed:" in done.stderr
    assert "GET /read was answered with (404" in done.stderr


def test_contradiction(capsys: pytest.CaptureFixture[str]) -> None:
    """A drawing of what is not measured is refused."""
    with pytest.raises(SystemExit):
        main(["--only", "served", "--plot", "images"])

    assert "--plot draws the measurement wsgi" in capsys.readouterr().err


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a round or a request there is nothing to say."""
    with pytest.raises(SystemExit):
        parse(["--rounds", number])

    complaint = "invalid number value" if number == "many" else f"{number} is less than 1"
    assert f"argument --rounds: {complaint}" in capsys.readouterr().err


def test_clocks() -> None:
    """Both clocks go forward."""
    assert all(clock() <= clock() for clock in CLOCKS.values())


@pytest.mark.skipif(not instructions.is_possible(), reason="valgrind is not installed")
def test_instructions(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The instructions of one request are counted, without those of starting."""
    monkeypatch.chdir(ROOT)

    main(["--short", "--only", "instructions", "--contenders", "flask", "--routes", "nothing"])

    row = cells_of(capsys.readouterr().out.splitlines()[-1])
    thousands, *rest = row[1].split()
    # Python has started and imported Flask with more than a million times thousand.
    assert 50 < int(thousands) < 5_000
    assert (row[0], rest) == ("Flask alone", ["(1.000,", "+0)"])


def test_instructions_are_not_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked for and cannot be done is no success."""
    monkeypatch.setenv("PATH", "")

    with pytest.raises(SystemExit, match="instructions is not possible here: valgrind"):
        main(["--only", "instructions"])


def test_served(
    postgresql_database: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers answer on PostgreSQL, where what they are asked to store is looked for, and are ended."""
    monkeypatch.chdir(ROOT)
    started: list[subprocess.Popen[bytes]] = []
    end = served._end

    def end_and_note(processes: Sequence[subprocess.Popen[bytes]]) -> None:
        end(processes)
        started.extend(processes)

    monkeypatch.setattr(served, "_end", end_and_note)
    url = postgresql_database.url.render_as_string(hide_password=False)

    main(["--short", "--only", "served", "--contenders", "policy", "--routes", "write", "transfer", "--url", url])

    tables = capsys.readouterr().out.split("\n## ")[1:]
    rows = [[cells_of(line) for line in found.splitlines()[4:]] for found in tables]
    assert [found.partition(",")[0] for found in tables] == ["write", "transfer"]
    assert [[row[0] for row in of_route] for of_route in rows] == [["by hand", "flask_uow, UOW_AUTO_COMMIT"]] * 2
    assert all(float(row[1]) > 0 for of_route in rows for row in of_route)
    assert [process.returncode is not None for process in started] == [True, True]


def test_features(capsys: pytest.CaptureFixture[str]) -> None:
    """What costs what is printed for each of them, and each of them runs."""
    features.main(["--rounds", "1"])

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(("| plain", "| `resolve_commit=True`"))] == lines[4:5] + lines[
        -1:
    ]
    assert len(lines) == 4 + 12
