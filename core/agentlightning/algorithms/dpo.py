"""Direct preference optimisation on pairs of rollouts that the policy made (arXiv 2305.18290; the formula stands in `DPOLoss`).

The better rollout of a pair is chosen, the worse one rejected; a rollout is one sequence, with all its turns. It stands in at most one
pair, and what stands in none is left out by name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.errors import ConfigError
from agentlightning.rl.marks import Needs
from agentlightning.contracts.batch import Batch
from agentlightning.types import Doubles
from agentlightning.rl.batch.build import make_batch, trainable
from agentlightning.rl.loss import DPOLoss
from agentlightning.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class DPO(Algorithm):
    """Rollouts of the policy as it is, paired within their groups by reward, then a step on the pairs."""

    name: str = "dpo"
    group_size: int = 8
    """Rollouts of each task in a step."""
    beta: float = 0.1
    """How strongly the policy is held near the reference: the model that the run began with (for LoRA the model without its adapter)."""
    tolerance: float = 1e-6
    """Rewards that differ by no more make no pair."""
    epochs: int = 1
    """Passes over the batch."""
    minibatches: int = 1
    """Optimiser steps in a pass; pairs are dealt over them in batch order."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ConfigError(f"algorithm.group_size is {self.group_size}; it must be at least 2, for pairs are made within a group")
        for key in ("epochs", "minibatches"):
            if getattr(self, key) < 1:
                raise ConfigError(f"algorithm.{key} is {getattr(self, key)}; it must be at least 1")
        if not (self.tolerance >= 0 and math.isfinite(self.tolerance)):
            raise ConfigError(f"algorithm.tolerance is {self.tolerance}; it must be 0 or more")
        self.parts()

    @property
    def needs(self) -> Needs:
        """Several rollouts of a task."""
        return Needs(group=True)

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'dpo' pairs rollouts by their outcome"

    def parts(self) -> tuple[DPOLoss]:
        """The loss, checked. Imports no trainer."""
        return (DPOLoss(beta=self.beta, epochs=self.epochs, minibatches=self.minibatches),)

    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""
        (loss,) = self.parts()
        for step in session.steps():
            trajectories = await session.collect(step, self.group_size)
            pairs = pairs_of(trajectories, self.tolerance)
            returns = [np.full(len(each.transitions), np.nan if each.reward is None else each.reward) for each in trajectories]
            advantages = preferred(trajectories, pairs)
            batch = make_batch(trajectories, advantages, loss_aggregation="pair_mean", pairs=pairs)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, returns, advantages, batch, {**metrics, "pairs": float(len(pairs))})


def pairs_of(trajectories: Sequence[Trajectory], tolerance: float = 0.0) -> list[tuple[int, int]]:
    """Indices of chosen and rejected: in each group the best with the worst, the second best with the second worst, and so on, as long as
    their rewards differ by more than the tolerance. What was not scored, or has nothing to train, is in none."""
    groups: dict[str, list[tuple[float, int, str, int]]] = {}
    for k, each in enumerate(trajectories):
        if each.reward is not None and trainable(each):
            groups.setdefault(each.group, []).append((-each.reward, each.index, each.attempt_id, k))
    found: list[tuple[int, int]] = []
    for group in groups.values():
        ranked = sorted(group)
        for (cost, *_, better), (other, *_, worse) in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            if other - cost > tolerance:
                found.append((better, worse))
    return found


def preferred(trajectories: Sequence[Trajectory], pairs: Sequence[tuple[int, int]]) -> list[Doubles]:
    """(transitions,) each: 1 on what was chosen, -1 on what was rejected, 0 on what is in no pair; NaN where it was not scored."""
    sign = {k: 1.0 - 2.0 * place for pair in pairs for place, k in enumerate(pair)}
    scored = [np.nan if each.reward is None else sign.get(k, 0.0) for k, each in enumerate(trajectories)]
    return [np.full(len(each.transitions), value) for each, value in zip(trajectories, scored, strict=True)]


def trial_batch(trajectories: Sequence[Trajectory]) -> Batch:
    """A batch of as many pairs as can be, by their order alone: the work of a step, whatever the rewards."""
    able = [k for k, each in enumerate(trajectories) if trainable(each)]
    pairs = list(zip(able[::2], able[1::2], strict=False))
    return make_batch(trajectories, [np.ones(len(each.transitions)) for each in trajectories], loss_aggregation="pair_mean", pairs=pairs)
