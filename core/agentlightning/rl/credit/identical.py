"""Every transition earns the reward of the rollout."""

from __future__ import annotations

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import outcome_alone
from agentlightning.types import Doubles


@outcome_alone
def identical(rollouts: RolloutArrays) -> Doubles:
    """G_t = R. Rewards of spans are not used. Source: arXiv 2508.03680 (LightningRL)."""
    return rollouts.returns[rollouts.rollout]
