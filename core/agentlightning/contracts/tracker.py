"""The Tracker contract: shows a run outside its folder.

A run keeps everything in its own folder, so a tracker may fail: an error in one is reported once and never stops a run. Each tracker has a
thread of its own, in which the run calls it in order, so its methods may block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from agentlightning.settings import BaseSettings
from agentlightning.types import JSON

RunEnd = Literal["finished", "stopped", "failed"]
"""How a run ended. `stopped`: the user stopped it, and it can be resumed."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """The run that a tracker shows."""

    id: str
    """It stays the same when the run is resumed."""
    folder: Path
    """The run folder. Its name is the name of the run."""
    name: str
    """The setting `name`, which the runs of one experiment share."""
    config: Mapping[str, JSON]
    """Every setting in force, as nested tables. Passwords and keys are `***`."""
    next_step: int
    """The first step that will be logged. Above 0 in a resumed run."""
    say: Callable[[str], None]
    """Prints a line for the user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedTask:
    """One task of an evaluation. None: not measured."""

    id: str
    task: str
    """What it asks."""
    sampled_before: float | None
    """Mean reward of its sampled rollouts before training."""
    sampled: float | None
    """The same for the weights of this step."""
    greedy_before: float | None
    greedy: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRollout:
    """One training rollout."""

    id: str
    task: str
    """What its task asks."""
    reward: float | None
    """None: not scored."""
    messages: tuple[Mapping[str, str], ...]
    """`role` and `content` of each message of its model calls, and of each reply, as a person reads them. Long texts are cut."""

    @property
    def text(self) -> str:
        """The messages as one text."""
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


@dataclass(frozen=True, kw_only=True)
class TrackerSettings(BaseSettings):
    """Base of a tracker's settings: a subclass is a frozen dataclass, and its fields are the keys of the tracker's table."""

    table = "trackers"

    @property
    def rollouts(self) -> int:
        """Training rollouts of each step that the tracker shows. Declare a field of this name to make it a setting."""
        return 0


class Tracker(ABC):
    """Base of every tracker. Override what it can show; what it cannot is ignored."""

    Settings: ClassVar[type[TrackerSettings]] = TrackerSettings
    advice: ClassVar[str] = "Check its settings, or remove it from `trackers`."
    """What to do if it fails, for the message."""
    replaces_steps: ClassVar[bool] = False
    """Whether it takes a step again that it has. A resumed run repeats the steps after its checkpoint; without this, it skips those that
    `log` took before."""

    @classmethod
    @abstractmethod
    def create(cls, run: TrackedRun, settings: Any) -> Self:
        """Open the tracker for a run, and log `run.config`. `settings` is an instance of `Settings`. A resumed run continues the same
        record."""

    @abstractmethod
    def log(self, metrics: Mapping[str, JSON]) -> None:
        """Log the row of a step in `metrics.jsonl`: its `step`, numbers, and a few texts. Called last for a step."""

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        """Log an evaluation task by task."""

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Log a sample of the training rollouts of a step."""

    def close(self, end: RunEnd) -> None:
        """Write everything out. It is called once."""
