"""REINFORCE with a constant baseline."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent
from agentlightning.settings import FiniteFloat
from agentlightning.types import Doubles

Baseline = Annotated[FiniteFloat, Meta(description="subtracted from every return")]


@independent
def reinforce(rollouts: RolloutArrays, returns: Doubles, *, baseline: Baseline = 0.0) -> Doubles:
    """A_t = G_t - baseline. Compares nothing, so a group of one is enough. Source: Williams 1992."""
    return returns - baseline
