"""The baseline of least variance if gradients grow with length."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.parameters import Tolerance
from agentlightning.types import Doubles


def opo(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A_t = G_t - b, b = sum L G_0 / sum L over the rollouts of the group, with L the sampled tokens of each. Source: arXiv 2505.23585.

    The published baseline depends on its own rollout. A rollout that never called the model has length 0, so it does not count.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    length = np.bincount(rollouts.rollout, rollouts.tokens, len(rollouts)).astype(np.float64)
    baseline = groups.sum(length * groups.first_return) / np.maximum(groups.sum(length), 1)
    return groups.minus(baseline[rollouts.group])
