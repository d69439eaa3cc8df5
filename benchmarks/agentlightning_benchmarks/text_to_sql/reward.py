"""Execution accuracy: a query is right if it returns the gold query's result on every compared database.

Two results are equal if some column order gives them the same rows, each equally often:
- The order of rows counts only if the gold query has an ORDER BY outside parentheses and texts.
- The order of columns does not count, but their number does.
- `2` equals `2.0`. Other numbers are rounded to 10 significant digits. A text never equals a number. Texts are compared exactly. NULL
  equals NULL.

Spider's official rule (test-suite-sql-eval) differs in five ways. It removes DISTINCT from both queries first. Any ORDER BY in the gold
query makes the order count. It compares numbers bit by bit. Two empty results are equal whatever their columns. It repairs some spellings
(`> =`) before it runs a query. Our rule is stricter about repeated rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from agentlightning.errors import ConfigError, RewardError
from agentlightning_benchmarks.text_to_sql.database import Result, Row, execute
from agentlightning_benchmarks.text_to_sql.words import words

DIGITS = 10
GOLD_SECONDS = 60.0
"""Time limit of a gold query in seconds: its author had a faster machine, or an idle one."""


def reward(task: dict[str, Any], query: str) -> float:
    """Return 1 if `query` is right on the task's database and on all of its `variants`, else 0.

    Raises `ConfigError` if the gold query fails, `RewardError` if it takes too long, and `OSError` if a database is missing.
    """
    databases = [task["database"], *task.get("variants", ())]
    return float(all(right(database, query, task["query"]) for database in databases))


def right(database: str, query: str, gold: str) -> bool:
    """Return True if a query gives the gold query's result on one database."""
    result = execute(database, query)
    if result.error is not None:
        return False
    expected = _gold_result(database, gold)
    if expected.slow:
        raise RewardError(f"{database}: the gold query fails: {expected.error}. Remove this task: {gold}.")
    if expected.error is not None:
        raise ConfigError(f"{database}: the gold query fails: {expected.error}. Expected a query that this database can answer: {gold}.")
    return equal(result, expected, ordered=has_order(gold))


@lru_cache(maxsize=64)
def _gold_result(database: str, gold: str) -> Result:
    """The result of a gold query. All rollouts of a task compare with it, and databases never change."""
    return execute(database, gold, seconds=GOLD_SECONDS)


def has_order(query: str) -> bool:
    """Return True if the gold query makes the order of rows count."""
    depth, before = 0, ""
    for piece in words(query):
        if piece in "()":
            depth += 1 if piece == "(" else -1
        elif depth == 0 and before == "order" and piece.lower() == "by":
            return True
        before = piece.lower()
    return False


def equal(one: Result, other: Result, *, ordered: bool) -> bool:
    """Return True if two successful results are equal."""
    if one.columns != other.columns or len(one.rows) != len(other.rows):
        return False
    return _fits(_plain(one.rows), _plain(other.rows), one.columns, ordered)


def _fits(rows: Sequence[Row], wanted: Sequence[Row], columns: int, ordered: bool) -> bool:
    """Return True if some column order makes `rows` equal to the wanted ones.

    Columns are chosen from the left, as long as the chosen parts of the rows agree.
    """
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
    """Return a value that is equal for equal numbers, and never equal to a text's."""
    if isinstance(value, float) and not value.is_integer():
        value = float(f"{value:.{DIGITS}g}")
    return int(value) if isinstance(value, float) and value.is_integer() else value  # infinity is not whole
