"""When a query is right."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.errors import ConfigError, RewardError
from agentlightning_benchmarks.text_to_sql import reward as reward_module
from agentlightning_benchmarks.text_to_sql.database import Result
from agentlightning_benchmarks.text_to_sql.reward import equal, has_order, reward

CARS = "(1, 'Ada', 3, 1.5), (2, 'Bea', 5, 2.0), (3, 'Cid', 5, 1.0)"


def make(path: Path, rows: str = CARS) -> str:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            f"CREATE TABLE car (id INTEGER PRIMARY KEY, name TEXT, seats INTEGER, price REAL); INSERT INTO car VALUES {rows};"
        )
    return str(path)


@pytest.fixture
def task(tmp_path: Path) -> dict[str, Any]:
    return {"database": make(tmp_path / "cars.sqlite")}


@pytest.mark.parametrize(
    ("gold", "query", "earned"),
    [
        ("SELECT name FROM car", "SELECT name FROM car", 1),
        ("SELECT name FROM car", "SELECT name FROM car ORDER BY price", 1),
        ("SELECT name FROM car ORDER BY price", "SELECT name FROM car ORDER BY price DESC", 0),
        ("SELECT name FROM car ORDER BY price", "SELECT name FROM car ORDER BY price", 1),
        ("SELECT name FROM (SELECT name FROM car ORDER BY price)", "SELECT name FROM car ORDER BY name DESC", 1),
        ("SELECT seats FROM car", "SELECT DISTINCT seats FROM car", 0),
        ("SELECT DISTINCT seats FROM car", "SELECT seats FROM car GROUP BY seats", 1),
        ("SELECT name, seats FROM car", "SELECT seats, name FROM car", 1),
        ("SELECT name, seats FROM car", "SELECT seats, seats FROM car", 0),
        ("SELECT name, seats FROM car", "SELECT name FROM car", 0),
        ("SELECT name FROM car", "SELECT name, seats FROM car", 0),
        ("SELECT sum(seats) FROM car", "SELECT sum(seats) * 1.0 FROM car", 1),
        ("SELECT avg(seats) FROM car", "SELECT sum(seats) / 3.0 FROM car", 1),
        ("SELECT avg(seats) FROM car", "SELECT round(avg(seats), 2) FROM car", 0),
        ("SELECT 0.3", "SELECT 0.1 + 0.2", 1),
        ("SELECT 3", "SELECT '3'", 0),
        ("SELECT 'Ada'", "SELECT 'ada'", 0),
        ("SELECT NULL", "SELECT NULL", 1),
        ("SELECT NULL", "SELECT ''", 0),
        ("SELECT NULL", "SELECT 0", 0),
        ("SELECT name FROM car WHERE seats > 9", "SELECT name FROM car WHERE seats > 8", 1),
        ("SELECT name FROM car WHERE seats > 9", "SELECT name, id FROM car WHERE seats > 9", 0),
        ("SELECT name FROM car WHERE seats > 9", "SELECT nothing FROM car", 0),
        ("SELECT name FROM car", "", 0),
        ("SELECT count(*) FROM car", "DELETE FROM car", 0),
        ("SELECT count(*) FROM car", "SELECT count(*) FROM car; DELETE FROM car", 0),
        ("SELECT count(*) FROM car", "ATTACH 'x.sqlite' AS x", 0),
    ],
)
def test_a_query_is_right_when_its_result_is_the_gold_result(task: dict[str, Any], gold: str, query: str, earned: int) -> None:
    assert reward({**task, "query": gold}, query) == earned


def test_a_query_that_loops_earns_nothing(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from agentlightning_benchmarks.text_to_sql import database
    from agentlightning_benchmarks.text_to_sql import reward as module

    monkeypatch.setattr(module, "execute", lambda path, query: database.execute(path, query, seconds=0.2))
    loop = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    assert reward({**task, "query": "SELECT 1"}, loop) == 0


def test_a_lucky_query_is_not_right_on_every_variant(tmp_path: Path, task: dict[str, Any]) -> None:
    task = {**task, "query": "SELECT count(*) FROM car WHERE seats = 5"}
    lucky = "SELECT count(*) FROM car WHERE price < 2"
    assert reward(task, lucky) == 1
    variants = [make(tmp_path / "a.sqlite"), make(tmp_path / "b.sqlite", "(1, 'Dan', 5, 9.0)")]
    assert reward({**task, "variants": variants[:1]}, lucky) == 1
    assert reward({**task, "variants": variants}, lucky) == 0
    assert reward({**task, "variants": variants}, task["query"]) == 1


def test_a_gold_query_that_fails_is_a_fault_of_the_task(task: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"cars\.sqlite: the gold query fails: no such column: wheels"):
        reward({**task, "query": "SELECT wheels FROM car"}, "SELECT 1")


def test_a_gold_query_that_takes_too_long_fails_its_rollout_alone(task: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward_module, "GOLD_SECONDS", 0.2)
    slow = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r"
    with pytest.raises(RewardError, match=r"cars\.sqlite: the gold query fails: it took more than 0\.2 s"):
        reward({**task, "query": slow}, "SELECT 1")


def test_a_database_that_is_gone_is_no_wrong_answer(tmp_path: Path, task: dict[str, Any]) -> None:
    gone = {**task, "query": "SELECT 1", "variants": [str(tmp_path / "gone.sqlite")]}
    with pytest.raises(FileNotFoundError, match=r"gone\.sqlite"):
        reward(gone, "SELECT 1")


@pytest.mark.parametrize(
    ("query", "ordered"),
    [
        ("select a from b order by a", True),
        ("select a from b ORDER\n  BY a", True),
        ("select a from b order /* so */ by a", True),
        ("select a from b union select c from d order by 1", True),
        ("select a from (select a from b order by a)", False),
        ("select a from b where c = (select c from d order by c limit 1)", False),
        ("select a from b where c = 'order by'", False),
        ('select "order by" from b', False),
        ("select a from b -- order by", False),
        ("select a from b where c = ')' order by a", True),
        ("select row_number() over (order by a) from b", False),
        ("select a from b", False),
    ],
)
def test_only_an_order_of_the_whole_result_counts(query: str, ordered: bool) -> None:
    assert has_order(query) is ordered


VALUES = st.one_of(st.none(), st.integers(-3, 3), st.sampled_from(["a", "b", "1"]), st.sampled_from([0.5, 1.0, 2.5]))


@st.composite
def tables(draw: st.DrawFn) -> Result:
    columns = draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(*[VALUES] * columns), max_size=6))
    return Result(tuple(rows), columns)


@settings(deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_rows_and_columns_in_another_order_are_the_same_result(table: Result, rng: Any) -> None:
    order = rng.sample(range(table.columns), table.columns)
    turned = tuple(tuple(row[column] for column in order) for row in table.rows)
    assert equal(Result(turned, table.columns), table, ordered=True)
    shuffled = tuple(rng.sample(turned, len(turned)))
    assert equal(Result(shuffled, table.columns), table, ordered=False)


@settings(deadline=None)
@given(tables(), tables())
def test_equal_is_what_trying_every_order_of_columns_says(one: Result, other: Result) -> None:
    from collections import Counter
    from itertools import permutations

    for ordered in (True, False):
        expected = one.columns == other.columns and any(
            (list if ordered else Counter)(tuple(row[column] for column in order) for row in one.rows)
            == (list if ordered else Counter)(other.rows)
            for order in permutations(range(one.columns))
        )
        assert equal(one, other, ordered=ordered) == expected
        assert equal(other, one, ordered=ordered) == expected


def test_many_equal_columns_are_compared_in_no_time() -> None:
    rows = tuple((0,) * 30 + (number,) for number in range(50))
    other = tuple((0,) * 30 + (number + 1,) for number in range(50))
    assert equal(Result(rows, 31), Result(tuple(row[::-1] for row in rows), 31), ordered=False)
    assert not equal(Result(rows, 31), Result(other, 31), ordered=False)
