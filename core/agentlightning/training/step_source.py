"""Where the trajectories of a step come from: runners (`step_groups`), or a deployed agent (`production.replay`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agentlightning.config.schema import CollectionConfig
from agentlightning.contracts.store import LightningStore
from agentlightning.rl.trajectory.build import leave_out
from agentlightning.types import JSON, Trajectory, Transition

Counts = dict[str, float]
"""Metrics of a step, under their names in `metrics.jsonl`."""

TRUNCATED = "cut off by its limit of tokens (collection.truncated = 'drop')"
OVERLONG = "longer than the trainer takes (collection.overlong = 'drop')"


class StepSource(ABC):
    """Provides the trajectories of each step. Every group is provided in exactly one step, or cancelled."""

    name: Literal["rollouts", "replay"]
    """Used in `seconds.NAME`."""
    phase: str
    """Shown to the user while a step waits for its trajectories."""
    samples: bool
    """Whether the engine samples the rollouts during the run."""
    store: LightningStore
    """It has the records of the rollouts."""

    @abstractmethod
    async def next(self, step: int, group_size: int) -> tuple[list[Trajectory], Counts]:
        """Return the trajectories of a step, group by group, and their counts."""

    async def again(self) -> None:
        """Discard the trajectories of this step and everything that runs ahead of it. The next call of `next` starts the same groups."""
        raise NotImplementedError(f"{type(self).__name__} samples nothing, so a step cannot start again.")

    async def more(self) -> bool:
        """Return whether another step has anything to train on."""
        return True

    def learn(self, trajectories: Sequence[Trajectory]) -> None:
        """Use the rewards of a step to choose later tasks."""
        return None

    def counts(self) -> Counts:
        """Count the rollouts that were seen and that no step has used."""
        return {}

    def account(self) -> str:
        """Describe the rollouts that were seen and that no step has used; empty: there are none."""
        return ""

    def state(self) -> JSON:
        """Return the position in the tasks, for a resumed run."""
        return {}

    def pending(self) -> list[JSON]:
        """Return the groups that have started and that no step has used, for a resumed run."""
        return []


@dataclass(frozen=True, slots=True)
class ReplyLimits:
    """Excludes replies that `collection.truncated` and `collection.overlong` do not train on."""

    settings: CollectionConfig
    longest: int | None
    """Tokens of the longest path that the trainer takes; None: no limit."""

    def apply(self, trajectories: Sequence[Trajectory]) -> tuple[list[Trajectory], Counts]:
        """Return the trajectories with those replies marked, and the number of their tokens."""
        marked = [leave_out(trajectory, self._reason) for trajectory in trajectories]
        counts = Counts()
        if self.settings.truncated == "drop":
            counts["truncated_tokens_dropped"] = excluded_tokens(marked, TRUNCATED)
        if self.settings.overlong == "drop":
            counts["overlong_tokens_dropped"] = excluded_tokens(marked, OVERLONG)
        return marked, counts

    def _reason(self, transition: Transition) -> str | None:
        if transition.truncated and self.settings.truncated == "drop":
            return TRUNCATED
        length = len(transition.prompt_ids) + len(transition.response_ids)
        return OVERLONG if self.settings.overlong == "drop" and self.longest is not None and length > self.longest else None


def excluded_tokens(trajectories: Sequence[Trajectory], reason: str) -> float:
    """Count the sampled tokens that are excluded for a reason."""
    return float(
        sum(
            len(transition.response_ids)
            for trajectory in trajectories
            for transition in trajectory.transitions
            if transition.reason == reason
        )
    )
