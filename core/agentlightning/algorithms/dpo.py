"""Direct preference optimisation on pairs of the policy's own rollouts (arXiv 2305.18290; `DPOLoss` has the formula).

The better rollout of a pair is chosen, the worse one rejected; a rollout is one sequence, with all its turns. It is in at most one pair.
Rollouts in no pair are left out by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.algorithms.base import Algorithm, Session, returns_of
from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch, trainable
from agentlightning.rl.loss import DPOLoss
from agentlightning.rl.marks import Needs
from agentlightning.settings import MAX, FiniteNonNegative, PositiveInt
from agentlightning.types import Doubles, Trajectory


@dataclass(frozen=True, kw_only=True)
class DPO(Algorithm):
    """Direct preference optimisation (DPO): train on pairs of better and worse rollouts of a group."""

    name: str = "dpo"
    group_size: Annotated[int, Meta(ge=2, description="pairs are made within a group")] = 8
    """Rollouts of each task in a step."""
    beta: Annotated[float, Meta(gt=0, le=MAX, description="0.1 is usual")] = 0.1
    """How strongly the policy stays near the reference: the model that the run began with (for LoRA the model without its adapter)."""
    tolerance: FiniteNonNegative = 1e-6
    """Rewards that differ by this or less make no pair."""
    epochs: PositiveInt = 1
    """Passes over the batch."""
    minibatches: PositiveInt = 1
    """Optimizer steps in a pass; pairs are dealt over them in batch order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.parts()

    @property
    def needs(self) -> Needs:
        return Needs(group=True)

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'dpo' pairs rollouts by their own reward."

    def parts(self) -> tuple[DPOLoss]:
        return (DPOLoss(beta=self.beta, epochs=self.epochs, minibatches=self.minibatches),)

    async def run(self, session: Session) -> None:
        (loss,) = self.parts()
        for step in session.steps():
            trajectories = await session.collect(step, self.group_size)
            pairs = pairs_of(trajectories, self.tolerance)
            advantages = preferred(trajectories, pairs)
            batch = make_batch(trajectories, advantages, loss_aggregation="pair_mean", pairs=pairs)
            metrics = {**await session.update(batch, loss), "pairs": float(len(pairs))}
            await session.finish_step(step, trajectories, returns_of(trajectories), advantages, batch, metrics)


def pairs_of(trajectories: Sequence[Trajectory], tolerance: float = 0.0) -> list[tuple[int, int]]:
    """Indices of chosen and rejected trajectories: in each group the best with the worst, the second best with the second worst, and so on,
    while their rewards differ by more than the tolerance. Unscored trajectories, and those with nothing to train, are in no pair."""
    groups: dict[str, list[tuple[float, int, str, int]]] = {}
    for k, trajectory in enumerate(trajectories):
        if trajectory.reward is not None and trainable(trajectory):
            groups.setdefault(trajectory.group, []).append((-trajectory.reward, trajectory.index, trajectory.attempt_id, k))
    pairs: list[tuple[int, int]] = []
    for group in groups.values():
        ranked = sorted(group)
        for (cost, *_, better), (worst, *_, worse) in zip(ranked[: len(ranked) // 2], reversed(ranked), strict=False):
            if worst - cost > tolerance:
                pairs.append((better, worse))
    return pairs


def preferred(trajectories: Sequence[Trajectory], pairs: Sequence[tuple[int, int]]) -> list[Doubles]:
    """(transitions,) each: 1 on a chosen rollout, -1 on a rejected one, 0 on one in no pair, NaN on an unscored one."""
    sign = {k: 1.0 - 2.0 * place for pair in pairs for place, k in enumerate(pair)}
    scored = [np.nan if trajectory.reward is None else sign.get(k, 0.0) for k, trajectory in enumerate(trajectories)]
    return [np.full(len(trajectory.transitions), value) for trajectory, value in zip(trajectories, scored, strict=True)]


def trial_batch(trajectories: Sequence[Trajectory]) -> Batch:
    """A batch of as many pairs as possible, whatever the rewards: the same work as a step."""
    able = [k for k, trajectory in enumerate(trajectories) if trainable(trajectory)]
    pairs = list(zip(able[::2], able[1::2], strict=False))
    ones = [np.ones(len(trajectory.transitions)) for trajectory in trajectories]
    return make_batch(trajectories, ones, loss_aggregation="pair_mean", pairs=pairs)
