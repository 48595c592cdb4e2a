"""A transactional unit of work for Flask, SQLAlchemy and blinker."""

from flask_uow import errors, signals
from flask_uow._core.backoff import Backoff
from flask_uow._core.changes import BulkChange, Change, ChangeSet
from flask_uow._core.propagation import Propagation
from flask_uow._core.transaction import Outcome, State, Transaction
from flask_uow.decorators import current_transaction, on_commit, on_rollback, transactional
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
from flask_uow.extension import UnitOfWork
from flask_uow.scoping import current_session, flask_scoped_session

__all__ = [
    "Backoff",
    "BulkChange",
    "Change",
    "ChangeSet",
    "CommitOutcomeUnknownError",
    "ConfigurationError",
    "HookError",
    "IncompatibleTransactionError",
    "ManualTransactionControlError",
    "NoScopeError",
    "Outcome",
    "PartialCommitError",
    "Propagation",
    "ReadOnlyTransactionError",
    "State",
    "Transaction",
    "TransactionDoomedError",
    "TransactionForbiddenError",
    "TransactionRequiredError",
    "TransactionTimeoutError",
    "UncommittedChangesError",
    "UnexpectedRollbackError",
    "UnitOfWork",
    "UnitOfWorkError",
    "current_session",
    "current_transaction",
    "errors",
    "flask_scoped_session",
    "on_commit",
    "on_rollback",
    "signals",
    "transactional",
]
