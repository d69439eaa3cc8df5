"""Generalised advantage estimation with a critic, over tokens or over transitions."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.rl.advantage import Estimate
from agentlightning.rl.advantage.lambda_returns import Over, estimate
from agentlightning.rl.advantage.whiten import whiten as whitened
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent, uses_critic
from agentlightning.rl.parameters import Gamma, Lambda
from agentlightning.types import Doubles


@independent
@uses_critic
def gae(
    rollouts: RolloutArrays,
    returns: Doubles,
    *,
    gamma: Gamma = 1.0,
    lam: Lambda = 0.95,
    over: Annotated[Over, Meta(description="what a step is")] = "tokens",
    whiten: Annotated[bool, Meta(description="whether advantages get mean 0 and variance 1")] = True,
) -> Estimate:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = sum_k (gamma lam)^k delta_{t+k}, and V learns A_t + V_t. Source: arXiv 1506.02438.

    The steps t are sampled tokens or transitions, with the rewards of `lambda_returns.estimate`: with identical credit the reward of the
    rollout comes at the very end, and with gamma = lam = 1 A_t = G_t - V_t. With `whiten` advantages have mean 0 and variance 1 over the
    trained tokens.
    """
    steps = estimate(rollouts, returns, gamma=gamma, lam=lam, over=over)
    advantage = steps.advantage
    if whiten and len(advantage):
        tokens = np.ones(len(advantage), np.int64) if over == "tokens" else rollouts.tokens[steps.transition]
        advantage = whitened(advantage, tokens, np.ones(len(advantage), np.bool_), 0.0)
    size = int(rollouts.tokens.sum())
    target = np.full(size, np.nan)
    target[steps.token] = steps.advantage + steps.value
    aligned = np.full(size if over == "tokens" else rollouts.transitions, np.nan)
    aligned[steps.token if over == "tokens" else steps.transition] = advantage
    return Estimate(aligned, target)
