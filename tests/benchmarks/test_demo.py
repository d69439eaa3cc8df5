"""The demo's tasks and reward, and its agent behind a real gateway."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.schema import load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import Reward, Rollout, Sampling, Task
from agentlightning_benchmarks.demo.agent import calculator
from agentlightning_benchmarks.demo.command import CONFIG
from agentlightning_benchmarks.demo.solve import CALLED, reward, solve
from agentlightning_benchmarks.demo.tasks import NAMES, TEMPLATES, THINGS, eval_tasks, make_tasks, number_in, train_tasks


def test_train_and_test_share_nothing() -> None:
    for table in (NAMES, THINGS):
        assert not set(table["train"]) & set(table["test"])
    assert not {text for _, text in TEMPLATES["train"]} & {text for _, text in TEMPLATES["test"]}
    assert not {task["question"] for task in train_tasks()} & {task["question"] for task in eval_tasks()}


def eval_tasks_are_different_repeatable_and_right() -> None:
    tasks = make_tasks("train", 300, seed=3)
    assert tasks == make_tasks("train", 300, seed=3)
    assert tasks != make_tasks("train", 300, seed=4)
    assert len({task["question"] for task in tasks}) == 300
    sums = [task for task in tasks if "in one box" in task["question"]]
    assert sums
    for task in sums:
        assert task["answer"] == sum(map(int, re.findall(r"\d+", task["question"])))


@pytest.mark.parametrize(
    ("text", "number"),
    [("The answer is 7.", 7), ("so 3 + 4 = 7", 7), ("1,234 apples", 1234), ("-2.5", -2.5), ("no number", None), ("117-69", -69)],
)
def test_the_last_number_is_what_was_said(text: str, number: float | None) -> None:
    assert number_in(text) == number


def said(*own: Any) -> list[Any]:
    example = [HumanMessage("1+1?"), AIMessage("The answer is 2."), HumanMessage("question")]
    return [*example, *own]


@pytest.mark.parametrize(
    ("own", "earned"),
    [
        ([AIMessage(""), ToolMessage("7", tool_call_id="1"), AIMessage("The answer is 7.")], 1.0),
        ([AIMessage(""), ToolMessage("8", tool_call_id="1"), AIMessage("The answer is 8.")], CALLED),
        ([AIMessage(""), ToolMessage("error: no", tool_call_id="1"), AIMessage("The answer is 7.")], 0.0),
        ([AIMessage("The answer is 7.")], 0.0),
        ([AIMessage(""), ToolMessage("7", tool_call_id="1")], 0.0),
        ([], 0.0),
    ],
)
def test_the_reward_is_for_the_answer_after_a_call(own: list[Any], earned: float) -> None:
    assert reward(said(*own), {"answer": 7}) == earned
    assert reward(said(*own), {"answer": "7"}) == earned, "GSM8K's answers are texts"


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("3+4", "7"),
        ("7/2", "3.5"),
        ("1/0", "error"),
        ("2**9999999", "error"),
        ("__import__('os')", "error"),
        ("x", "error"),
        ("3+", "error"),
    ],
)
def test_the_calculator_computes_and_nothing_else(expression: str, result: str) -> None:
    assert calculator.invoke({"expression": expression}).startswith(result)


async def test_the_agent_calls_the_calculator_and_answers(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    store = open_store("memory:")
    gateway = Gateway(store, ScriptedEngine(tmp_path, ["CALL calculator(20+22)", "The answer is 42."]))
    await gateway.start()
    try:
        rollout = Rollout(task=Task("1", {"question": "20 and 22?", "answer": 42}), mode="train", sampling=Sampling())
        attempt = await store.begin(rollout, "test", lease=60)
        recorder = Recorder(store, rollout, attempt, gateway.llm(attempt))
        with use(recorder):
            earned = await solve(rollout.task.input, recorder.llm)
        assert earned == 1.0
        recorder.add(Reward(attempt_id=attempt.id, value=earned, name="return"))
        await recorder.close()
    finally:
        await gateway.stop()
    await store.finish(attempt.id, "succeeded")
    state, records = await store.read(rollout.id)
    made = trajectory(state, records)
    assert [transition.agent for transition in made.transitions] == ["solver", "solver"]
    assert made.transitions[1].continues == 0
    assert made.calls == {"completed": 2}
    assert not made.diagnostics


def test_the_config_is_one_that_agl_train_takes() -> None:
    config = load_config(CONFIG)
    assert config.name == "demo"
    assert len(load_tasks(config.eval_tasks or "")) == 64


def test_gsm8k_is_read_as_it_is(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k" / "dev.jsonl"
    if not path.exists():
        pytest.skip("no real data beside this checkout; the demo's own tasks are tested above")
    tasks = load_tasks(path)
    assert len(tasks) == 660
    assert all(number_in(str(task.input["answer"])) is not None for task in tasks)
