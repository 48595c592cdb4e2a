"""Which policy covers a request: the nearest wins."""

from __future__ import annotations

from functools import partial, wraps
from typing import Any

import pytest
from flask import Blueprint, Flask
from flask.views import MethodView, View
from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from flask_uow import ConfigurationError, ManualTransactionControlError, UnitOfWork, transactional
from tests.conftest import Book, titles


@pytest.fixture(params=["view", "blueprint", "nested"])
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def add(uow: UnitOfWork, title: str = "Emma") -> str:
    uow.session.add(Book(title=title))
    return title


def keep_all(_response: object) -> bool:
    return True


def keep_none(_response: object) -> bool:
    return False


@pytest.mark.parametrize("spelling", ["module", "method"])
def test_decorated_view_is_covered(app: Flask, uow: UnitOfWork, engine: Engine, spelling: str) -> None:
    """Without an app-wide policy, a decorated view commits and a bare one does not."""
    uow.init_app(app)
    decorate = transactional if spelling == "module" else uow.transactional

    @app.post("/decorated/<int:status>")
    @decorate
    def decorated(status: int) -> tuple[str, int]:
        return add(uow, f"decorated {status}"), status

    @app.post("/bare")
    def bare() -> str:
        return add(uow, "bare")

    client = app.test_client()
    for path in ("/decorated/200", "/decorated/404", "/bare"):
        client.post(path)

    assert titles(engine) == ["decorated 200"]


def test_decorators_outside_belong_to_the_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """What a decorator above @transactional makes of the response decides, and its own work is in the transaction."""
    uow.init_app(app)

    def fails(function: Any) -> Any:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            function(*args, **kwargs)
            add(uow, "outside")
            return "", kwargs["status"]

        return wrapper

    @app.post("/<int:status>")
    @fails
    @transactional
    def view(status: int) -> str:
        return add(uow, f"inside {status}")

    client = app.test_client()
    client.post("/400")
    client.post("/201")

    assert titles(engine) == ["inside 201", "outside"]


def test_swallowed_exception_of_the_view_undoes(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A decorator above @transactional that turns the exception into a 200 does not bring the work back."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    def swallows(function: Any) -> Any:
        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except LookupError:
                add(uow, "noted")
                return "fine"

        return wrapper

    @app.post("/")
    @swallows
    @transactional
    def view() -> str:
        add(uow, "lost")
        raise LookupError

    response = app.test_client().post("/")

    assert response.text == "fine"
    assert titles(engine) == ["noted"]


def test_exception_of_an_untouched_view(app: Flask, uow: UnitOfWork, statements: list[str]) -> None:
    """A decorated view that raises before it uses the session leaves the database alone."""
    uow.init_app(app)

    @app.get("/")
    @transactional
    def view() -> str:
        raise LookupError

    assert app.test_client().get("/").status_code == 500
    assert statements == []


def test_no_rollback_for_keeps_the_work_of_a_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """An exception in no_rollback_for commits before the error handlers run; a subclass in rollback_for does not."""
    uow.init_app(app)

    @app.post("/<kind>")
    @transactional(no_rollback_for=LookupError, rollback_for=KeyError)
    def view(kind: str) -> str:
        add(uow, kind)
        raise {"lookup": LookupError, "index": IndexError, "key": KeyError, "value": ValueError}[kind]

    client = app.test_client()
    for kind in ("lookup", "index", "key", "value"):
        assert client.post(f"/{kind}").status_code == 500

    assert titles(engine) == ["index", "lookup"]


def test_view_that_calls_a_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A decorated view called by another, or by itself, joins the request's transaction."""
    uow.init_app(app)

    @app.post("/other")
    @transactional
    def other() -> str:
        return add(uow, "other")

    @app.post("/<int:depth>")
    @transactional
    def view(depth: int) -> tuple[str, int]:
        add(uow, str(depth))
        if depth:
            view(depth - 1)
        other()
        return "", 400 if depth == 2 else 200

    client = app.test_client()
    client.post("/2")
    stored = titles(engine)
    client.post("/1")

    assert stored == []
    assert titles(engine) == ["0", "1", "other", "other"]


def test_decorated_function_in_a_bare_view_is_its_own_transaction(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """Where the request has no policy, a decorated function that a view calls commits when it returns."""
    uow.init_app(app)

    @transactional
    def store() -> None:
        add(uow)

    @app.post("/")
    def view() -> tuple[str, int]:
        store()
        return "", 500

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_decorated_view_called_without_dispatch(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view called in a test_request_context() is a plain function: it commits when it returns."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    @transactional
    def view() -> str:
        return add(uow)

    with app.test_request_context("/"):
        view()
        stored = titles(engine)

    assert stored == ["Emma"]


@pytest.mark.parametrize("kind", ["method", "decorators", "view", "partial"])
def test_every_kind_of_view(app: Flask, uow: UnitOfWork, engine: Engine, kind: str) -> None:
    """Methods of a MethodView, 'decorators' of a View, and functools.partial are found."""
    uow.init_app(app)

    class Decorated(View):
        decorators = [transactional]

        def dispatch_request(self, status: int) -> tuple[str, int]:  # type: ignore[override]
            return add(uow), status

    class Methods(MethodView):
        @transactional
        def get(self, status: int) -> tuple[str, int]:
            return add(uow), status

        @transactional
        async def put(self, status: int) -> tuple[str, int]:
            return add(uow), status

        def post(self, status: int) -> tuple[str, int]:
            return add(uow, "bare"), status

    @transactional
    def function(prefix: str, status: int) -> tuple[str, int]:
        return add(uow, prefix), status

    view: Any = {
        "method": Methods.as_view("view"),
        "view": Methods.as_view("view"),
        "decorators": Decorated.as_view("view"),
        "partial": partial(function, "Emma"),
    }[kind]
    methods = ["GET", "HEAD", "POST", "PUT"]
    app.add_url_rule("/<int:status>", endpoint="view", view_func=view, methods=methods)

    client = app.test_client()
    verb = "PUT" if kind == "method" else "HEAD"
    client.open("/200", method=verb)
    client.open("/404", method=verb)
    if kind == "method":
        client.post("/200")

    assert titles(engine) == ["Emma"]


def test_blueprint_is_covered(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A policy on a blueprint covers its views, those of a nested blueprint included, and no others."""
    uow.init_app(app)
    shop = uow.transactional(Blueprint("shop", __name__, url_prefix="/shop"))
    cellar = Blueprint("cellar", __name__, url_prefix="/cellar")
    office = Blueprint("office", __name__, url_prefix="/office")
    for blueprint in (shop, cellar, office):
        blueprint.add_url_rule("/", "add", lambda name=blueprint.name: add(uow, name), methods=["POST"])
    shop.register_blueprint(cellar)
    app.register_blueprint(shop)
    app.register_blueprint(office)

    client = app.test_client()
    for path in ("/shop/", "/shop/cellar/", "/office/"):
        client.post(path)

    assert titles(engine) == ["cellar", "shop"]


def test_nearest_policy_wins(app: Flask, uow: UnitOfWork, engine: Engine, level: str) -> None:
    """View beats blueprint beats enclosing blueprint beats app, options included."""
    app.config.update(UOW_AUTO_COMMIT=True, UOW_COMMIT_IF=keep_none)
    uow.init_app(app)
    outer = Blueprint("outer", __name__)
    inner = Blueprint("inner", __name__)

    def view() -> str:
        return add(uow)

    if level == "view":
        view = transactional(commit_if=keep_all)(view)
    transactional(commit_if=keep_none if level != "nested" else keep_all)(outer)
    if level == "blueprint":
        uow.transactional(commit_if=keep_all)(inner)
    inner.add_url_rule("/", view_func=view, methods=["POST"])
    outer.register_blueprint(inner)
    app.register_blueprint(outer)

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_app_wide_commit_if_is_the_default_of_a_view(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A decorated view without a commit_if of its own goes by UOW_COMMIT_IF."""
    app.config["UOW_COMMIT_IF"] = keep_all
    uow.init_app(app)

    @app.post("/")
    @transactional
    def view() -> tuple[str, int]:
        return add(uow), 500

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


@pytest.mark.parametrize("what", ["view below", "view above", "method view", "blueprint", "enclosing blueprint"])
def test_exempt(app: Flask, uow: UnitOfWork, engine: Engine, what: str) -> None:
    """An exempt view or blueprint is not covered by the app-wide policy, nor a view by its blueprint's."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    outer = Blueprint("outer", __name__)
    inner = Blueprint("inner", __name__)

    def view() -> str:
        return add(uow)

    class Methods(MethodView):
        def post(self) -> str:
            return add(uow)

    view_func: Any = view
    if what == "view below":
        uow.transactional(inner)
        view_func = uow.exempt(view)
    elif what == "method view":
        view_func = uow.exempt(Methods.as_view("view"))
    inner.add_url_rule("/", view_func=view_func, methods=["POST"])
    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    if what == "view above":
        uow.exempt(view)
    elif what == "blueprint":
        uow.transactional(outer)
        uow.exempt(inner)
    elif what == "enclosing blueprint":
        uow.exempt(outer)

    app.test_client().post("/")

    assert titles(engine) == []


@pytest.mark.parametrize("order", ["exempt above", "exempt below"])
def test_own_decorator_beats_exempt(app: Flask, uow: UnitOfWork, engine: Engine, order: str) -> None:
    """A view's own @transactional counts although the view is exempt; what is outside the view does not."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)

    def view() -> str:
        return add(uow)

    exempt_view = uow.exempt(transactional(view)) if order == "exempt above" else transactional(uow.exempt(view))
    app.add_url_rule("/", view_func=exempt_view, methods=["POST"])

    @app.after_request
    def note(response: Any) -> Any:
        add(uow, "outside")
        return response

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_exempt_is_about_one_object(app: Flask, uow: UnitOfWork, engine: Engine) -> None:
    """A view that is exempt from another UnitOfWork is still covered by this one."""
    app.config["UOW_AUTO_COMMIT"] = True
    uow.init_app(app)
    other = UnitOfWork(sessionmaker(engine), app, name="other")

    @app.post("/")
    @other.exempt
    def view() -> str:
        return add(uow)

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_exempt_takes_views_and_blueprints(uow: UnitOfWork) -> None:
    """What is neither is refused."""
    with pytest.raises(
        ConfigurationError, match=r"exempt\(\) was given 'view'; it takes a view function, a View class, or a Bl"
    ):
        uow.exempt("view")  # type: ignore[type-var]


def test_before_request_answer_of_a_decorated_view_is_not_auto_commit(
    app: Flask, uow: UnitOfWork, engine: Engine
) -> None:
    """Without an app-wide policy, a before_request function that answers in place of a decorated view keeps nothing."""
    uow.init_app(app)

    @app.before_request
    def answer() -> str:
        return add(uow)

    @app.post("/")
    @transactional
    def view() -> str:
        return ""

    app.test_client().post("/")

    assert titles(engine) == []


@pytest.mark.parametrize("method", ["commit", "rollback", "close", "begin"])
def test_decorated_view_is_not_settled_by_hand(app: Flask, uow: UnitOfWork, engine: Engine, method: str) -> None:
    """In a decorated view session.commit() and its kin are refused, and the transaction is intact."""
    uow.init_app(app)

    @app.post("/")
    @transactional
    def view() -> str:
        add(uow)
        with pytest.raises(ManualTransactionControlError, match=rf"session\.{method}\(\) was called inside .*view\(\)"):
            getattr(uow.session, method)()
        return ""

    app.test_client().post("/")

    assert titles(engine) == ["Emma"]


def test_two_objects_on_one_view(app: Flask, uow: UnitOfWork, engine: Engine, tmp_path: Any) -> None:
    """A view can be under a policy of each of two objects; both settle by its response."""
    from tests.conftest import Base, sqlite_engine

    uow.init_app(app)
    other_engine = sqlite_engine(tmp_path / "other.db")
    Base.metadata.create_all(other_engine)
    other = UnitOfWork(sessionmaker(other_engine), app, name="other")

    @app.post("/<int:status>")
    @transactional
    @transactional(using="other")
    def view(status: int) -> tuple[str, int]:
        add(uow, str(status))
        add(other, str(status))
        return "", status

    client = app.test_client()
    client.post("/200")
    client.post("/500")

    assert (titles(engine), titles(other_engine)) == (["200"], ["200"])
    other_engine.dispose()
