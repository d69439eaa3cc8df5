"""Rejection-sampled fine-tuning: the policy learns its own good rollouts, by cross-entropy on the tokens that it sampled.

A rollout is all or nothing: if it is chosen, all its trainable tokens are trained, and otherwise each is left out by name. Sources: RAFT
(arXiv 2304.06767) trains the best of each group, STaR (arXiv 2203.14465) all correct ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from agentlightning.algorithms.base import Algorithm, Session, returns_of
from agentlightning.algorithms.sft import advantage, chosen
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.settings import MAX, PositiveInt


@dataclass(frozen=True, kw_only=True)
class RFT(Algorithm):
    """Rejection-sampled fine-tuning (RFT): train on sampled rollouts that earned enough reward."""

    name: str = "rft"
    group_size: PositiveInt = 8
    """Rollouts of each task in a step."""
    min_reward: Annotated[float, Meta(le=MAX, description="-inf accepts every reward")] = 1.0
    """Rollouts with less, and unscored ones, are not trained."""
    best: PositiveInt | None = None
    """Train this many of each group at most, of equal ones the first. Absent: all."""
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """The weight of a token: all tokens weigh the same; each rollout's tokens sum to one."""
    epochs: PositiveInt = 1
    """Passes over the batch."""
    minibatches: PositiveInt = 1
    """Optimizer steps in a pass."""

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'rft' chooses rollouts by their own reward."

    def parts(self) -> tuple[SFTLoss]:
        return (SFTLoss(epochs=self.epochs, minibatches=self.minibatches),)

    async def run(self, session: Session) -> None:
        (loss,) = self.parts()
        for step in session.steps():
            collected = await session.collect(step, self.group_size)
            trajectories = chosen(collected, min_reward=self.min_reward, best=self.best)
            advantages = [advantage(trajectory) for trajectory in trajectories]
            batch = make_batch(trajectories, advantages, loss_aggregation=self.loss_aggregation)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, returns_of(trajectories), advantages, batch, metrics)
