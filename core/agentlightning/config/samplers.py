"""A curriculum: tasks come more often the more the rewards of their rollouts differ, for only such groups teach anything."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agentlightning.config.tasks import Sampler, check_count, check_same, fingerprint
from agentlightning.types import JSON, Task

FLOOR = 0.05
"""Of the chance of the most instructive task: what a task that taught nothing so far keeps, since the policy changes."""
RECENT = 0.5
"""What the last group of a task weighs in its mean variance."""


class Curriculum(Sampler):
    """A task's chance is proportional to the variance of its rewards, p (1 - p) where they are 0 and 1; one that was not seen yet counts as
    the most instructive one. A step's tasks are different ones, as long as there are enough. Source: learnability in arXiv 2408.15099."""

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._draws = 0
        self._variance: dict[str, float] = {}

    def next(self, count: int) -> list[Task]:
        check_count(count)
        rng = np.random.default_rng([self.seed % 2**64, self._draws])
        self._draws += 1
        chance = self.chances()
        chosen: list[int] = []
        while len(chosen) < count:
            part = min(count - len(chosen), len(self.tasks))
            chosen += rng.choice(len(self.tasks), part, replace=False, p=chance).tolist()
        return [self.tasks[k] for k in chosen]

    def chances(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """(tasks,) of being drawn next."""
        most = max(self._variance.values(), default=0.0) or 1.0
        weight = np.array([max(self._variance.get(task.id, most) / most, FLOOR) for task in self.tasks])
        return weight / weight.sum()

    def learn(self, task_id: str, rewards: Sequence[float]) -> None:
        """The rewards of a group of a finished step."""
        if len(rewards) > 1:
            variance = float(np.var(rewards))
            self._variance[task_id] = RECENT * variance + (1 - RECENT) * self._variance.get(task_id, variance)

    def state(self) -> dict[str, JSON]:
        return {"tasks": fingerprint(self.tasks), "seed": self.seed, "draws": self._draws, "variance": dict(self._variance)}

    def restore(self, state: dict[str, JSON]) -> None:
        check_same(self.tasks, state)
        self.seed, self._draws = int(state["seed"]), int(state["draws"])
        self._variance = {name: float(value) for name, value in state["variance"].items()}
