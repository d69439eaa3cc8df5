"""The contract of algorithms: a training loop, and the session that it drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from agentlightning.algorithms.prompt_search import PromptSearch
from agentlightning.config.endpoint import ReflectionSettings
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.gateway.rendering.demonstration import Demonstrate
from agentlightning.rl.marks import Needs
from agentlightning.settings import BaseSettings
from agentlightning.types import Doubles, Task, Trajectory


class PromptTrials(Protocol):
    """The rollouts of a run that optimises prompts."""

    seed: int
    """The run's seed."""
    tasks: Sequence[Task]
    """The tasks to learn from."""
    prompts: dict[str, str]
    """The texts that the config sets, by name."""

    tasks_per_step: int

    def next_tasks(self) -> list[Task]:
        """Return the tasks of the next step, in the order of the run's sampler."""
        ...

    async def try_prompts(self, step: int, name: str, tasks: Sequence[Task], prompts: dict[str, str], group_size: int) -> list[Trial]:
        """Run `group_size` rollouts of each task with these texts. Returns them task by task. `name`: of this trial, once in a step."""
        ...

    async def reflect(self, step: int, prompt: str, settings: ReflectionSettings | None, max_tokens: int) -> Reflection:
        """Ask the model of an endpoint, or the served model if there is none. The store has question and answer as a rollout."""
        ...


class Trial(NamedTuple):
    """A rollout with its records."""

    trajectory: Trajectory
    state: RolloutState
    records: AttemptRecords | None
    """Of its winning or last attempt; None: it has none."""


class Reflection(NamedTuple):
    """The answer of a reflecting model."""

    text: str
    tokens: int
    """Prompt and sampled tokens, as far as they were told."""


class Session(Protocol):
    """One run, as an algorithm sees it. Call the methods in this order in every step."""

    @property
    def max_staleness(self) -> int:
        """Training steps that may lie between sampling a token and training on it; 0 means none."""
        ...

    @property
    def trials(self) -> PromptTrials:
        """The rollouts of a run that optimises prompts."""
        ...

    @property
    def search(self) -> PromptSearch | None:
        """The search for prompts so far, for a resumed run; None: it has not begun."""
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
        search: PromptSearch | None = None,
    ) -> None:
        """Record a step: its metrics, the contribution of each rollout, and evaluation and checkpoint when they are due. `search`: of a
        run that optimises prompts. Later evaluations use its best ones."""
        ...


class Algorithm(BaseSettings, ABC):
    """Base of everything that drives a training loop: a subclass is a frozen dataclass of settings."""

    table = "algorithm"
    group_size: int = 1
    """Rollouts of each task in a step."""
    trains_weights: ClassVar[bool] = True
    """Whether it takes gradient steps. If not, the run opens no trainer, any engine will do, and checkpoints hold no weights."""
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
        """Return why step rewards would have no effect, or None if they count."""
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
