"""What receivers are told of statements that go through the session, and past its objects."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, delete, insert, lambda_stmt, select, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from flask_uow import BulkChange, Change, UnitOfWork
from tests.databases.changes.conftest import Told, given, rows
from tests.databases.changes.models import (
    Animal,
    Box,
    Dog,
    Lorry,
    Parcel,
    Person,
    Vehicle,
    ada,
)

on_postgresql = pytest.mark.parametrize("any_engine", ["postgresql", "postgresql_server"], indirect=True)
on_all_but_mariadb = pytest.mark.parametrize("any_engine", ["sqlite", "postgresql", "postgresql_server"], indirect=True)


# Constructs


def test_bulk_update_and_delete(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """UPDATE and DELETE through the session are told with the rows that they have touched, and their SQL."""
    given(any_engine, *(ada(id=key) for key in (1, 2, 3)))

    with db.transaction() as session:
        session.execute(update(Person).where(Person.id > 1).values(age=1))
        session.execute(delete(Person).where(Person.id == 3))

    form = {"sqlite": "?", "mysql": "%({})s", "postgresql": "%({})s::INTEGER"}[any_engine.dialect.name]
    age, key = form.format("age"), form.format("id_1")
    assert told.changes == [
        BulkChange("update", "person", 2, f"UPDATE person SET age={age} WHERE person.id > {key}"),
        BulkChange("delete", "person", 1, f"DELETE FROM person WHERE person.id = {key}"),
    ]


def test_core_statements(db: UnitOfWork, told: Told) -> None:
    """It is the same with the tables of the Core."""
    people = Person.metadata.tables["person"]

    with db.transaction() as session:
        session.execute(insert(people).values(id=1, name="Ada"))
        session.execute(insert(people), {"id": 2, "name": "Bob"})
        session.execute(insert(people).values([{"id": 3, "name": "Cid"}, {"id": 4, "name": "Dee"}]))
        session.execute(insert(people).from_select(["id", "name"], select(people.c.id + 10, people.c.name)))
        session.execute(people.update().where(people.c.id < 3), {"age": 1})
        session.execute(people.delete().where(people.c.id == 1))

    assert told.bulk == [
        ("insert", "person", 1),
        ("insert", "person", 1),
        ("insert", "person", 2),
        ("insert", "person", 4),
        ("update", "person", 2),
        ("delete", "person", 1),
    ]


def test_executemany(db: UnitOfWork, told: Told) -> None:
    """A statement with many sets of parameters is one change, of all rows that the driver counts."""
    people = Person.metadata.tables["person"]

    with db.transaction() as session:
        session.execute(insert(people), [{"id": key, "name": "Ada"} for key in (1, 2, 3)])
        session.execute(
            update(people).where(people.c.id == bindparam("key")),
            [{"key": 1, "age": 1}, {"key": 2, "age": 2}],
        )
        session.execute(
            text("UPDATE person SET age = :age WHERE id = :key"), [{"key": 1, "age": 3}, {"key": 2, "age": 4}]
        )

    assert told.bulk == [("insert", "person", 3), ("update", "person", 2), ("update", "person", 2)]


def test_sets_of_parameters(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Rows that the ORM writes without objects are told by each of their tables; without any there is nothing."""
    with db.transaction() as session:
        session.execute(insert(Person), [{"id": key, "name": "Ada"} for key in (1, 2, 3)])
        session.execute(insert(Dog), [{"id": 1, "name": "Rex", "tricks": 3}])
        session.execute(update(Person), [{"id": 1, "age": 1}, {"id": 2, "age": 2}])
        session.execute(update(Dog), [{"id": 1, "name": "Max", "tricks": 4}])
        session.execute(update(Dog), [{"id": 1, "tricks": 5}])
        session.execute(update(Person), [])
        session.execute(insert(Box), [])

    assert told.bulk == [
        ("insert", "person", 3),
        ("insert", "animal", 1),
        ("insert", "dog", 1),
        ("update", "person", -1),
        ("update", "animal", -1),
        ("update", "dog", -1),
        ("update", "dog", -1),
        ("insert", "box", 1),
    ]
    statements = [change.statement for change in told.changes if isinstance(change, BulkChange)]
    assert (statements[0], statements[-2]) == (
        "INSERT of person by 3 sets of parameters",
        "UPDATE of dog by 1 sets of parameters",
    )


def test_bulk_update_of_inherited_classes(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A statement is told by the name of the table that it is about."""
    given(any_engine, Dog(id=1, name="Rex", tricks=3), Lorry(id=1, wheels=6), Vehicle(id=2, wheels=4))

    with db.transaction() as session:
        session.execute(update(Dog).values(tricks=4))
        session.execute(update(Animal).values(name="Roy"))
        session.execute(update(Lorry).values(load=5))

    assert told.bulk == [("update", "dog", 1), ("update", "animal", 1), ("update", "vehicle", 1)]


def test_query(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Query.update() and Query.delete() are statements as well."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.query(Person).update({"age": 1})
        session.query(Person).filter_by(id=2).delete()

    assert told.bulk == [("update", "person", 2), ("delete", "person", 1)]


def test_lambda(db: UnitOfWork, told: Told) -> None:
    """A statement that is made by a lambda is a statement."""
    with db.transaction() as session:
        session.execute(lambda_stmt(lambda: insert(Person).values(id=1, name="Ada")))
        session.execute(lambda_stmt(lambda: update(Person).values(age=1)))
        session.execute(lambda_stmt(lambda: select(Person)))

    assert told.bulk == [("insert", "person", 1), ("update", "person", 1)]


def test_upsert(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An INSERT that becomes an UPDATE is told as an INSERT, and one that does nothing is not told of."""
    given(any_engine, ada())
    values = {"id": 1, "name": "Eda"}

    with db.transaction() as session:
        if any_engine.dialect.name == "mysql":
            session.execute(mysql.insert(Person).values(values).on_duplicate_key_update(name="Eda"))
        else:
            insertion: Any = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[any_engine.dialect.name]
            session.execute(insertion(Person).values(values).on_conflict_do_nothing())
            session.execute(
                insertion(Person).values(values).on_conflict_do_update(index_elements=["id"], set_={"name": "Eda"})
            )

    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("insert", "person")
    # MariaDB counts the old row and the new one.
    assert rowcount == (2 if any_engine.dialect.name == "mysql" else 1)


# Statements that return rows


def test_returning(db: UnitOfWork, told: Told) -> None:
    """What a statement returns is the user's, and its rows are counted, or the driver does not say."""
    with db.transaction() as session:
        one = session.execute(insert(Person).values(id=1, name="Ada").returning(Person.id, Person.name)).one()
        many = session.scalars(insert(Person).returning(Person), [{"id": key, "name": "Bob"} for key in (2, 3)])
        keys = sorted(person.id for person in many)
        gone = session.scalars(delete(Person).where(Person.id == 3).returning(Person.id)).all()

    assert (tuple(one), keys, gone) == ((1, "Ada"), [2, 3], [3])
    assert [change[:2] for change in told.bulk] == [("insert", "person"), ("insert", "person"), ("delete", "person")]
    assert all(rowcount in (-1, number) for (_, _, rowcount), number in zip(told.bulk, (1, 2, 1), strict=True))


@on_all_but_mariadb
def test_update_returning(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """It is the same with UPDATE, where the database has that."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        found = session.scalars(update(Person).values(age=1).returning(Person.id)).all()

    assert sorted(found) == [1, 2]
    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("update", "person")
    assert rowcount in (-1, 2)


def test_returning_one_value(db: UnitOfWork, told: Told) -> None:
    """session.scalar() with RETURNING is told of as well."""
    with db.transaction() as session:
        key = session.scalar(insert(Parcel).values(label="a").returning(Parcel.id))
        gone = session.scalar(delete(Parcel).where(Parcel.id == key).returning(Parcel.id))

    assert gone == key
    assert [change[:2] for change in told.bulk] == [("insert", "parcel"), ("delete", "parcel")]
    assert all(rowcount in (-1, 1) for _, _, rowcount in told.bulk)


def test_returning_in_batches(db: UnitOfWork, told: Told) -> None:
    """An insert that SQLAlchemy sends in batches does not claim the rows of one of them for all."""
    with db.transaction() as session:
        session.execute(
            insert(Person.__table__).returning(Person.id),  # type: ignore[arg-type] # it is a Table
            [{"id": key, "name": "Ada"} for key in range(1, 6)],
            execution_options={"insertmanyvalues_page_size": 2},
        )

    ((operation, table, rowcount),) = told.bulk
    assert (operation, table) == ("insert", "person")
    assert rowcount in (-1, 5)


def test_returning_from_a_select(db: UnitOfWork, told: Told) -> None:
    """An INSERT whose rows are loaded as objects is an INSERT, as a construct or as text."""
    with db.transaction() as session:
        one = session.scalars(
            select(Person).from_statement(insert(Person).values(id=1, name="Ada").returning(Person))
        ).one()
        two = session.scalars(
            select(Person).from_statement(text("INSERT INTO person (id, name) VALUES (2, 'Bob') RETURNING *"))
        ).one()
        three = session.execute(
            text("INSERT INTO person (id, name) VALUES (3, 'Cid') RETURNING id").columns(Person.id)
        ).scalar_one()
        assert (one.name, two.name, three) == ("Ada", "Bob", 3)

    assert [change[:2] for change in told.bulk] == [("insert", "person")] * 3


# Text


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE person SET age = 1", ("update", 2)),
        ("update person set age = 1 where id = 1", ("update", 1)),
        ("\n  DELETE\n  FROM person\n  WHERE id = 1", ("delete", 1)),
        ("INSERT INTO person(id, name) VALUES (3, 'Cid')", ("insert", 1)),
        ("-- why\nUPDATE person SET age = 1", ("update", 2)),
        ("/* why: UPDATE\n parcel */ UPDATE /* who */ person SET age = 1", ("update", 2)),
        ("UPDATE <person> SET age = 1", ("update", 2)),
        ("UPDATE<person>SET age = 1", ("update", 2)),
        ("INSERT INTO <person> (id, name) SELECT id + 10, name FROM person", ("insert", 2)),
        ("DELETE FROM person WHERE id IN (SELECT id FROM (SELECT id FROM person) p)", ("delete", 2)),
    ],
)
def test_text(db: UnitOfWork, any_engine: Engine, told: Told, statement: str, expected: tuple[Any, int]) -> None:
    """A textual statement is told by the name of the table in it, without quotes."""
    given(any_engine, ada(), ada(id=2))
    quote = any_engine.dialect.identifier_preparer.quote_identifier
    sql = statement.replace("<person>", quote("person"))

    with db.transaction() as session:
        session.execute(text(sql))

    assert told.changes == [BulkChange(expected[0], "person", expected[1], sql)]


def test_text_with_parameters(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """The SQL that is told has placeholders, and none of the values."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.execute(text("UPDATE person SET name = :name"), {"name": "secret"})

    placeholder = "?" if any_engine.dialect.name == "sqlite" else "%(name)s"
    assert told.changes == [BulkChange("update", "person", 1, f"UPDATE person SET name = {placeholder}")]


@on_all_but_mariadb
def test_text_with_a_cte(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """What WITH comes before is what is told of."""
    given(any_engine, ada(), ada(id=2))

    with db.transaction() as session:
        session.execute(
            text(
                "WITH old AS (SELECT id FROM person WHERE (age > 1)), one(id) AS (SELECT min(id) FROM old) "
                "UPDATE person SET age = 1 WHERE id IN (SELECT id FROM one)"
            )
        )
        session.execute(text("WITH old AS (SELECT 1) SELECT * FROM old"))
        session.execute(
            text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9) DELETE FROM person")
        )

    # SQLite's driver counts nothing of a statement that does not begin with one of its words.
    counts = (-1, -1) if any_engine.dialect.name == "sqlite" else (1, 2)
    assert told.bulk == [("update", "person", counts[0]), ("delete", "person", counts[1])]


def test_text_that_selects(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A SELECT is no change, whatever words there are in it."""
    given(any_engine, ada())

    with db.transaction() as session:
        session.execute(text("SELECT replace(name, 'UPDATE person', 'DELETE FROM person') FROM person"))
        session.execute(text("-- INSERT INTO person\nSELECT 1"))
        session.execute(text("/* DELETE FROM person */ SELECT 'UPDATE person SET age = 1' FROM person"))
        session.execute(text("WITH a AS (SELECT 1) SELECT (1) + (SELECT count(*) FROM person)"))
        session.execute(text("WITH a AS (SELECT '(then) UPDATE person') SELECT * FROM a"))

    assert told.changes == []


OWN: dict[str, list[tuple[str, tuple[Any, ...]]]] = {
    "postgresql": [
        ('UPDATE ONLY public."person" AS p SET age = 1', ("update", "public.person", 2)),
        (
            "INSERT INTO person (id, name) VALUES (1, 'x') ON CONFLICT (id) DO UPDATE SET age = 7",
            ("insert", "person", 1),
        ),
        # It does not say how many rows there were.
        ("TRUNCATE TABLE person", ("delete", "person", -1)),
    ],
    "mysql": [
        ("INSERT IGNORE INTO `person` (id, name) VALUES (1, 'Ada'), (3, 'Cid')", ("insert", "person", 1)),
        ("UPDATE LOW_PRIORITY IGNORE person SET age = 1", ("update", "person", 3)),
        ("REPLACE INTO person (id, name) VALUES (4, 'Dee')", ("insert", "person", 1)),
        ("DELETE QUICK FROM person WHERE id = 4", ("delete", "person", 1)),
        # It says that there were none.
        ("TRUNCATE TABLE person", ("delete", "person", -1)),
    ],
    "sqlite": [
        ("INSERT OR IGNORE INTO main.[person] (id, name) VALUES (1, 'Ada'), (3, 'Cid')", ("insert", "main.person", 1)),
        ("REPLACE INTO person (id, name) VALUES (4, 'Dee')", ("insert", "person", 1)),
        ("UPDATE OR ROLLBACK `person` SET age = 1", ("update", "person", 4)),
    ],
}
"""How each database spells things that the others do not, and what is told of that."""


def test_text_of_one_database(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Each database's own spellings are understood."""
    given(any_engine, ada(), ada(id=2))
    own = OWN[any_engine.dialect.name]

    with db.transaction() as session:
        for statement, _ in own:
            session.execute(text(statement))

    assert told.bulk == [expected for _, expected in own]


@on_postgresql
def test_writing_cte(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An INSERT inside a WITH, whose rows a SELECT returns, is not seen; the documentation says so."""
    new = insert(Person).values(id=1, name="Ada").returning(Person.id).cte("new")

    with db.transaction() as session:
        assert session.scalars(select(new.c.id)).all() == [1]
        session.execute(
            text("WITH new AS (INSERT INTO person (id, name) VALUES (2, 'Bob') RETURNING id) SELECT id FROM new")
        )

    assert len(rows(any_engine, Person.__table__)) == 2
    assert told.bulk == []


# No rows, savepoints, objects


def test_statement_that_touches_nothing(db: UnitOfWork, told: Told) -> None:
    """Where no row was touched there is nothing to tell."""
    with db.transaction() as session:
        session.execute(update(Person).values(age=1))
        session.execute(delete(Person))
        session.query(Person).update({"age": 1})
        session.execute(text("UPDATE person SET age = 1"))
        session.execute(text("DELETE FROM person"))
        session.execute(insert(Person).from_select(["id", "name"], select(Person.id, Person.name)))

    assert told.changes == []


def test_statement_that_returns_nothing(db: UnitOfWork, told: Told) -> None:
    """It is the same with RETURNING, or else the driver does not say."""
    with db.transaction() as session:
        assert session.execute(delete(Person).returning(Person.id)).all() == []
        assert session.scalar(delete(Person).returning(Person.id)) is None

    assert all(rowcount == -1 for _, _, rowcount in told.bulk)


def test_statement_in_a_savepoint(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """Statements go with the savepoint in which they were executed."""
    given(any_engine, ada())

    with db.transaction() as session:
        with pytest.raises(LookupError), db.savepoint():
            session.execute(update(Person).values(age=1))
            raise LookupError
        with db.savepoint():
            session.execute(text("UPDATE person SET age = 2"))

    assert told.changes == [BulkChange("update", "person", 1, "UPDATE person SET age = 2")]


def test_statement_that_fails(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """A statement that the database refuses has changed nothing."""
    given(any_engine, ada())

    with db.transaction() as session:
        with pytest.raises(IntegrityError), db.savepoint():
            session.execute(insert(Person).values(id=1, name="same key"))
        session.execute(update(Person).values(age=1))

    assert told.bulk == [("update", "person", 1)]


def test_statement_and_objects(db: UnitOfWork, any_engine: Engine, told: Told) -> None:
    """An object's change goes on from what a statement has written, where the session knows that."""
    given(any_engine, ada())

    with db.transaction() as session:
        person = session.get_one(Person, 1)
        session.execute(update(Person).values(age=1), execution_options={"synchronize_session": "fetch"})
        person.age = 2

    (bulk, change) = told.changes
    assert bulk[:3] == ("update", "person", 1)
    assert change == Change("update", "Person", "person", (1,), {"age": 1}, {"age": 2})


def test_what_goes_past_the_session(db: UnitOfWork, told: Told) -> None:
    """The old bulk methods, and a connection, are not followed."""
    with db.transaction() as session:
        session.bulk_save_objects([ada()])
        session.bulk_insert_mappings(Person, [{"id": 2, "name": "Bob"}])
        session.bulk_update_mappings(Person, [{"id": 2, "name": "Eda"}])
        session.connection().execute(insert(Person).values(id=3, name="Cid"))
        session.connection().exec_driver_sql("DELETE FROM person WHERE id = 3")

    assert told.changes == []
    assert told.changes.is_complete
