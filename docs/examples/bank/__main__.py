"""``python -m docs.examples.bank``, from the root of the repository."""

from . import create_app

create_app().run(port=8000)
