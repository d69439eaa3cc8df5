"""The result of a run: `result.json` and `reward.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from agentlightning.config.models import model_folder
from agentlightning.config.policies import PolicyConfig
from agentlightning.config.schema import Config
from agentlightning.training.chart import reward_chart
from agentlightning.training.choice import Choice, Differences
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import ReusedEvaluation, RunState
from agentlightning.training.stages import stages
from agentlightning.types import prompt_version


def write_result(folder: RunFolder, state: RunState, config: Config, *, weights: str = "") -> None:
    """Write the result of a run from its metrics. A number that was not measured is absent. `weights`: the folder of the model before
    training, for a run that made it worse."""
    rows = read_metrics(folder.path)
    result: dict[str, Any] = {
        "name": config.name,
        "model": config.model,
        "seed": config.seed,
        "steps": state.step,
        "finished": state.finished,
        "seconds": round(state.seconds, 1),
        "eval": {kind: rewards for kind in KINDS if (rewards := _before_after(rows, kind))},
    }
    measured = [row["step"] for row in rows if row["step"] > 0 and any(f"eval.{kind}" in row for kind in KINDS)]
    if measured:
        result["measured_after_step"] = measured[-1]
    if state.reused:
        result["eval_reused"] = [_reused(entry) for entry in state.reused]
    if state.diagnosis is not None:
        result["diagnosis"] = asdict(state.diagnosis)
    if state.choice is not None:
        result["best"] = _best(rows, state.choice)
    sampler: Any = state.sampler
    if isinstance(sampler, dict) and (summary := cast("dict[str, Any]", sampler).get("summary")):
        result["sampler"] = summary
    if (search := found_prompts(state)) is not None:
        result["prompts"] = search
    result |= _policy(folder, state, rows, weights)
    if config.policies and "checkpoint" in result:
        result["policies"] = {name: _one_of_several(name, policy, result, rows) for name, policy in config.policies.items()}
    if isinstance(config.prompts, str):  # the run that found them
        prompts_run = RunFolder(Path(config.prompts))
        if contributed := stages(prompts_run.read_state(), state, result):
            result["stages"] = {"prompts_run": prompts_run.name, **contributed}
    folder.write_result(result)
    reward_chart(rows, folder.chart, title=config.name)


def _before_after(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """The first eval reward if it was before training, and the last one if it was after."""
    values = [(row["step"], row[f"eval.{kind}"]) for row in rows if f"eval.{kind}" in row]
    rewards = {"before": values[0][1]} if values and values[0][0] == 0 else {}
    if values and values[-1][0] > 0:
        rewards["after"] = values[-1][1]
    return rewards


def found_prompts(state: RunState) -> dict[str, Any] | None:
    """Return the best prompts of a search so far, which the run serves, and the tree of candidates. None: the run searches no prompts."""
    search = state.search
    if search is None or not search.candidates:
        return None
    best = search.best(None if state.choice is None else state.choice.step)
    return {
        "best": search.candidates[best].prompts,
        "default": search.candidates[0].prompts,
        "candidate": best,
        "rollouts": search.rollouts,
        "tokens": search.tokens,
        "rejected": search.rejected,
        "unscored": search.unscored,
        "candidates": [
            {
                "parents": candidate.parents,
                "step": candidate.step,
                "score": candidate.score,
                "versions": {name: prompt_version(text) for name, text in candidate.prompts.items()},
                "prompts": candidate.prompts,
            }
            for candidate in search.candidates
        ],
    }


def _policy(folder: RunFolder, state: RunState, rows: Sequence[Mapping[str, Any]], weights: str) -> dict[str, Any]:
    """The weights of the run, and why these; nothing if there are none."""
    before = model_folder(weights)
    if state.search is not None:
        reason = "The run trained no weights, so these are those of the model."
        own = {} if before is None else {"checkpoint": str(before)}
        return {"policy_step": 0, "policy_version": 0, "policy_reason": reason, **own}
    if state.choice is not None and state.choice.step == 0 and before is not None:
        reason = f"{state.choice.reason} So these weights are those of the model before training."
        return {"policy_step": 0, "policy_version": 0, "policy_reason": reason, "checkpoint": str(before)}
    steps = folder.steps()
    if not steps:
        return {}
    step = state.best_step if state.best_step in steps else steps[-1]
    versions = {row["step"]: row["policy_version"] for row in rows if "policy_version" in row}
    return {
        "policy_step": step,
        "policy_version": int(versions.get(step, 0)),
        "policy_reason": _reason(state.choice, step),
        "checkpoint": str(folder.checkpoint(step).relative_to(folder.path)),
    }


def _one_of_several(name: str, policy: PolicyConfig, result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The weights of one policy: their folder, or nothing for the model before training."""
    step, version = result["policy_step"], f"{name}/policy_version"
    if not policy.train:
        return {"version": 0, "trained": False} | ({} if policy.weights is None else {"checkpoint": policy.weights})
    versions = {row["step"]: row[version] for row in rows if version in row}
    weights = {"checkpoint": f"{result['checkpoint']}/{name}"} if step else {}
    return {"version": int(versions.get(step, 0)) if step else 0, "trained": True, **weights}


def _reused(entry: ReusedEvaluation) -> dict[str, Any]:
    """An evaluation that ran earlier. `agl show` lists its rollouts in that run."""
    return {**asdict(entry), "measured": datetime.fromtimestamp(entry.measured).astimezone().isoformat(timespec="seconds")}


def _best(rows: Sequence[Mapping[str, Any]], choice: Choice) -> dict[str, Any]:
    """The chosen step, its eval reward, and the paired differences that decided."""
    best: dict[str, Any] = {"step": choice.step, "reason": choice.reason}
    rewards = [row[name] for row in rows if row["step"] == choice.step for name in ("eval.sampled", "eval.greedy") if name in row]
    best |= {"eval": rewards[0]} if rewards else {}
    best |= {} if choice.against is None else {"against": choice.against, "difference": _intervals(choice.difference)}
    return best | ({"change": _intervals(choice.change)} if choice.change else {})


def _intervals(differences: Differences) -> dict[str, Any]:
    return {kind: {**asdict(difference.interval), "changed": difference.changed} for kind, difference in differences.items()}


def _reason(choice: Choice | None, step: int) -> str:
    """Why these weights are the run's."""
    if choice is None:
        return "It is the last checkpoint, because no step after training began was evaluated in full."
    if choice.step == 0:
        return f"It is the last checkpoint. {choice.reason} Serve the model before training instead."
    if choice.step != step:
        return f"It is the last checkpoint, because step {choice.step} (the best one) has none. Set checkpoints.best = true."
    return choice.reason
