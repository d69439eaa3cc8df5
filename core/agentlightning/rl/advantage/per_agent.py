"""An advantage of its own for each agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.advantage import Estimate, Needs, needs_of
from agentlightning.rl.arrays import Doubles, RolloutArrays

Advantage = Callable[[RolloutArrays, Doubles], Any]


class PerAgent:
    """Names or patterns (`fnmatch`) of agents, each with its advantage; the first that fits counts.

    Baselines stay over the rollouts of the full group; what is taken over tokens (`reinforce_pp`, `gae`) is taken over the agent's own.
    """

    def __init__(self, parts: Mapping[str, Advantage]) -> None:
        self.parts = dict(parts)
        self.needs = Needs()
        for each in self.parts.values():
            self.needs |= needs_of(each)

    def __call__(self, rollouts: RolloutArrays, returns: Doubles) -> Estimate:
        """Raises `ConfigError` for an agent that is trained and fits no name."""
        advantage = np.full(int(rollouts.tokens.sum()), np.nan)
        target = advantage.copy()
        left = rollouts.trained.copy()
        for pattern, part in self.parts.items():
            chosen = left & rollouts.acts(pattern)
            left &= ~chosen
            made = part(rollouts.only(chosen), returns)
            estimate = made if isinstance(made, Estimate) else Estimate(made, np.full(len(target), np.nan))
            mine = np.repeat(chosen, rollouts.tokens)
            advantage[mine] = rollouts.per_token(estimate.advantage)[mine]
            target[mine] = estimate.target[mine]
        if (left & np.isfinite(returns)).any():
            name = rollouts.agents[int(rollouts.agent[left][0])]
            raise ConfigError(
                f"algorithm.advantage names {', '.join(map(repr, self.parts))}, and agent {name!r} is trained as well; add it, or "
                "'*' for all others"
            )
        return Estimate(advantage, target)
