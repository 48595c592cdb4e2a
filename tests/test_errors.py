from __future__ import annotations

import inspect
import pickle
from copy import copy

import pytest

from flask_uow import errors
from flask_uow.errors import (
    CommitOutcomeUnknownError,
    ConfigurationError,
    HookError,
    IncompatibleTransactionError,
    ManualTransactionControlError,
    NoScopeError,
    PartialCommitError,
    ReadOnlyTransactionError,
    TransactionDoomedError,
    TransactionForbiddenError,
    TransactionRequiredError,
    TransactionTimeoutError,
    UncommittedChangesError,
    UnexpectedRollbackError,
    UnitOfWorkError,
)

EXAMPLES: list[tuple[UnitOfWorkError, dict[str, object], str]] = [
    (UnitOfWorkError("something"), {}, "^something$"),
    (
        ConfigurationError("UOW_AUTO_COMMIT", "is 3; it must be True or False."),
        {"name": "UOW_AUTO_COMMIT", "problem": "is 3; it must be True or False."},
        r"^UOW_AUTO_COMMIT is 3; it must be True or False\.$",
    ),
    (
        NoScopeError("uow.session", "push a context."),
        {"wanted": "uow.session", "advice": "push a context."},
        r"^uow\.session is not available here: push a context\.$",
    ),
    (
        TransactionRequiredError("on_commit()"),
        {"wanted_by": "on_commit()"},
        r"^on_commit\(\) needs an active transaction.*UOW_AUTO_COMMIT.*@transactional.*with uow\.transaction\(\)",
    ),
    (
        CommitOutcomeUnknownError(
            "transfer()", "abc", "postgresql://shop", "742", "2026-11-21T13:00:00Z", "nobody knows"
        ),
        {
            "transaction": "transfer()",
            "transaction_id": "abc",
            "database": "postgresql://shop",
            "xact_id": "742",
            "sent_at": "2026-11-21T13:00:00Z",
            "reason": "nobody knows",
        },
        r"^The answer to the COMMIT of transfer\(\) was lost, and nobody knows\..*SELECT pg_xact_status\('742'\)",
    ),
    (
        CommitOutcomeUnknownError("transfer()", "abc", "mysql://shop", None, "2026-11-21T13:00:00Z", "nobody knows"),
        {"xact_id": None},
        r"^The answer to the COMMIT of transfer\(\) was lost, .*look for its rows.*mysql://shop",
    ),
    (
        ManualTransactionControlError("commit", "transfer()"),
        {"method": "commit", "block": "transfer()"},
        r"^session\.commit\(\) was called inside transfer\(\).*session\.flush\(\).*uow\.savepoint\(\).*manual_commit",
    ),
    (
        TransactionForbiddenError("mail()", "transfer()"),
        {"wanted_by": "mail()", "transaction": "transfer()"},
        r"^mail\(\) must not run inside a transaction \(Propagation\.NEVER\), .*transfer\(\) is active\..*on_commit",
    ),
    (
        IncompatibleTransactionError("report()", "read_only=False", "would join one that is read-only."),
        {"block": "report()", "option": "read_only=False", "problem": "would join one that is read-only."},
        r"^report\(\) asks for read_only=False, but would join one that is read-only\.$",
    ),
    (
        ReadOnlyTransactionError("report()", ["a new Book", "Book 7"]),
        {"transaction": "report()", "objects": ("a new Book", "Book 7")},
        r"^The transaction of report\(\) is read-only, and was to write a new Book, Book 7\. .*read_only=False",
    ),
    (
        TransactionDoomedError("transfer()", "reserve() failed, and the error was caught"),
        {"transaction": "transfer()", "reason": "reserve() failed, and the error was caught"},
        r"^The transaction of transfer\(\) can only be rolled back, because reserve\(\) failed, .*savepoint\(\)",
    ),
    (
        TransactionTimeoutError("transfer()", 2.5),
        {"transaction": "transfer()", "timeout": 2.5},
        r"^The transaction of transfer\(\) was not done after 2\.5 s, its timeout\. Nothing of it is stored\.",
    ),
    (
        UnexpectedRollbackError("The work of transfer()", "reserve() failed"),
        {"transaction": "The work of transfer()", "reason": "reserve() failed"},
        r"^The work of transfer\(\) was rolled back instead of committed, because reserve\(\) failed\..*savepoint\(\)",
    ),
    (
        PartialCommitError(["default", "audit"], "reports"),
        {"committed": ("default", "audit"), "failed": "reports"},
        r"^'reports' failed to commit after 'default', 'audit' had committed; that work is stored",
    ),
    (
        UncommittedChangesError("books.add", ["a new Book", "Book 7"], 3),
        {"endpoint": "books.add", "objects": ("a new Book", "Book 7"), "more": 3, "block": None},
        r"^The request to 'books\.add' ended with .*: a new Book, Book 7 and 3 more\. .*AUTO_COMMIT.*commit.*rollback",
    ),
    (
        UncommittedChangesError(None, list("abcdefg")),
        {"endpoint": None, "more": 0},
        r"^A context outside any request ended with .*: a, b, c, d, e and 2 more\.",
    ),
    (
        UncommittedChangesError(None, ["Book 7"], block="import()"),
        {"block": "import()"},
        r"^The session of import\(\) ended with .*: Book 7\.",
    ),
    (
        HookError("Hooks failed", [ValueError("mail"), LookupError("fax")], committed=False),
        {"message": "Hooks failed", "committed": False},
        "^Hooks failed",
    ),
]

PARENTS: dict[type[UnitOfWorkError], set[type[Exception]]] = {
    ConfigurationError: {UnitOfWorkError, ValueError},
    NoScopeError: {UnitOfWorkError, RuntimeError},
    TransactionRequiredError: {UnitOfWorkError},
    TransactionForbiddenError: {UnitOfWorkError},
    IncompatibleTransactionError: {UnitOfWorkError},
    ReadOnlyTransactionError: {UnitOfWorkError},
    TransactionDoomedError: {UnitOfWorkError},
    TransactionTimeoutError: {UnitOfWorkError},
    UncommittedChangesError: {UnitOfWorkError},
    ManualTransactionControlError: {UnitOfWorkError},
    UnexpectedRollbackError: {UnitOfWorkError},
    PartialCommitError: {UnitOfWorkError},
    HookError: {UnitOfWorkError, ExceptionGroup},
}


def name_of(value: object) -> str | None:
    return type(value).__name__ if isinstance(value, Exception) else None


def test_every_error_has_an_example() -> None:
    """No error goes untested, and each one that there is can be imported."""
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }

    assert defined == {type(error).__name__ for error, _, _ in EXAMPLES}
    assert errors.__all__ == sorted(defined)


@pytest.mark.parametrize(("error", "attributes", "message"), EXAMPLES, ids=name_of)
def test_message_and_attributes(error: UnitOfWorkError, attributes: dict[str, object], message: str) -> None:
    """An error says what happened and what to do, and carries its data."""
    with pytest.raises(type(error), match=message) as caught:
        raise error

    assert {name: getattr(caught.value, name) for name in attributes} == attributes


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("error", "attributes", "message"), EXAMPLES, ids=name_of)
def test_pickling(error: UnitOfWorkError, attributes: dict[str, object], message: str, protocol: int) -> None:
    """An error that has been to another process is of the same type, and says and carries the same."""
    error.add_note("seen by worker 3")

    again = pickle.loads(pickle.dumps(error, protocol))

    assert type(again) is type(error)
    assert str(again) == str(error)
    assert {name: getattr(again, name) for name in attributes} == attributes


@pytest.mark.parametrize(("error", "attributes", "message"), EXAMPLES, ids=name_of)
def test_copying(error: UnitOfWorkError, attributes: dict[str, object], message: str) -> None:
    """A copy says and carries the same."""
    again = copy(error)

    assert (type(again), str(again)) == (type(error), str(error))
    assert {name: getattr(again, name) for name in attributes} == attributes


@pytest.mark.parametrize(("error", "parents"), PARENTS.items())
def test_hierarchy(error: type[UnitOfWorkError], parents: set[type[Exception]]) -> None:
    """Every error is a UnitOfWorkError, and what else its kind is caught as."""
    assert set(error.__bases__) == parents


def test_hierarchy_in_the_documentation() -> None:
    """The hierarchy that is drawn on top of the module names every error, with what else it is."""
    drawing = inspect.getdoc(errors) or ""

    for error, parents in PARENTS.items():
        others = "".join(f" (also {parent.__name__})" for parent in parents - {UnitOfWorkError})
        assert f"── {error.__name__}{others}\n" in drawing


def test_hook_error_is_a_group() -> None:
    """What the hooks raised is inside, in order, and can be told apart."""
    mail, fax = ValueError("mail"), LookupError("fax")
    told: list[tuple[Exception, ...]] = []

    try:
        raise HookError("Hooks failed", [mail, fax])
    except* ValueError as group:
        told.append(group.exceptions)
    except* LookupError as group:
        told.append(group.exceptions)

    assert told == [(mail,), (fax,)]


@pytest.mark.parametrize("committed", [True, False])
def test_hook_error_split(committed: bool) -> None:
    """Both halves of a group say whether the work is stored."""
    error = HookError("Hooks failed", [ValueError("mail"), LookupError("fax")], committed)

    matching, rest = error.split(ValueError)

    assert isinstance(matching, HookError)
    assert isinstance(rest, HookError)
    assert (matching.committed, rest.committed) == (committed, committed)
    assert [str(inner) for inner in (*matching.exceptions, *rest.exceptions)] == ["mail", "fax"]


@pytest.mark.parametrize("committed", [True, False])
def test_hook_error_subgroup(committed: bool) -> None:
    """A part of a group says whether the work is stored."""
    error = HookError("Hooks failed", [ValueError("mail"), LookupError("fax")], committed)

    part = error.subgroup(LookupError)

    assert isinstance(part, HookError)
    assert part.committed is committed
    assert part.message == "Hooks failed"


def test_hook_error_commits_unless_told_otherwise() -> None:
    """A HookError is about work that is stored, unless it says so."""
    error = HookError("Hooks failed", [ValueError()])

    assert error.committed


def test_hook_error_pickled_with_its_errors() -> None:
    """What the hooks raised survives pickling with the group."""
    error = HookError("Hooks failed", [ValueError("mail"), ConfigurationError("name", "is wrong.")])

    again = pickle.loads(pickle.dumps(error))

    assert [(type(inner), str(inner)) for inner in again.exceptions] == [
        (ValueError, "mail"),
        (ConfigurationError, "name is wrong."),
    ]


def test_partial_commit_keeps_a_copy() -> None:
    """The names in an error do not change with the list that they came from."""
    names = ["default"]
    error = PartialCommitError(names, "reports")

    names.append("audit")

    assert error.committed == ("default",)
