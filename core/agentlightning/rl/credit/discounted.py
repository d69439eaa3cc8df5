"""Earlier calls earn less."""

from __future__ import annotations

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.to_go import to_go
from agentlightning.rl.parameters import Gamma
from agentlightning.types import Doubles


def discounted(rollouts: RolloutArrays, *, gamma: Gamma = 0.95) -> Doubles:
    """G_t = r_t + gamma G_{t+1}, where R counts as a reward of the last call. Source: AReaL, `apply_reward_discount`."""
    return to_go(rollouts, gamma, rollouts.returns)
