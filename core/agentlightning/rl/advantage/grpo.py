"""Group relative policy optimisation, with the deviation and without."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.parameters import Ddof, Epsilon, Std, Tolerance
from agentlightning.types import Doubles


def grpo(
    rollouts: RolloutArrays,
    returns: Doubles,
    *,
    std: Std = True,
    ddof: Ddof = 1,
    eps: Epsilon = 1e-6,
    tolerance: Tolerance = 1e-6,
) -> Doubles:
    """A = (R - m) / (s + eps), with m and s mean and deviation of the group's rollouts. Source: arXiv 2402.03300; `ddof` 1 as in verl.

    Where credit differs by turn A_t = (G_t - b_t) / (s + eps), with s the deviation of the rollouts' first returns G_0. If these are
    equal within the tolerance, nothing is divided.
    """
    groups = Groups.of(rollouts, returns, tolerance)
    advantage = groups.minus_mean()
    if std:
        deviation = groups.deviation(ddof)
        advantage /= groups.of_transitions(np.where(groups.varies & (deviation > tolerance), deviation + eps, 1.0))
    return advantage


def dr_grpo(rollouts: RolloutArrays, returns: Doubles, *, tolerance: Tolerance = 1e-6) -> Doubles:
    """A = R - m; where credit differs by turn A_t = G_t - b_t. Its constant length is `loss_aggregation = "constant_length"`.

    Source: arXiv 2503.20783.
    """
    return grpo(rollouts, returns, std=False, tolerance=tolerance)
