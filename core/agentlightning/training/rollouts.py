"""The two ends of a rollout in a run: how it is requested, and how its records are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.rl.trajectory.step_rewards import StepReward
from agentlightning.types import Mode, Rollout, Sampling, Task, Trajectory

REPEAT = 1 << 40
"""Between the seeds of a task that a step samples several times."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """The settings that the rollouts of a run share."""

    seed: int
    sampling: Sampling
    attempts: int
    """Attempts at most for one rollout."""

    def rollout(self, task: Task, mode: Mode, group: str, index: int, step: int) -> Rollout:
        """Return the rollout `index` of a group, requested in a step (from 0)."""
        return Rollout(
            task=task, mode=mode, group=group, index=index, step=step, seed=self.seed, sampling=self.sampling, max_attempts=self.attempts
        )

    def greedy(self) -> RolloutSettings:
        """The same at temperature 0."""
        return replace(self, sampling=structs.replace(self.sampling, temperature=0.0))

    def repeated(self, times: int) -> RolloutSettings:
        """The same with another seed, for a task that the step has sampled `times` times."""
        return replace(self, seed=self.seed + times * REPEAT)


@dataclass(frozen=True, slots=True)
class TrajectoryReader:
    """Builds trajectories from records, by the settings of a run."""

    agents: Sequence[str] | None = None
    """Names or patterns of the agents to train; None: all."""
    reward_weights: Mapping[str, float] | None = None
    step_rewards: Sequence[StepReward] = ()

    def read(self, state: RolloutState, records: Sequence[AttemptRecords]) -> Trajectory:
        """Return the trajectory of a rollout that has ended. Raises the errors of `rl.trajectory.build.trajectory`."""
        return trajectory(state, records, agents=self.agents, reward_weights=self.reward_weights, step_rewards=self.step_rewards)
