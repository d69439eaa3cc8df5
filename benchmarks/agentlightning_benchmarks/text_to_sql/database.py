"""Read-only SQLite databases that untrusted queries cannot change, leave, or outlast.

A query sees one database file, opened read-only and immutable, and can only read and compute. Exceeding the time or size limits gives an
error result. A missing or broken file is not the query's fault, so it raises.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from agentlightning_benchmarks.text_to_sql.words import expanded_words

Row: TypeAlias = tuple[object, ...]

SECONDS = 5.0
"""Time limit of a query in seconds."""
ROWS = 20_000
"""Maximum number of rows in a result."""
BYTES = 10_000_000
"""Maximum bytes of text and blobs in a result."""
WORDS = 500_000
"""Maximum number of words in a query after expanding its common table expressions. SQLite expands a doubling chain of this size in 10
ms."""
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,  # bytes of one value and of one row, so that no function can fill the memory or run for long
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 200,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
"""Allowed actions, besides function calls."""
FORBIDDEN = {"load_extension", "fts3_tokenizer"}
"""Functions that reach outside the database."""
WIDE = re.compile(r"%[^%a-zA-Z]*(\*|\d{6})")
"""A width or precision of `printf` that SQLite would fill character by character, without a look at any limit."""
MISSING = re.compile(r"no such (column|table): (.+)")
FAULTS = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
"""Primary error codes that blame the file."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a query: rows, or an error."""

    rows: tuple[Row, ...] = ()
    columns: int = 0
    error: str | None = None
    """Message for the author of the query."""
    slow: bool = False
    """Whether the error is that it took too long."""


def execute(path: str | Path, query: str, *, seconds: float = SECONDS, rows: int = ROWS) -> Result:
    """Run one query (blocking). Raises a `FileNotFoundError` or `OSError` that names a missing or broken database."""
    with _reading(path) as connection:
        if expanded_words(query) > WORDS:
            return Result(error="its common table expressions name each other too often")
        connection.set_authorizer(_authorize)
        # Not a progress handler: it would take the GIL every few instructions, in competition with every other thread.
        timer = threading.Timer(seconds, connection.interrupt)
        timer.start()
        try:
            cursor = connection.execute(query)
            if cursor.description is None:
                return Result(error="this is no query")
            fetched: list[Row] = []
            size = 0
            for row in cursor:
                fetched.append(row)
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if len(fetched) > rows:
                    return Result(error=f"more than {rows} rows")
                if size > BYTES:
                    return Result(error=f"more than {BYTES // 10**6} MB")
            return Result(tuple(fetched), len(cursor.description))
        except MemoryError:
            return Result(error="it took more memory than there is")
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:  # a surrogate in the text raises ValueError
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in FAULTS:
                raise OSError(f"{path}: the database is broken: {error}") from error
            if code == sqlite3.SQLITE_INTERRUPT:
                return Result(error=f"it took more than {seconds:g} s", slow=True)
            return Result(error=str(error))
        finally:
            timer.cancel()
            timer.join()  # so that it never interrupts a connection that is closing


def hint(path: str | Path, error: str) -> str:
    """Return what the database has instead of a missing column or table that an error names: the tables with a column of that name, or all
    tables. Return an empty text for other errors."""
    missing = MISSING.search(error)
    if missing is None:
        return ""
    kind, name = missing.groups()
    with _reading(path) as connection:
        tables = _tables(connection)
        if kind == "table":
            return f". The tables are {', '.join(map(_name, tables))}."
        column = name.rpartition(".")[2].strip('"')
        having = [table for table in tables if column.lower() in map(str.lower, _columns(connection, table))]
    places = ", ".join(map(_name, having))
    return f". {column} is a column of {places}." if having else f". No table has a column {column}."


def schema_text(path: str | Path, limit: int = 4000) -> str:
    """Describe the tables with their columns, then the foreign keys, one per line. After `limit` characters, lines are dropped and
    counted."""
    with _reading(path) as connection:
        tables = _tables(connection)
        lines = [f"{_name(table)}({', '.join(_name(column) for column in _columns(connection, table))})" for table in tables]
        lines += [line for table in tables for line in _foreign_keys(connection, table)]
    kept: list[str] = []
    for number, line in enumerate(lines):
        if sum(map(len, kept)) + len(kept) + len(line) > limit:
            return "\n".join([*kept, f"-- and {len(lines) - number} lines more"])
        kept.append(line)
    return "\n".join(kept)


def described_schema(path: str | Path, *, rows: int = 3, letters: int = 30, limit: int = 8000) -> str:
    """Describe the tables as SQL with the types and keys of their columns, each with its first rows. Beyond `limit` characters, tables
    come without rows. Beyond it again, they are dropped and counted."""
    with _reading(path) as connection:
        tables = [_statement(connection, name) for name in _tables(connection)]
        shown = [_first_rows(connection, name, rows, letters) for name, _ in tables]
    texts = [f"{statement}\n{first}" for (_, statement), first in zip(tables, shown, strict=True)]
    if sum(map(len, texts)) > limit:
        texts = [statement for _, statement in tables]
    kept: list[str] = []
    for text in texts:
        if sum(map(len, kept)) + len(text) > limit:
            return "\n\n".join([*kept, f"-- and {len(texts) - len(kept)} tables more"])
        kept.append(text)
    return "\n\n".join(kept)


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid")
    return [name for (name,) in rows]


def _statement(connection: sqlite3.Connection, table: str) -> tuple[str, str]:
    """(table, its CREATE statement in one form)"""
    columns = connection.execute("SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid", (table,)).fetchall()
    keys = [name for name, _, place in sorted(columns, key=lambda column: column[2]) if place]
    lines = [f"{_name(name)} {kind}".strip() + (" PRIMARY KEY" if keys == [name] else "") for name, kind, _ in columns]
    lines += [f"PRIMARY KEY ({', '.join(map(_name, keys))})"] if len(keys) > 1 else []
    for line in _foreign_keys(connection, table):
        column, _, target = line.partition(" = ")
        other, _, referenced = target.rpartition(".")
        lines.append(f"FOREIGN KEY ({column.rpartition('.')[2]}) REFERENCES {other}({referenced})")
    return table, f"CREATE TABLE {_name(table)} (\n  " + ",\n  ".join(lines) + "\n);"


def _first_rows(connection: sqlite3.Connection, table: str, rows: int, letters: int) -> str:
    values = connection.execute(f"SELECT * FROM {_quoted(table)} LIMIT {rows}").fetchall()  # noqa: S608
    lines = [", ".join(_shortened(value, letters) for value in row) for row in values]
    return "\n".join([f"-- {len(lines)} rows:" if lines else "-- no rows", *(f"-- {line}" for line in lines)])


def _shortened(value: object, letters: int) -> str:
    text = "NULL" if value is None else " ".join(str(value).split())
    return text if len(text) <= letters else text[: letters - 3] + "..."


def _columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?) ORDER BY cid", (table,))]


def _foreign_keys(connection: sqlite3.Connection, table: str) -> Iterator[str]:
    keys = connection.execute('SELECT "from", "table", "to" FROM pragma_foreign_key_list(?) ORDER BY id DESC, seq', (table,))
    for column, other, target in keys:
        # A foreign key without a column means the other table's primary key. Some databases reference missing tables.
        targets = [target] if target else _columns(connection, other)[:1]
        for referenced in targets:
            yield f"{_name(table)}.{_name(column)} = {_name(other)}.{_name(referenced)}"


def _name(name: str) -> str:
    return name if name.isidentifier() else _quoted(name)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _reading(path: str | Path) -> Generator[sqlite3.Connection]:
    """Open a read-only connection to a database file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the database does not exist. Expected an SQLite file.")
    try:
        uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, cached_statements=0)
    except sqlite3.Error as error:
        raise OSError(f"{path}: the database cannot be opened: {error}") from error
    with closing(connection):
        try:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        except sqlite3.Error as error:
            raise OSError(f"{path}: this is not an SQLite database: {error}") from error
        connection.text_factory = _text
        with closing(sqlite3.connect(":memory:", check_same_thread=False)) as helper:
            helper.text_factory = _text
            for limit, value in LIMITS.items():
                connection.setlimit(limit, value)
                helper.setlimit(limit, value)
            for name in ("printf", "format"):
                connection.create_function(name, -1, partial(_printf, helper), deterministic=True)
            yield connection


def _printf(helper: sqlite3.Connection, format: Any = None, *values: Any) -> Any:
    """SQLite's `printf` without huge widths."""
    if WIDE.search(str(format)):
        raise ValueError("the width is too large")
    [text] = helper.execute(f"SELECT printf(?{', ?' * len(values)})", (format, *values)).fetchone()
    return text


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _authorize(action: int, one: str | None, two: str | None, database: str | None, trigger: str | None) -> int:
    if action in READING or (action == sqlite3.SQLITE_FUNCTION and two not in FORBIDDEN):
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY
