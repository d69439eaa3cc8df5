"""The two ends of a rollout in a run: how it is requested, and how its records are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from msgspec import structs

from agentlightning.config.parts import build_step_rewards
from agentlightning.config.prompts import prompt_texts
from agentlightning.config.schema import Config
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import RewardError
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.training.no_calls import exclude_without_calls
from agentlightning.types import Mode, Rollout, Sampling, Task, Trajectory

ReadTrajectory: TypeAlias = Callable[[RolloutState, Sequence[AttemptRecords]], Trajectory]
"""Builds the trajectory of a rollout that has ended, by the settings of a run."""

REPEAT = 1 << 40
"""Between the seeds of a task that a step samples several times."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """The settings that the rollouts of a run share."""

    seed: int
    sampling: Sampling
    attempts: int
    """Attempts at most for one rollout."""
    policy: str = "main"
    """Name of the policy, of several the default."""
    prompts: dict[str, str] = field(default_factory=dict[str, str])
    """Texts that replace the agent's own prompts, by name."""

    @classmethod
    def of(cls, config: Config) -> RolloutSettings:
        sampling = Sampling(temperature=config.sampling.temperature, max_tokens=config.sampling.max_tokens)
        policy, prompts = next(iter(config.policies), "main"), prompt_texts(config.prompts)
        return cls(config.seed, sampling, config.runner.attempts, policy, prompts)

    def rollout(self, task: Task, mode: Mode, group: str, index: int, step: int) -> Rollout:
        """Return the rollout `index` of a group, requested in a step (from 0)."""
        return Rollout(
            task=task, mode=mode, group=group, index=index, step=step, seed=self.seed, sampling=self.sampling, prompts=self.prompts,
            max_attempts=self.attempts, policy=self.policy,
        )  # fmt: skip

    def with_prompts(self, prompts: dict[str, str]) -> RolloutSettings:
        """The same with other prompts."""
        return replace(self, prompts=prompts)

    def greedy(self) -> RolloutSettings:
        """The same at temperature 0."""
        return replace(self, sampling=structs.replace(self.sampling, temperature=0.0))

    def repeated(self, times: int) -> RolloutSettings:
        """The same with another seed, for a task that the step has sampled `times` times."""
        return replace(self, seed=self.seed + times * REPEAT)


def trajectory_reader(config: Config) -> ReadTrajectory:
    """Return `rl.trajectory.build.trajectory` with the settings of a run.

    A rollout of the run itself whose rewards contradict each other is not scored. One of a replay raises `RewardError`.
    """
    step_rewards = build_step_rewards(config.step_rewards)
    replayed = config.replay.mode if config.replay is not None else "production"
    read = partial(trajectory, agents=config.agents, reward_weights=config.reward_weights, step_rewards=step_rewards)

    def read_rollout(state: RolloutState, records: Sequence[AttemptRecords]) -> Trajectory:
        try:
            result = read(state, records)
        except RewardError as error:
            if state.rollout.mode == replayed:
                raise
            result = without_rewards(state, records, error)
        drops = config.collection.no_calls == "drop" and state.rollout.mode != "eval"
        return exclude_without_calls(result) if drops else result

    def without_rewards(state: RolloutState, records: Sequence[AttemptRecords], error: RewardError) -> Trajectory:
        """The trajectory with the error as the reason of its missing reward. Raises it again if a step signal failed."""
        unscored = read(state, [structs.replace(attempt, rewards=()) for attempt in records])
        notes = [note for note in unscored.diagnostics if not note.startswith("not scored")]
        return structs.replace(unscored, error=str(error), diagnostics=(f"not scored: {error}", *notes))

    return read_rollout


def mean_reward(trajectories: Sequence[Trajectory]) -> float | None:
    """Return the mean over the scored rollouts; None: there are none."""
    rewards = [trajectory.reward for trajectory in trajectories if trajectory.reward is not None]
    return float(np.mean(rewards)) if rewards else None


def first_error(trajectories: Sequence[Trajectory]) -> str | None:
    """Return the error of the first rollout that has one."""
    return next((trajectory.error for trajectory in trajectories if trajectory.error), None)
