"""Each call earns its own rewards and those after it, mixed with the outcome."""

from __future__ import annotations

import math

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.arrays import Doubles, RolloutArrays
from agentlightning.rl.credit.to_go import check_gamma, to_go


def per_step(rollouts: RolloutArrays, *, rollout_weight: float = 1.0, gamma: float = 1.0) -> Doubles:
    """G_t = rollout_weight R + sum_{k >= t} gamma^(k - t) r_k: own rewards, and an outcome that early calls do not lose.

    gamma 0 is the mixture of turn and outcome of arXiv 2505.11821, which is biased where the policy chooses when to stop; gamma 1 is the
    reward to go and is not. rollout_weight 0: the spans alone score a rollout, which is then unscored only without any reward on them.
    """
    check_gamma(gamma)
    if not math.isfinite(rollout_weight):
        raise ConfigError(f"credit.rollout_weight is {rollout_weight}; expected a finite number, the weight of the outcome")
    always = rollout_weight * rollouts.returns
    if not rollout_weight:
        rewarded = np.bincount(rollouts.rollout, rollouts.rewarded, len(rollouts)) > 0
        done = np.ones(len(rollouts), np.bool_) if rollouts.succeeded is None else rollouts.succeeded
        always = np.where(rewarded & done, 0.0, always)
    return always.take(rollouts.rollout) + to_go(rollouts, gamma, np.zeros(len(rollouts)))
