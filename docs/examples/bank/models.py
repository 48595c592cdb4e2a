"""The tables of the bank. Amounts are integers of cents."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import ForeignKey, delete
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    """The base of the tables."""


class Account(Base):
    """Somebody's money."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    balance: Mapped[int]


class Receipt(Base):
    """What the payer gets."""

    __tablename__ = "receipt"

    number: Mapped[str] = mapped_column(primary_key=True)
    text: Mapped[str]


class Transfer(Base):
    """Money that went from one account to another."""

    __tablename__ = "transfer"

    id: Mapped[int] = mapped_column(primary_key=True)
    payer_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    payee_id: Mapped[int] = mapped_column(ForeignKey("account.id"))
    amount: Mapped[int]

    # The receipt may be written after the transfer, in the same transaction: the database looks for it at COMMIT.
    receipt_number: Mapped[str] = mapped_column(
        ForeignKey("receipt.number", deferrable=True, initially="DEFERRED"), default=lambda: uuid4().hex
    )

    payer: Mapped[Account] = relationship(foreign_keys=payer_id)
    payee: Mapped[Account] = relationship(foreign_keys=payee_id)


ADA, GRACE, ALAN = 1, 2, 3


def restore(session: Session) -> None:
    """Put everything back to how it was at the start."""
    for table in (Transfer, Receipt, Account):
        session.execute(delete(table))

    session.add_all(
        [
            Account(id=ADA, name="Ada", balance=100_00),
            Account(id=GRACE, name="Grace", balance=50_00),
            Account(id=ALAN, name="Alan", balance=0),
        ]
    )
