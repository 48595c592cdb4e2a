"""Tests of the example in docs/examples/library, whose own tests use the testing kit alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import Session

from docs.examples.library import create_app
from docs.examples.library.models import Base, Book, Loan, Member

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "library"
COUNT = len(re.findall(r"^def test_", (EXAMPLE / "tests" / "test_library.py").read_text(), re.MULTILINE))


def run(*arguments: str, **environment: str) -> str:
    """Run the example's tests as its reader does, with the plugin found by its entry point."""
    # What it does not need takes longer to load than the tests take.
    without = [f"-pno:{plugin}" for plugin in ("cacheprovider", "cov", "faker", "hypothesispytest")]
    # It is not a part of this test run, which may be in several processes itself.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(EXAMPLE), *without, *arguments],
        env={**outside, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(engine: Engine) -> list[object]:
    """Everything that is stored."""
    with Session(engine) as session:
        return [
            tuple(row) for model in (Book, Member, Loan) for row in session.execute(select(*model.__table__.columns))
        ]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database in which there is something."""
    if request.param == "sqlite":
        engine = create_engine(f"sqlite:///{tmp_path / 'library.db'}")
    else:
        engine = request.getfixturevalue("postgresql_database")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Book(title="Lady Susan", copies=3), Member(name="Alan", email="alan@example.org")])
        session.commit()
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def test_its_tests_pass_and_leave_nothing_behind(database: Engine) -> None:
    """They pass, all of them, and the tables are afterwards as they were."""
    before = rows(database)

    output = run(LIBRARY_TEST_DATABASE_URL=database.url.render_as_string(hide_password=False))

    assert "flask-uow" in output  # among the plugins that were found
    assert re.search(rf"\b{COUNT} passed in", output)
    assert rows(database) == before


def test_its_tests_pass_in_several_processes() -> None:
    """They pass in two processes at a time, each of which has a database of its own."""
    output = run("-n", "2")

    assert re.search(rf"\b{COUNT} passed in", output)


def test_app_works_outside_its_tests(tmp_path: Path) -> None:
    """The app serves requests, and stores what they commit."""
    app = create_app({"DATABASE_URL": f"sqlite:///{tmp_path / 'library.db'}"})
    client = app.test_client()

    answers = [client.post("/books", json=["Emma", "Persuasion"]).json, client.post("/books", json=["Emma"]).json]

    assert answers == [{"added": ["Emma", "Persuasion"], "known": []}, {"added": [], "known": ["Emma"]}]
    assert len(rows(app.extensions["library.engine"])) == 2
    app.extensions["library.engine"].dispose()
