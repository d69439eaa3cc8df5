"""REINFORCE with a constant baseline."""

from __future__ import annotations

import math

from agentlightning.rl.advantage.groups import check
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent
from agentlightning.types import Doubles


@independent
def reinforce(rollouts: RolloutArrays, returns: Doubles, *, baseline: float = 0.0) -> Doubles:
    """A_t = G_t - baseline. Compares nothing, so a group of one is enough. Source: Williams 1992."""
    check(math.isfinite(baseline), "baseline", baseline, "a finite number")
    return returns - baseline
