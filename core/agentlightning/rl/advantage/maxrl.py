"""Maximum-likelihood reinforcement learning."""

from __future__ import annotations

import numpy as np

from agentlightning.errors import RewardError
from agentlightning.rl.advantage import compares_groups
from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.arrays import Doubles, RolloutArrays


@compares_groups
def maxrl(rollouts: RolloutArrays, returns: Doubles, *, tolerance: float = 1e-6) -> Doubles:
    """A = (R - m) / m: the rarer success is in a group, the more it counts; where credit differs by turn A_t = (G_t - b_t) / m. Source:
    arXiv 2602.02710, for rewards from 0 to 1.

    Raises `RewardError` for a group whose mean is not above 0 though its rewards differ: with penalties nothing can be divided by it.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    mean = groups.mean()
    bad = np.flatnonzero(groups.signal & (mean <= tolerance))
    if len(bad):
        members = [t.rollout_id for t, g in zip(rollouts.trajectories, rollouts.group, strict=False) if g == bad[0]]
        raise RewardError(
            f"advantage 'maxrl' divides by the mean reward of a group, and that of rollouts {', '.join(members) or bad[0]} is "
            f"{mean[bad[0]]:g}; give rewards of 0 or more, or use another advantage (rloo)"
        )
    raw = groups.less_mean() if groups.plain else groups.less_others()
    return raw / groups.of_transitions(np.where(groups.signal, mean, 1.0))
