"""The groups of a step as arrays: what the estimators that compare within a group share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.episodes import Bools, Doubles, Episodes, Ints

DENSE = 1 << 20
"""Up to so many keys are counted in an array; more of them are numbered first."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The scored rollouts, by group."""

    episodes: Episodes
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

    @classmethod
    def of(cls, episodes: Episodes, returns: Doubles, tolerance: float) -> Groups:
        """`ConfigError` for a tolerance that is none, `ValueError` for returns of another shape."""
        check(tolerance >= 0, "tolerance", tolerance, "a number of 0 or more")
        if returns.shape != (episodes.transitions,):
            raise ValueError(f"returns of shape {returns.shape} for {episodes.transitions} transitions; expected one for each")
        outcome, rollout, group = episodes.outcome, episodes.rollout, episodes.group
        finite = np.isfinite(returns)
        whole = bool(finite.all())
        known = np.flatnonzero(~np.isnan(outcome))
        totals = np.where(np.isnan(outcome), 0.0, outcome)
        scored = ~np.isnan(outcome)
        scored[rollout] = False
        scored[rollout if whole else rollout[finite]] = True
        expected = outcome[rollout]
        plain = bool((returns == expected).all()) if whole else bool((returns[finite] == expected[finite]).all())
        if not plain:
            some = np.arange(len(returns)) if whole else np.flatnonzero(finite)
            totals[rollout[some][::-1]] = returns[some][::-1]  # of several the first one stays
        count = int(group.max(initial=-1)) + 1
        size = np.bincount(group[scored], minlength=count)
        low, high = _range(outcome[known], group[known], count)
        signal = high - low > tolerance
        if not plain and episodes.rewarded.any():
            signal = signal | _apart_by_spans(episodes, returns, totals, scored, count, tolerance)
        return cls(episodes, returns, scored, np.where(scored, totals, 0.0), size, signal & (size > 1), plain)

    def sum(self, values: Doubles) -> Doubles:
        """(groups,) from (rollouts,), over the scored ones."""
        return np.bincount(self.episodes.group, np.where(self.scored, values, 0.0), len(self.size)).astype(np.float64)

    def mean(self) -> Doubles:
        """(groups,) of G_0."""
        return self.sum(self.totals) / np.maximum(self.size, 1)

    def deviation(self, ddof: int) -> Doubles:
        """(groups,) of G_0."""
        off = self.totals - self.mean()[self.episodes.group]
        return np.sqrt(self.sum(off * off) / np.maximum(self.size - ddof, 1))

    def of_transitions(self, per_group: Doubles | Bools) -> Any:
        """(transitions,) from (groups,)."""
        return per_group[self.episodes.group][self.episodes.rollout]

    def less(self, baseline: Doubles) -> Doubles:
        """(transitions,) G_t - b, with b (rollouts,); 0 in groups without signal, NaN where the return is."""
        rollout = self.episodes.rollout
        if self.plain:  # then everything happens to whole rollouts, of which there are fewer
            value = np.where(self.signal[self.episodes.group], self.episodes.outcome - baseline, 0.0)[rollout]
            return np.where(np.isnan(self.returns), np.nan, value)
        return self._quiet(self.returns - baseline[rollout])

    def less_mean(self) -> Doubles:
        """(transitions,) G_t - m."""
        return self.less(self.mean()[self.episodes.group])

    def less_others(self) -> Doubles:
        """(transitions,) G_t - b_t, with b_t over the other rollouts at that agent's turn."""
        episodes, returns = self.episodes, np.where(np.isnan(self.returns), 0.0, self.returns)
        there = ~np.isnan(self.returns)
        rollout, group = episodes.rollout, episodes.group
        agents, turns = int(episodes.agent.max(initial=0)) + 1, int(episodes.turn.max(initial=0)) + 1
        place = _dense((group[rollout] * agents + episodes.agent) * turns + episodes.turn, len(self.size) * agents * turns)
        # Each rollout counts once, however many choices it has there.
        keys = int(place.max(initial=0)) + 1
        if len(episodes.call_reward) == len(rollout):
            own, each = returns, there.astype(np.float64)
        else:
            visit = _dense(place * len(episodes) + rollout, keys * len(episodes))
            choices = np.bincount(visit, there)[visit]
            own = np.bincount(visit, returns)[visit] / np.maximum(choices, 1)
            each = np.where(there, 1 / np.maximum(choices, 1), 0.0)
        visits, total = np.bincount(place, each, keys)[place], np.bincount(place, own * each, keys)[place]
        others = np.rint(visits) - 1
        scored = self.size[group] - 1
        elsewhere = (self.sum(self.totals)[group] - self.totals) / np.maximum(scored, 1)
        baseline = np.where(others > 0, (total - own) / np.maximum(others, 1), elsewhere[rollout])
        return self._quiet(self.returns - baseline)

    def _quiet(self, values: Doubles) -> Doubles:
        return np.where(self.of_transitions(self.signal) | np.isnan(self.returns), values, 0.0)


def check(good: bool, name: str, value: object, expected: str) -> None:
    """`ConfigError` for a setting that cannot be."""
    if not good:
        raise ConfigError(f"advantage.{name} is {value!r}; expected {expected}")


def check_eps(eps: float) -> None:
    check(eps >= 0 and math.isfinite(eps), "eps", eps, "a number of 0 or more")


def _range(values: Doubles, owner: Ints, count: int) -> tuple[Doubles, Doubles]:
    """(count,) lowest and highest of each owner's values; inf and -inf where it has none."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, owner, values)
    np.maximum.at(high, owner, values)
    return low, high


def _apart_by_spans(episodes: Episodes, returns: Doubles, totals: Doubles, scored: Bools, count: int, tolerance: float) -> Bools:
    """(groups,) whether rewards on spans tell rollouts with equal outcomes apart: equal outcomes carry no signal, whatever the lengths of
    the rollouts made of them."""
    rollout, group = episodes.rollout, episodes.group
    rewarded = np.bincount(group[rollout], episodes.rewarded, count) > 0
    finite = np.isfinite(returns)
    values = np.concatenate([totals[scored], returns[finite]])
    low, high = _range(values, np.concatenate([group[scored], group[rollout][finite]]), count)
    return rewarded & (high - low > tolerance)


def _dense(keys: Ints, bound: int) -> Ints:
    """The keys themselves, or where they are too many for an array, their numbers."""
    return keys if bound <= DENSE else np.unique(keys, return_inverse=True)[1].astype(np.int64)
