"""Supervised fine-tuning on demonstrations, in rollouts of the real agent.

Each model call of a training rollout is answered by its demonstration instead of a sample; the demonstrated tokens are recorded like any
reply, marked as demonstrated, and trained by cross-entropy, each exactly once. What was sampled is never trained here, and what was
demonstrated is never trained by an algorithm with ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session
from agentlightning.errors import ConfigError
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.registry.registry import load_object
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.types import FloatArray, Trajectory

TOLERANCE = 1e-9
"""By which a reward may miss the least one: sums of floats do."""


@dataclass(frozen=True, kw_only=True)
class SFT(Algorithm):
    """One rollout for each task of a step, and one gradient step on its demonstrations."""

    name: str = "sft"
    trains_demonstrations: ClassVar[bool] = True
    demonstrations: str | Demonstrate
    """`module:function`, called with `(task, messages, tools)` for each model call of a training rollout; it returns the assistant's
    message (OpenAI's form), or None: that call is sampled as usual, and not trained on."""
    min_reward: float = 1.0
    """A rollout with less teaches nothing: a wrong demonstration is not learned. Neither is one that was not scored."""
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """What a token weighs: every token the same; each rollout's tokens sum to one."""

    def __post_init__(self) -> None:
        if self.loss_aggregation not in ("token_mean", "sequence_mean"):
            raise ConfigError(f"algorithm.loss_aggregation is {self.loss_aggregation!r}; it must be 'token' or 'rollout'")
        if not (callable(self.demonstrations) or ":" in cast(Any, self.demonstrations)):
            raise ConfigError(f"algorithm.demonstrations is {self.demonstrations!r}; expected 'module:function', or the function itself")

    @property
    def demonstrate(self) -> Demonstrate:
        """What answers the calls of training rollouts."""
        found: Any = load_object(self.demonstrations) if isinstance(self.demonstrations, str) else self.demonstrations
        if not callable(found):
            raise ConfigError(f"algorithm.demonstrations is {self.demonstrations!r}, a {type(found).__name__}; expected a function")
        return cast(Demonstrate, found)

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'sft' learns demonstrations, whatever their steps earn"

    def parts(self) -> tuple[Demonstrate, SFTLoss]:
        """Demonstrations and loss, checked. Imports no trainer."""
        return self.demonstrate, SFTLoss()

    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""
        _, loss = self.parts()
        for step in session.steps():
            collected = await session.collect(step, 1)
            check_demonstrated(step, collected)
            trajectories = [self.chosen(each) for each in collected]
            returns = [np.full(len(each.transitions), np.nan if each.reward is None else each.reward) for each in trajectories]
            advantages = [advantage(each) for each in trajectories]
            batch = make_batch(trajectories, advantages, loss_aggregation=self.loss_aggregation, demonstrations=True)
            metrics = await session.update(batch, loss)
            await session.finish_step(step, trajectories, returns, advantages, batch, metrics)

    def chosen(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory; nothing of it is trained where its reward is too small."""
        if trajectory.reward is None or trajectory.reward >= self.min_reward - TOLERANCE:
            return trajectory
        return leave_out(trajectory, lambda each: f"the reward of its rollout is below min_reward ({self.min_reward:g})")


def advantage(trajectory: Trajectory) -> FloatArray:
    """(transitions,) 1, so that the loss is the cross-entropy; NaN where nothing is to be learned."""
    learned = [each.trained and trajectory.reward is not None for each in trajectory.transitions]
    return np.where(learned, np.float32(1), np.float32(np.nan))


def check_demonstrated(step: int, trajectories: Sequence[Trajectory]) -> None:
    """`ConfigError` where the first step shows that there is nothing to imitate."""
    transitions = [transition for each in trajectories for transition in each.transitions]
    if step == 0 and transitions and not any(each.demonstrated for each in transitions):
        raise ConfigError(
            f"algorithm.demonstrations returned None for each of the {len(transitions)} model calls of the first step, so there is nothing "
            "to learn; look with `agl show` what they asked"
        )
