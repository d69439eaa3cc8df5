"""How far scores agree with labels: Spearman's rank correlation, and for labels of 0 and 1 accuracy and Cohen's kappa.

Intervals are percentiles of a bootstrap over tasks, because the rollouts of one task are alike. A rollout without a label, or without a
score, is missing: it is counted, and never a 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
from msgspec import structs

from agentlightning.errors import RewardError
from agentlightning.training.interval import LEVEL
from agentlightning.training.rewards.recorded_rollout import RecordedRollout
from agentlightning.types import Doubles, Ints, Task

RESAMPLES = 1_000
THRESHOLD = 0.5
"""A score of at least this counts as 1, where labels are 0 and 1."""
TASK = "task."
"""Begins the name of a label that is a key of the task."""
Measure: TypeAlias = Callable[[Doubles, Doubles], float]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The score of a rollout beside its label; None: missing."""

    task: str
    score: float | None
    label: float | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measure with its interval."""

    value: float
    low: float | None
    """None: there are too few tasks for an interval."""
    high: float | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far scores agree with labels."""

    pairs: int
    tasks: int
    without_label: int
    without_score: int
    measures: dict[str, Estimate | None]
    """By name. None: undefined, because all scores or all labels are equal."""


def label_of(rollout: RecordedRollout, name: str) -> float | None:
    """Return the label of a rollout: its reward of this name, or for `task.KEY` that key of its task. None: it has none.

    Raises `RewardError` for a key that holds no number.
    """
    if not name.startswith(TASK):
        return rollout.rewards.get(name)
    task: Any = rollout.task
    value = cast("dict[str, Any]", task).get(name.removeprefix(TASK)) if isinstance(task, dict) else None
    if value is not None and not isinstance(value, bool | int | float):
        raise RewardError(f"The label {name!r} of rollout {rollout.id} is {value!r:.80}. Use a number, or true and false.")
    return None if value is None else float(value)


def label_names(rollout: RecordedRollout) -> set[str]:
    """Return the labels that a rollout has, under the names of `label_of`."""
    task: Any = rollout.task
    keys = cast("dict[str, Any]", task).items() if isinstance(task, dict) else ()
    return {*rollout.rewards, *(f"{TASK}{key}" for key, value in keys if isinstance(value, bool | int | float))}


def without_label(rollout: RecordedRollout, name: str) -> RecordedRollout:
    """Return the same rollout, whose task does not have the label."""
    task: Any = rollout.task
    if not name.startswith(TASK) or not isinstance(task, dict):
        return rollout
    rest = {key: value for key, value in cast("dict[str, Any]", task).items() if key != name.removeprefix(TASK)}
    recorded = rollout.state.rollout
    hidden = structs.replace(recorded, task=Task(recorded.task.id, rest))
    return replace(rollout, state=structs.replace(rollout.state, rollout=hidden))


def agreement(rows: Sequence[Labelled], *, seed: int = 0) -> Agreement:
    """Return how far the scores agree with the labels."""
    pairs = [(row.task, row.score, row.label) for row in rows if row.score is not None and row.label is not None]
    scores, labels = (np.array([pair[place] for pair in pairs], dtype=np.float64) for place in (1, 2))
    places: dict[str, list[int]] = {}
    for place, (task, *_) in enumerate(pairs):
        places.setdefault(task, []).append(place)
    measures: dict[str, Measure] = {"Spearman's correlation": spearman}
    if pairs and np.isin(labels, (0.0, 1.0)).all():
        measures |= {"accuracy": accuracy, "Cohen's kappa": kappa}
    draws = _draws([np.array(own, dtype=np.int64) for own in places.values()], seed)
    return Agreement(
        pairs=len(pairs),
        tasks=len(places),
        without_label=sum(row.label is None for row in rows),
        without_score=sum(row.label is not None and row.score is None for row in rows),
        measures={name: _estimate(measure, scores, labels, draws) for name, measure in measures.items()} if pairs else {},
    )


def spearman(scores: Doubles, labels: Doubles) -> float:
    """Return the correlation of the ranks, ties at their mean rank. NaN: all scores, or all labels, are equal."""
    one, other = (ranks - ranks.mean() for ranks in (mean_ranks(scores), mean_ranks(labels)))
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum() / scale) if scale else float("nan")


def accuracy(scores: Doubles, labels: Doubles) -> float:
    """Return the share of scores on the side of their label."""
    return float(((scores >= THRESHOLD) == (labels == 1)).mean())


def kappa(scores: Doubles, labels: Doubles) -> float:
    """Return the agreement beyond chance. NaN: scores and labels are all on the same side."""
    high, true = (scores >= THRESHOLD).mean(), (labels == 1).mean()
    chance = high * true + (1 - high) * (1 - true)
    return float((accuracy(scores, labels) - chance) / (1 - chance)) if chance < 1 else float("nan")


def mean_ranks(values: Doubles) -> Doubles:
    """(values,) the rank of each value, from 0; equal values have the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def _draws(tasks: Sequence[Ints], seed: int) -> list[Ints]:
    """Resamples of the tasks, as places of their pairs."""
    if len(tasks) < 2:
        return []
    rng = np.random.default_rng(seed)
    chosen = [cast("list[int]", rng.integers(len(tasks), size=len(tasks)).tolist()) for _ in range(RESAMPLES)]
    return [np.concatenate([tasks[task] for task in draw]) for draw in chosen]


def _estimate(measure: Measure, scores: Doubles, labels: Doubles, draws: Sequence[Ints]) -> Estimate | None:
    value = measure(scores, labels)
    if not np.isfinite(value):
        return None
    drawn = np.array([measure(scores[draw], labels[draw]) for draw in draws])
    defined = drawn[np.isfinite(drawn)]
    if len(defined) < RESAMPLES / 2:
        return Estimate(value, None, None)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))
