"""Maximum-likelihood reinforcement learning."""

from __future__ import annotations

import numpy as np

from agentlightning.errors import RewardError
from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.parameters import Tolerance
from agentlightning.types import Doubles


def maxrl(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A = (R - m) / m: the rarer success is in a group, the more it counts; where credit differs by turn A_t = (G_t - b_t) / m. Source:
    arXiv 2602.02710, for rewards from 0 to 1.

    Raises `RewardError` for a group whose rewards differ and whose mean is not above 0.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    mean = groups.mean()
    bad = np.flatnonzero(groups.varies & (mean <= tolerance))
    if len(bad):
        members = [t.rollout_id for t, g in zip(rollouts.trajectories, rollouts.group, strict=False) if g == bad[0]]
        raise RewardError(
            f"advantage 'maxrl' divides by a group's mean reward, and that of rollouts {', '.join(members) or bad[0]} is {mean[bad[0]]:g}. "
            "Use rewards of 0 or more, or another advantage (rloo)."
        )
    return groups.minus_mean() / groups.of_transitions(np.where(groups.varies, mean, 1.0))
