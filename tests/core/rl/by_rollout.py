"""Credit and advantage with one array for each trajectory, as tests like to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from agentlightning.rl.advantage import Estimate
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.types import Trajectory

Arrays = list[np.ndarray]


def by_rollout(function: Callable[..., Any]) -> Callable[..., Arrays]:
    """A credit as `(trajectories)`, or an advantage as `(trajectories, returns)`."""

    def called(trajectories: Sequence[Trajectory], returns: Arrays | None = None, **settings: Any) -> Arrays:
        rollouts = RolloutArrays.of(trajectories)
        arguments = [] if returns is None else [np.concatenate([np.empty(0), *returns])]
        made = function(rollouts, *arguments, **settings)
        return rollouts.split(made.advantage if isinstance(made, Estimate) else made)

    called.__name__ = function.__name__
    return called
