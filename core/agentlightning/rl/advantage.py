"""Advantages: each return compared with those of its group.

The baseline is over rollouts, on the full group of scored rollouts, before anything is dropped; one that never called the model counts in
it (law 5). It never depends on its own rollout's actions, but for the plain group mean that `grpo` and `dr_grpo` were published with. A
group of one, and a group that nothing tells apart, have advantage zero (law 7). Each function gives one float64 array (transitions,) for
each trajectory; NaN where the rollout was never scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentlightning.errors import ConfigError
from agentlightning.model import Trajectory

Arrays = list[NDArray[np.float64]]
"""One array (transitions,) for each trajectory."""


def grpo(
    trajectories: Sequence[Trajectory], returns: Arrays, *, std: bool = True, ddof: int = 1, eps: float = 1e-6, tolerance: float = 1e-6
) -> Arrays:
    """A = (R - m) / (s + eps), with m and s mean and deviation of the group's rollouts. Source: arXiv 2402.03300; `ddof` 1 as in verl.

    Where credit differs by turn A_t = (G_t - b_t) / (s + eps), with b_t as in `rloo` and s the deviation of the rollouts' returns G_0;
    where these are equal within the tolerance nothing is divided.
    """
    _check(ddof in (0, 1), "ddof", ddof, "0 or 1")
    _check(eps >= 0 and math.isfinite(eps), "eps", eps, "a number of 0 or more")
    made: Arrays = [np.full(len(each), np.nan) for each in returns]
    plain = _same_for_every_turn(trajectories, returns)
    for group in _groups(trajectories, returns, tolerance):
        raw = group.less_mean() if plain else group.less_others()
        deviation = float(np.std(group.totals, ddof=ddof)) if group.signal and std else 0.0
        for k, values in zip(group.members, raw, strict=True):
            made[k] = values / (deviation + eps) if deviation > tolerance else values
    return made


def dr_grpo(trajectories: Sequence[Trajectory], returns: Arrays, *, tolerance: float = 1e-6) -> Arrays:
    """A = R - m; where credit differs by turn A_t = G_t - b_t. Its constant length is `weight = "constant"`. Source: arXiv 2503.20783."""
    return grpo(trajectories, returns, std=False, tolerance=tolerance)


def rloo(trajectories: Sequence[Trajectory], returns: Arrays, *, tolerance: float = 1e-6) -> Arrays:
    """A = R - mean of the others = G / (G - 1) (R - m), with G rollouts in the group. Source: arXiv 2402.14740.

    Where credit differs by turn A_t = G_t - b_t: b_t is the mean, over the other rollouts in which the same agent has a turn t, of their
    return there, and where none has one, the mean of the others' G_0.
    """
    made: Arrays = [np.full(len(each), np.nan) for each in returns]
    plain = _same_for_every_turn(trajectories, returns)
    for group in _groups(trajectories, returns, tolerance):
        size = len(group.members)
        raw = [values * size / max(size - 1, 1) for values in group.less_mean()] if plain else group.less_others()
        for k, values in zip(group.members, raw, strict=True):
            made[k] = values
    return made


@dataclass(frozen=True, slots=True)
class _Group:
    """The scored rollouts of a group."""

    members: list[int]
    """Positions among the trajectories."""
    trajectories: list[Trajectory]
    returns: Arrays
    totals: NDArray[np.float64]
    """(rollouts,) G_0 of each; the outcome as it was given where the model was never called."""
    signal: bool
    """Whether anything tells the rollouts apart."""

    def less_mean(self) -> Arrays:
        """G_t - m."""
        mean = float(self.totals.mean())
        return [values - mean if self.signal else np.zeros(len(values)) for values in self.returns]

    def less_others(self) -> Arrays:
        """G_t - b_t."""
        if not self.signal:
            return [np.zeros(len(values)) for values in self.returns]
        at: dict[tuple[str | None, int], dict[int, list[float]]] = defaultdict(dict)
        for k, (each, values) in enumerate(zip(self.trajectories, self.returns, strict=True)):
            for t, value in zip(each.transitions, values, strict=True):
                at[t.agent, t.turn].setdefault(k, []).append(float(value))
        made: Arrays = []
        for k, (each, values) in enumerate(zip(self.trajectories, self.returns, strict=True)):
            elsewhere = float(np.delete(self.totals, k).mean())
            baseline = [self._others(at[t.agent, t.turn], k, elsewhere) for t in each.transitions]
            made.append(values - np.asarray(baseline, np.float64))
        return made

    @staticmethod
    def _others(reached: dict[int, list[float]], own: int, elsewhere: float) -> float:
        """Each rollout counts once, however many choices it has there."""
        others = [math.fsum(values) / len(values) for k, values in reached.items() if k != own]
        return math.fsum(others) / len(others) if others else elsewhere


def _groups(trajectories: Sequence[Trajectory], returns: Arrays, tolerance: float) -> list[_Group]:
    _check(tolerance >= 0, "tolerance", tolerance, "a number of 0 or more")
    members: dict[str, list[int]] = defaultdict(list)
    for k, (each, values) in enumerate(zip(trajectories, returns, strict=True)):
        if values.shape != (len(each.transitions),):
            raise ValueError(f"rollout {each.rollout_id} has {len(each.transitions)} transitions and returns of shape {values.shape}")
        if np.isfinite(values).all() if len(values) else each.reward is not None:
            members[each.group].append(k)
    return [_group(ks, [trajectories[k] for k in ks], [returns[k] for k in ks], tolerance) for ks in members.values()]


def _group(members: list[int], trajectories: list[Trajectory], returns: Arrays, tolerance: float) -> _Group:
    """Equal outcomes carry no signal, whatever the lengths of the rollouts made of them; rewards on spans may still tell them apart."""
    totals = np.array([float(v[0]) if len(v) else t.reward or 0.0 for t, v in zip(trajectories, returns, strict=True)])
    outcomes = [t.reward for t in trajectories if t.reward is not None]
    equal = not outcomes or max(outcomes) - min(outcomes) <= tolerance
    if equal and any(t.rewards for each in trajectories for t in each.transitions):
        every = np.concatenate([totals, *returns])
        equal = float(np.ptp(every)) <= tolerance
    return _Group(members, trajectories, returns, totals, signal=len(members) > 1 and not equal)


def _same_for_every_turn(trajectories: Sequence[Trajectory], returns: Arrays) -> bool:
    """Whether credit was identical, in all rollouts that were scored."""
    return all(bool((values == each.reward).all()) for each, values in zip(trajectories, returns, strict=True) if np.isfinite(values).all())


def _check(good: bool, name: str, value: object, expected: str) -> None:
    if not good:
        raise ConfigError(f"advantage.{name} is {value!r}; expected {expected}")
