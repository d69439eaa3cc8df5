"""REINFORCE++: returns normalised over the whole step, alone or after the group's mean was taken off."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage import compares_groups
from agentlightning.rl.advantage.groups import Groups, check
from agentlightning.rl.advantage.whiten import whiten
from agentlightning.rl.arrays import Doubles, RolloutArrays


def reinforce_pp(rollouts: RolloutArrays, returns: Doubles, *, tolerance: float = 1e-6) -> Doubles:
    """A_t = (G_t - mean) / deviation, both over the tokens that are trained in the step. Source: arXiv 2501.03262; verl."""
    check(tolerance >= 0, "tolerance", tolerance, "a number of 0 or more")
    return whiten(returns, rollouts.tokens, rollouts.trained & np.isfinite(returns), tolerance)


@compares_groups
def reinforce_pp_baseline(rollouts: RolloutArrays, returns: Doubles, *, tolerance: float = 1e-6) -> Doubles:
    """A = (R - m) / deviation, m the mean of the group and the deviation over the tokens that are trained in the step, with their mean
    taken off; where credit differs by turn (G_t - b_t) in place of (R - m). Source: arXiv 2501.03262; verl.

    Groups without signal count in mean and deviation, as they do in verl, and have advantage 0.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    raw = groups.less_mean() if groups.plain else groups.less_others()
    white = whiten(raw, rollouts.tokens, rollouts.trained & np.isfinite(raw), tolerance)
    return np.where(groups.of_transitions(groups.signal) | np.isnan(raw), white, 0.0)
