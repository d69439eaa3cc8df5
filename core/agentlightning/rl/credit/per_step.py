"""Each call earns its own rewards and those after it, mixed with the outcome."""

from __future__ import annotations

import math

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.arrays import Doubles, Episodes
from agentlightning.rl.credit.to_go import check_gamma, to_go


def per_step(episodes: Episodes, *, outcome: float = 1.0, gamma: float = 1.0) -> Doubles:
    """G_t = outcome R + sum_{k >= t} gamma^(k - t) r_k: own rewards, and an outcome that early calls do not lose.

    gamma 0 is the mixture of turn and outcome of arXiv 2505.11821, which is biased where the policy chooses when to stop; gamma 1 is the
    reward to go and is not. outcome 0: the spans alone score a rollout, which is then unscored only without any reward on them.
    """
    check_gamma(gamma)
    if not math.isfinite(outcome):
        raise ConfigError(f"credit.outcome is {outcome}; expected a finite number, the weight of the outcome")
    always = outcome * episodes.outcome
    if not outcome:
        rewarded = np.bincount(episodes.rollout, episodes.rewarded, len(episodes)) > 0
        done = np.ones(len(episodes), np.bool_) if episodes.succeeded is None else episodes.succeeded
        always = np.where(rewarded & done, 0.0, always)
    return always.take(episodes.rollout) + to_go(episodes, gamma, np.zeros(len(episodes)))
