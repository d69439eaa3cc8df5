"""The order in which a run takes its tasks. A restored sampler continues as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from agentlightning.errors import ConfigError, TaskError
from agentlightning.types import JSON, Task

FLOOR = 0.05
"""Smallest chance of a task in a curriculum, as a fraction of the largest: the policy changes, so a task may teach something later."""
RECENT = 0.5
"""Share of a task's last group in its mean variance."""


class Sampler(ABC):
    """Base of every sampler. A subclass draws positions in `tasks`."""

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        if not tasks:
            raise TaskError("There are no tasks. Give at least one.")
        self.tasks, self.seed = list(tasks), seed

    @abstractmethod
    def draw(self, count: int) -> list[int]:
        """Return the positions of the next tasks."""

    @abstractmethod
    def progress(self) -> dict[str, JSON]:
        """Return the progress through the order, as JSON."""

    @abstractmethod
    def resume(self, progress: Mapping[str, JSON]) -> None:
        """Continue from `progress`. `seed` is restored already."""

    def learn(self, task_id: str, rewards: Sequence[float]) -> None:
        """Take the rewards of a task's group after its step. Ignored by default."""

    def next(self, count: int) -> list[Task]:
        """Return the next tasks: those of a step together, and later one for each filtered group."""
        if count < 1:
            raise ConfigError(f"tasks_per_step is {count}. Use at least 1.")
        return [self.tasks[position] for position in self.draw(count)]

    def state(self) -> dict[str, JSON]:
        """Return all that `restore` needs, as JSON."""
        return {"tasks": self._fingerprint(), "seed": self.seed, **self.progress()}

    def restore(self, state: Mapping[str, JSON]) -> None:
        """Continue from a state. Raises `ConfigError` if it belongs to other tasks."""
        if state.get("tasks") != self._fingerprint():
            raise ConfigError("The tasks, or their order, differ from those that this run started with. Resume with the same tasks file.")
        self.seed = int(state["seed"])
        self.resume(state)

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([task.id for task in self.tasks]).encode()).hexdigest()[:16]


class InOrder(Sampler):
    """The order of the file, repeated."""

    _position = 0

    def draw(self, count: int) -> list[int]:
        drawn = [(self._position + k) % len(self.tasks) for k in range(count)]
        self._position = (self._position + count) % len(self.tasks)
        return drawn

    def progress(self) -> dict[str, JSON]:
        return {"position": self._position}

    def resume(self, progress: Mapping[str, JSON]) -> None:
        self._position = int(progress["position"])


class Epochs(Sampler):
    """A new random order each epoch, without replacement.

    A step may take the last tasks of one epoch and the first of the next. They differ, as long as there are enough tasks.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._start(0, [], 0)

    def _start(self, epoch: int, held: list[int], need: int) -> None:
        """Begin an epoch. Its first `need` tasks are none of `held`, as long as there are others."""
        self._epoch, self._held, self._need, self._position = epoch, held, need, 0
        order: list[int] = np.random.default_rng([self.seed % 2**64, epoch]).permutation(len(self.tasks)).tolist()
        first = [k for k in order if k not in held][:need]
        taken = set(first)
        self._order = first + [k for k in order if k not in taken]

    def draw(self, count: int) -> list[int]:
        drawn: list[int] = []
        while len(drawn) < count:
            if self._position == len(self._order):
                self._start(self._epoch + 1, sorted(set(drawn)), count - len(drawn))
            part = self._order[self._position : self._position + count - len(drawn)]
            self._position += len(part)
            drawn += part
        return drawn

    def progress(self) -> dict[str, JSON]:
        return {"epoch": self._epoch, "position": self._position, "held": self._held, "need": self._need}

    def resume(self, progress: Mapping[str, JSON]) -> None:
        self._start(int(progress["epoch"]), list(progress["held"]), int(progress["need"]))
        self._position = int(progress["position"])


class Curriculum(Sampler):
    """Tasks with differing rewards come more often, because only those teach something.

    A task's chance is proportional to the variance of its rewards: p (1 - p) for rewards of 0 and 1. A new task has the largest chance.
    The tasks of a step differ, as long as there are enough. Source: learnability in arXiv 2408.15099.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._draws = 0
        self._variance: dict[str, float] = {}

    def draw(self, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed % 2**64, self._draws])
        self._draws += 1
        chances = self.chances()
        drawn: list[int] = []
        while len(drawn) < count:
            part = min(count - len(drawn), len(self.tasks))
            drawn += rng.choice(len(self.tasks), part, replace=False, p=chances).tolist()
        return drawn

    def chances(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(tasks,) the chance of each to be drawn next."""
        most = max(self._variance.values(), default=0.0) or 1.0
        weight = np.array([max(self._variance.get(task.id, most) / most, FLOOR) for task in self.tasks])
        return weight / weight.sum()

    def learn(self, task_id: str, rewards: Sequence[float]) -> None:
        if len(rewards) > 1:
            variance = float(np.var(rewards))
            self._variance[task_id] = RECENT * variance + (1 - RECENT) * self._variance.get(task_id, variance)

    def progress(self) -> dict[str, JSON]:
        return {"draws": self._draws, "variance": dict(self._variance)}

    def resume(self, progress: Mapping[str, JSON]) -> None:
        self._draws = int(progress["draws"])
        self._variance = {name: float(value) for name, value in progress["variance"].items()}
