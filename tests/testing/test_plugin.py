from __future__ import annotations

from collections.abc import Callable

import pytest

BOOKSHOP = """
import pytest
from flask import Flask
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.pool import NullPool

from flask_uow import UnitOfWork

class Base(DeclarativeBase):
    pass

class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]

engine = create_engine("sqlite:///books.db", poolclass=NullPool)
Base.metadata.drop_all(engine)
Base.metadata.create_all(engine)
books = UnitOfWork(sessionmaker(engine))
others = UnitOfWork(sessionmaker(engine), name="others")

def make_app():
    app = Flask("bookshop")
    app.testing = True
    app.config["UOW_AUTO_COMMIT"] = True
    books.init_app(app)
    others.init_app(app)

    @app.post("/<title>")
    @books.transactional(attempts=2)
    def add(title):
        books.session.add(Book(title=title))
        return ""

    return app

bookshop = make_app()

def count():
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(Book))
"""

WITH_APP = """
@pytest.fixture
def app():
    return bookshop
"""

WITH_UOW = """
@pytest.fixture
def uow():
    return books
"""

WITH_SEVERAL = """
@pytest.fixture
def uow():
    return [books, others]
"""

TESTS = """
@pytest.mark.parametrize("title", ["Emma", "Sanditon"])
def test_isolated(uow_isolate, title):
    bookshop.test_client().post("/" + title)
    [connection] = uow_isolate
    assert connection.scalars(select(Book.title)).all() == [title]

def test_nothing_is_left():
    assert count() == 0

def test_recorded(uow_isolate, uow_record):
    bookshop.test_client().post("/Emma")
    uow_record.assert_committed()

def test_injected(uow_isolate, uow_record, uow_inject):
    fault = uow_inject("deadlock")
    bookshop.test_client().post("/Emma")
    assert fault.struck == 1
    uow_record.assert_rolled_back()

def test_injected_in_a_block(uow_isolate, uow_inject):
    with uow_inject("deadlock", at="nowhere") as fault:
        pass
    uow_inject("deadlock", at="INSERT", times=2)
    with pytest.raises(Exception, match="locked"):
        bookshop.test_client().post("/Emma")
    assert fault.struck == 0

def test_nothing_goes_on():
    assert books._observers == others._observers == []
    assert books._source.detours == others._source.detours == []
    bookshop.test_client().post("/Emma")
    assert count() == 1
"""


Run = Callable[[str], pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test module with the plugin alone, without what else is installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(module: str) -> pytest.RunResult:
        pytester.makepyfile(module)
        return pytester.runpytest_inprocess("-p", "flask_uow.pytest_plugin", "-p", "no:cacheprovider")

    return run


@pytest.mark.parametrize("where", [WITH_APP, WITH_UOW, WITH_SEVERAL], ids=["app", "uow", "several"])
def test_fixtures(run: Run, where: str) -> None:
    """The fixtures are about the app, or about what a fixture of the user's returns, and end with the test."""
    result = run(BOOKSHOP + where + TESTS)

    result.assert_outcomes(passed=7)


def test_all_of_an_app(run: Run) -> None:
    """All UnitOfWork objects of an app are isolated."""
    result = run(
        BOOKSHOP
        + WITH_APP
        + """
def test_isolated(uow_isolate):
    with others.transaction() as session:
        session.add(Book(title="Emma"))

def test_nothing_is_left():
    assert count() == 0
"""
    )

    result.assert_outcomes(passed=2)


def test_without_a_unit_of_work(run: Run) -> None:
    """Where there is none, the test is told what to write."""
    result = run("def test_isolated(uow_isolate): ...")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*The fixture 'uow_isolate' needs a UnitOfWork. Write a fixture 'uow'*"])


def test_fixture_that_lacks_another(run: Run) -> None:
    """A fixture of the user's that lacks one of its own says so itself."""
    result = run(
        """
import pytest

@pytest.fixture
def uow(missing): ...

def test_isolated(uow_isolate): ...
"""
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'missing' not found*"])


def test_entry_point(pytester: pytest.Pytester) -> None:
    """The plugin is found without being named."""
    pytester.makepyfile(BOOKSHOP + WITH_APP + TESTS)

    # These take seconds to begin with.
    others = [f"no:{name}" for name in ("faker", "hypothesispytest", "xdist", "cov", "cacheprovider")]
    result = pytester.runpytest_subprocess(*(argument for name in others for argument in ("-p", name)))

    result.assert_outcomes(passed=7)


def test_nothing_unasked(run: Run) -> None:
    """A test that asks for nothing is not isolated, recorded or failed."""
    result = run(
        BOOKSHOP
        + WITH_APP
        + """
def test_plain(app):
    assert books._observers == [] and books._source.detours == []
    app.test_client().post("/Emma")
    assert count() == 1
"""
    )

    result.assert_outcomes(passed=1)


def test_session_in_use(run: Run) -> None:
    """Where a fixture of the user's has a session in use, the test is told, and not isolated by halves."""
    result = run(
        BOOKSHOP
        + WITH_APP
        + """
@pytest.fixture
def writing(app):
    with app.app_context():
        books.session.add(Book(title="Emma"))
        books.session.flush()
        yield

def test_isolated(writing, uow_isolate): ...

def test_in_a_context(app):
    with app.app_context():
        ...

@pytest.fixture
def context(app):
    with app.app_context():
        yield

def test_isolated_in_a_context(context, uow_isolate):
    books.session.add(Book(title="Emma"))
    books.session.commit()
"""
    )

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*was entered while a transaction of*"])
