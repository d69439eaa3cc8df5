"""Rollouts without a model call: excluded and counted, with the likely cause."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

import agentlightning as agl
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.training.evaluation import eval_metrics
from agentlightning.training.metrics import read_metrics
from agentlightning.training.no_calls import exclude_without_calls, no_calls_report
from agentlightning.types import AttemptStatus

ASTRAY = "the model call of span 'ChatOpenAI' (s) never reached the gateway: a cache: LangChain answered without calling the model"
CALLED = trajectory(0, transition(0, [1], [2]), reward=0.0, calls={"completed": 1})


class CachingAgent:
    """An agent whose framework keeps answers: half of the rollouts of a task make no call, and earn the best reward."""

    def __init__(self) -> None:
        self.calls = 0

    async def solve(self, task: Any, llm: agl.LLM) -> float:
        self.calls += 1
        if self.calls % 2:
            return 1.0
        async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key, max_retries=0) as client:
            await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task["text"]}], max_tokens=4)
        return 0.1 * (self.calls % 4)


def train(model: str, folder: Path, **collection: Any) -> list[dict[str, Any]]:
    run = agl.train(
        CachingAgent().solve,
        tasks=[{"id": "0", "text": "abc"}],
        model=model,
        folder=folder,
        name="tiny",
        steps=1,
        tasks_per_step=1,
        algorithm=agl.LightningRL(group_size=8),
        trainer={"name": "torch", "lr": 1e-3},
        runner=agl.RunnerSettings(concurrency=1),
        collection=collection,
    )
    return [row for row in read_metrics(run.folder) if row["step"]]


def test_a_rollout_without_a_call_is_excluded_with_its_reward_and_the_user_reads_why(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [row] = train(model, tmp_path)
    assert (row["rollouts"], row["excluded_rollouts"], row["unscored"], row["transitions"]) == (8, 4, 0, 4)
    assert row["reward"] == pytest.approx(0.1)  # of 0.2, 0, 0.2, 0: the rewards of 1.0 are not in it
    text = " ".join("".join(capsys.readouterr()).split())
    assert "Step 1: 4 of 8 rollouts made no model call. The likely cause: a cache answered, because other rollouts of this task" in text
    assert "Their rewards do not count. (collection.no_calls)" in text


def test_rollouts_without_a_call_can_be_kept(model: str, tmp_path: Path) -> None:
    [row] = train(model, tmp_path, no_calls="keep")
    assert "excluded_rollouts" not in row
    assert row["reward"] == pytest.approx(0.55)


def test_an_evaluation_counts_rollouts_without_a_call_and_their_rewards() -> None:
    silent = [trajectory(index, group="sampled-0-0", reward=float(index), mode="eval") for index in range(2)]
    assert eval_metrics(silent) == {"eval.sampled": 0.5, "eval.sampled.no_calls": 2.0}


def test_the_report_names_what_the_adapter_saw_before_it_supposes_a_cache() -> None:
    silent = trajectory(1, diagnostics=(ASTRAY,))
    assert no_calls_report([CALLED, silent]) == f"1 of 2 rollouts made no model call. The likely cause: {ASTRAY}."


def test_where_no_rollout_of_the_task_called_the_report_names_every_cause() -> None:
    other = trajectory(0, transition(0, [1], [2]), group="other", calls={"completed": 1})
    report = no_calls_report([other, trajectory(1)])
    assert report is not None
    assert all(part in report for part in ("asked no model", "cache", "not routed", "llm.base_url", "`models`"))
    assert no_calls_report([CALLED, other]) is None


@pytest.mark.parametrize("status", ["failed", "timed_out", "cancelled"])
def test_a_rollout_that_failed_before_its_first_call_keeps_its_own_cause(status: AttemptStatus) -> None:
    """A penalty of `runner.on_failure` counts."""
    failed = trajectory(0, reward=-1.0, status=status)
    assert exclude_without_calls(failed) is failed
    assert no_calls_report([failed]) is None


def test_a_rollout_whose_requests_were_all_refused_did_call() -> None:
    refused = trajectory(0, calls={"refused": 2})
    assert exclude_without_calls(refused) is refused
    assert exclude_without_calls(CALLED) is CALLED
