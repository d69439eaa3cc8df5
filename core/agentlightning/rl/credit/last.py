"""The last call earns the reward of the rollout."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import outcome_alone
from agentlightning.types import Doubles


@outcome_alone
def last(rollouts: RolloutArrays) -> Doubles:
    """G = R at the last call of the attempt, in all its choices; the calls before it earn nothing and are not trained."""
    last_call = np.full(len(rollouts), -1, np.int64)
    last_call[rollouts.rollout] = rollouts.call  # calls ascend, so the last one remains
    return np.where(last_call[rollouts.rollout] == rollouts.call, rollouts.returns[rollouts.rollout], np.nan)
