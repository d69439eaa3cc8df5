"""The text-to-SQL benchmark's tasks, generated and real, and its agent behind a real gateway."""

from __future__ import annotations

import json
import re
import sqlite3
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from langchain_openai import ChatOpenAI

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.parts import build_step_rewards
from agentlightning.config.policies import policy_choice
from agentlightning.config.schema import load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.training.metrics import read_metrics
from agentlightning.training.train import train_config
from agentlightning.types import Reward, Rollout, Sampling, Task, Trajectory
from agentlightning_benchmarks.text_to_sql import agent as agent_module
from agentlightning_benchmarks.text_to_sql import solve as solve_module
from agentlightning_benchmarks.text_to_sql import tasks as sql_tasks
from agentlightning_benchmarks.text_to_sql.agent import FULL, SHORT, build_agent, is_right, query_in, show
from agentlightning_benchmarks.text_to_sql.database import Result, execute, hint
from agentlightning_benchmarks.text_to_sql.demonstrate import attempted, demonstrate
from agentlightning_benchmarks.text_to_sql.domains import vocabulary
from agentlightning_benchmarks.text_to_sql.forms import read_forms
from agentlightning_benchmarks.text_to_sql.generate import CONTENTS, database, make_schema, make_tasks
from agentlightning_benchmarks.text_to_sql.reward import has_order, reward
from agentlightning_benchmarks.text_to_sql.solve import solve, solve_real
from agentlightning_langchain import uninstall
from agentlightning_torch.testing import tiny_model

FOLDER = Path(sql_tasks.__file__).parent
REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "spider"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Generated tasks


def database_words(split: Any) -> set[str]:
    """Tables, columns and texts of a split's databases."""
    words: set[str] = set()
    for lines in vocabulary()[split].domains.values():
        for line in lines:
            head, *columns = (part.strip() for part in line.split("|"))
            words |= set(head.split())
            for column, _, kind in (each.partition(": ") for each in columns):
                words |= {column, *(value.strip() for value in kind.split(",") if "," in kind)}
    return words


def test_train_and_test_share_no_table_column_or_text() -> None:
    # What names a row is a name in both; what is left in common is told here.
    assert database_words("train") & database_words("test") == {"name", "title"}
    for part in ("syllables", "first_names", "last_names"):
        assert not set(getattr(vocabulary()["train"], part)) & set(getattr(vocabulary()["test"], part))
    assert all(len({*form.phrasings}) >= 3 for form in read_forms().forms)
    shown, train, test = sql_tasks.shown_tasks(), sql_tasks.train_tasks(), sql_tasks.test_tasks()
    assert not {task["schema"] for task in shown} & {task["schema"] for task in [*train, *test]}
    assert not {task["schema"] for task in train} & {task["schema"] for task in test}
    assert not {task["question"] for task in train} & {task["question"] for task in test}


def test_generated_tasks_are_many_and_always_the_same(cache: Path) -> None:
    train, test = sql_tasks.train_tasks(), sql_tasks.test_tasks()
    assert (len(train), len(test)) == (800, 64)
    assert len({(task["schema"], task["question"]) for task in train}) == 800
    assert len({task["schema"] for task in train}) > 30
    assert len({task["schema"] for task in test}) > 15
    assert sum("JOIN" in task["query"] for task in test) >= 6
    two_tables = sum("JOIN" in task["query"] or "NOT IN" in task["query"] for task in train) / len(train)
    assert 0.1 < two_tables < 0.16, "5 of 38 questions are about two tables"
    assert len({re.sub(r"\w*[a-z_]\w*|\d+|'[^']*'", "_", task["query"]) for task in test}) > 10, "queries of many shapes"
    before = {path: path.read_bytes() for path in cache.rglob("*.sqlite")}
    for path in before:
        path.unlink()
    assert (sql_tasks.train_tasks(), sql_tasks.test_tasks()) == (train, test)
    assert {path: path.read_bytes() for path in cache.rglob("*.sqlite")} == before, "made again from nothing, they are the same"
    assert make_tasks("train", 10, 2, seed=1) != make_tasks("train", 10, 2)


def test_every_gold_query_answers_and_its_order_has_no_ties() -> None:
    for task in [*sql_tasks.shown_tasks(), *sql_tasks.train_tasks(), *sql_tasks.test_tasks()]:
        found = execute(task["database"], task["query"])
        assert found.error is None
        assert found.rows not in ((), ((0,),), ((None,),)), task
        assert has_order(task["query"]) == ("ORDER BY" in task["query"])
        if " ORDER BY " in task["query"]:
            for content in (task["database"], *task["variants"]):
                query, _, order = task["query"].removesuffix(" LIMIT 1").partition(" ORDER BY ")
                keys = execute(content, f"SELECT {order.split()[0]} {query[query.index('FROM') :]} ORDER BY 1 DESC").rows
                assert keys[0] != keys[1] if "count" in order else len(keys) == len(set(keys)), task


def test_a_gold_query_is_right_and_that_of_another_question_is_not() -> None:
    tasks = sql_tasks.test_tasks()
    assert [reward(task, task["query"]) for task in tasks] == [1.0] * 64
    others = [reward(task, other["query"]) for task in tasks for other in tasks if other["query"] != task["query"]]
    assert sum(others) / len(others) < 0.01


def test_one_row_above_has_no_rows_below() -> None:
    for domain in vocabulary()["train"].domains:
        schema = make_schema("train", domain, 0)
        parent, child = schema.tables[0], schema.tables[1]
        for number in range(CONTENTS):
            linked = execute(database(schema, number), f"SELECT DISTINCT {child.link} FROM {child.name}").rows
            assert len(linked) < len(execute(database(schema, number), f"SELECT * FROM {parent.name}").rows)


def test_prompts_are_short() -> None:
    tasks = [*sql_tasks.shown_tasks(), *sql_tasks.train_tasks(), *sql_tasks.test_tasks()]
    assert max(len(task["schema"]) + len(task["question"]) for task in tasks) < 450


# The agent


@pytest.mark.parametrize(
    ("reply", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  SELECT 1;\n", "SELECT 1;"),
        ("```sql\nSELECT 1\n```", "SELECT 1"),
        ("Here it is:\n```\nSELECT 1\nFROM a\n```\nand ```sql\nSELECT 2\n```", "SELECT 1\nFROM a"),
        ("SELECT 1; DELETE FROM a", "SELECT 1; DELETE FROM a"),
        ("", ""),
    ],
)
def test_a_query_is_found_in_a_reply(reply: str, query: str) -> None:
    assert query_in(reply) == query


def test_a_verdict_is_read() -> None:
    assert [is_right(text) for text in ("correct", "Correct.", "yes", "wrong", "It is Wrong", "incorrect", "not correct")] == [True] * 3 + [
        False
    ] * 4


def test_a_result_is_shown_in_a_short_line() -> None:
    assert show(Result(((1, "a"),), 2)) == "1 row: 1, a"
    assert show(Result(tuple((number,) for number in range(5)), 1)) == "5 rows: 0; 1; 2; ..."
    assert show(Result((), 1)) == "no rows"
    assert show(Result(error="no such\ncolumn: x")) == "error: no such column: x"
    assert len(show(Result((("x" * 500,),), 1))) == 120


@asynccontextmanager
async def running(tmp_path: Path, script: Any, **kwargs: Any) -> AsyncIterator[Callable[[dict[str, Any]], Any]]:
    """A gateway with scripted replies; gives a function that runs the agent on a task."""
    make_tokenizer(tmp_path)
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tmp_path, script), **kwargs)
    await gateway.start()

    async def run(
        task: dict[str, Any],
        agents: Sequence[str] | None = None,
        facts: dict[str, float] | None = None,
        agent: Any = solve,
        notes: list[str] | None = None,
    ) -> tuple[float, Trajectory]:
        rollout = Rollout(task=Task(task["id"], task), mode="train", sampling=Sampling())
        attempt = await store.begin(rollout, "test", lease=60)
        recorder = Recorder(store, rollout, attempt, gateway.llm(attempt))
        with use(recorder):
            earned = await agent(task, recorder.llm)
        recorder.add(Reward(attempt_id=attempt.id, value=earned, name="return"))
        await recorder.close()
        await store.finish(attempt.id, "succeeded")
        state, records = await store.read(rollout.id)
        if notes is not None:
            notes += [span.name for attempt in records for span in attempt.spans if span.kind == "note" and "prompt" not in span.attributes]
        return earned, trajectory(state, records, agents=tuple(agents) if agents else None, step_rewards=build_step_rewards(facts or {}))

    try:
        yield run
    finally:
        await gateway.stop()


async def test_a_right_query_is_written_and_checked(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    async with running(tmp_path, [task["query"], "correct"]) as run:
        earned, made = await run(task)
    assert earned == 1.0
    assert [transition.agent for transition in made.transitions] == ["write", "check"]
    assert made.transitions[1].continues == 0
    assert made.calls == {"completed": 2}
    assert not made.diagnostics


async def test_a_wrong_query_is_rewritten_in_the_same_conversation(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    prompts: list[str] = []
    replies = iter(["SELECT x FROM nowhere", "wrong", task["query"], "correct"])

    def script(prompt: str, sampling: Sampling) -> str:
        prompts.append(prompt)
        return next(replies)

    async with running(tmp_path, script) as run:
        earned, made = await run(task, agents=["*write"])
    assert earned == 1.0
    assert [transition.agent for transition in made.transitions] == ["write", "check", "rewrite", "check"]
    assert [transition.continues for transition in made.transitions] == [None, 0, 1, 2]
    assert [transition.trained for transition in made.transitions] == [True, False, True, False]
    assert "error: no such table: nowhere" in prompts[1]
    assert [mark in prompt for prompt, mark in zip(prompts, (SHORT.write, SHORT.check, SHORT.rewrite, SHORT.check), strict=True)] == [
        True
    ] * 4
    assert made.calls == {"completed": 4}


async def test_a_failed_query_is_rewritten_at_once_with_a_hint_at_what_the_database_has(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    prompts: list[str] = []
    replies = iter(["SELECT x FROM nowhere", "SELECT 'no error: '", "wrong", task["query"]])

    def script(prompt: str, sampling: Sampling) -> str:
        prompts.append(prompt)
        return next(replies)

    async with running(tmp_path, script) as run:
        earned, made = await run(task, agent=solve_real)
    assert earned == 1.0
    assert [transition.agent for transition in made.transitions] == ["write", "rewrite", "check", "rewrite"]
    assert FULL.repair is not None
    first_table = re.search(r"\w+", task["schema"])
    assert first_table is not None
    assert f"error: no such table: nowhere. The tables are {first_table.group()}" in prompts[1]
    assert FULL.repair in prompts[1]
    last = prompts[3][len(prompts[2]) :]
    assert FULL.rewrite in last
    assert FULL.repair not in last


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT owner FROM pet", '. owner is a column of person, "two words".'),
        ("SELECT p.OWNER FROM pet AS p", '. OWNER is a column of person, "two words".'),
        ("SELECT weight FROM pet", ". No table has a column weight."),
        ("SELECT 1 FROM pets", '. The tables are pet, person, "two words".'),
        ("SELECT count(count(*)) FROM pet", ""),
        ("SELECT FROM", ""),
    ],
)
def test_a_hint_says_where_a_missing_name_is(tmp_path: Path, query: str, expected: str) -> None:
    file = tmp_path / "a.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript('CREATE TABLE pet (name); CREATE TABLE person (Owner, age); CREATE TABLE "two words" (owner);')
    error = execute(file, query).error
    assert error is not None
    assert hint(file, error) == expected


async def test_a_query_that_did_not_execute_is_a_fact_of_the_turn_that_wrote_it(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    replies = ["SELECT x FROM nowhere", "wrong", "SELECT 'error: ', 1 LIMIT 0", "wrong", "DROP TABLE x"]
    async with running(tmp_path, replies) as run:
        _, made = await run(task, facts={"sql_failed": -0.3, "truncated": -1.0})
    rewards = [(each.agent, [(r.name, r.value) for r in each.rewards]) for each in made.transitions]
    failed = [("sql_failed", -0.3)]
    assert rewards == [("write", failed), ("check", []), ("rewrite", []), ("check", []), ("rewrite", failed)]
    assert not made.diagnostics


async def test_three_queries_are_written_at_most_and_the_last_one_counts(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    async with running(tmp_path, [task["query"], "wrong", "SELECT 1", "wrong", "DROP TABLE x", "more"]) as run:
        earned, made = await run(task)
    assert earned == 0.0
    assert [transition.agent for transition in made.transitions] == ["write", "check", "rewrite", "check", "rewrite"]


async def test_a_query_without_reward_is_noted_with_what_is_wrong(tmp_path: Path) -> None:
    task = sql_tasks.test_tasks()[0]
    wrong = ["SELECT -1", "correct", "There are 5.", "wrong", "It is 5.", "wrong", "Five.", "SELECT x FROM nowhere", "correct"]
    notes: list[str] = []
    async with running(tmp_path, [*wrong, task["query"], "correct"]) as run:
        for _ in range(4):
            await run(task, notes=notes)
    assert notes == [
        "The query has a wrong result. Select exactly the columns that the question asks for.",
        "The reply is not a query. Write one SQLite query and nothing else.",
        "The query fails. Use only tables and columns of the schema.",
    ]


async def test_a_database_that_is_gone_fails_the_rollout_and_names_the_file(tmp_path: Path) -> None:
    task = {**sql_tasks.test_tasks()[0], "database": str(tmp_path / "gone.sqlite")}
    async with running(tmp_path, ["SELECT 1", "correct"]) as run:
        with pytest.raises(FileNotFoundError, match=r"gone\.sqlite"):
            await run(task)


def test_the_agent_knows_nothing_of_agent_lightning() -> None:
    for module in ("agent.py", "database.py"):
        assert "import agentlightning\n" not in (text := (FOLDER / module).read_text())
        assert not re.search(r"(from|import) agentlightning(_langchain)?[ .]", text)


def test_the_agent_is_a_graph_of_four_nodes() -> None:
    graph = build_agent(ChatOpenAI(model="x", api_key="x")).get_graph()  # type: ignore[arg-type]
    edges = {(edge.source, edge.target) for edge in graph.edges}
    assert {("write", "execute"), ("execute", "check"), ("check", "rewrite"), ("rewrite", "execute")} <= edges


# Demonstrations


async def test_demonstrated_rollouts_are_right_and_show_every_node(tmp_path: Path) -> None:
    tasks = sql_tasks.shown_tasks()[:12]
    first = "SELECT x FROM nowhere"
    async with running(tmp_path, lambda prompt, sampling: first, demonstrate=demonstrate) as run:
        done = [await run(task) for task in tasks]
    assert [earned for earned, _ in done] == [1.0] * 12
    shown = Counter((transition.agent, transition.demonstrated) for _, made in done for transition in made.transitions)
    wrong = sum(attempted(task) for task in tasks)
    assert wrong in range(1, 9)
    assert shown == {("write", True): 12 - wrong, ("write", False): wrong, ("check", True): 12 + wrong, ("rewrite", True): wrong}


def test_a_verdict_is_demonstrated_as_it_is() -> None:
    task = sql_tasks.train_tasks()[0]
    asked = {"role": "user", "content": f"1 row: 3\n{SHORT.check}"}
    for query, verdict in ((task["query"], "correct"), ("SELECT 17", "wrong"), ("no SQL", "wrong")):
        messages = [{"role": "user", "content": f"{task['question']}\n{SHORT.write}"}, {"role": "assistant", "content": query}, asked]
        assert demonstrate(task, messages, []) == {"role": "assistant", "content": verdict}
    assert demonstrate(task, [{"role": "user", "content": "Who are you?"}], []) is None


def test_a_third_of_the_first_queries_is_left_to_the_model() -> None:
    share = sum(attempted(task) for task in sql_tasks.shown_tasks()) / 800
    assert 0.28 < share < 0.38


# Configurations, and real data


@pytest.mark.parametrize("name", ["cpu", "cpu_warm_start", "gpu", "real", "cpu-one-adapter", "cpu-two-adapters"])
def test_a_config_is_one_that_agl_train_takes(name: str) -> None:
    config = load_config(FOLDER / f"{name}.toml")
    solve = "solve" if name.startswith("cpu") else "solve_real"
    assert config.agent == f"agentlightning_benchmarks.text_to_sql.solve:{solve}"
    assert len(load_tasks(config.tasks)) == 800
    if name != "cpu_warm_start":
        assert len(load_tasks(config.eval_tasks or "")) == 64
        assert config.policies or config.agents == ("*write",)


def test_two_adapters_are_compared_with_one_in_everything_but_the_adapters() -> None:
    one, two = (load_config(FOLDER / f"cpu-{name}.toml") for name in ("one-adapter", "two-adapters"))
    assert replace(one, name="same", policies={}) == replace(two, name="same", policies={})
    owners = {name: policy_choice(config.policies) for name, config in (("one", one), ("two", two))}
    assert [owners["one"].of_agent(node) for node in ("write", "rewrite", "check")] == ["sql", "sql", "checker"]
    assert [owners["two"].of_agent(node) for node in ("write", "rewrite", "check")] == ["writer", "rewriter", "checker"]


def test_each_node_of_the_agent_trains_the_adapter_of_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(tmp_path / "tiny", context=2048)
    config = load_config(FOLDER / "cpu-two-adapters.toml")
    small = {"steps": 1, "tasks_per_step": 1, "eval_tasks": None, "model": model.path, "folder": str(tmp_path / "runs")}
    monkeypatch.setattr(solve_module, "reward", lambda task, query: len(query) / 1000)
    monkeypatch.setattr(agent_module, "is_right", lambda verdict: False)  # a tiny model's checker finds nothing wrong
    try:
        run = train_config(replace(config, **small, sampling=replace(config.sampling, max_tokens=8)), progress=False)
    finally:
        uninstall()  # or the tests after this one would record LangChain, too
    (row,) = read_metrics(run.folder)
    assert row["writer/transitions"] == 8
    assert row["rewriter/transitions"] > 0
    assert row["writer/trained_tokens"] > 0
    assert row["rewriter/trained_tokens"] > 0
    assert set(run.result["policies"]) == {"writer", "rewriter", "checker"}


ROW = {"id": "q1", "db_id": "pets", "question": "How many pets?", "query": "SELECT count(*) FROM pet", "hardness": "easy"}


def pack(path: Path, names: Sequence[str]) -> None:
    source = path.with_name("source.sqlite")
    with closing(sqlite3.connect(source)) as connection:
        connection.executescript(
            "DROP TABLE IF EXISTS pet; CREATE TABLE pet (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO pet VALUES (1, 'a')"
        )
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.write(source, name)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "spider"
    folder.mkdir()
    for split in ("train", "dev"):
        (folder / f"{split}.jsonl").write_text(json.dumps(ROW) + "\n")
    pack(folder / "database.zip", ["database/pets/pets.sqlite"])
    pack(folder / "test_suite_variants.zip", ["test_suite/pets/pets-1.sqlite", "test_suite/pets/pets-2.sqlite"])
    return folder


def test_real_files_become_tasks(data: Path) -> None:
    train, test = sql_tasks.load(data)
    assert train == test
    (task,) = test
    assert {key: task[key] for key in ("id", "question", "query", "hardness")} == {
        "id": "q1", "question": "How many pets?", "query": "SELECT count(*) FROM pet", "hardness": "easy",
    }  # fmt: skip
    assert task["schema"].startswith("CREATE TABLE pet (\n  id INTEGER PRIMARY KEY,")
    assert reward(task, "SELECT 1") == 1
    assert "variants" not in task
    _, ((suited),) = sql_tasks.load(data, test_suite=True)
    assert [Path(path).name for path in suited["variants"]] == ["pets-1.sqlite", "pets-2.sqlite"]


def test_the_folder_that_spiders_authors_hand_out_is_read_as_it_is(data: Path) -> None:
    theirs = data.with_name("spider_data")
    theirs.mkdir()
    for name in ("train_spider.json", "dev.json"):
        (theirs / name).write_text(json.dumps([{**ROW, "sql": {"from": {}}, "query_toks": ["SELECT"]}]))
    with pytest.raises(ConfigError, match=r"spider_data/database\.zip: the databases cannot be read"):
        sql_tasks.load(theirs)
    with zipfile.ZipFile(data / "database.zip") as archive:
        archive.extractall(theirs)
    _, (task,) = sql_tasks.load(theirs)
    assert reward(task, "SELECT 1") == 1
    (theirs / "database" / "pets").rename(theirs / "database" / "cats")
    with pytest.raises(ConfigError, match=r"train_spider\.json: the database 'pets' is not in .*spider_data/database\."):
        sql_tasks.load(theirs)


def spoil(data: Path, name: str, content: bytes | None) -> None:
    (data / name).unlink()
    if content is not None:
        (data / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", None, r"train\.jsonl"),
        ("dev.jsonl", b"", r"dev\.jsonl: The file has no tasks"),
        ("dev.jsonl", b"{", r"dev\.jsonl, line 1"),
        ("dev.jsonl", b"[1]\n[2]\n", r"dev\.jsonl, question 1: db_id, question, query missing"),
        ("dev.jsonl", json.dumps({**ROW, "query": 3}).encode(), r"dev\.jsonl, question 1: query missing or no text"),
        ("dev.jsonl", json.dumps({**ROW, "db_id": "cats"}).encode(), r"dev\.jsonl: the database 'cats' is not in .*database\.zip"),
        ("dev.jsonl", json.dumps({**ROW, "db_id": "../x"}).encode(), r"dev\.jsonl: the database '../x' is not in"),
        ("dev.jsonl", json.dumps({**ROW, "db_id": ""}).encode(), r"dev\.jsonl: the database '' is not in"),
        ("database.zip", None, r"database\.zip: the databases cannot be read"),
        ("database.zip", b"no zip", r"database\.zip: the zip is broken"),
        ("test_suite_variants.zip", None, r"test_suite_variants\.zip: the databases cannot be read"),
    ],
)
def test_a_wrong_or_missing_file_is_named(data: Path, name: str, content: bytes | None, message: str) -> None:
    spoil(data, name, content)
    with pytest.raises(ConfigError, match=message):
        sql_tasks.load(data, test_suite=True)


def test_a_zip_that_lacks_a_database_or_its_variants_is_named(data: Path) -> None:
    pack(data / "test_suite_variants.zip", ["test_suite/cats/cats.sqlite"])
    with pytest.raises(ConfigError, match=r"no variants of 'pets' in .*test_suite_variants\.zip"):
        sql_tasks.load(data, test_suite=True)
    pack(data / "database.zip", ["database/pets/other.sqlite"])
    with pytest.raises(ConfigError, match=r"pets\.sqlite: the database does not exist"):
        sql_tasks.load(data)


@pytest.mark.skipif(not REAL.exists(), reason="no real data beside this checkout; a small copy of its form is tested above")
def test_spider_is_read_and_its_gold_queries_are_right_on_every_variant() -> None:
    train, test = sql_tasks.load(REAL, test_suite=True)
    assert (len(train), len(test)) == (6801, 524)
    assert max(len(task["schema"]) for task in [*train, *test]) < 8000
    assert not any("tables more" in task["schema"] for task in [*train, *test]), "no table is cut"
    assert {len(task["variants"]) for task in test} == {10}
    assert all(reward(task, task["query"]) == 1.0 for task in [*train[::40], *test[::10]])
    assert sum(reward(task, "SELECT count(*) FROM sqlite_master") for task in test[::10]) <= 2
