"""What a critic expects stands for what is still to come."""

from __future__ import annotations

from agentlightning.errors import ConfigError
from agentlightning.rl.advantage import uses_critic
from agentlightning.rl.advantage.lambda_returns import steps
from agentlightning.rl.arrays import Doubles, RolloutArrays
from agentlightning.rl.credit.to_go import check_gamma, to_go


@uses_critic
def learned(rollouts: RolloutArrays, *, gamma: float = 1.0, lam: float = 0.95) -> Doubles:
    """G_t = A_t + V_t, A_t = sum_k (gamma lam)^k (r_{t+k} + gamma V_{t+k+1} - V_{t+k}): the lambda-return over transitions, where R counts
    as a reward of the last call. V_t is the critic's value before a transition's first token, and learns G_t. Source: arXiv 1506.02438.

    The smaller lam, the more the value of the next transition stands for what came after it, and the less does its noise; lam 1 is the
    discounted reward to go, and so earns a transition that is not trained, of which the critic says nothing.
    """
    check_gamma(gamma)
    if not 0 <= lam <= 1:
        raise ConfigError(f"credit.lam is {lam}; it must lie between 0 and 1")
    found = steps(rollouts, to_go(rollouts, 1.0, rollouts.returns), gamma=gamma, lam=lam, over="transitions")
    returns = to_go(rollouts, gamma, rollouts.returns)
    returns[found.transition] = found.advantage + found.value
    return returns
