"""REINFORCE with a constant baseline."""

from __future__ import annotations

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent
from agentlightning.settings import FiniteFloat
from agentlightning.types import Doubles


@independent
def reinforce(rollouts: RolloutArrays, returns: Doubles, *, baseline: FiniteFloat = 0.0) -> Doubles:
    """A_t = G_t - baseline. Compares nothing, so a group of one is enough. Source: Williams 1992."""
    return returns - baseline
