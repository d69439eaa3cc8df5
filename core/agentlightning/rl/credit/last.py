"""The last call earns the outcome."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.arrays import Doubles, RolloutArrays
from agentlightning.rl.credit import outcome_alone


@outcome_alone
def last(rollouts: RolloutArrays) -> Doubles:
    """G = R at the last call of the attempt, in all its choices; the calls before it earn nothing and are not trained."""
    calls = np.full(len(rollouts), -1, np.int64)
    calls[rollouts.rollout] = rollouts.call  # of several the last one stays
    return np.where(calls[rollouts.rollout] == rollouts.call, rollouts.returns[rollouts.rollout], np.nan)
