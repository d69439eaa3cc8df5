"""A critic's value replaces part of the future."""

from __future__ import annotations

from agentlightning.rl.advantage.lambda_returns import estimate
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.to_go import to_go
from agentlightning.rl.marks import uses_critic
from agentlightning.rl.parameters import Gamma, Lambda
from agentlightning.types import Doubles


@uses_critic
def learned(rollouts: RolloutArrays, *, gamma: Gamma = 1.0, lam: Lambda = 0.95) -> Doubles:
    """G_t = A_t + V_t, A_t = sum_k (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}): the lambda-return over transitions, where R counts
    as a reward of the last call. V_t is the critic's value before a transition's first token, and learns G_t. Source: arXiv 1506.02438.

    A smaller lam trusts the value of the next transition more, and so has less noise and more bias. lam 1 is the discounted reward to go.
    A transition that is not trained earns that too, because the critic was not asked about it.
    """
    gae = estimate(rollouts, to_go(rollouts, 1.0, rollouts.returns), gamma=gamma, lam=lam, over="transitions")
    returns = to_go(rollouts, gamma, rollouts.returns)
    returns[gae.transition] = gae.advantage + gae.value
    return returns
