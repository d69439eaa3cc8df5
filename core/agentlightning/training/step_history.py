"""The steps of a run so far, read for a diagnosis: what they measured, how noisy their rewards are, and what a remedy may name."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

IN_A_ROW = 3
"""Steps in a row that show a sign. One step of a few groups is noise; three by chance are rare."""
NO_SIGNAL = 0.65
"""Share of groups without signal. Healthy runs stay below one half; the first try on Spider had four to five of six."""
TRUNCATED = 0.5
"""Share of replies that end at the token limit. Half of them then lose their answers."""
NOISE = 2.0
"""Standard errors by which two rewards must differ. About 95% of differences by chance are smaller."""
ALL_RIGHT = 0.95
"""Position in the rewards seen above which a run has nothing left to learn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The settings of a run that a diagnosis names. None: not known."""

    lr: float | None = None
    suggested_lr: float | None = None
    max_tokens: int | None = None
    mismatch_alarm: float = 0.05
    sampler: str = "epochs"
    filters: bool = False
    """Whether `collection.filter` is set."""
    config: str | None = None
    """The config file of the run, for a command; None: no command starts this run."""
    checkpoints: Mapping[int, str] = field(default_factory=dict[int, str])
    """The checkpoints by step, as a user names them."""
    best: int | None = None
    """The step with the best weights (0: the model before training); None: no step was evaluated after training began."""
    samples: bool = True
    """Whether the engine samples the rollouts. Those of a replay say nothing about the policy in training."""


class Steps:
    """The training steps and evaluations of a run."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], facts: Facts) -> None:
        self.facts = facts
        self.all = [row for row in rows if row["step"] > 0]
        self.scored = [row for row in self.all if has(row, "reward", "groups")]
        """Steps with rollouts of the policy."""
        self.evals = [row for row in rows if any(name.startswith("eval.") for name in row)]

    def last(self, name: str, count: int = IN_A_ROW) -> list[float]:
        """Return a metric of the last steps with rollouts; empty if one of them has none."""
        rows = self.scored[-count:]
        return [float(row[name]) for row in rows] if len(rows) == count and all(has(row, name) for row in rows) else []

    @property
    def learns(self) -> bool:
        """Whether the reward of the last steps is above that of the first steps by more than noise."""
        if self.eval_changes is not None:
            return any(low > 0 for low, _ in self.eval_changes)
        if len(self.scored) < 2 * IN_A_ROW:
            return False
        first, last = mean_reward(self.scored[:IN_A_ROW]), mean_reward(self.scored[-IN_A_ROW:])
        return last[0] - first[0] > NOISE * math.hypot(first[1], last[1])

    @property
    def eval_changes(self) -> list[tuple[float, float]] | None:
        """The intervals of what the last evaluation changed from before training, in a run with a curriculum: its steps have easier or
        harder tasks from time to time, so their rewards do not compare. None: they compare, or there is no later evaluation."""
        if self.facts.sampler != "curriculum" or not self.evals or self.evals[0]["step"] > 0 or self.evals[-1]["step"] == 0:
            return None
        names = [(f"eval.{kind}.change_low", f"eval.{kind}.change_high") for kind in ("sampled", "greedy")]
        return [(self.evals[-1][low], self.evals[-1][high]) for low, high in names if has(self.evals[-1], low, high)]

    @property
    def no_signal(self) -> float:
        """The lowest share of groups without signal in the last steps; 0: unknown."""
        shares = [no_signal(row) for row in self.scored[-IN_A_ROW:]]
        return min(shares) if len(shares) == IN_A_ROW else 0.0

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest reward so far; None: unknown."""
        rows = [row for row in self.scored if has(row, "reward_min", "reward_max")]
        return (min(row["reward_min"] for row in rows), max(row["reward_max"] for row in rows)) if rows else None

    def position(self, reward: float) -> float | None:
        """Where a reward lies between the lowest (0) and the highest (1) so far."""
        if self.range is None or self.range[0] == self.range[1]:
            return None
        low, high = self.range
        return (reward - low) / (high - low)

    @property
    def solved(self) -> bool:
        """Whether almost every rollout of the last steps has the highest reward."""
        rewards = self.last("reward")
        position = self.position(float(np.mean(rewards))) if rewards else None
        return position is not None and position >= ALL_RIGHT

    @property
    def lower_lr(self) -> float | None:
        """A learning rate that does less harm."""
        lr, suggested = self.facts.lr, self.facts.suggested_lr
        return None if lr is None else min(lr / 4, lr if suggested is None else suggested)

    @property
    def lower_rate(self) -> str:
        """A sentence with a lower learning rate."""
        return "Lower trainer.lr." if self.lower_lr is None else f"Set trainer.lr = {self.lower_lr:.1e}."

    @property
    def way_back(self) -> str:
        """How to start again from before the harm, with the command."""
        step = self._step_before_harm
        start = "start it again" if step is None else f"go back to step {step}"
        if self.facts.config is None:
            model = "" if step is None else f' Set model = "{self.facts.checkpoints[step]}".'
            return f"Stop this run and {start}.{model} {self.lower_rate}"
        command = ["agl", "train", self.facts.config]
        command += [] if step is None else ["--model", self.facts.checkpoints[step]]
        command += [] if self.lower_lr is None else ["--lr", f"{self.lower_lr:.1e}"]
        return f"Stop this run and {start} with a lower learning rate: {shlex.join(command)}"

    @property
    def _step_before_harm(self) -> int | None:
        """The best step with a checkpoint from before the last steps; without evaluations, the newest up to the highest reward."""
        if len(self.all) <= IN_A_ROW:
            return None
        best, latest = self.facts.best, self.all[-1]["step"] - IN_A_ROW
        if best is not None:
            return best if 0 < best <= latest and best in self.facts.checkpoints else None
        latest = min(latest, peak_step(self.scored))
        return max((step for step in self.facts.checkpoints if step <= latest), default=None)


def has(row: Mapping[str, Any], *names: str) -> bool:
    """Whether a row has these numbers. One that is not finite is null in `metrics.jsonl`."""
    return all(isinstance(row.get(name), int | float) and math.isfinite(row[name]) for name in names)


def last_measured(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Return a metric of the last steps that have it. A step without an update has no entropy."""
    return [row[name] for row in rows if has(row, name)][-IN_A_ROW:]


def no_signal(row: Mapping[str, Any]) -> float:
    """Return the share of a step's groups without signal. A filtered group whose place another one took does not count.

    Groups of one rollout compare nothing, so the share is 0.
    """
    places = row["groups"] - row.get("groups_resampled", 0)
    if not places or row.get("rollouts", math.inf) <= row["groups"]:
        return 0.0
    return max(0.0, 1 - (row["groups"] - row.get("zero_variance_groups", 0)) / places)


def reward_error(row: Mapping[str, Any]) -> float:
    """The standard error of a step's reward, over its groups."""
    return row.get("reward_spread", 0.0) / math.sqrt(max(1, row["groups"]))


def start_error(rows: Sequence[Mapping[str, Any]]) -> float:
    """The standard error of the mean of the first steps' rewards."""
    return mean_reward(rows[:IN_A_ROW])[1]


def mean_reward(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the mean reward of some steps and its standard error."""
    rewards = [row["reward"] for row in rows]
    errors = [reward_error(row) for row in rows]
    between = float(np.std(rewards)) / math.sqrt(len(rows))  # one group has no spread
    return float(np.mean(rewards)), max(between, math.sqrt(sum(error * error for error in errors)) / len(rows))


def peak_reward(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the highest mean reward of steps in a row."""
    return max(_rewards_in_a_row(rows))


def peak_step(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the last of the steps in a row with the highest mean reward; 0: there are too few steps."""
    rewards = _rewards_in_a_row(rows)
    return rows[int(np.argmax(rewards)) + IN_A_ROW - 1]["step"] if rewards else 0


def _rewards_in_a_row(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [mean_reward(rows[place : place + IN_A_ROW])[0] for place in range(len(rows) - IN_A_ROW + 1)]


def first_eval(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the sampled eval reward before training."""
    return rows[0]["eval.sampled"] if rows and rows[0]["step"] == 0 and has(rows[0], "eval.sampled") else None
