"""``flask uow routes`` shows what a request would find."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import click
import pytest
from click.testing import Result
from flask import Blueprint, Flask
from flask.views import MethodView
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from flask_uow import Propagation, UnitOfWork, transactional


def run(app: Flask, *arguments: str, color: bool = False) -> Result:
    return app.test_cli_runner().invoke(args=["uow", "routes", *arguments], color=color)


def table(app: Flask, *arguments: str) -> list[list[str]]:
    """The printed table by its cells, with the head and without the line below it."""
    head, line, *rows = run(app, *arguments).output.splitlines()
    columns = [match.span() for match in re.finditer("-+", line)]
    return [[row[start:end].strip() for start, end in columns] for row in (head, *rows)]


def as_json(app: Flask, *arguments: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run(app, *arguments, "--format", "json").output)
    return rows


def view() -> str:
    raise NotImplementedError


def add(app: Flask | Blueprint, endpoint: str, function: Any = view, methods: str = "GET") -> None:
    app.add_url_rule(f"/{endpoint}", endpoint, function, methods=methods.split())


@pytest.fixture
def app(uow: UnitOfWork) -> Flask:
    """An app without any policy."""
    app = Flask("bookshop", static_folder=None)
    uow.init_app(app)
    return app


@pytest.fixture
def shop(engine: Engine) -> tuple[Flask, UnitOfWork]:
    """An app with an app-wide policy."""
    app = Flask("bookshop", static_folder=None)
    app.config.update(
        UOW_AUTO_COMMIT={"POST", "PUT"},
        UOW_ISOLATION_LEVEL="REPEATABLE READ",
        UOW_ATTEMPTS=2,
        UOW_READ_ONLY_METHODS={"GET"},
    )
    return app, UnitOfWork(engine, app)


HEAD = ["Endpoint", "Methods", "Rule", "Policy", "From", "Isolation", "Read-only", "Attempts"]


def test_no_policy(app: Flask) -> None:
    """What no policy covers is shown as that."""
    add(app, "index", methods="GET POST")

    assert table(app) == [HEAD, ["index", "GET, POST", "/index", "-", "-", "-", "-", "-"]]


def test_view(app: Flask, uow: UnitOfWork) -> None:
    """A view's own decorator, with its options."""
    add(app, "bare", transactional(view))
    add(app, "options", uow.transactional(isolation_level="SERIALIZABLE", read_only=True, attempts=3)(view), "POST")
    add(app, "wrapped", partial(transactional(view)))

    assert table(app)[1:] == [
        ["bare", "GET", "/bare", "transaction", "view", "-", "no", "1"],
        ["options", "POST", "/options", "transaction", "view", "SERIALIZABLE", "yes", "3"],
        ["wrapped", "GET", "/wrapped", "transaction", "view", "-", "no", "1"],
    ]


def test_defaults_of_the_settings(shop: tuple[Flask, UnitOfWork]) -> None:
    """What a policy leaves open is shown as the settings have it; what it says goes before them."""
    app, _ = shop
    add(app, "bare", transactional(view))
    options = transactional(isolation_level="READ COMMITTED", attempts=1, read_only=False)(view)
    add(app, "options", options)

    assert table(app)[1:] == [
        ["bare", "GET", "/bare", "transaction", "view", "REPEATABLE READ", "yes", "2"],
        ["options", "GET", "/options", "transaction", "view", "READ COMMITTED", "no", "1"],
    ]


def test_app_wide(shop: tuple[Flask, UnitOfWork]) -> None:
    """Methods of an endpoint that are covered alike share a row, and others have one of their own."""
    app, _ = shop
    add(app, "index", methods="GET POST PUT DELETE")

    assert table(app)[1:] == [
        ["index", "DELETE, GET", "/index", "-", "-", "-", "-", "-"],
        ["index", "POST, PUT", "/index", "transaction", "app", "REPEATABLE READ", "no", "2"],
    ]


def test_blueprints(shop: tuple[Flask, UnitOfWork]) -> None:
    """The policy of a blueprint holds for those inside it, and says which it is."""
    app, uow = shop
    outer, inner = Blueprint("outer", __name__), Blueprint("inner", __name__)
    uow.transactional(isolation_level="SERIALIZABLE")(outer)
    add(outer, "own", transactional(view))
    add(inner, "index")
    outer.register_blueprint(inner)
    app.register_blueprint(outer)

    assert [row[3:6] for row in table(app)[1:]] == [
        ["transaction", "blueprint outer", "SERIALIZABLE"],
        ["transaction", "view", "REPEATABLE READ"],
    ]
    assert [(row["from"], row["blueprint"]) for row in as_json(app)] == [("blueprint", "outer"), ("view", None)]


def test_exempt(shop: tuple[Flask, UnitOfWork]) -> None:
    """An exemption is shown with where it is; a view's own decorator goes before it."""
    app, uow = shop

    def exempt() -> None: ...

    add(app, "exempt", uow.exempt(exempt), "GET POST")
    add(app, "decorated", transactional(exempt))
    api = uow.exempt(Blueprint("api", __name__))
    add(api, "index", methods="POST")
    app.register_blueprint(api)

    assert [row[:2] + row[3:] for row in table(app)[1:]] == [
        ["api.index", "POST", "exempt", "blueprint api", "-", "-", "-"],
        ["decorated", "GET", "transaction", "view", "REPEATABLE READ", "yes", "2"],
        ["exempt", "GET, POST", "exempt", "view", "-", "-", "-"],
    ]


def test_methods_of_a_view_class(app: Flask) -> None:
    """The methods of a MethodView are covered each by its own decorator."""

    class Books(MethodView):
        def get(self) -> None: ...

        @transactional
        def post(self) -> None: ...

    app.add_url_rule("/books", view_func=Books.as_view("books"))

    assert [row[:5] for row in table(app)[1:]] == [
        ["books", "GET", "/books", "-", "-"],
        ["books", "POST", "/books", "transaction", "view"],
    ]


def test_propagation(shop: tuple[Flask, UnitOfWork]) -> None:
    """A mode that is no plain transaction has its name; one that begins none is shown after what surrounds it."""
    app, _ = shop
    add(app, "a", transactional(propagation=Propagation.REQUIRES_NEW)(view))
    add(app, "b", transactional(propagation=Propagation.MANDATORY)(view), "GET POST")
    add(app, "c", transactional(transactional(propagation=Propagation.NOT_SUPPORTED)(view)))

    assert [row[:2] + row[3:5] for row in table(app)[1:]] == [
        ["a", "GET", "REQUIRES_NEW", "view"],
        ["b", "GET", "MANDATORY", "view"],
        ["b", "POST", "transaction, MANDATORY", "app"],
        ["c", "GET", "transaction, NOT_SUPPORTED", "view"],
    ]
    assert [(row["policy"], row["blocks"]) for row in as_json(app)][1:3] == [
        (None, ["MANDATORY"]),
        ("transaction", ["MANDATORY"]),
    ]


def keep(_response: object) -> bool:
    raise NotImplementedError


def test_commit_if(app: Flask) -> None:
    """Another rule than the status has a column, where there is one."""
    add(app, "own", transactional(commit_if=keep)(view))
    add(app, "partial", transactional(commit_if=partial(keep))(view))
    add(app, "plain", transactional(view))

    head, own, other, plain = table(app)

    assert head == [*HEAD, "Commit if"]
    assert own[-1] == "keep"
    assert other[-1].startswith("functools.partial(")
    assert plain[-1] == "-"
    assert as_json(app)[0]["commit_if"] == "keep"


def test_several_units(app: Flask, engine: Engine) -> None:
    """Where the app has several UnitOfWork objects, each has its rows, or one is chosen."""
    UnitOfWork(sessionmaker(engine), app, name="reports", auto_commit=True)
    add(app, "index", transactional(view))

    assert [row[:5] for row in table(app)] == [
        ["Endpoint", "Methods", "Rule", "Unit of work", "Policy"],
        ["index", "GET", "/index", "default", "transaction"],
        ["index", "GET", "/index", "reports", "transaction"],
    ]
    assert table(app, "--name", "reports") == [HEAD, ["index", "GET", "/index", "transaction", "app", "-", "no", "1"]]
    assert [row["unit_of_work"] for row in as_json(app)] == ["default", "reports"]


def test_unknown_name(app: Flask) -> None:
    """A name that there is not is told with those that there are."""
    result = run(app, "--name", "report")

    assert result.exit_code == 1
    assert "The app has no UnitOfWork called 'report'. It has: 'default'." in result.output


@pytest.mark.parametrize(
    ("sort", "endpoints"),
    [("endpoint", "abc"), ("rule", "bca"), ("methods", "cab"), ("match", "acb")],
)
def test_sort(app: Flask, sort: str, endpoints: str) -> None:
    """Rows are sorted by what is asked for, as those of 'flask routes'."""
    app.add_url_rule("/3", "a", view, methods=["POST"])
    app.add_url_rule("/2", "c", view, methods=["DELETE"])
    app.add_url_rule("/1", "b", view, methods=["PUT"])

    assert "".join(row[0] for row in table(app, "--sort", sort)[1:]) == endpoints


def test_methods_that_flask_adds(app: Flask) -> None:
    """HEAD and OPTIONS are shown if that is asked for, or if there is no other."""
    add(app, "index")
    add(app, "options", methods="OPTIONS")

    assert [row[1] for row in table(app)[1:]] == ["GET", "OPTIONS"]
    assert [row[1] for row in table(app, "--all-methods")[1:]] == ["GET, HEAD, OPTIONS", "OPTIONS"]


def test_domains(app: Flask) -> None:
    """Subdomains have a column."""
    app.add_url_rule("/", "index", view, subdomain="api")
    app.add_url_rule("/", "start", view)

    assert [row[:4] for row in table(app)] == [
        ["Endpoint", "Methods", "Domain", "Rule"],
        ["index", "GET", "api", "/"],
        ["start", "GET", "", "/"],
    ]
    assert [row["domain"] for row in as_json(app)] == ["api", None]


def test_json(shop: tuple[Flask, UnitOfWork]) -> None:
    """As JSON it is one list, with null where there is nothing."""
    app, _ = shop
    add(app, "index", methods="GET POST")

    assert as_json(app) == [
        {
            "endpoint": "index",
            "methods": ["GET"],
            "domain": None,
            "rule": "/index",
            "unit_of_work": "default",
            "policy": None,
            "from": None,
            "blueprint": None,
            "blocks": [],
            "isolation_level": None,
            "read_only": None,
            "attempts": None,
            "commit_if": None,
        },
        {
            "endpoint": "index",
            "methods": ["POST"],
            "domain": None,
            "rule": "/index",
            "unit_of_work": "default",
            "policy": "transaction",
            "from": "app",
            "blueprint": None,
            "blocks": [],
            "isolation_level": "REPEATABLE READ",
            "read_only": False,
            "attempts": 2,
            "commit_if": None,
        },
    ]


def test_no_routes(app: Flask) -> None:
    """An app without routes says so, as Flask does."""
    assert run(app).output == "No routes were registered.\n"
    assert as_json(app) == []


def test_colours(shop: tuple[Flask, UnitOfWork]) -> None:
    """A terminal gets colours, and a pipe the same text without."""
    app, uow = shop
    add(app, "exempt", uow.exempt(transactional(view)))
    add(app, "index", methods="POST")

    piped, terminal = run(app).output, run(app, color=True).output

    assert "\x1b" not in piped
    assert "\x1b[32mtransaction\x1b[0m" in terminal
    assert click.unstyle(terminal) == piped


def test_same_as_for_a_request(shop: tuple[Flask, UnitOfWork]) -> None:
    """What is printed is what a request finds."""
    app, uow = shop
    seen: list[Any] = []

    @app.post("/")
    @transactional(isolation_level="SERIALIZABLE", read_only=True)
    def index() -> str:
        transaction = uow.current_transaction
        assert transaction is not None
        seen.append([transaction.isolation_level, transaction.read_only])
        return ""

    app.test_client().post("/")

    assert [[row["isolation_level"], row["read_only"]] for row in as_json(app)] == seen
