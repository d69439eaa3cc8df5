"""Rejection-sampled fine-tuning: the policy learns its own good rollouts, by cross-entropy on the tokens that it sampled.

What a rollout teaches is all or nothing: it is chosen and every token of it that can be trained is, or each is left out by name. Sources:
RAFT (arXiv 2304.06767) trains the best of each group, STaR (arXiv 2203.14465) all that are right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.algorithms.sft import TOLERANCE, advantage
from agentlightning.errors import ConfigError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.types import Trajectory


@dataclass(frozen=True, kw_only=True)
class RFT(Algorithm):
    """Rollouts of the policy as it is, then a step on those that are good enough."""

    name: str = "rft"
    group_size: int = 8
    """Rollouts of each task in a step."""
    min_reward: float = 1.0
    """A rollout with less teaches nothing; -inf: every reward is enough. One that was not scored teaches nothing either."""
    best: int | None = None
    """Of those that have it, how many of each group are trained; of equal ones the first. Absent: all."""
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """What a token weighs: every token the same; each rollout's tokens sum to one."""
    epochs: int = 1
    """Passes over the batch."""
    minibatches: int = 1
    """Optimiser steps in a pass."""

    def __post_init__(self) -> None:
        for key in ("group_size", "best", "epochs", "minibatches"):
            if getattr(self, key) is not None and getattr(self, key) < 1:
                raise ConfigError(f"algorithm.{key} is {getattr(self, key)}; it must be at least 1")
        if not self.min_reward < math.inf:
            raise ConfigError(f"algorithm.min_reward is {self.min_reward}; expected a reward, or -inf where every one is enough")
        if self.loss_aggregation not in ("token_mean", "sequence_mean"):
            raise ConfigError(f"algorithm.loss_aggregation is {self.loss_aggregation!r}; it must be 'token' or 'rollout'")

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'rft' chooses rollouts by their outcome"

    def parts(self) -> tuple[SFTLoss]:
        """The loss, checked. Imports no trainer."""
        return (SFTLoss(epochs=self.epochs, minibatches=self.minibatches),)

    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""
        (loss,) = self.parts()
        for step in session.steps():
            collected = await session.collect(step, self.group_size)
            trajectories = chosen(collected, min_reward=self.min_reward, best=self.best)
            returns = [np.full(len(each.transitions), np.nan if each.reward is None else each.reward) for each in trajectories]
            advantages = [advantage(each) for each in trajectories]
            batch = make_batch(trajectories, advantages, loss_aggregation=self.loss_aggregation)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, returns, advantages, batch, metrics)


def chosen(trajectories: Sequence[Trajectory], *, min_reward: float, best: int | None = None) -> list[Trajectory]:
    """The trajectories in their order; nothing is trained of those with less than `min_reward`, and of those with at least `best` better
    ones (or equal and earlier ones) in their group."""
    ranks: dict[str, int] = {}
    found = list(trajectories)
    for k in sorted(range(len(found)), key=lambda k: (-(found[k].reward or 0.0), found[k].index, found[k].attempt_id)):
        each = found[k]
        if each.reward is None:
            continue
        if each.reward < min_reward - TOLERANCE:
            found[k] = leave_out(each, lambda _: f"the reward of its rollout is below min_reward ({min_reward:g})")
            continue
        rank = ranks[each.group] = ranks.get(each.group, 0) + 1
        if best is not None and rank > best:
            found[k] = leave_out(each, lambda _: f"not among the best of its group (best = {best})")
    return found
