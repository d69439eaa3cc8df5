"""Runs that learn from the policy's own rollouts without a ratio (rft, dpo): they account for every token, say where there is nothing to
learn, and resume bitwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.contracts.model import ModelFiles
from agentlightning.training.job import make_job
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import train_job

TASKS = [{"id": str(n), "text": text} for n, text in enumerate(["abc", "xyz", "hello", "12+3", "why?", "one two"])]


async def letters(task: Any, llm: agl.LLM) -> float:
    """Two turns; the part of the last answer that is letters."""
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": task["text"]}]
        for _ in range(2):
            text = (await client.chat.completions.create(model=llm.model, messages=messages, max_tokens=6)).choices[0].message.content or ""
            messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "more"}]
    return sum(each.isalpha() for each in text[:6]) / 6


async def always_right(task: Any, llm: agl.LLM) -> float:
    await letters(task, llm)
    return 1.0


class Watch:
    """Hears what a run says, and stops it after a step."""

    def __init__(self, after: int | None = None) -> None:
        self.after, self.stop, self.said = after, asyncio.Event(), list[str]()

    def step(self, row: Any) -> None:
        if row["step"] == self.after:
            self.stop.set()

    def message(self, text: str) -> None:
        self.said.append(text)

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def settings(model: ModelFiles, folder: Path, **more: Any) -> dict[str, Any]:
    algorithm = agl.DPO(group_size=5, epochs=2, minibatches=2)
    return {
        "model": model.path, "folder": folder, "name": "dpo", "steps": 3, "tasks_per_step": 2, "algorithm": algorithm,
        "trainer": {"name": "torch", "lr": 1e-3}, "progress": False, **more,
    }  # fmt: skip


def rows(run: agl.Run) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if not key.startswith(("seconds", "tokens_per"))} for row in read_metrics(run.folder)]


def test_a_run_trains_pairs_and_names_what_is_in_none(model: ModelFiles, tmp_path: Path):
    run = agl.train(letters, tasks=TASKS, **settings(model, tmp_path))
    for row in rows(run):
        assert 0 < row["pairs"] <= 4
        assert {"dpo_accuracy", "dpo_margin", "loss"} <= row.keys()
        kept = RunFolder.open(run.folder).read_batch(row["step"])
        trained = [each for each in kept.values() if each.trained]
        assert len(trained) == 2 * row["pairs"]
        assert sorted(each.advantages for each in trained) == [(-1, -1)] * (len(trained) // 2) + [(1, 1)] * (len(trained) // 2)
        assert sum(each.trained + sum(each.excluded.values()) for each in kept.values()) == row["sampled_tokens"]
        assert sum(each.trained for each in kept.values()) == row["trained_tokens"]
        assert {reason.split(":")[0] for each in kept.values() for reason in each.excluded} == {"in no pair"}
    assert rows(run)[-1]["policy_version"] == 3


def test_a_step_without_a_pair_trains_nothing_keeps_its_version_and_says_so(model: ModelFiles, tmp_path: Path):
    watch = Watch()
    run = agl.train(always_right, tasks=TASKS, **settings(model, tmp_path, steps=1, progress=watch))
    [row] = rows(run)
    assert (row["pairs"], row["trained_tokens"], row["policy_version"], row["groups"], row["zero_variance_groups"]) == (0, 0, 0, 2, 2)
    assert "dpo_accuracy" not in row
    assert any("Step 1: no update, most tokens are excluded: in no pair" in said for said in watch.said)


@pytest.mark.parametrize(
    "algorithm", [agl.DPO(group_size=5, epochs=2, minibatches=2), agl.RFT(group_size=4, min_reward=0.1, best=2, minibatches=2)]
)
def test_a_stopped_run_resumes_to_bitwise_the_same_metrics(algorithm: Any, model: ModelFiles, tmp_path: Path):
    exact = {"engine": {"name": "torch", "max_batch": 1}, "runner": agl.RunnerSettings(concurrency=1)}  # batches change bits
    arguments = settings(model, tmp_path, algorithm=algorithm, **exact)
    whole = agl.train(letters, tasks=TASKS, **arguments)
    watch = Watch(after=1)
    job = make_job(letters, tasks=TASKS, **{key: value for key, value in arguments.items() if key != "progress"})
    half = asyncio.run(train_job(job, progress=watch, resume=None, stop=watch.stop))  # type: ignore[arg-type]
    assert half.stopped
    assert len(rows(half)) == 1
    resumed = agl.train(letters, tasks=TASKS, resume=half.folder, **arguments)
    assert rows(resumed) == rows(whole)
    assert rows(whole)[-1]["policy_version"] == 3


def test_of_a_rejection_sampled_run_the_chosen_tokens_alone_are_trained(model: ModelFiles, tmp_path: Path):
    algorithm = agl.RFT(group_size=5, min_reward=0.3, best=2)
    run = agl.train(letters, tasks=TASKS, **settings(model, tmp_path, algorithm=algorithm))
    reasons = set[str]()
    for row in rows(run):
        kept = RunFolder.open(run.folder).read_batch(row["step"])
        groups: dict[bool, list[float]] = {True: [], False: []}
        for each in kept.values():
            assert bool(each.trained) != bool(each.excluded), "all of a rollout, or nothing"
            assert each.returns[0] == each.returns[1]
            assert each.advantages == ((1, 1) if each.trained else (None, None))
            groups[bool(each.trained)].append(each.returns[0] or 0.0)
            reasons |= set(each.excluded)
        assert 0 < len(groups[True]) <= 4
        assert min(groups[True]) >= 0.3
        assert sum(each.trained + sum(each.excluded.values()) for each in kept.values()) == row["sampled_tokens"]
        assert sum(each.trained for each in kept.values()) == row["trained_tokens"]
    assert reasons == {"the reward of its rollout is below min_reward (0.3)", "not among the best of its group (best = 2)"}
    assert rows(run)[-1]["policy_version"] == 3
