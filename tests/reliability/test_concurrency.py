"""Many requests at once: no shared session, exact rows, every connection given back."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from flask_uow import UnitOfWork
from tests.conftest import Book, titles

REQUESTS = 200


def serve(app: Flask, uow: UnitOfWork, together: threading.Barrier | None = None) -> list[Session]:
    """Add a view that keeps every third request's work, and remembers the sessions it met."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    sessions: list[Session] = []

    @app.post("/<int:number>")
    def view(number: int) -> tuple[str, int]:
        session = uow.session
        sessions.append(session)
        if together is not None:
            together.wait(timeout=30)
        session.add(Book(title=f"{number:03}"))
        session.flush()
        if number % 3 == 1:
            raise LookupError
        assert uow.session is session
        return "", 200 if number % 3 == 0 else 409

    return sessions


def test_requests_on_threads(app: Flask, postgresql: Engine) -> None:
    """200 concurrent requests on threads: a session each, exact rows, and an empty pool afterwards."""
    uow = UnitOfWork(sessionmaker(postgresql))
    sessions = serve(app, uow, threading.Barrier(20))

    def post(number: int) -> int:
        return app.test_client().post(f"/{number}").status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(post, range(REQUESTS)))

    assert [statuses.count(status) for status in (200, 409, 500)] == [67, 66, 67]
    assert len(set(map(id, sessions))) == REQUESTS
    assert titles(postgresql) == [f"{number:03}" for number in range(0, REQUESTS, 3)]
    assert postgresql.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_first_requests_on_threads(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """When the first requests come together, an extension that wrapped dispatch after us is wrapped once."""
    serve(app, uow)
    theirs = app.dispatch_request
    calls: list[object] = []
    together = threading.Barrier(10)

    def wrapped(*args: object) -> object:
        calls.append(args)
        return theirs(*args)

    app.dispatch_request = wrapped  # type: ignore[method-assign,assignment]

    def post(number: int) -> int:
        together.wait(timeout=30)
        return app.test_client().post(f"/{number * 3}").status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(post, range(10)))

    assert statuses == [200] * 10
    assert len(calls) == 10
    assert len(titles(engine)) == 10


GEVENT = """
import sys
import warnings

from gevent import monkey, pool, sleep

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    monkey.patch_all()

from flask import Flask
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from flask_uow import UnitOfWork
from tests.conftest import Base, Book, titles

engine = create_engine(f"sqlite:///{sys.argv[1]}", pool_size=50, connect_args={"timeout": 30})
Base.metadata.create_all(engine)
app = Flask("bookshop")
app.config["UOW_AUTO_COMMIT"] = True
uow = UnitOfWork(sessionmaker(engine), app)
sessions = []


@app.post("/<int:number>")
def view(number):
    session = uow.session
    sessions.append(session)
    sleep(0)
    assert uow.session is session
    session.add(Book(title=f"{number:03}"))
    sleep(0)
    assert uow.session is session
    if number % 3 == 1:
        raise LookupError
    return "", 200 if number % 3 == 0 else 409


app.logger.disabled = True
statuses = pool.Pool(50).map(lambda number: app.test_client().post(f"/{number}").status_code, range(200))

assert [statuses.count(status) for status in (200, 409, 500)] == [67, 66, 67], statuses
assert len(set(map(id, sessions))) == 200
assert titles(engine) == [f"{number:03}" for number in range(0, 200, 3)]
assert engine.pool.checkedout() == 0
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="gevent patches sqlite3's world differently there")
def test_requests_on_greenlets(tmp_path: Path) -> None:
    """The same under gevent: 200 requests on 50 greenlets that switch in the middle of their transactions."""
    script = tmp_path / "script.py"
    script.write_text(GEVENT)

    done = subprocess.run(
        [sys.executable, script, tmp_path / "test.db"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": "", "XDG_RUNTIME_DIR": str(tmp_path)},
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
