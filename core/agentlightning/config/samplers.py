"""The order in which a run takes its tasks. A restored sampler continues as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from agentlightning.errors import ConfigError, TaskError
from agentlightning.types import JSON, Task


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

    def learn(self, groups: Sequence[tuple[str, Sequence[float]]]) -> None:
        """Take the groups of a finished step: each task's id and its rewards. Called once for each step. Ignored by default."""

    def carry(self, earlier: Iterable[Mapping[str, JSON]]) -> int:
        """Start from the measurements of earlier runs with the same model and agent; return the number of tasks that have any.

        `earlier`: the states of their samplers, newest first, read one by one. By default nothing is read, and the number is 0.
        """
        return 0

    def summary(self) -> dict[str, JSON]:
        """Return the numbers for `sampler` in `result.json`; empty by default."""
        return {}

    def next(self, count: int) -> list[Task]:
        """Return the next tasks: those of a step together, and later one for each filtered group."""
        if count < 1:
            raise ConfigError(f"tasks_per_step is {count}. Use at least 1.")
        return [self.tasks[position] for position in self.draw(count)]

    def state(self) -> dict[str, JSON]:
        """Return all that `restore` needs, as JSON."""
        return {"tasks": self._fingerprint(), "seed": self.seed, "summary": self.summary(), **self.progress()}

    def restore(self, state: Mapping[str, JSON]) -> None:
        """Continue from a state. Raises `ConfigError` if it belongs to other tasks or to another sampler."""
        if state.get("tasks") != self._fingerprint():
            raise ConfigError("The tasks, or their order, differ from those that this run started with. Resume with the same tasks file.")
        self.seed = int(state["seed"])
        try:
            self.resume(state)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"The saved state is not one of the sampler {type(self).__name__}: {error!r}. Resume with the sampler that the run started "
                "with."
            ) from error

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
