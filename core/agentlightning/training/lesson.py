"""What one policy learned in a step, and the metrics and contributions of several such lessons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.training.metrics import contributions, step_metrics
from agentlightning.training.run_state import Learned
from agentlightning.types import Trajectory

LARGEST = ("mismatch_abs", "mismatch_abs_max", "mismatch_kl", "off_policy_abs", "kl", "clip_fraction")
SMALLEST = ("entropy",)
"""Metrics of a policy whose largest or smallest value is the run's too, because the diagnosis reads it."""
OTHERS = "sampled by policy "
"""Beginning of the reason why a reply of another policy is not trained."""


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """A policy's part of a step."""

    trajectories: Sequence[Trajectory]
    """As its algorithm saw them."""
    returns: Sequence[Any]
    advantages: Sequence[Any]
    batch: Batch
    metrics: dict[str, float]
    """Of the trainer and the algorithm."""
    policy: str | None = None
    """None: the run has one policy."""

    def learned(self) -> dict[str, Learned]:
        """The contribution of each rollout."""
        return contributions(self.trajectories, self.returns, self.advantages, self.batch)


def metrics_of(trajectories: Sequence[Trajectory], lessons: Sequence[Lesson]) -> dict[str, Any]:
    """Return the metrics of a step before those of its source. `trajectories`: as they were collected.

    With several policies, those of one policy have its name: `writer/loss`.
    """
    first = lessons[0]
    if first.policy is None:
        return step_metrics(first.trajectories, first.batch)
    row = step_metrics(trajectories, first.batch)
    row["trained_tokens"] = sum(lesson.batch.trained_tokens for lesson in lessons)
    row["trained_fraction"] = row["trained_tokens"] / row["sampled_tokens"] if row["sampled_tokens"] else 0.0
    row["zero_variance_groups"] = min(lesson.batch.stats.zero_variance_groups for lesson in lessons)
    row.pop("untrained_reason", None)
    if not row["trained_tokens"]:
        reasons = Counter(u.reason for lesson in lessons for u in lesson.batch.untrained if not u.reason.startswith(OTHERS))
        row |= {"untrained_reason": reasons.most_common(1)[0][0]} if reasons else {}
    return row


def trained_metrics(lessons: Sequence[Lesson]) -> dict[str, float]:
    """Return the metrics of trainers and algorithms, under the name of each policy if there are several."""
    if lessons[0].policy is None:
        return lessons[0].metrics
    row: dict[str, float] = {}
    for lesson in lessons:
        row |= {f"{lesson.policy}/{name}": value for name, value in {**_sampled(lesson), **lesson.metrics}.items()}
    for worst, names in ((max, LARGEST), (min, SMALLEST)):
        for name in names:
            values = [lesson.metrics[name] for lesson in lessons if name in lesson.metrics]
            row |= {name: worst(values)} if values else {}
    measured = [lesson.metrics for lesson in lessons if "mismatch_abs" in lesson.metrics and "mismatch_abs_error" in lesson.metrics]
    if measured:
        largest = max(measured, key=lambda metrics: metrics["mismatch_abs"])
        row["mismatch_abs_error"] = largest["mismatch_abs_error"]
    row["policy_version"] = sum(lesson.metrics.get("policy_version", 0.0) for lesson in lessons)
    if nonzero := [lesson.metrics["nonzero_advantages"] for lesson in lessons if "nonzero_advantages" in lesson.metrics]:
        row["nonzero_advantages"] = max(nonzero)
    return row


def _sampled(lesson: Lesson) -> dict[str, float]:
    """The replies of a policy, and the mean reward of the rollouts in which it acted."""
    own = [[t for t in trajectory.transitions if t.policy == lesson.policy] for trajectory in lesson.trajectories]
    rewards = [
        trajectory.reward for trajectory, replies in zip(lesson.trajectories, own, strict=True) if replies and trajectory.reward is not None
    ]
    sampled = sum(len(t.response_ids) for replies in own for t in replies if not t.demonstrated)
    row: dict[str, float] = {
        "transitions": sum(map(len, own)),
        "sampled_tokens": sampled,
        "trained_tokens": lesson.batch.trained_tokens,
        "trained_fraction": lesson.batch.trained_tokens / sampled if sampled else 0.0,
    }
    return row | ({"reward": float(np.mean(rewards))} if rewards else {})


def learned_by_all(trajectories: Sequence[Trajectory], lessons: Sequence[Lesson]) -> dict[str, Learned]:
    """Return the contribution of each rollout, with each reply's return and advantage from the policy that sampled it. Every sampled token
    counts once."""
    if lessons[0].policy is None:
        return lessons[0].learned()
    by_policy = {lesson.policy: lesson.learned() for lesson in lessons}
    return {trajectory.rollout_id: _together(trajectory, by_policy) for trajectory in trajectories}


def _together(trajectory: Trajectory, by_policy: Mapping[str | None, Mapping[str, Learned]]) -> Learned:
    parts = {name: learned[trajectory.rollout_id] for name, learned in by_policy.items()}
    first = next(iter(parts.values()))
    owners = [parts.get(transition.policy, first) for transition in trajectory.transitions]
    trained = {f"{OTHERS}{name!r}" for name in parts}
    excluded = Counter(first.excluded)  # with the replies of frozen policies
    for part in [*parts.values()][1:]:
        excluded.update({reason: tokens for reason, tokens in part.excluded.items() if not reason.startswith(OTHERS)})
    return replace(
        first,
        returns=tuple(owner.returns[k] for k, owner in enumerate(owners)),
        advantages=tuple(owner.advantages[k] for k, owner in enumerate(owners)),
        trained=sum(part.trained for part in parts.values()),
        excluded={reason: tokens for reason, tokens in excluded.items() if reason not in trained},
    )
