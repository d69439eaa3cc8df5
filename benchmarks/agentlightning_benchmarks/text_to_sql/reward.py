"""Execution accuracy: a query is right when its result is the gold query's result, on every database that it is compared on.

Two results are equal when, under one order of columns for all rows, they have the same rows as often:
- the order of rows counts only where the gold query itself, outside parentheses and texts, has an ORDER BY;
- the order of columns does not count, their number does;
- a number is the same whole or not (`2` and `2.0`), and numbers that are not whole are rounded to 10 significant digits; a text is never
  a number; texts are equal letter by letter; NULL equals NULL.

Spider's official rule (test-suite-sql-eval) is the same but for this: it takes DISTINCT out of both queries first, lets an ORDER BY
anywhere in the gold query make the order count, compares numbers bit by bit, takes two empty results as equal whatever their columns,
and repairs some spellings (`> =`) before it runs a query. Ours is the stricter one where rows are repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from agentlightning.errors import ConfigError
from agentlightning_benchmarks.text_to_sql.database import Result, Row, execute
from agentlightning_benchmarks.text_to_sql.words import words

DIGITS = 10


def reward(task: dict[str, Any], query: str) -> float:
    """1 where `query` is right on the task's database, and on each of its `variants` where it has them; else 0.

    Raises `ConfigError` where the gold query itself has no result, and `OSError` where a database is not there.
    """
    databases = [task["database"], *task.get("variants", ())]
    return float(all(right(database, query, task["query"]) for database in databases))


def right(database: str, query: str, gold: str) -> bool:
    """Whether a query gives the gold query's result on one database."""
    result = execute(database, query)
    if result.error is not None:
        return False
    expected = execute(database, gold)
    if expected.error is not None:
        raise ConfigError(f"{database}: the gold query fails: {expected.error}. Expected a query that this database can answer: {gold}.")
    return equal(result, expected, ordered=has_order(gold))


def has_order(query: str) -> bool:
    """Whether the order of the result's rows is part of the question."""
    depth, before = 0, ""
    for piece in words(query):
        if piece in "()":
            depth += 1 if piece == "(" else -1
        elif depth == 0 and before == "order" and piece.lower() == "by":
            return True
        before = piece.lower()
    return False


def equal(one: Result, other: Result, *, ordered: bool) -> bool:
    """Whether two results without errors are the same."""
    if one.columns != other.columns or len(one.rows) != len(other.rows):
        return False
    return _fits(_plain(one.rows), _plain(other.rows), one.columns, ordered)


def _fits(rows: Sequence[Row], wanted: Sequence[Row], columns: int, ordered: bool) -> bool:
    """Whether one order of the columns of `rows` makes them the wanted ones. Columns are chosen from the left, as long as the parts
    of the rows that are chosen agree."""
    contents = [tuple(row[column] for row in rows) for column in range(columns)]

    def search(chosen: tuple[int, ...]) -> bool:
        if len(chosen) == columns:
            return True
        goal = [row[: len(chosen) + 1] for row in wanted]
        tried: set[Row] = set()
        for column in range(columns):
            if column in chosen or contents[column] in tried:
                continue
            tried.add(contents[column])
            part = [tuple(row[place] for place in (*chosen, column)) for row in rows]
            if (part == goal if ordered else Counter(part) == Counter(goal)) and search((*chosen, column)):
                return True
        return False

    return search(())


def _plain(rows: Sequence[Row]) -> list[Row]:
    return [tuple(_value(value) for value in row) for row in rows]


def _value(value: object) -> object:
    """Equal values of equal numbers, and never those of a text."""
    if isinstance(value, float) and not value.is_integer():
        value = float(f"{value:.{DIGITS}g}")
    return int(value) if isinstance(value, float) and value.is_integer() else value  # infinity is not whole
