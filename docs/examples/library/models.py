"""The tables of the library."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    """The base of the tables."""


class Book(Base):
    """A title, and how many copies of it are on the shelf."""

    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(100), unique=True)
    copies: Mapped[int] = mapped_column(default=1)


class Member(Base):
    """Somebody who may borrow books."""

    __tablename__ = "member"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(100))


class Loan(Base):
    """A copy that a member has; nobody has two of one title."""

    __tablename__ = "loan"
    __table_args__ = (UniqueConstraint("book_id", "member_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    book_id: Mapped[int] = mapped_column(ForeignKey("book.id"))
    member_id: Mapped[int] = mapped_column(ForeignKey("member.id"))

    book: Mapped[Book] = relationship()
    member: Mapped[Member] = relationship()
