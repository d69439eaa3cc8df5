"""REINFORCE++: returns normalised over the step, alone or after subtracting the group's mean."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.advantage.whiten import whiten
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent
from agentlightning.rl.parameters import Tolerance
from agentlightning.types import Doubles


@independent
def reinforce_pp(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A_t = (G_t - mean) / deviation, both over the trained tokens of the step. Source: arXiv 2501.03262; verl."""
    return whiten(returns, rollouts.tokens, rollouts.trained & np.isfinite(returns), tolerance)


def reinforce_pp_baseline(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A = (R - m) / deviation, m the mean of the group and the deviation over the trained tokens of the step, after subtracting their
    mean; where credit differs by turn (G_t - b_t) in place of (R - m). Source: arXiv 2501.03262; verl.

    Zero-variance groups count in mean and deviation, as they do in verl, and have advantage 0.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    difference = groups.minus_mean()
    white = whiten(difference, rollouts.tokens, rollouts.trained & np.isfinite(difference), tolerance)
    return np.where(groups.of_transitions(groups.varies) | np.isnan(difference), white, 0.0)
