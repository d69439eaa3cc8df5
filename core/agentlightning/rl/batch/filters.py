"""Filters of groups. Each takes the trajectories of one group and returns whether to keep it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.errors import ConfigError
from agentlightning.rl.parameters import Tolerance
from agentlightning.rl.signal import TOLERANCE, has_signal
from agentlightning.types import Trajectory


def nonzero_variance(group: Sequence[Trajectory], *, tolerance: Tolerance = TOLERANCE) -> bool:
    """Whether the rewards of a group differ. A group of equal rewards teaches nothing. Source: dynamic sampling of DAPO, arXiv
    2503.14476."""
    return has_signal([trajectory.reward for trajectory in group if trajectory.reward is not None], tolerance)


def difficulty(
    group: Sequence[Trajectory],
    *,
    low: Annotated[float, Meta(description="the lowest mean reward that stays")] = 0.1,
    high: Annotated[float, Meta(description="the highest")] = 0.9,
) -> bool:
    """Whether a group's mean reward lies in [low, high]: neither too hard nor too easy. Drops groups that were never scored."""
    if low > high:
        raise ConfigError(f"collection.filter.low and high are {low} and {high}. Set low <= high.")
    rewards = [trajectory.reward for trajectory in group if trajectory.reward is not None]
    return bool(rewards) and low <= float(np.mean(rewards)) <= high
