"""REINFORCE with the others of the group as baseline."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.parameters import Tolerance
from agentlightning.types import Doubles


def rloo(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A = R - mean of the others = n / (n - 1) (R - m), with n rollouts in the group; where credit differs by turn A_t = G_t - b_t.
    Source: arXiv 2402.14740."""
    groups = Groups.of(rollouts, returns, tolerance)
    if not groups.identical:
        return groups.minus_others()
    return groups.minus_mean() * groups.of_transitions(groups.size / np.maximum(groups.size - 1, 1))
