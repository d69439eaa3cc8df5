"""`algorithm = ["gepa", "lightning"]`: prompts first, weights after, and what each contributed."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rules import EVAL_TASKS, TASKS, adds_a_rule, follows_rules, settings, stored
from typer.testing import CliRunner

import agentlightning as agl
from agentlightning.capture.prompts import prompts_of
from agentlightning.cli.main import build
from agentlightning.config.schema import build_config
from agentlightning.errors import ConfigError
from agentlightning.training.dry_run import dry_run
from agentlightning.training.job import make_job
from agentlightning.training.train import train_job
from judge_server import JudgeServer, judge_server
from world import StopAfter, forget_temporary_modules


def two_stages(model: str, folder: Path, server: JudgeServer, **more: Any) -> dict[str, Any]:
    arguments = settings(model, folder, server, steps=2, eval={"greedy": False}, trainer={"name": "torch", "lr": 1e-3}, **more)
    return arguments | {"algorithm": [arguments["algorithm"], {"name": "lightning", "group_size": 2}]}


def test_prompts_come_first_and_weights_after_with_the_contribution_of_each(model: str, tmp_path: Path) -> None:
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **two_stages(model, tmp_path, server))
    search, weights = sorted(tmp_path.glob("*-run*"), key=lambda path: path.name.endswith("weights"))
    assert run.folder == weights
    found = json.loads((search / "result.json").read_text())
    assert {tuple(prompts_of(records).items()) for _, (records,) in stored(weights)} == {tuple(found["prompts"]["best"].items())}
    row = run.result["stages"]["sampled"]
    assert run.result["stages"]["prompts_run"] == search.name
    assert row["before"] == found["eval"]["sampled"]["before"] == 0.0
    assert row["after_prompts"] == run.result["eval"]["sampled"]["before"] == pytest.approx(row["prompts"]["mean"])
    assert row["prompts"]["low"] <= row["prompts"]["mean"] <= row["prompts"]["high"]
    assert row["after_weights"] == run.result["eval"]["sampled"]["after"]
    assert row["weights"]["mean"] == pytest.approx(row["after_weights"] - row["after_prompts"])
    shown = CliRunner().invoke(build(), ["show", str(weights)], env={"COLUMNS": "200"}).stdout
    assert re.search(rf"sampled +0.000 +\+{row['prompts']['mean']:.3f} .*{row['after_weights']:.3f}", shown)


def test_the_training_begins_with_the_last_evaluation_of_the_search(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_temporary_modules(monkeypatch)
    with judge_server(adds_a_rule) as server:
        run = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **two_stages(model, tmp_path, server))
        again = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **two_stages(model, tmp_path, server))
    search = run.result["stages"]["prompts_run"]
    assert [(entry["step"], entry["run"], entry["run_step"]) for entry in run.result["eval_reused"]] == [
        (0, f"../{search}", 2), (2, f"../{search}", 2),  # equal rewards, so no weights change
    ]  # fmt: skip
    second = json.loads((tmp_path / again.result["stages"]["prompts_run"] / "result.json").read_text())
    assert [(entry["step"], entry["run"], entry["run_step"]) for entry in second["eval_reused"]] == [
        (0, f"../{search}", 0), (2, f"../{search}", 2),
    ]  # fmt: skip


def test_a_run_that_stopped_in_either_stage_is_resumed_there(model: str, tmp_path: Path) -> None:
    stopper = StopAfter(1)
    with judge_server(adds_a_rule) as server:
        arguments = two_stages(model, tmp_path, server)
        del arguments["progress"]
        job = make_job(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, **arguments)
        first = asyncio.run(train_job(job, progress=stopper, resume=None, stop=stopper.stop))  # type: ignore[arg-type]
        assert first.stopped
        assert not (first.folder / "then.json").exists()
        stopper = StopAfter(1)  # of the second stage: the first goes on with its step 2
        second = asyncio.run(train_job(job, progress=stopper, resume=first.folder, stop=stopper.stop))  # type: ignore[arg-type]
        assert second.stopped
        assert second.folder != first.folder
        assert second.result["steps"] == 1
        done = agl.train(follows_rules, tasks=TASKS, eval_tasks=EVAL_TASKS, resume=first.folder, **two_stages(model, tmp_path, server))
    assert done.folder == second.folder
    assert done.result["finished"] is True
    assert len([*tmp_path.glob("*-run*")]) == 2


def test_a_list_of_other_algorithms_is_refused_and_mistakes_of_the_second_come_before_the_search(model: str, tmp_path: Path) -> None:
    named = {"agent": "rules:follows_rules", "tasks": "rules:TASKS", "model": model}
    assert build_config({**named, "algorithm": ["gepa", "rloo"]}).algorithm["then"] == {"name": "lightning", "advantage": "rloo"}
    with pytest.raises(ConfigError, match="list of 'lightning' and 'gepa', but nothing can follow 'lightning'"):
        build_config({**named, "algorithm": ["grpo", "gepa"]})
    with pytest.raises(ConfigError, match="list of 3"):
        build_config({**named, "algorithm": ["gepa", "sft", "lightning"]})
    with pytest.raises(ConfigError, match="'gepa', which trains no weights"):
        agl.train(follows_rules, tasks=TASKS, model=model, algorithm=["gepa", "gepa"], progress=False)
    with pytest.raises(ConfigError, match="group_size is 1"):
        agl.train(follows_rules, tasks=TASKS, model=model, algorithm=["gepa", {"name": "lightning", "group_size": 1}], progress=False)


def test_a_dry_run_of_two_stages_tries_the_training(model: str, tmp_path: Path) -> None:
    arguments = {"agent": "rules:follows_rules", "tasks": "rules:TASKS", "model": model, "tasks_per_step": 2, "folder": str(tmp_path)}
    found = dry_run(build_config({**arguments, "sampling": {"max_tokens": 2}, "algorithm": ["gepa", {"name": "grpo", "group_size": 2}]}))
    assert found.rollouts > 0
