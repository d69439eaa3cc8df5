"""Generalised advantage estimation with a critic, over tokens or over transitions."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage import Estimate, uses_critic
from agentlightning.rl.advantage.groups import check
from agentlightning.rl.advantage.lambda_returns import Over, steps
from agentlightning.rl.advantage.whiten import whiten as whitened
from agentlightning.rl.arrays import Doubles, RolloutArrays


@uses_critic
def gae(
    rollouts: RolloutArrays, returns: Doubles, *, gamma: float = 1.0, lam: float = 0.95, over: Over = "tokens", whiten: bool = True
) -> Estimate:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = sum_k (gamma lam)^k delta_{t+k}, and V learns A_t + V_t. Source: arXiv 1506.02438.

    The steps t are sampled tokens or transitions, as `rl.gae.steps` has them, and the rewards those of which credit's returns tell: with
    identical credit the outcome comes at the very end, and with gamma = lam = 1 A_t = G_t - V_t. With `whiten` advantages have mean 0 and
    variance 1 over the tokens trained.
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        check(0 <= value <= 1, name, value, "a number from 0 to 1")
    check(over in ("tokens", "transitions"), "over", over, "'tokens' or 'transitions'")
    found = steps(rollouts, returns, gamma=gamma, lam=lam, over=over)
    advantage, target = (np.full(int(rollouts.tokens.sum()), np.nan) for _ in range(2))
    target[found.place] = found.advantage + found.value
    made = found.advantage
    if whiten and len(made):
        weight = np.ones(len(made), np.int64) if over == "tokens" else rollouts.tokens[found.transition]
        made = whitened(made, weight, np.ones(len(made), np.bool_), 0.0)
    if over == "transitions":
        each = np.full(rollouts.transitions, np.nan)
        each[found.transition] = made
        return Estimate(each, target)
    advantage[found.place] = made
    return Estimate(advantage, target)
