"""Signal: whether the rewards of a group of rollouts differ, and how likely those of a new group do.

Advantages compare the rewards of a group, so equal rewards have no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from agentlightning.types import Doubles

TOLERANCE = 1e-6
"""Rewards that differ by less count as equal, in the advantages too."""
CONCENTRATIONS = 2.0 ** np.arange(-7, 7.1, 0.25)
"""(concentrations,) From tasks that always earn the same reward to tasks that are all alike."""
UNSEEN = 0.5
"""Rollouts with another reward that count as measured if all rewards are equal (the Jeffreys prior of a share)."""
Z = 1.959964
"""Standard errors on each side of a 95% interval."""


def has_signal(rewards: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    """Return whether the rewards of a group differ."""
    return len(rewards) > 1 and max(rewards) - min(rewards) > tolerance


def signal_chance(groups: Sequence[Sequence[float]], size: int) -> float:
    """Return the chance that the rewards of a new group of `size` rollouts differ, averaged over the measured tasks.

    `groups` holds the rewards of each measured task. If a task earns value v with chance q_v, then all n rewards of its group are equal
    with chance sum_v q_v^n. For rewards of 0 and 1 the chance of signal is 1 - p^n - (1 - p)^n. This holds for real-valued rewards too:
    rewards that never repeat have small q_v, and almost every group has signal.

    A few rollouts do not reveal q, and the plain shares find too little signal: eight failures do not prove that a task never succeeds. So
    q has a Dirichlet prior (a Beta prior for two values) around the shares of all rollouts together. The prior's concentration is averaged
    over a grid, weighted by the likelihood of all tasks. The result is the posterior mean of 1 - sum_v q_v^n. It also
    covers group sizes above those measured, as far as success is spread over the tasks like a Beta distribution.
    """
    counts = _counts(groups)  # (tasks, values)
    totals = counts.sum(0)
    if len(totals) == 1:
        counts, totals = np.pad(counts, ((0, 0), (0, 1))), np.array([totals[0], UNSEEN])
    prior = CONCENTRATIONS[:, None, None] * totals / totals.sum()  # (concentrations, 1, values)
    measured, strength = counts.sum(1), CONCENTRATIONS[:, None]  # (tasks,), (concentrations, 1)
    likelihood = (_log_rising(prior, counts).sum(2) - _log_rising(strength, measured)).sum(1)
    weight = np.exp(likelihood - likelihood.max())
    sizes = np.array(size)
    equal = np.exp(_log_rising(prior + counts, sizes) - _log_rising(strength + measured, sizes)[..., None]).sum(2)
    return float(1 - (weight / weight.sum()) @ equal.mean(1))


def share_interval(hits: float, total: float) -> tuple[float, float]:
    """Return the 95% interval of a share that was measured as `hits` of `total` (Wilson). It is not empty for 0 of 8."""
    share, spread = hits / total, Z * Z / total
    middle = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _counts(groups: Sequence[Sequence[float]]) -> Doubles:
    """(tasks, values) how often each task earned each value."""
    rewards = np.concatenate([np.asarray(group, np.float64) for group in groups])
    order = np.argsort(rewards, kind="stable")
    value = np.empty(len(rewards), np.int64)
    value[order] = np.concatenate([[0], np.cumsum(np.diff(rewards[order]) > TOLERANCE)])
    counts = np.zeros((len(groups), int(value.max()) + 1))
    np.add.at(counts, (np.repeat(np.arange(len(groups)), [len(group) for group in groups]), value), 1.0)
    return counts


def _log_rising(start: Doubles, count: Doubles) -> Doubles:
    """Return the logarithm of start (start + 1) ... (start + count - 1), for every pair that broadcasts."""
    start, count = np.broadcast_arrays(start, count)
    steps = np.arange(int(count.max(initial=0)))
    return np.where(steps < count[..., None], np.log(start[..., None] + steps), 0.0).sum(-1)
