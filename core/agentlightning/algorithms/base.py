"""The contract of algorithms: a training loop, and the session that it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.rl.marks import Needs
from agentlightning.settings import BaseSettings
from agentlightning.types import Doubles, Trajectory


class Session(Protocol):
    """One run, as an algorithm sees it. Call the methods in this order in every step."""

    @property
    def max_staleness(self) -> int:
        """Training steps that may lie between sampling a token and training on it; 0 means none."""
        ...

    def say(self, text: str) -> None:
        """Show a line to the user."""
        ...

    def steps(self) -> Iterator[int]:
        """Yield the steps that are left, from 0. Ends early when the run is stopped or no longer improves."""
        ...

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        """Return the trajectories of a step: `group_size` rollouts of each of its tasks."""
        ...

    async def values(self, batch: Batch) -> Doubles:
        """Return (tokens,) the critic's expected return before each sampled token; NaN on context."""
        ...

    async def teacher_logprobs(self, batch: Batch) -> Doubles:
        """Return (tokens,) the teacher's log-probability of each sampled token; NaN on context."""
        ...

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        """Train on a batch, serve the new weights, and return the trainer's metrics."""
        ...

    async def finish_step(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        returns: Sequence[Any],
        advantages: Sequence[Any],
        batch: Batch,
        metrics: dict[str, float],
    ) -> None:
        """Record a step: its metrics, the contribution of each rollout, and evaluation and checkpoint when they are due."""
        ...


class Algorithm(BaseSettings, ABC):
    """Base of everything that drives a training loop: a subclass is a frozen dataclass of settings."""

    table = "algorithm"
    group_size: int = 1
    """Rollouts of each task in a step."""
    trains_demonstrations: ClassVar[bool] = False
    """Whether `demonstrate` answers the model calls of training rollouts, and its tokens are trained."""

    @property
    def needs(self) -> Needs:
        """Return what the run must offer: groups of rollouts, a critic, a teacher."""
        return Needs()

    @property
    def trains_unscored(self) -> bool:
        """Whether rollouts without a reward are trained, so that the agent need not give one."""
        return False

    @property
    def ignores_step_rewards(self) -> str | None:
        """Return why rewards of steps would change nothing; None: they count."""
        return None

    @property
    def demonstrate(self) -> Demonstrate | None:
        """Return the function that answers the model calls of training rollouts; None: the engine samples them."""
        return None

    @property
    def answered_steps(self) -> int | None:
        """In how many first steps `demonstrate`, or the teacher, answers the calls of training rollouts; None: in all."""
        return None

    def parts(self) -> tuple[Any, ...]:
        """Return the parts with their settings bound and checked, the `LossSettings` among them. Imports no trainer."""
        return ()

    def loss_settings(self) -> LossSettings | None:
        """Return the loss among the parts; None: the trainer needs to support none."""
        return next((part for part in self.parts() if isinstance(part, LossSettings)), None)

    def try_out(self, trajectories: Sequence[Trajectory]) -> None:
        """Apply the parts to trajectories and throw the result away, so that a dry run finds their errors."""

    @abstractmethod
    async def run(self, session: Session) -> None:
        """Train until the session's last step, or until it is stopped."""


def returns_of(trajectories: Sequence[Trajectory]) -> list[Doubles]:
    """(transitions,) for trajectory trajectory: its reward; NaN where it was never scored. The returns of algorithms without credit."""
    return [np.full(len(trajectory.transitions), np.nan if trajectory.reward is None else trajectory.reward) for trajectory in trajectories]
