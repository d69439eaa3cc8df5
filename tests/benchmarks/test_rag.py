"""The retrieval benchmark's generated tasks, and its agent behind a real gateway."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.parts import build_step_rewards
from agentlightning.config.schema import load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Reward, Rollout, Sampling, Task, Trajectory
from agentlightning_benchmarks.rag import tasks as rag_tasks
from agentlightning_benchmarks.rag.agent import EXAMPLE_ANSWER, EXAMPLE_QUESTION, EXAMPLE_SEARCHES, MAX_TURNS, NOTHING, Library
from agentlightning_benchmarks.rag.demonstrate import demonstrate
from agentlightning_benchmarks.rag.index import open_index
from agentlightning_benchmarks.rag.questions import relations
from agentlightning_benchmarks.rag.solve import solve, solve_real
from agentlightning_benchmarks.rag.world import FILE, corpus_file, read_world

FOLDER = Path(rag_tasks.__file__).parent
GENERATOR = FOLDER.parents[1] / "worlds" / "rag.py"
TOOLS = [{"type": "function", "function": {"name": "search"}}]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGL_CACHE", str(tmp_path / "cache"))


def test_the_generator_writes_the_file_of_the_world_byte_for_byte() -> None:
    assert runpy.run_path(str(GENERATOR))["world_file"]() == FILE.read_bytes()


def names(split: str) -> set[str]:
    """What the facts of a split can name, but for the common words that answer both."""
    world = read_world()[split]  # type: ignore[index]
    return {*world, *(each.facts["river"] for each in world.values() if each.kind == "town")}


def test_train_and_test_share_no_entity_no_phrasing_and_no_question() -> None:
    assert not names("train") & names("test")
    for relation in relations().values():
        assert not set(relation.asked["train"]) & set(relation.asked["test"])
        assert not set(relation.named["train"]) & set(relation.named["test"])
    train, test = rag_tasks.train_tasks(), rag_tasks.test_tasks()
    assert not {task["question"] for task in train} & {task["question"] for task in test}
    hidden = re.compile(rf"\b({'|'.join(map(re.escape, names('test')))})\b")
    assert not [task["question"] for task in train if hidden.search(task["question"])]
    assert all(hidden.search(task["question"]) for task in test)


def test_generated_tasks_are_different_and_always_the_same() -> None:
    train, test = rag_tasks.train_tasks(), rag_tasks.test_tasks()
    assert (len(train), len(test)) == (2000, 64)
    assert train == rag_tasks.make_tasks("train", 2000)
    assert len({task["question"] for task in train}) == 2000
    assert [len(task["decomposition"]) for task in train + test] == [1, 2] * 1032
    assert len({hop["question"].split(" >> ")[1] for task in train for hop in task["decomposition"]}) == len(relations())


def test_the_facts_of_the_world_fit_together_and_stand_in_its_corpus() -> None:
    passages = {each["title"]: each["text"] for each in map(json.loads, corpus_file().read_text().splitlines())}
    assert len(passages) == sum(len(half) for half in read_world().values())
    for split in read_world():
        world = read_world()[split]
        for entity in world.values():
            assert all(value in passages[entity.name] for value in entity.facts.values())
            for relation, value in entity.facts.items():
                assert (value in world) == bool(relations()[relation].named["train"])
                assert relations()[relation].of == entity.kind


def demonstrated(task: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The replies of a demonstrated run, as a model writes them, and all its messages."""
    library = Library(open_index(task["corpus"]["path"]), task["corpus"]["top_k"], task["corpus"]["words"])
    replies: list[str] = []
    messages: list[dict[str, Any]] = [{"role": "user", "content": task["question"]}]
    while (message := demonstrate(task, messages, TOOLS)) is not None:
        messages.append(message)
        if "tool_calls" not in message:
            return [*replies, message["content"]], messages
        call = message["tool_calls"][0]
        query = json.loads(call["function"]["arguments"])["query"]
        replies.append(f"CALL search({query})")
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": library.search(query)})
    return replies, messages


def test_every_generated_question_can_be_answered_by_searching() -> None:
    for task in [*rag_tasks.train_tasks(), *rag_tasks.test_tasks()]:
        replies, messages = demonstrated(task)
        assert replies[-1] == f"Answer: {task['answer']}", messages
        assert len(replies) == len(task["decomposition"]) + 1


@asynccontextmanager
async def running(tmp_path: Path, script: Any, agent: Any = solve) -> AsyncIterator[Callable[[dict[str, Any]], Any]]:
    """A gateway with scripted replies; gives a function that runs the agent on a task."""
    make_tokenizer(tmp_path)
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tmp_path, script))
    await gateway.start()

    async def run(task: dict[str, Any], **given: float) -> tuple[float, Trajectory]:
        rollout = Rollout(task=Task(task["id"], task), mode="train", sampling=Sampling())
        attempt = await store.begin(rollout, "test", lease=60)
        recorder = Recorder(store, rollout, attempt, gateway.llm(attempt))
        with use(recorder):
            earned = await agent(task, recorder.llm)
        recorder.add(Reward(attempt_id=attempt.id, value=earned, name="return"))
        await recorder.close()
        await store.finish(attempt.id, "succeeded")
        state, records = await store.read(rollout.id)
        return earned, trajectory(state, records, step_rewards=build_step_rewards(given))

    try:
        yield run
    finally:
        await gateway.stop()


async def test_the_agent_searches_twice_and_answers(tmp_path: Path) -> None:
    task = rag_tasks.test_tasks()[1]
    replies, _ = demonstrated(task)
    async with running(tmp_path, replies) as run:
        earned, made = await run(task)
    assert len(replies) == 3
    assert earned == 1.0
    assert made.calls == {"completed": 3}
    assert [transition.continues for transition in made.transitions] == [None, 0, 1], "one conversation, continued token by token"
    assert {transition.agent for transition in made.transitions} == {"researcher"}
    assert not made.diagnostics


async def test_a_real_model_reads_a_worked_example_first(tmp_path: Path) -> None:
    task = rag_tasks.test_tasks()[1]
    replies, _ = demonstrated(task)
    prompts: list[str] = []

    def script(prompt: str, sampling: Sampling) -> str:
        prompts.append(prompt)
        return replies[len(prompts) - 1]

    async with running(tmp_path, script, solve_real) as run:
        earned, made = await run(task)
    assert earned == 1.0
    searches = [f"CALL search({query})" for query, _ in EXAMPLE_SEARCHES]
    places = [prompts[0].index(text) for text in (EXAMPLE_QUESTION, *searches, EXAMPLE_ANSWER, task["question"])]
    assert places == sorted(places)
    assert [transition.continues for transition in made.transitions] == [None, 0, 1]


async def test_a_search_that_found_nothing_is_a_fact_of_the_turn_that_asked_for_it(tmp_path: Path) -> None:
    task = rag_tasks.test_tasks()[1]
    replies, _ = demonstrated(task)
    async with running(tmp_path, ["CALL search(xylophone)", *replies[:-1], "CALL search(the xylophone of)", replies[-1]]) as run:
        earned, made = await run(task, nothing_found=-0.1, tool_failed=-1.0, tool_empty=-1.0)
    assert earned == 1.0
    nothing = [("nothing_found", -0.1)]
    assert [[(r.name, r.value) for r in each.rewards] for each in made.transitions] == [nothing, [], [], nothing, []]
    assert not made.diagnostics


async def test_an_answer_without_a_search_earns_no_format(tmp_path: Path) -> None:
    task = rag_tasks.test_tasks()[0]
    async with running(tmp_path, [f"Answer: {task['answer']}"]) as run:
        assert (await run(task))[0] == pytest.approx(0.9)


async def test_an_agent_that_never_answers_earns_nothing(tmp_path: Path) -> None:
    task = rag_tasks.test_tasks()[0]
    async with running(tmp_path, lambda prompt, sampling: "CALL search(Harda)") as run:
        earned, made = await run(task)
    assert earned == 0.0
    assert made.calls == {"completed": MAX_TURNS}


@pytest.mark.parametrize(
    "query",
    [
        '{"query": ""}',
        '{"query": "x", "limit": 9}',
        '{"query": {"a": 1}}',
        '{"query": null}',
        "x" * 20,
        "name) OR (1=1",
        "../../corpus.jsonl",
        "\0\1\2",
    ],
)
async def test_no_query_ends_a_run(tmp_path: Path, query: str) -> None:
    async with running(tmp_path, [f"CALL search({query})", "Answer: nothing"]) as run:
        earned, made = await run(rag_tasks.test_tasks()[0])
    assert earned == pytest.approx(0.1)
    assert made.calls == {"completed": 2}


async def test_half_a_character_earns_nothing_and_ends_no_training(tmp_path: Path) -> None:
    async with running(tmp_path, ['CALL search({"query": "\\ud800"})', "Answer: nothing"]) as run:
        earned, made = await run(rag_tasks.test_tasks()[0])
    assert earned == 0.0
    assert made.calls == {"completed": 1}


def test_a_search_without_a_result_says_so() -> None:
    task = rag_tasks.test_tasks()[0]
    assert Library(open_index(task["corpus"]["path"]), 1, 40).search("xylophone") == NOTHING


@pytest.mark.parametrize("name", ["cpu.toml", "cpu_warm_start.toml", "gpu.toml", "real.toml"])
def test_the_configs_are_some_that_agl_train_takes(name: str) -> None:
    config = load_config(FOLDER / name)
    assert config.agent == f"agentlightning_benchmarks.rag.solve:{'solve' if name.startswith('cpu') else 'solve_real'}"
    assert len(load_tasks(config.tasks)) == 2000
    assert config.eval_tasks is None or len(load_tasks(config.eval_tasks)) == 64


def test_musique_is_read_as_it_is() -> None:
    data = Path(__file__).resolve().parents[3] / "shared" / "data" / "musique"
    if not data.is_dir():
        pytest.skip("no real data beside this checkout; files of the same form are tested in test_rag_search.py")
    train, test = rag_tasks.load(data)
    assert (len(train), len(test)) == (1139, 226)
    shown = [demonstrated(task)[0][-1:] == [f"Answer: {task['answer']}"] for task in test]
    assert sum(shown) > 0.3 * len(test), "what BM25 finds of every hop, in two passages"
