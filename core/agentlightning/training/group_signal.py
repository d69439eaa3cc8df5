"""The signal of a dry run's groups, and the settings that it suggests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from agentlightning.rl.signal import has_signal, share_interval, signal_chance
from agentlightning.types import JSON, Trajectory

ENOUGH = 0.5
"""Share of groups with signal. Runs that learn have at least this (`docs/not-learning.md`)."""
SIGNAL_GROUPS = 4
"""Groups with signal in a step, on average. The mean gradient of fewer is mostly noise."""
LARGER = 4
"""How many times larger a suggested group size or number of tasks may be. Beyond that, a few rollouts prove nothing, and steps get long."""
IDENTICAL = 0.5
"""Share of the pairs of rollouts in a group with the same replies, above which sampling is too narrow."""
LOW, HIGH = 1 / 3, 2 / 3
"""Groups without signal are all wrong or all right if their mean reward lies in this third of the rewards seen."""

Cause = Literal["all_wrong", "all_right", "mixed", "constant"]
REMEDIES: dict[Cause, str] = {
    "all_wrong": "Most groups are all wrong: use easier tasks, a warm start, or a reward for partial progress.",
    "all_right": "Most groups are all right: use harder tasks.",
    "mixed": "Some groups are all wrong and some all right: use tasks between the two.",
    "constant": "Every rollout earned the same reward: compare a reply with the format that your reward reads.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSignal:
    """Whether the groups of a dry run would teach anything."""

    size: int
    """Rollouts of a group."""
    groups: int
    """Groups with at least two scored rollouts."""
    with_signal: int
    """Groups whose rewards differ."""
    low: float
    """95% interval of the share of groups with signal."""
    high: float
    chances: dict[int, float]
    """Estimated share of the run's groups with signal, by group size; the run's own is among them."""
    cause: Cause | None
    """What the groups without signal have in common; None: there are none."""
    identical: float | None
    """Share of the pairs of rollouts in a group with the same replies; None: no group has two rollouts with replies."""

    @property
    def text(self) -> str:
        """A few lines for somebody who never heard of groups."""
        chance = self.chances[self.size]
        verdict = "That is enough." if chance >= ENOUGH else f"That is too little. Aim for {ENOUGH:.0%} or more."
        *others, last = [f"{share:.0%} of groups of {size}" for size, share in self.chances.items()]
        return (
            f"About {chance:.0%} of the groups will have signal. {verdict}\n"
            "A group is the rollouts of one task. It has signal only if their rewards differ.\n"
            f"Here {self.with_signal} of {self.groups} groups do (95% interval {self.low:.0%} to {self.high:.0%}).\n"
            f"Expect about {', '.join(others)}, and {last}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A setting that fits the measured signal."""

    setting: str
    now: JSON
    value: JSON
    """Equal to `now`: keep it."""
    reason: str

    @property
    def growth(self) -> float:
        """How many times as many rollouts a step then has."""
        if isinstance(self.value, int) and isinstance(self.now, int):
            return self.value / self.now
        return 1.0

    @property
    def text(self) -> str:
        """One line for the user."""
        value = f'"{self.value}"' if isinstance(self.value, str) else f"{self.value}"
        return f"{self.setting} = {value} ({'as now' if self.value == self.now else f'now {self.now}'}): {self.reason}."


def group_signal(trajectories: Sequence[Trajectory], group_size: int) -> GroupSignal | None:
    """Return the signal of complete groups; None: no group has two scored rollouts."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        groups.setdefault(trajectory.group, []).append(trajectory)
    scored = [[rollout.reward for rollout in group if rollout.reward is not None] for group in groups.values()]
    rewards = [group for group in scored if len(group) > 1]
    if not rewards:
        return None
    hits = sum(map(has_signal, rewards))
    low, high = share_interval(hits, len(rewards))
    sizes = sorted({max(2, group_size // 2), *(group_size * 2**power for power in range(int(math.log2(LARGER)) + 1))})
    return GroupSignal(
        size=group_size,
        groups=len(rewards),
        with_signal=hits,
        low=low,
        high=high,
        chances={size: signal_chance(rewards, size) for size in sizes},
        cause=_cause(rewards),
        identical=_identical(list(groups.values())),
    )


def suggest(signal: GroupSignal, *, tasks_per_step: int, tasks: int, temperature: float, sampler: str) -> tuple[Suggestion, ...]:
    """Return a suggestion for group size, tasks per step and temperature, and for the sampler if another one helps. `tasks`: of the run."""
    size = min((size for size, chance in signal.chances.items() if size >= signal.size and chance >= ENOUGH), default=signal.size)
    suggestions = [_size(signal, size), _tasks(signal.chances[size], tasks_per_step, tasks)]
    if signal.identical is not None:
        suggestions.append(_temperature(signal, signal.identical, temperature))
    if signal.chances[signal.size] < ENOUGH and signal.with_signal and sampler != "curriculum":
        reason = "it finds the tasks whose rewards differ, and stays with them"
        suggestions.append(Suggestion(setting="sampler", now=sampler, value="curriculum", reason=reason))
    return tuple(suggestions)


def remedy(signal: GroupSignal) -> str | None:
    """Return the advice for groups without signal that no setting mends; None: some group size has enough signal."""
    return None if signal.cause is None or max(signal.chances.values()) >= ENOUGH else REMEDIES[signal.cause]


def _size(signal: GroupSignal, value: int) -> Suggestion:
    reason = f"about {signal.chances[value]:.0%} of the groups have signal"
    if signal.chances[value] < ENOUGH:
        largest = max(signal.chances)
        reason = f"even of groups of {largest}, only about {signal.chances[largest]:.0%} have signal"
    return Suggestion(setting="algorithm.group_size", now=signal.size, value=value, reason=reason)


def _tasks(chance: float, now: int, tasks: int) -> Suggestion:
    value = now
    if now * chance < SIGNAL_GROUPS:
        value = max(now, min(math.ceil(SIGNAL_GROUPS / chance), LARGER * now, tasks))
    if value * chance < 1:
        return Suggestion(setting="tasks_per_step", now=now, value=now, reason=f"even {value} tasks seldom have a group with signal")
    reason = f"about {value * chance:.1f} groups with signal in a step, on average"
    return Suggestion(setting="tasks_per_step", now=now, value=value, reason=reason)


def _temperature(signal: GroupSignal, identical: float, now: float) -> Suggestion:
    chance, value, reason = signal.chances[signal.size], now, f"{identical:.0%} of the replies in a group are identical"
    if chance < ENOUGH and identical > IDENTICAL:
        value = 1.0 if now < 1 else max(now, min(round(now + 0.2, 2), 1.4))
    elif chance < ENOUGH and now > 1 and signal.cause in ("all_wrong", "constant"):
        value, reason = 1.0, "hot sampling may break the answers, and the replies differ without it"
    return Suggestion(setting="sampling.temperature", now=now, value=value, reason=reason)


def _cause(groups: Sequence[Sequence[float]]) -> Cause | None:
    """What the groups without signal have in common."""
    equal = [float(np.mean(group)) for group in groups if not has_signal(group)]
    rewards = [reward for group in groups for reward in group]
    low, high = min(rewards), max(rewards)
    if not equal:
        return None
    if not has_signal(rewards):
        return "all_right" if low >= 1 else "constant"
    position = (float(np.mean(equal)) - low) / (high - low)
    return "all_wrong" if position <= LOW else "all_right" if position >= HIGH else "mixed"


def _identical(groups: Sequence[Sequence[Trajectory]]) -> float | None:
    """The share of the pairs of rollouts in a group with the same replies."""
    pairs = list[bool]()
    for group in groups:
        replies = [tuple(reply.response_ids.tobytes() for reply in rollout.transitions) for rollout in group if rollout.transitions]
        pairs += [first == second for first, second in combinations(replies, 2)]
    return sum(pairs) / len(pairs) if pairs else None
