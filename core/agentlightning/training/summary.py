"""What was collected and learned in a step, as metrics and for `agl show`; a number that was not measured is absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.rl.trajectory.step_rewards import STEP_SIGNAL
from agentlightning.training.run_folder import Learned
from agentlightning.types import Trajectory


def summary(trajectories: Sequence[Trajectory], batch: Batch) -> dict[str, Any]:
    """What was collected in a step; a number that was not measured is absent. The reward of a rollout with demonstrations in it says
    nothing of the policy: it is `demonstrated_reward`."""
    rewards: list[float] = []
    demonstrated: list[float] = []
    groups: dict[str, list[float]] = {}
    for each in trajectories:
        if each.reward is not None and any(transition.demonstrated for transition in each.transitions):
            demonstrated.append(each.reward)
        elif each.reward is not None:
            rewards.append(each.reward)
            groups.setdefault(each.group, []).append(each.reward)
    transitions = [transition for each in trajectories for transition in each.transitions]
    row: dict[str, Any] = {
        "rollouts": len(trajectories),
        "unscored": len(trajectories) - len(rewards) - len(demonstrated),
        "failed": sum(each.status != "succeeded" for each in trajectories),
        "transitions": len(transitions),
        "sampled_tokens": sum(len(transition.response_ids) for transition in transitions if not transition.demonstrated),
        "trained_tokens": batch.trained_tokens,
        "trained_fraction": batch.stats.trained_fraction,
        "groups": batch.stats.groups,
        "zero_variance_groups": batch.stats.zero_variance_groups,
    }
    if rewards:
        row["reward"] = float(np.mean(rewards))
        row["reward_spread"] = float(np.std([np.mean(values) for values in groups.values()]))
    if demonstrated:
        row["demonstrated_reward"] = float(np.mean(demonstrated))
        row["demonstrated_tokens"] = sum(len(transition.response_ids) for transition in transitions if transition.demonstrated)
    seen = {r.id: r.name for each in transitions for r in each.rewards if r.source == STEP_SIGNAL}
    row |= {f"step_signals.{name}": count for name, count in sorted(Counter(seen.values()).items())}
    requests = Counter[str]()
    for each in trajectories:
        requests.update(each.calls)
    return row | {f"requests.{status}": count for status, count in sorted(requests.items())}


def learned(trajectories: Sequence[Trajectory], returns: Sequence[Any], advantages: Sequence[Any], batch: Batch) -> dict[str, Learned]:
    """What each rollout contributed to a step, for `agl show`: every sampled token is trained or left out by a named reason."""
    left: dict[str, Counter[str]] = {}
    for each in batch.untrained:
        left.setdefault(each.rollout_id, Counter())[each.reason] += each.tokens
    counts = np.bincount(batch.transition_rollout[batch.transition[batch.trained]], minlength=len(batch.rollout_ids))
    trained = dict(zip(batch.rollout_ids, counts.tolist(), strict=True))
    return {
        each.rollout_id: Learned(
            returns=tuple(_number(value) for value in credit),
            advantages=tuple(_number(value) for value in by_transition(each, advantage)),
            trained=trained.get(each.rollout_id, 0),
            left_out=dict(left.get(each.rollout_id, {})),
        )
        for each, credit, advantage in zip(trajectories, returns, advantages, strict=True)
    }


def by_transition(trajectory: Trajectory, values: Any) -> Any:
    """(transitions,) from one number for each, or the mean over the tokens of each."""
    tokens = [len(each.response_ids) for each in trajectory.transitions]
    if len(values) == len(tokens):
        return values
    return [float(np.mean(some)) if len(some) else np.nan for some in np.split(values, np.cumsum(tokens)[:-1])]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
