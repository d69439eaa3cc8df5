"""Each call earns its own rewards and the later ones, mixed with the reward of the rollout."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.to_go import to_go
from agentlightning.rl.parameters import Gamma
from agentlightning.settings import FiniteFloat
from agentlightning.types import Doubles


def per_step(
    rollouts: RolloutArrays,
    *,
    rollout_weight: Annotated[FiniteFloat, Meta(description="the weight of the reward of the whole rollout")] = 1.0,
    gamma: Gamma = 1.0,
) -> Doubles:
    """G_t = rollout_weight R + sum_{k >= t} gamma^(k - t) r_k: rewards of steps, and an undiscounted reward of the rollout.

    gamma 0 is the mixture of turn and outcome of arXiv 2505.11821, which is biased where the policy chooses when to stop; gamma 1 is the
    reward to go and is not. With rollout_weight 0 the spans alone score a rollout; it is unscored only if none of them has a reward.
    """
    outcome = rollout_weight * rollouts.returns
    if not rollout_weight:
        rewarded = np.bincount(rollouts.rollout, rollouts.rewarded, len(rollouts)) > 0
        succeeded = np.ones(len(rollouts), np.bool_) if rollouts.succeeded is None else rollouts.succeeded
        outcome = np.where(rewarded & succeeded, 0.0, outcome)
    return outcome.take(rollouts.rollout) + to_go(rollouts, gamma, np.zeros(len(rollouts)))
