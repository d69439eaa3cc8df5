"""Dry runs and scoring without training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentlightning.config.schema import load_config
from agentlightning.errors import ConfigError, JoinError
from agentlightning.training.dry_run import dry_run
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
    assert report.rollouts == 8
    assert report.transitions == 8
    assert report.failed == 0
    assert 8 <= report.sampled_tokens <= 48
    assert report.step_seconds == pytest.approx(2 * (report.rollout_seconds + (report.training_seconds or 0)))
    assert report.checkpoint_bytes > 100_000
    assert report.disk_bytes > report.checkpoint_bytes
    assert report.memory_bytes > 50_000_000
    assert report.model == (
        "LlamaForCausalLM, 107.2K parameters",
        "renderer template, tools as a line of text, replies end with '<|im_end|>'",
        "every turn continues the sampled tokens",
    )
    assert not RunFolder.all(tmp_path / "runs")


def too_short(rollouts: Any, returns: Any) -> Any:
    return returns[:1]


def test_a_dry_run_says_what_an_advantage_of_ones_own_does_wrong(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.advantage '.*:too_short' returned an array of shape \(1,\) for 8 transitions"):
        dry_run(replace(config, algorithm={"name": "lightning", "advantage": f"{__name__}:too_short"}))


@pytest.mark.parametrize("algorithm", ["rft", "dpo"])
def test_a_dry_run_measures_a_step_of_an_algorithm_whatever_the_rewards_are(config: Any, algorithm: str) -> None:
    report = dry_run(replace(config, algorithm={"name": algorithm, "group_size": 4}))
    assert (report.rollouts, report.transitions) == (4, 4)
    assert report.training_seconds


def test_scoring_runs_each_task_once_and_keeps_the_store(config: Any) -> None:
    report = rollout_config(config, limit=2)
    assert (report.rollouts, report.scored, report.requests, report.statuses) == (2, 2, {"completed": 2}, {"succeeded": 2})
    folder = RunFolder.open(report.folder)
    assert folder.read_result()["reward"] == report.reward
    assert folder.store.exists()


def test_a_dry_run_refuses_what_a_run_would_refuse(config: Any, tmp_path: Path) -> None:
    (tmp_path / "silent_agent.py").write_text("async def solve(task):\n    return 1.0\n")
    with pytest.raises(JoinError, match="No model call of the first step reached the gateway"):
        dry_run(replace(config, agent="silent_agent:solve"))


def test_a_model_that_is_not_there_leaves_no_folder(config: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Unknown model"):
        rollout_config(replace(config, model="smollm"))
    assert not RunFolder.all(tmp_path / "runs")
