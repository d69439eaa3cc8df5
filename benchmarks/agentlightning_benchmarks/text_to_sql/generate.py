"""Generates small databases and questions about them, identically on every machine.

A schema is a domain with some columns left out, and sometimes its last table. Extra contents of a schema keep its names and redraw
everything else. In the first content, orderings have no ties and no answer is empty.
"""

from __future__ import annotations

import hashlib
import os
import random
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from agentlightning.config.models import cache_folder
from agentlightning.types import new_id
from agentlightning_benchmarks.text_to_sql.database import schema_text
from agentlightning_benchmarks.text_to_sql.domains import Split, vocabulary
from agentlightning_benchmarks.text_to_sql.forms import Form, read_forms

CONTENTS = 2
"""Contents per schema. Questions are about the first. A right query must also be right on the others, so lucky guesses fail."""
ROWS = ((6, 9), (14, 22), (24, 32))
"""Minimum and maximum number of rows, by depth of the table."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a schema."""

    name: str
    """The plural word."""
    singular: str
    link: str | None
    """The column with the `id` of a row in the table above. None for the top table."""
    columns: tuple[tuple[str, str], ...]
    """Name and kind (see domains.py). The first column names a row."""


@dataclass(frozen=True, slots=True)
class Schema:
    """Tables of a domain, each linked to the previous one."""

    name: str
    split: Split
    tables: tuple[Table, ...]


def make_schema(split: Split, domain: str, number: int, seed: int = 0) -> Schema:
    """Return variant `number` of a domain."""
    rng = random.Random(f"{split}:{domain}:{number}:{seed}")  # noqa: S311  # not for secrets
    lines = vocabulary()[split].domains[domain]
    lines = lines[: rng.randint(2, len(lines))]
    tables: list[Table] = []
    for line in lines:
        head, *described = (part.strip() for part in line.split("|"))
        plural, singular = head.split()
        (first, *rest) = [(name.strip(), kind.strip()) for name, _, kind in (column.partition(":") for column in described)]
        kept = rng.sample(rest, rng.randint(min(2, len(rest)), len(rest)))
        tables.append(
            Table(
                name=plural,
                singular=singular,
                link=f"{tables[-1].singular}_id" if tables else None,
                columns=(first, *sorted(kept, key=rest.index)),
            )
        )
    return Schema(f"{split}-{domain}-{number}", split, tuple(tables))


def script(schema: Schema, content: int) -> str:
    """Return the SQL that creates one content of a schema."""
    names = random.Random(f"{schema.name}:names")  # noqa: S311
    rng = random.Random(f"{schema.name}:{content}")  # noqa: S311
    lines: list[str] = []
    above = 0
    for depth, table in enumerate(schema.tables):
        count = names.randint(*ROWS[depth])
        parts = ["id INTEGER PRIMARY KEY"]
        parts += [f"{name} {'INTEGER' if _is_number(kind) else 'TEXT'}" for name, kind in table.columns]
        values: list[Sequence[str | int]] = [
            _values(kind, count, schema.split, names if number == 0 else rng) for number, (_, kind) in enumerate(table.columns)
        ]
        if table.link is not None:
            parent = schema.tables[depth - 1]
            parts.append(f"{table.link} INTEGER REFERENCES {parent.name}(id)")
            values.append(_links(count, above, rng))
        lines.append(f"CREATE TABLE {table.name} ({', '.join(parts)});")
        for row, cells in enumerate(zip(*values, strict=True), 1):
            inserted = ", ".join([str(row), *(_literal(cell) for cell in cells)])
            lines.append(f"INSERT INTO {table.name} VALUES ({inserted});")  # noqa: S608  # our own names
        above = count
    return "\n".join(lines)


def database(schema: Schema, content: int = 0) -> Path:
    """Return the cached file with one content of a schema. Create it if it is missing."""
    text = script(schema, content)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache_folder() / "text_to_sql" / "generated" / f"{schema.name}-{digest}.sqlite"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{new_id()}")
        try:
            with closing(sqlite3.connect(part)) as connection:
                connection.execute("PRAGMA synchronous = OFF")
                connection.executescript(f"BEGIN;\n{text}\nCOMMIT;")
            os.replace(part, path)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()
    return path


def make_tasks(split: Split, count: int, variants: int, domains: Sequence[str] | None = None, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return `count` different tasks on `variants` schemas per domain (None: the split's number).

    The same arguments give the same tasks. Schemas and forms rotate.
    """
    rng = random.Random(f"{split}:{seed}")  # noqa: S311
    schemas = [make_schema(split, domain, number, seed) for number in range(variants) for domain in domains or vocabulary()[split].domains]
    contents: list[sqlite3.Connection] = []
    for schema in schemas:
        contents.append(sqlite3.connect(":memory:"))
        contents[-1].executescript(script(schema, 0))
    paths = [str(database(schema)) for schema in schemas]
    texts = [schema_text(path) for path in paths]
    further = [[str(database(schema, number)) for number in range(1, CONTENTS)] for schema in schemas]
    tasks: dict[tuple[str, str], dict[str, Any]] = {}
    forms, order = read_forms().round, list[Form]()
    place = 0
    while len(tasks) < count:
        place = (place + 1) % len(schemas)
        asked = None
        while asked is None:
            order = order or rng.sample(forms, len(forms))
            asked = ask(order.pop(), schemas[place], contents[place], rng)
        question, query = asked
        if (texts[place], question) not in tasks:
            tasks[texts[place], question] = {
                "id": f"{schemas[place].name}-{len(tasks)}",
                "question": question,
                "schema": texts[place],
                "database": paths[place],
                "query": query,
                "variants": further[place],
            }
    for connection in contents:
        connection.close()
    return list(tasks.values())


def ask(form: Form, schema: Schema, content: sqlite3.Connection, rng: random.Random) -> tuple[str, str] | None:
    """Return a question and its query, or None if the form does not fit the schema or has no answer."""
    place = rng.randrange("{P}" in form.query, len(schema.tables))
    terms = _words(schema, place, content, rng, unique=form.unique)
    phrasing = rng.choice(form.phrasings)
    wanted = {name for _, name, _, _ in Formatter().parse(form.query + phrasing) if name}
    if not wanted <= terms.keys():
        return None
    query = form.query.format_map(terms)
    rows = content.execute(query).fetchall()
    if not rows or rows in ([(0,)], [(None,)]):
        return None
    return phrasing.format_map(terms), query


def _words(schema: Schema, place: int, content: sqlite3.Connection, rng: random.Random, *, unique: bool) -> Mapping[str, Any]:
    """Return placeholder values for a table and the tables above it."""
    table = schema.tables[place]
    terms: dict[str, Any] = {"T": table.name, "thing": table.singular}
    terms |= _column(table, "N", "NV", table.columns[:1], content, rng)
    terms |= _column(table, "C", "V", [column for column in table.columns[1:] if not _is_number(column[1])], content, rng)
    terms |= _column(
        table, "X", "K", [column for column in table.columns if _is_number(column[1]) and (not unique or _spread(column[1]))], content, rng
    )
    function, words = rng.choice(read_forms().aggregates)
    direction, most = rng.choice(read_forms().directions)
    terms |= {"F": function, "word": rng.choice(words), "D": direction, "most": rng.choice(most)}
    if place >= 1:
        parent = schema.tables[place - 1]
        terms |= {"P": parent.name, "parent": parent.singular, "fk": table.link}
        terms |= _column(parent, "PN", "PV", parent.columns[:1], content, rng)
    return terms


def _column(
    table: Table, name: str, value: str, columns: Sequence[tuple[str, str]], content: sqlite3.Connection, rng: random.Random
) -> dict[str, Any]:
    """Return a column and one of its values, or nothing."""
    if not columns:
        return {}
    column = rng.choice(columns)[0]
    rows = content.execute(f"SELECT {column} FROM {table.name} ORDER BY id").fetchall()  # noqa: S608  # our own names
    return {name: column, value: rng.choice(rows)[0]}


def _is_number(kind: str) -> bool:
    return kind[0].isdigit()


def _range(kind: str) -> range:
    low, _, high = kind.partition("-")
    return range(int(low), int(high) + 1)


def _spread(kind: str) -> bool:
    """Return True if a table has enough distinct numbers for all its rows."""
    return len(_range(kind)) >= ROWS[-1][1]


def _values(kind: str, count: int, split: Split, rng: random.Random) -> list[str | int]:
    if _is_number(kind):
        return list(rng.sample(_range(kind), count) if _spread(kind) else rng.choices(_range(kind), k=count))
    if kind == "person":
        names = vocabulary()[split]
        people = [f"{first} {last}" for first in names.first_names for last in names.last_names]
        return list(rng.sample(people, count))
    if kind == "word":
        words: dict[str, None] = {}
        while len(words) < count:
            words["".join(rng.choices(vocabulary()[split].syllables, k=rng.randint(2, 3))).capitalize()] = None
        return list(words)
    return list(rng.choices([text.strip() for text in kind.split(",")], k=count))


def _links(count: int, above: int, rng: random.Random) -> list[int]:
    """Assign each row a row of the table above. One row above stays empty."""
    _, *others = rng.sample(range(1, above + 1), above)
    return rng.choices(others, k=count)


def _literal(value: str | int) -> str:
    return str(value) if isinstance(value, int) else "'" + value.replace("'", "''") + "'"
