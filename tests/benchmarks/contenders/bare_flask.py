"""Flask without any extension or database."""

from sqlalchemy import URL

from tests.benchmarks.models import Made, make_app


def make(_url: URL) -> Made:
    return Made(make_app(), None)
