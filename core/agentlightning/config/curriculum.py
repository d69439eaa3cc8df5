"""A curriculum: it finds the tasks whose rewards differ, stays with them, and forgets as the policy improves.

Sources: learnability p (1 - p) and the split into a pool and exploration, arXiv 2408.15099; a Beta posterior of each task's success and
forgetting, arXiv 2507.04632.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from agentlightning.config.samplers import Sampler
from agentlightning.config.tasks import content_id
from agentlightning.rl.signal import has_signal, share_interval
from agentlightning.types import JSON, Bools, Doubles, Task

EXPLORED = 0.25
"""Share of the drawn tasks that come from outside the pool, to find tasks that have signal now."""
REUSE = 2.0
"""A step takes at most the pool divided by this, so that it does not train on the same few tasks in every step."""
KEPT = 0.5
"""Share of a task's evidence that stays when it is measured again: training on a task changes it more than training on others."""
HALF_LIFE = 10.0
"""Steps after which evidence counts half, because every step changes the policy."""
FORGOTTEN = 0.5
"""Rollouts below which evidence counts as none. Those of a group of 8 last 40 steps."""
EXTREME = 0.05
"""The prior's mean success keeps this distance from 0 and 1, so that no task is ruled out."""


class Curriculum(Sampler):
    """Tasks with differing rewards come more often, because only those teach something.

    Each task has a Beta posterior of its success p, and is worth the mean of p (1 - p), which is largest near p = 0.5. Rewards are scaled
    to 0 to 1 by the lowest and highest so far. The prior is one rollout with the mean success of the measured tasks. Real-valued rewards
    vary less than rewards of 0 and 1 with the same mean. The worth falls by the same factor, which has a prior of its own.

    The pool is the tasks whose measured variance is above the worth of an unknown task. Three quarters of a step come from the pool, but at
    most half of the pool. The rest explores all other tasks. Both are drawn in proportion to worth. A forgotten task is an unknown one.
    """

    def __init__(self, tasks: Sequence[Task], seed: int = 0) -> None:
        super().__init__(tasks, seed)
        self._place = {task.id: place for place, task in enumerate(self.tasks)}
        self._keys = [content_id([task.id, task.input]) for task in self.tasks]
        """Names of the evidence. Another run has the same name only for the same task."""
        self._draws = self._steps = 0
        self._now, self._start = np.zeros((len(tasks), 3)), np.zeros((len(tasks), 3))
        """(tasks, 3) rollouts, sum of rewards, and sum of squared rewards: evidence of the policy now, and of the model at the start."""
        self._range: tuple[float, float] | None = None
        """The lowest and the highest reward so far."""
        self._drawn: dict[int, list[float]] = {}
        """The chances with which each task was drawn, of groups whose rewards are still to come."""
        self._tally = Tally()

    def draw(self, count: int) -> list[int]:
        rng = np.random.default_rng([self.seed % 2**64, self._draws])
        self._draws += 1
        drawn: list[int] = []
        while len(drawn) < count:
            part = min(count - len(drawn), len(self.tasks))
            chances = self.chances(part)
            positions = _systematic(rng, chances, part)
            for position in positions:
                self._drawn.setdefault(position, []).append(float(chances[position]))
            drawn += positions
        return drawn

    def chances(self, count: int) -> Doubles:
        """(tasks,) the chance of each task to be among the next `count`; the sum is `count`."""
        worth, pool = self._worth()
        exploited = min((1 - EXPLORED) * count, pool.sum() / REUSE) if not pool.all() else float(count)
        chances = np.zeros(len(worth))
        for part, share in ((pool, exploited), (~pool, count - exploited)):
            if part.any():
                chances[part] = share * worth[part] / worth[part].sum()
        return _at_most_one(chances, count)

    def learn(self, groups: Sequence[tuple[str, Sequence[float]]]) -> None:
        fresh = 2.0 ** (-self._steps / HALF_LIFE)  # how much these rewards still say of the model at the start
        self._steps += 1
        self._now *= 2.0 ** (-1 / HALF_LIFE)
        self._now[self._now[:, 0] < FORGOTTEN] = 0.0
        for task_id, rewards in groups:
            position = self._place.get(task_id)
            if position is None:
                continue
            chance = self._drawn_with(position)
            if len(rewards) < 2:
                continue
            evidence = np.array([len(rewards), sum(rewards), sum(reward * reward for reward in rewards)])
            self._now[position] = KEPT * self._now[position] + evidence
            self._start[position] = (1 - fresh * (1 - KEPT)) * self._start[position] + fresh * evidence
            low, high = self._range or (rewards[0], rewards[0])
            self._range = min(low, *rewards), max(high, *rewards)
            if chance is not None:
                self._tally.add(chance, len(rewards), signal=has_signal(rewards))

    def carry(self, earlier: Iterable[Mapping[str, JSON]]) -> int:
        for state in earlier:
            start: dict[str, list[float]] = cast("Any", state).get("start") or {}
            rows = {position: start[key] for position, key in enumerate(self._keys) if key in start}
            if rows:
                for position, row in rows.items():
                    self._now[position] = row
                self._start = self._now.copy()
                self._range = _range(state.get("range"))
                return len(rows)
        return 0

    def summary(self) -> dict[str, JSON]:
        return self._tally.summary()

    def progress(self) -> dict[str, JSON]:
        return {
            "draws": self._draws,
            "steps": self._steps,
            "now": self._by_key(self._now),
            "start": self._by_key(self._start),
            "range": None if self._range is None else list(self._range),
            "drawn": {self._keys[position]: list(chances) for position, chances in self._drawn.items()},
            "tally": asdict(self._tally),
        }

    def resume(self, progress: Mapping[str, JSON]) -> None:
        state: Any = progress
        self._draws, self._steps, self._range = int(state["draws"]), int(state["steps"]), _range(state["range"])
        positions = {key: position for position, key in enumerate(self._keys)}
        for rows, table in ((state["now"], self._now), (state["start"], self._start)):
            table[:] = 0.0
            for key in rows.keys() & positions.keys():  # a task whose text has changed is an unknown one
                table[positions[key]] = rows[key]
        self._drawn = {positions[key]: list(chances) for key, chances in state["drawn"].items() if key in positions}
        self._tally = Tally(**state["tally"])

    def _drawn_with(self, position: int) -> float | None:
        """Return the chance with which the oldest group of a task was drawn; None: not known. The group is under way no more."""
        chances = self._drawn.pop(position, [])
        if chances[1:]:
            self._drawn[position] = chances[1:]
        return chances[0] if chances else None

    def _by_key(self, table: Doubles) -> dict[str, JSON]:
        return {self._keys[position]: table[position].tolist() for position in np.flatnonzero(table[:, 0])}

    def _worth(self) -> tuple[Doubles, Bools]:
        """(tasks,) the worth of each task, and whether it is in the pool."""
        low, high = self._range or (0.0, 1.0)
        scale = high - low or 1.0
        count, total, squares = self._now.T
        success = (total - count * low) / scale
        squares = (squares - 2 * low * total + count * low * low) / scale**2
        measured, least = count > 0, np.maximum(count, FORGOTTEN)
        mean = float(np.mean(success[measured] / count[measured])) if measured.any() else 0.5
        mean = min(max(mean, EXTREME), 1 - EXTREME)
        a, b = mean + success, 1 - mean + count - success
        prior = mean * (1 - mean)
        possible, actual = success * (count - success) / least, squares - success * success / least
        typical = (actual.sum() + prior) / (possible.sum() + prior)  # 1 for rewards of 0 and 1
        variation = np.clip((actual + typical * prior) / (possible + prior), 0.0, 1.0)
        return variation * a * b / ((a + b) * (a + b + 1)), actual / least > typical * prior / 2


@dataclass(slots=True)
class Tally:
    """The rollouts of a run in groups without signal, and those of uniform sampling.

    A group that was drawn with chance c stands for 1 / c tasks. Weighted in this way, the groups without signal are those of uniform
    sampling (the Hajek estimator), at the same policies and without a model of the tasks.
    """

    groups: int = 0
    no_signal: int = 0
    rollouts: int = 0
    no_signal_rollouts: int = 0
    weight: float = 0.0
    """Sum of 1 / c."""
    weight_squares: float = 0.0
    no_signal_weight: float = 0.0

    def add(self, chance: float, rollouts: int, *, signal: bool) -> None:
        """Count a group."""
        self.groups += 1
        self.rollouts += rollouts
        self.weight += 1 / chance
        self.weight_squares += 1 / chance**2
        if not signal:
            self.no_signal += 1
            self.no_signal_rollouts += rollouts
            self.no_signal_weight += 1 / chance

    def summary(self) -> dict[str, JSON]:
        """Return the counts, and the saved rollouts with a 95% interval; negative: uniform sampling would have done better."""
        if not self.groups:
            return {}
        effective = self.weight**2 / self.weight_squares  # groups of equal weight that would be as precise
        low, high = share_interval(effective * self.no_signal_weight / self.weight, effective)
        uniform = self.no_signal_weight / self.weight
        return {
            "groups": self.groups,
            "no_signal_groups": self.no_signal,
            "rollouts": self.rollouts,
            "no_signal_rollouts": self.no_signal_rollouts,
            "uniform_no_signal_rollouts": uniform * self.rollouts,
            "saved_rollouts": uniform * self.rollouts - self.no_signal_rollouts,
            "saved_rollouts_low": low * self.rollouts - self.no_signal_rollouts,
            "saved_rollouts_high": high * self.rollouts - self.no_signal_rollouts,
        }


def _at_most_one(chances: Doubles, count: int) -> Doubles:
    """Cap chances at 1, and give the excess to the others in proportion. The sum stays `count`."""
    if count == len(chances):
        return np.ones(count)
    certain: Bools = np.zeros(len(chances), np.bool_)
    while (chances > 1).any():
        certain |= chances >= 1
        rest = np.where(certain, 0.0, chances)
        chances = np.where(certain, 1.0, rest * (count - certain.sum()) / rest.sum())
    return chances


def _systematic(rng: np.random.Generator, chances: Doubles, count: int) -> list[int]:
    """Draw `count` different positions, each with exactly its chance: equidistant points on the chances laid end to end in random order."""
    order = rng.permutation(len(chances))
    ends = np.cumsum(chances[order])
    ends[-1] = count  # without what rounding adds or takes
    return order[np.searchsorted(ends, rng.random() + np.arange(count), side="right")].tolist()


def _range(value: Any) -> tuple[float, float] | None:
    return None if value is None else (float(value[0]), float(value[1]))
