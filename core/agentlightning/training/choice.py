"""The choice of a run's weights: a paired test over the eval tasks, sampled and greedy, and not the highest number.

The weights are those of the last evaluated step, unless the test finds them worse than those of the strongest evaluation before. A highest
number of several is high by luck, too; a later step that cannot be told apart from it has learned more. If the test finds the chosen step
worse than the model before training, the choice is that model, as step 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agentlightning.training.interval import Interval, bootstrap
from agentlightning.types import Trajectory

LEAST_CHANGED = 6
"""Tasks whose reward must change before a difference counts. Five that all change in one direction do so by chance in 6 % of cases."""
COVERAGE = 0.8
"""The share of an earlier evaluation's scored tasks that a later one must score to count. A judge that fails now and then stays above."""
BOTH = "both"
"""The mean of the kinds of an evaluation, task by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The rewards of one evaluation."""

    step: int
    rewards: dict[str, dict[str, float]]
    """By kind (`sampled`, `greedy`) and task id, the mean over the scored rollouts."""

    @classmethod
    def of(cls, step: int, kinds: Mapping[str, Sequence[Trajectory]]) -> Evaluation:
        """Read the rewards of the rollouts of each kind."""
        rewards: dict[str, dict[str, float]] = {}
        for kind, trajectories in kinds.items():
            tasks: dict[str, list[float]] = {}
            for trajectory in trajectories:
                if trajectory.reward is not None:
                    tasks.setdefault(trajectory.task.id, []).append(trajectory.reward)
            if tasks:
                rewards[kind] = {task: float(np.mean(values)) for task, values in tasks.items()}
        return cls(step=step, rewards=rewards)

    @property
    def scored(self) -> int:
        """The number of scored tasks, over all kinds."""
        return sum(len(tasks) for tasks in self.rewards.values())

    def covers(self, other: Evaluation) -> bool:
        """Whether this scored about as many tasks as another evaluation, so that its mean reward is not that of a few easy tasks."""
        return self.scored >= COVERAGE * other.scored

    def beats(self, other: Evaluation) -> bool:
        """Whether this has the higher mean over the tasks that both scored, or the other one scored too few to tell."""
        if not other.covers(self):
            return True
        rewards = _changes(other, self)
        return bool(rewards) and float(np.nansum(rewards[BOTH])) > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The difference of two evaluations, paired by task."""

    interval: Interval
    changed: int
    """Tasks whose reward is not the same in both."""

    @property
    def rises(self) -> bool:
        """Whether the later evaluation is better beyond doubt."""
        return self.changed >= LEAST_CHANGED and self.interval.low > 0

    @property
    def falls(self) -> bool:
        """Whether the later evaluation is worse beyond doubt."""
        return self.changed >= LEAST_CHANGED and self.interval.high < 0

    @property
    def text(self) -> str:
        """The mean difference with its interval."""
        return f"{self.interval.mean:+.3f} (95% interval {self.interval.low:+.3f} to {self.interval.high:+.3f})"


Differences = dict[str, Difference]
"""By kind, and for `both`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The step whose weights are the best of a run so far."""

    step: int
    """0: the model before training."""
    reason: str
    against: int | None = None
    """The step that the test compared with; None: nothing was compared."""
    difference: Differences = field(default_factory=dict[str, Difference])
    """The later step of the two less the earlier one."""
    change: Differences = field(default_factory=dict[str, Difference])
    """The chosen step less the model before training; empty if that was not evaluated, or is the choice."""


def _changes(before: Evaluation, after: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Return (tasks,) the difference of each task, by kind and for `both`; NaN: one of the evaluations did not score it."""
    tasks = sorted({task for rewards in (*before.rewards.values(), *after.rewards.values()) for task in rewards})
    kinds = [kind for kind in before.rewards if kind in after.rewards]
    missing = float("nan")
    table = {
        kind: np.array([after.rewards[kind].get(task, missing) - before.rewards[kind].get(task, missing) for task in tasks])
        for kind in kinds
    }
    if kinds:
        table[BOTH] = np.mean(list(table.values()), axis=0)
    return table


def differences(before: Evaluation, after: Evaluation) -> Differences:
    """Return what changed from one evaluation to another. A task that one of them did not score is left out."""
    table = _changes(before, after)
    intervals = {kind: bootstrap(values[np.newaxis]) for kind, values in table.items()}
    return {
        kind: Difference(interval=interval, changed=int(np.count_nonzero(np.abs(np.nan_to_num(table[kind])) > 1e-9)))
        for kind, interval in intervals.items()
        if interval is not None
    }


def worse(difference: Differences) -> bool:
    """Whether the later evaluation is worse: both kinds together fall, or one falls and both together do not rise."""
    if BOTH not in difference:
        return False
    falls = any(kind.falls for kind in difference.values())
    return difference[BOTH].falls or (falls and not difference[BOTH].rises)


def choose(choice: Choice | None, strongest: Evaluation | None, change: Differences, evaluation: Evaluation) -> Choice:
    """Return the choice after another evaluation of a trained step. `change`: from the evaluation before training; empty without one.

    `choice` and `strongest` are None at the first evaluation after training began.
    """
    difference = {} if strongest is None else differences(strongest, evaluation)
    if choice is not None and strongest is not None and worse(difference):
        reason = f"A paired test finds step {evaluation.step} worse than step {strongest.step}: {in_words(difference)}."
        return choice if choice.step == 0 else replace(choice, reason=reason, against=evaluation.step, difference=difference)
    if worse(change):
        reason = f"The run made the agent worse. A paired test of step {evaluation.step} finds {in_words(change)}."
        return Choice(step=0, reason=reason, against=evaluation.step, difference=change)
    if strongest is None:
        return Choice(step=evaluation.step, reason="It is the first step evaluated after training began.", change=change)
    reason = f"It is the last evaluated step. A paired test does not find it worse than step {strongest.step}: {in_words(difference)}."
    return Choice(step=evaluation.step, reason=reason, against=strongest.step, difference=difference, change=change)


def incomplete(evaluation: Evaluation, earlier: Evaluation | None) -> str | None:
    """Return why an evaluation does not count after an earlier one; None: it counts."""
    if earlier is None or evaluation.covers(earlier):
        return None
    return (
        f"The evaluation after step {evaluation.step} does not count in the choice of weights: it scored {evaluation.scored} tasks, and "
        f"that of step {earlier.step} scored {earlier.scored}. See `agl show` for the errors of its rollouts."
    )


def in_words(difference: Differences) -> str:
    """Differences in words."""
    return ", ".join(f"{kind} {value.text}" for kind, value in difference.items() if kind != BOTH or len(difference) > 2)
