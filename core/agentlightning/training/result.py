"""The result of a run: `result.json` and `reward.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

from agentlightning.training.chart import reward_chart
from agentlightning.training.choice import Choice, Differences, in_words, worse
from agentlightning.training.evaluation import KINDS
from agentlightning.training.metrics import read_metrics
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState


def write_result(folder: RunFolder, state: RunState, *, name: str, model: str, seed: int) -> None:
    """Write the result of a run from its metrics. A number that was not measured is absent."""
    rows = read_metrics(folder.path)
    result: dict[str, Any] = {
        "name": name,
        "model": model,
        "seed": seed,
        "steps": state.step,
        "finished": state.finished,
        "seconds": round(state.seconds, 1),
        "eval": {kind: rewards for kind in KINDS if (rewards := _before_after(rows, kind))},
    }
    measured = [row["step"] for row in rows if row["step"] > 0 and any(f"eval.{kind}" in row for kind in KINDS)]
    if measured:
        result["measured_after_step"] = measured[-1]
    if state.diagnosis is not None:
        result["diagnosis"] = asdict(state.diagnosis)
    if state.choice is not None:
        result["best"] = _best(rows, state.choice)
    sampler: Any = state.sampler
    if isinstance(sampler, dict) and (summary := cast("dict[str, Any]", sampler).get("summary")):
        result["sampler"] = summary
    if steps := folder.steps():
        step = state.best_step if state.best_step in steps else steps[-1]
        versions = {row["step"]: row["policy_version"] for row in rows if "policy_version" in row}
        result |= {"policy_step": step, "policy_version": int(versions.get(step, 0)), "policy_reason": _reason(state.choice, step)}
        result["checkpoint"] = str(folder.checkpoint(step).relative_to(folder.path))
    folder.write_result(result)
    reward_chart(rows, folder.chart, title=name)


def _before_after(rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, float]:
    """The first eval reward if it was before training, and the last one if it was after."""
    values = [(row["step"], row[f"eval.{kind}"]) for row in rows if f"eval.{kind}" in row]
    rewards = {"before": values[0][1]} if values and values[0][0] == 0 else {}
    if values and values[-1][0] > 0:
        rewards["after"] = values[-1][1]
    return rewards


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
        return "It is the last checkpoint, because no step after training began was evaluated."
    if choice.step != step:
        return f"It is the last checkpoint, because step {choice.step} (the best one) has none. Set checkpoints.best = true."
    if worse(choice.change):
        return f"{choice.reason} But it is worse than the model before training: {in_words(choice.change)}."
    return choice.reason
