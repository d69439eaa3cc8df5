"""Supervised fine-tuning on demonstrations, in rollouts of the real agent.

A demonstration answers each model call of a training rollout instead of a sample. The demonstrated tokens are recorded like any reply,
marked as demonstrated, and trained by cross-entropy, each exactly once. Sampled tokens are never trained here, and demonstrated tokens are
never trained by an algorithm with ratios.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np

from agentlightning.algorithms.base import Algorithm, Session, returns_of
from agentlightning.errors import ConfigError
from agentlightning.gateway.rendering.demonstration import Demonstrator
from agentlightning.registry.registry import load_object
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.rl.marks import Needs
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.types import FloatArray, Trajectory

Aggregation: TypeAlias = Literal["token_mean", "sequence_mean"]
TOLERANCE = 1e-9
"""A reward may miss `min_reward` by this much, because sums of floats do."""


@dataclass(frozen=True, kw_only=True)
class SFT(Algorithm):
    """Supervised fine-tuning (SFT): train on demonstrations, in one rollout for each task of a step."""

    name: str = "sft"
    trains_demonstrations: ClassVar[bool] = True
    demonstrations: str | Demonstrator | None = None
    """`module:function`, called with `(task, messages, tools)` for each model call of a training rollout. It returns the assistant's
    message in OpenAI's format, or None: then that call is sampled as usual, and not trained. Absent: the `[teacher]`
    answers, or a `replay` has the demonstrations."""
    min_reward: float = 1.0
    """Rollouts with less, and unscored ones, are not trained, so that wrong demonstrations are not learned."""
    loss_aggregation: Aggregation = "token_mean"
    """The weight of a token: all tokens weigh the same; each rollout's tokens sum to one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.demonstrations is None or callable(self.demonstrations) or ":" in cast(Any, self.demonstrations)):
            raise ConfigError(
                f"algorithm.demonstrations is {self.demonstrations!r}. Set it to 'module:function', or to the function itself."
            )

    @property
    def needs(self) -> Needs:
        return Needs(answers=self.demonstrations is None)

    @property
    def demonstrate(self) -> Demonstrator | None:
        if self.demonstrations is None:
            return None
        function: Any = load_object(self.demonstrations) if isinstance(self.demonstrations, str) else self.demonstrations
        if not callable(function):
            raise ConfigError(f"algorithm.demonstrations is {self.demonstrations!r}, a {type(function).__name__}. Name a function.")
        return cast(Demonstrator, function)

    @property
    def ignores_step_rewards(self) -> str:
        return "algorithm 'sft' trains demonstrations, whatever their steps earn."

    def parts(self) -> tuple[Demonstrator | None, SFTLoss]:
        return self.demonstrate, SFTLoss()

    async def run(self, session: Session) -> None:
        for step in session.steps():
            await supervised_step(session, step, min_reward=self.min_reward, loss_aggregation=self.loss_aggregation)


async def supervised_step(session: Session, step: int, *, min_reward: float, loss_aggregation: Aggregation) -> None:
    """Run one rollout for each task of a step, and train on its demonstrations."""
    collected = await session.collect(step, 1)
    check_demonstrated(step, collected)
    trajectories = chosen(collected, min_reward=min_reward)
    advantages = [advantage(trajectory) for trajectory in trajectories]
    batch = make_batch(trajectories, advantages, loss_aggregation=loss_aggregation, demonstrations=True)
    metrics = await session.update(batch, SFTLoss())
    await session.finish_step(step, trajectories, returns_of(trajectories), advantages, batch, metrics)


def chosen(trajectories: Sequence[Trajectory], *, min_reward: float, best: int | None = None) -> list[Trajectory]:
    """The trajectories in their order. Those with less than `min_reward` are not trained, and neither are those with at least `best` better
    ones (or equal and earlier ones) in their group."""
    rank: dict[str, int] = {}
    chosen = list(trajectories)
    for k in sorted(range(len(chosen)), key=lambda k: (-(chosen[k].reward or 0.0), chosen[k].index, chosen[k].attempt_id)):
        trajectory = chosen[k]
        if trajectory.reward is None:
            continue
        if trajectory.reward < min_reward - TOLERANCE:
            chosen[k] = leave_out(trajectory, lambda _: f"the reward of its rollout is below min_reward ({min_reward:g})")
            continue
        rank[trajectory.group] = rank.get(trajectory.group, 0) + 1
        if best is not None and rank[trajectory.group] > best:
            chosen[k] = leave_out(trajectory, lambda _: f"not among the best of its group (best = {best})")
    return chosen


def advantage(trajectory: Trajectory) -> FloatArray:
    """(transitions,) 1, so that the loss is the cross-entropy; NaN on transitions that are not trained."""
    learned = [transition.trained and trajectory.reward is not None for transition in trajectory.transitions]
    return np.where(learned, np.float32(1), np.float32(np.nan))


def check_demonstrated(step: int, trajectories: Sequence[Trajectory]) -> None:
    """Raise `ConfigError` if the first step shows no demonstration."""
    transitions = [transition for trajectory in trajectories for transition in trajectory.transitions]
    if step == 0 and transitions and not any(transition.demonstrated for transition in transitions):
        raise ConfigError(
            f"None of the {len(transitions)} model calls of the first step has a demonstration, so there is nothing to learn. `agl show` "
            "lists the calls. Check algorithm.demonstrations."
        )
