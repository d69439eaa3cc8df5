"""Whole runs on the tiny tool task: two learn, from a greedy reward under 0.3 to over 0.8 on fixed seeds, and one keeps its records.

`test_algorithm_steps.py` compares one step of every algorithm with its formula.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.config.parts import Part
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning_torch.testing import tiny_model

TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny").path


def look_up(word: str) -> str:
    """A tool that takes letters."""
    return f"found {word[:8]}" if word[:8].isalpha() else f"error: {word[:8]!r} is no word"


async def tool_task(task: Any, llm: agl.LLM) -> float:
    """A call of a tool, then an answer that has its result. The reward is the part of the first characters of both that are letters."""
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        call = (await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)).choices[0].message.content or ""
        messages += [{"role": "assistant", "content": call}, {"role": "user", "content": look_up(call)}]
        answer = (await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=8)).choices[0].message.content or ""
    return sum(each.isalpha() for text in (call, answer) for each in text[:8]) / 16


def train(model: str, folder: Path, algorithm: dict[str, Any], **more: Any) -> agl.Run:
    algorithm = {"name": "lightning", "group_size": 8, **algorithm}
    needs = Part.parse("algorithms", algorithm, "algorithm").make().needs
    return agl.train(
        tool_task,
        tasks=TASKS,
        eval_tasks=TASKS,
        model=model,
        folder=folder,
        name="tiny",
        **{
            "steps": 16,
            "tasks_per_step": 4,
            "algorithm": algorithm,
            "trainer": {"name": "torch", "lr": 1e-3, "critic": needs.critic},
            "engine": {"name": "torch", "device": "cpu", "dtype": "float32"},
            "eval": {"every": 0, "samples": 4},
            "checkpoints": {"every": 0},
            "progress": False,
            **more,
        },
    )


@pytest.mark.slow
def test_ppo_with_a_critic_raises_the_greedy_reward_of_the_tiny_tool_task(model: str, tmp_path: Path) -> None:
    loss = {"name": "ppo_clip", "epochs": 2, "minibatches": 2}
    run = train(model, tmp_path, {"advantage": {"name": "gae", "lam": 0.95}, "loss": loss})
    greedy = run.result["eval"]["greedy"]
    assert greedy["before"] < 0.3
    assert greedy["after"] > 0.8
    rows = [row for row in read_metrics(run.folder) if "loss" in row]
    assert all({"value_loss", "explained_variance"} <= row.keys() for row in rows if row["step"] > 1)


@pytest.mark.slow
def test_rollouts_that_run_two_steps_ahead_teach_it_as_well(model: str, tmp_path: Path) -> None:
    algorithm = {"advantage": "rloo", "loss": {"name": "ppo_clip", "correction": {"name": "tis"}}}
    run = train(model, tmp_path, algorithm, collection={"max_staleness": 2}, steps=20)
    greedy = run.result["eval"]["greedy"]
    assert greedy["before"] < 0.3
    assert greedy["after"] > 0.8
    assert max(row["version_gap_max"] for row in read_metrics(run.folder) if "version_gap_max" in row) == 2


async def records(folder: RunFolder) -> list[tuple[str, list[str], float]]:
    """Of each training rollout: its id, how its replies ended, and what the agent returned."""
    store = open_store(folder.store_address)
    states, _ = await store.list(mode="train")
    read = [(state.rollout.id, (await store.read(state.rollout.id))[1][-1]) for state in states]
    await store.close()
    return [(name, [c.finish_reason for c in each.completions], each.rewards[-1].value) for name, each in read]


def test_what_is_observed_of_a_step_is_in_the_returns_of_the_run_and_not_in_its_store(model: str, tmp_path: Path) -> None:
    step_rewards = {"truncated": -0.5}
    run = train(model, tmp_path, {"credit": "per_step", "advantage": "rloo"}, steps=1, step_rewards=step_rewards)
    folder = RunFolder.open(run.folder)
    learned, seen = folder.read_batch(1), asyncio.run(records(folder))
    (row,) = [row for row in read_metrics(run.folder) if "loss" in row]
    assert len(seen) == 32
    assert row["step_signals.truncated"] == sum(ended.count("length") for _, ended, _ in seen) > 0
    for name, ended, outcome in seen:
        cut = [-0.5 * (each == "length") for each in ended]
        assert learned[name].returns == pytest.approx((outcome + sum(cut), outcome + cut[1]))
