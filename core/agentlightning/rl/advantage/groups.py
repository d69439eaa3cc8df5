"""The groups of a step as arrays: what the estimators that compare within a group share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.arrays import Bools, Doubles, Ints, RolloutArrays

DENSE = 1 << 20
"""Up to so many keys are counted in an array; more of them are numbered first."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The scored rollouts, by group."""

    rollouts: RolloutArrays
    returns: Doubles
    """(transitions,)"""
    scored: Bools
    """(rollouts,)"""
    totals: Doubles
    """(rollouts,) G_0, the first return that is a number; the outcome where the model was never called; 0 where it was never scored."""
    size: Ints
    """(groups,) scored rollouts."""
    signal: Bools
    """(groups,) whether anything tells its rollouts apart."""
    plain: bool
    """Whether every transition earned its rollout's outcome."""
    whole: bool
    """Whether every return is a number."""

    @classmethod
    def of(cls, rollouts: RolloutArrays, returns: Doubles, tolerance: float) -> Groups:
        """`ConfigError` for a tolerance that is none, `ValueError` for returns of another shape."""
        check(tolerance >= 0, "tolerance", tolerance, "a number of 0 or more")
        if returns.shape != (rollouts.transitions,):
            raise ValueError(f"returns of shape {returns.shape} for {rollouts.transitions} transitions; expected one for each")
        outcome, rollout, group, first = rollouts.returns, rollouts.rollout, rollouts.group, rollouts.first
        finite = np.isfinite(returns)
        whole, known = bool(finite.all()), ~np.isnan(outcome)
        called = first[1:] > first[:-1]
        totals = np.where(known, outcome, 0.0)
        if whole:
            scored = known | called
            totals[called] = returns[first[:-1][called]]
            plain = bool((totals == outcome)[called].all() and (returns == outcome.take(rollout)).all())
        else:
            owner, numbers = rollout[finite], returns[finite]
            plain = bool((numbers == outcome[owner]).all())
            scored = known & ~called
            scored[owner] = True
            totals[owner[::-1]] = numbers[::-1]  # of several the first one stays
            totals[~scored] = 0.0
        count = int(group.max(initial=-1)) + 1
        size = np.bincount(group[scored], minlength=count)
        signal = _apart(outcome[known], group[known], count, tolerance)
        if not plain and not signal.all() and rollouts.rewarded.any():
            signal |= _apart_by_spans(rollouts, returns, totals, scored, signal, tolerance)
        return cls(rollouts, returns, scored, totals, size, signal & (size > 1), plain, whole)

    def sum(self, values: Doubles) -> Doubles:
        """(groups,) from (rollouts,), over the scored ones."""
        return np.bincount(self.rollouts.group, np.where(self.scored, values, 0.0), len(self.size)).astype(np.float64)

    def mean(self) -> Doubles:
        """(groups,) of G_0."""
        return np.bincount(self.rollouts.group, self.totals, len(self.size)) / np.maximum(self.size, 1)

    def deviation(self, ddof: int) -> Doubles:
        """(groups,) of G_0."""
        off = self.totals - self.mean()[self.rollouts.group]
        return np.sqrt(self.sum(off * off) / np.maximum(self.size - ddof, 1))

    def of_transitions(self, per_group: Doubles | Bools) -> Any:
        """(transitions,) from (groups,)."""
        return per_group.take(self.rollouts.transition_group)

    def less(self, baseline: Doubles) -> Doubles:
        """(transitions,) G_t - b, with b (rollouts,); 0 in groups without signal, NaN where the return is."""
        rollout = self.rollouts.rollout
        if not self.plain:
            return self._quiet(self.returns - baseline[rollout])
        # Then everything happens to whole rollouts, of which there are fewer.
        value = np.where(self.signal[self.rollouts.group], self.rollouts.returns - baseline, 0.0).take(rollout)
        return value if self.whole else np.where(np.isnan(self.returns), np.nan, value)

    def less_mean(self) -> Doubles:
        """(transitions,) G_t - m."""
        return self.less(self.mean()[self.rollouts.group])

    def less_others(self) -> Doubles:
        """(transitions,) G_t - b_t, with b_t over the other rollouts at that agent's turn."""
        rollouts, rollout, returns = self.rollouts, self.rollouts.rollout, self.returns
        agents, turns = len(rollouts.agents), int(rollouts.turn.max(initial=0)) + 1
        place = rollouts.transition_group * (agents * turns) + rollouts.turn
        if agents > 1:
            place += rollouts.agent * turns
        place = _dense(place, len(self.size) * agents * turns)
        # Each rollout counts once, however many choices it has there; one without a number there not at all.
        keys = int(place.max(initial=0)) + 1
        own, each = returns, None
        if not self.whole:
            own, each = np.where(np.isnan(returns), 0.0, returns), (~np.isnan(returns)).astype(np.float64)
        if len(rollouts.call_rewards) < len(rollout):
            visit = _dense(place * len(rollouts) + rollout, keys * len(rollouts))
            there = np.ones(len(rollout)) if each is None else each
            choices = np.maximum(np.bincount(visit, there)[visit], 1)
            own, each = np.bincount(visit, own)[visit] / choices, there / choices
        others = np.rint(np.bincount(place, each, keys)) - 1
        total = np.bincount(place, own if each is None else own * each, keys)
        baseline = total.take(place)
        baseline -= own
        baseline /= np.maximum(others, 1).take(place)
        if not (others > 0).all():
            elsewhere = (self.sum(self.totals)[rollouts.group] - self.totals) / np.maximum(self.size[rollouts.group] - 1, 1)
            baseline = np.where(others[place] > 0, baseline, elsewhere[rollout])
        return self._quiet(returns - baseline)

    def _quiet(self, values: Doubles) -> Doubles:
        if self.signal.all():
            return values
        told = self.of_transitions(self.signal)
        return np.where(told if self.whole else told | np.isnan(self.returns), values, 0.0)


def check(good: bool, name: str, value: object, expected: str) -> None:
    """`ConfigError` for a setting that cannot be."""
    if not good:
        raise ConfigError(f"advantage.{name} is {value!r}; expected {expected}")


def check_eps(eps: float) -> None:
    check(eps >= 0 and math.isfinite(eps), "eps", eps, "a number of 0 or more")


def _apart(values: Doubles, owner: Ints, count: int, tolerance: float) -> Bools:
    """(count,) whether the values of each owner differ by more than the tolerance."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, owner, values)
    np.maximum.at(high, owner, values)
    return high - low > tolerance


def _apart_by_spans(rollouts: RolloutArrays, returns: Doubles, totals: Doubles, scored: Bools, signal: Bools, tolerance: float) -> Bools:
    """(groups,) whether rewards on spans tell rollouts with equal outcomes apart: equal outcomes carry no signal, whatever the lengths of
    the rollouts made of them. Looks at the groups without signal alone."""
    group, quiet = rollouts.group, ~signal
    some = np.flatnonzero(quiet.take(rollouts.transition_group))
    own, finite = rollouts.transition_group[some], np.isfinite(returns[some])
    rewarded = np.bincount(own, rollouts.rewarded[some], len(signal)) > 0
    asked = scored & quiet[group]
    values = np.concatenate([totals[asked], returns[some][finite]])
    return rewarded & _apart(values, np.concatenate([group[asked], own[finite]]), len(signal), tolerance)


def _dense(keys: Ints, bound: int) -> Ints:
    """The keys themselves, or where they are too many for an array, their numbers."""
    return keys if bound <= DENSE else np.unique(keys, return_inverse=True)[1].astype(np.int64)
