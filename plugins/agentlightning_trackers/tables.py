"""Evaluations and rollouts as the rows and texts that trackers show, and the names of metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.contracts.tracker import EvaluatedTask, TrackedRollout
from agentlightning.types import JSON

EVALUATION = ("step", "id", "task", "sampled_before", "sampled", "greedy_before", "greedy")
ROLLOUTS = ("step", "id", "task", "reward", "messages")


def numbers(metrics: Mapping[str, JSON]) -> dict[str, float]:
    """Return the numbers of a row. One that was not measured is absent."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def texts(metrics: Mapping[str, JSON]) -> dict[str, str]:
    """Return the texts of a row: `diagnosis`, `untrained_reason`, `alarm`."""
    return {name: value for name, value in metrics.items() if isinstance(value, str)}


def grouped(name: str) -> str:
    """Return the name of a metric in the form that dashboards group by: `eval/sampled` of `eval.sampled`."""
    return name.replace(".", "/", 1)


def evaluation_rows(step: int, tasks: Sequence[EvaluatedTask]) -> list[Any]:
    """Return a row of the columns `EVALUATION` for each task."""
    return [[step, task.id, task.task, task.sampled_before, task.sampled, task.greedy_before, task.greedy] for task in tasks]


def rollout_rows(step: int, rollouts: Sequence[TrackedRollout]) -> list[Any]:
    """Return a row of the columns `ROLLOUTS` for each rollout."""
    return [[step, rollout.id, rollout.task, rollout.reward, rollout.text] for rollout in rollouts]


def flat(config: Mapping[str, JSON], above: str = "") -> dict[str, JSON]:
    """Return nested settings by their full names: `trainer.lr`."""
    values: dict[str, JSON] = {}
    for name, value in config.items():
        full = f"{above}.{name}" if above else name
        values |= flat(value, full) if isinstance(value, dict) and value else {full: value}
    return values
