"""Dry runs and scoring without training."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.schema import load_config
from agentlightning.errors import ConfigError, JoinError
from agentlightning.records.comparison import served_side
from agentlightning.stores.common import open_store
from agentlightning.training.dry_run import _few_tasks, dry_run
from agentlightning.training.job import job_of
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.score import rollout_config
from agentlightning_torch.testing import tiny_model

AGENT = """
from openai import AsyncOpenAI

async def solve(task, llm):
    async with AsyncOpenAI(base_url=llm.base_url, api_key=llm.api_key) as client:
        answer = await client.chat.completions.create(model=llm.model, messages=[{"role": "user", "content": task}], max_tokens=6)
    return float(len(answer.choices[0].message.content or "") > 3)
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    tiny_model(tmp_path / "model")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trial_agent.py").write_text(AGENT)
    (tmp_path / "tasks.jsonl").write_text('"one"\n"two"\n"three"\n')
    (tmp_path / "run.toml").write_text(
        'agent = "trial_agent:solve"\ntasks = "tasks.jsonl"\nmodel = "model"\nfolder = "runs"\nsteps = 5\ntasks_per_step = 2\n'
    )
    return load_config(tmp_path / "run.toml")


def test_a_dry_run_measures_and_leaves_nothing(config: Any, tmp_path: Path) -> None:
    report = dry_run(config)
    assert (report.groups, report.rollouts, report.transitions) == (2, 16, 16), "one step of the run"
    assert report.failed == 0
    assert 16 <= report.sampled_tokens <= 96
    assert report.step_seconds == pytest.approx(report.rollout_seconds + (report.training_seconds or 0))
    assert (report.step_prompt_tokens, report.step_sampled_tokens) == (report.prompt_tokens, report.sampled_tokens)
    assert report.checkpoint_bytes > 100_000
    assert report.disk_bytes > report.checkpoint_bytes
    assert report.memory_bytes > 50_000_000
    assert report.model == (
        "LlamaForCausalLM, 107.2K parameters",
        "renderer template, tools as a line of text, replies end with '<|im_end|>'",
        "every turn continues the sampled tokens",
    )
    assert not RunFolder.all(tmp_path / "runs")


def test_a_dry_run_leaves_nothing_in_the_store_of_the_run(config: Any, tmp_path: Path) -> None:
    dry_run(replace(config, store=f"sqlite:{tmp_path / 'own.db'}"))
    assert not (tmp_path / "own.db").exists()


def test_a_dry_run_of_large_steps_samples_a_few_random_tasks_and_scales(config: Any, tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_text("".join(f'"task {number}"\n' for number in range(40)))
    report = dry_run(replace(config, tasks_per_step=24, algorithm={"name": "lightning", "group_size": 2}))
    assert (report.groups, report.rollouts) == (8, 16)
    assert report.step_seconds == pytest.approx(3 * (report.rollout_seconds + (report.training_seconds or 0)))
    assert report.step_sampled_tokens == 3 * report.sampled_tokens
    job = job_of(replace(config, tasks_per_step=24))
    few = [task.input for task in _few_tasks(job)]
    assert len(set(few)) == 8
    assert few != [task.input for task in job.tasks[:8]], "a file may begin with the easy tasks"


def test_a_dry_run_measures_the_signal_of_groups_and_suggests_settings(config: Any, tmp_path: Path) -> None:
    (tmp_path / "always.py").write_text(AGENT.replace('float(len(answer.choices[0].message.content or "") > 3)', "0.0"))
    never = dry_run(replace(config, agent="always:solve"))
    assert never.signal is not None
    assert (never.signal.groups, never.signal.with_signal, never.signal.cause) == (2, 0, "constant")
    assert never.advice is not None
    assert [suggestion.value for suggestion in never.suggestions] == [8, 2, 1.0], "no setting helps"
    assert never.suggested_step_seconds == never.step_seconds
    random = dry_run(config)
    assert random.signal is not None
    assert set(random.signal.chances) == {4, 8, 16, 32}
    size, tasks = (float(str(suggestion.value)) for suggestion in random.suggestions[:2])
    assert random.suggested_step_seconds == pytest.approx((random.step_seconds or 0) * size / 8 * tasks / 2)
    assert random.signal.chances[8] > never.signal.chances[8]
    assert [suggestion.setting for suggestion in random.suggestions][:3] == [
        "algorithm.group_size",
        "tasks_per_step",
        "sampling.temperature",
    ]


@pytest.mark.parametrize("algorithm", [{"name": "rft", "group_size": 4}, {"name": "lightning", "advantage": "reinforce_pp"}])
def test_an_algorithm_that_compares_no_rollouts_has_no_signal_to_measure(config: Any, algorithm: dict[str, Any]) -> None:
    report = dry_run(replace(config, algorithm=algorithm))
    assert (report.signal, report.suggestions, report.suggested_step_seconds, report.advice) == (None, (), None, None)


def too_short(rollouts: Any, returns: Any) -> Any:
    return returns[:1]


def test_a_dry_run_says_what_an_advantage_of_ones_own_does_wrong(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.advantage '.*:too_short' returned an array of shape \(1,\) for 16 transitions"):
        dry_run(replace(config, algorithm={"name": "lightning", "advantage": f"{__name__}:too_short"}))


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
def test_a_dry_run_measures_a_step_of_an_algorithm_whatever_the_rewards_are(config: Any, algorithm: str) -> None:
    report = dry_run(replace(config, algorithm={"name": algorithm, "group_size": 4}))
    assert (report.rollouts, report.transitions) == (8, 8)
    assert report.training_seconds


def test_scoring_runs_each_task_once_and_keeps_the_store(config: Any) -> None:
    report = rollout_config(config, limit=2)
    assert (report.rollouts, report.scored, report.requests, report.statuses) == (2, 2, {"completed": 2}, {"succeeded": 2})
    folder = RunFolder.open(report.folder)
    assert folder.read_result()["reward"] == report.reward
    assert folder.store.exists()


@pytest.mark.parametrize(("greedy", "temperature"), [(True, 0.0), (False, 1.0)])
def test_scoring_is_greedy_if_asked(config: Any, greedy: bool, temperature: float) -> None:
    report = rollout_config(config, limit=2, greedy=greedy)
    states, _ = asyncio.run(open_store(str(RunFolder.open(report.folder).store)).list())
    assert [state.rollout.sampling.temperature for state in states if state.rollout.sampling] == [temperature] * 2
    side = asyncio.run(served_side(RunFolder.open(report.folder)))  # `agl compare` pairs it with another one
    assert {kind: len(rewards) for kind, rewards in side.evaluation.rewards.items()} == {"greedy" if greedy else "sampled": 2}


def test_a_dry_run_refuses_what_a_run_would_refuse(config: Any, tmp_path: Path) -> None:
    (tmp_path / "silent_agent.py").write_text("async def solve(task):\n    return 1.0\n")
    with pytest.raises(JoinError, match="No model call of the first step reached the gateway"):
        dry_run(replace(config, agent="silent_agent:solve"))


def test_a_model_that_is_not_there_leaves_no_folder(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown model"):
        rollout_config(replace(config, model="smollm"))
    assert not RunFolder.all(tmp_path / "runs")
