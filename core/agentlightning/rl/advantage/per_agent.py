"""A separate advantage for each agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.advantage import Estimate
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import Mark, marks_of
from agentlightning.types import Doubles

Advantage = Callable[[RolloutArrays, Doubles], Any]


class PerAgent:
    """Names or patterns (`fnmatch`) of agents, each with its advantage; the first match counts.

    Baselines stay over the rollouts of the full group. Statistics over tokens (`reinforce_pp`, `gae`) are over the agent's own tokens.
    """

    def __init__(self, advantages: Mapping[str, Advantage]) -> None:
        self.advantages = dict(advantages)
        marks = [marks_of(advantage) for advantage in self.advantages.values()]
        alone: frozenset[Mark] = frozenset({"independent"}) if all("independent" in of_one for of_one in marks) else frozenset()
        self.marks = alone | (frozenset[Mark]().union(*marks) - {"independent"})

    def __call__(self, rollouts: RolloutArrays, returns: Doubles) -> Estimate:
        """Raises `ConfigError` for an agent that is trained and matches no name."""
        advantage = np.full(int(rollouts.tokens.sum()), np.nan)
        target = advantage.copy()
        unmatched = rollouts.trained.copy()
        for pattern, function in self.advantages.items():
            chosen = unmatched & rollouts.acts(pattern)
            unmatched &= ~chosen
            result = function(rollouts.only(chosen), returns)
            estimate = result if isinstance(result, Estimate) else Estimate(result, np.full(len(target), np.nan))
            tokens = np.repeat(chosen, rollouts.tokens)
            advantage[tokens] = rollouts.per_token(estimate.advantage)[tokens]
            target[tokens] = estimate.target[tokens]
        if (unmatched & np.isfinite(returns)).any():
            name = rollouts.agents[int(rollouts.agent[unmatched][0])]
            raise ConfigError(
                f"algorithm.advantage names {', '.join(map(repr, self.advantages))}, and agent {name!r} is trained as well. Add it, or "
                "'*' for all others."
            )
        return Estimate(advantage, target)
