"""No advantage from rewards, for training on a teacher alone."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent, without_rewards
from agentlightning.types import Doubles


@without_rewards
@independent
def none(rollouts: RolloutArrays, returns: Doubles) -> Doubles:
    """A_t = 0, also without a reward: every sampled token counts, and only a teacher tells better from worse."""
    return np.zeros(rollouts.transitions)
