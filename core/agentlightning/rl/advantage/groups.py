"""The groups of a step as arrays, shared by all estimators that compare within a group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.types import Bools, Doubles, Ints

DENSE = 1 << 20
"""Up to this many keys are counted in an array; more are numbered first."""


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """The scored rollouts, by group."""

    rollouts: RolloutArrays
    returns: Doubles
    """(transitions,)"""
    scored: Bools
    """(rollouts,)"""
    first_return: Doubles
    """(rollouts,) G_0, the first finite return; the reward of a rollout that never called the model; 0 where it was never scored."""
    size: Ints
    """(groups,) scored rollouts."""
    varies: Bools
    """(groups,) whether its rollouts differ; False for a zero-variance group."""
    identical: bool
    """Whether every transition earned its rollout's reward."""
    complete: bool
    """Whether every return is finite."""

    @classmethod
    def of(cls, rollouts: RolloutArrays, returns: Doubles, tolerance: float) -> Groups:
        """Raises `ValueError` for returns of another shape."""
        if returns.shape != (rollouts.transitions,):
            raise ValueError(f"returns of shape {returns.shape} for {rollouts.transitions} transitions. Pass one for each.")
        reward, rollout, group, first = rollouts.returns, rollouts.rollout, rollouts.group, rollouts.first
        finite = np.isfinite(returns)
        complete, rewarded = bool(finite.all()), ~np.isnan(reward)
        called = first[1:] > first[:-1]
        first_return = np.where(rewarded, reward, 0.0)
        if complete:
            scored = rewarded | called
            first_return[called] = returns[first[:-1][called]]
            identical = bool((first_return == reward)[called].all() and (returns == reward.take(rollout)).all())
        else:
            owner, credited = rollout[finite], returns[finite]
            identical = bool((credited == reward[owner]).all())
            scored = rewarded & ~called
            scored[owner] = True
            first_return[owner[::-1]] = credited[::-1]  # reversed, so the first one remains
            first_return[~scored] = 0.0
        groups = int(group.max(initial=-1)) + 1
        size = np.bincount(group[scored], minlength=groups)
        varies = _differ(reward[rewarded], group[rewarded], groups, tolerance)
        if not identical and not varies.all() and rollouts.rewarded.any():
            varies |= _differ_by_spans(rollouts, returns, first_return, scored, varies, tolerance)
        return cls(rollouts, returns, scored, first_return, size, varies & (size > 1), identical, complete)

    def sum(self, values: Doubles) -> Doubles:
        """(groups,) from (rollouts,), over the scored ones."""
        return np.bincount(self.rollouts.group, np.where(self.scored, values, 0.0), len(self.size)).astype(np.float64)

    def mean(self) -> Doubles:
        """(groups,) m, the mean of G_0."""
        return np.bincount(self.rollouts.group, self.first_return, len(self.size)) / np.maximum(self.size, 1)

    def deviation(self, ddof: int) -> Doubles:
        """(groups,) s, the deviation of G_0."""
        difference = self.first_return - self.mean()[self.rollouts.group]
        return np.sqrt(self.sum(difference * difference) / np.maximum(self.size - ddof, 1))

    def of_transitions(self, per_group: Doubles | Bools) -> Any:
        """(transitions,) from (groups,)."""
        return per_group.take(self.rollouts.transition_group)

    def minus(self, baseline: Doubles) -> Doubles:
        """(transitions,) G_t - b, with b (rollouts,); 0 in zero-variance groups, NaN where the return is."""
        rollout = self.rollouts.rollout
        if not self.identical:
            return self._zero_where_flat(self.returns - baseline[rollout])
        # All transitions of a rollout are equal here, and rollouts are fewer.
        advantage = np.where(self.varies[self.rollouts.group], self.rollouts.returns - baseline, 0.0).take(rollout)
        return advantage if self.complete else np.where(np.isnan(self.returns), np.nan, advantage)

    def minus_mean(self) -> Doubles:
        """(transitions,) G_t - m if credit is identical, else G_t - b_t, with b_t the mean of the other rollouts at that agent's turn."""
        return self.minus(self.mean()[self.rollouts.group]) if self.identical else self.minus_others()

    def minus_others(self) -> Doubles:
        """(transitions,) G_t - b_t, with b_t the mean of the other rollouts at that agent's turn, or else of their G_0."""
        rollouts, rollout = self.rollouts, self.rollouts.rollout
        agents, turns = len(rollouts.agents), int(rollouts.turn.max(initial=0)) + 1
        turn = rollouts.transition_group * (agents * turns) + rollouts.turn  # (transitions,) key of group, agent and turn
        if agents > 1:
            turn += rollouts.agent * turns
        turn = _dense(turn, len(self.size) * agents * turns)
        keys = int(turn.max(initial=0)) + 1
        value, weight = self.returns, None  # a rollout counts once at a turn, however many choices it has there
        if not self.complete:
            credited = ~np.isnan(self.returns)
            value, weight = np.where(credited, self.returns, 0.0), credited.astype(np.float64)
        if len(rollouts.call_rewards) < len(rollout):
            visit = _dense(turn * len(rollouts) + rollout, keys * len(rollouts))  # key of turn and rollout
            counted = np.ones(len(rollout)) if weight is None else weight
            choices = np.maximum(np.bincount(visit, counted)[visit], 1)
            value, weight = np.bincount(visit, value)[visit] / choices, counted / choices
        others = np.rint(np.bincount(turn, weight, keys)) - 1
        total = np.bincount(turn, value if weight is None else value * weight, keys)
        baseline = total.take(turn)
        baseline -= value
        baseline /= np.maximum(others, 1).take(turn)
        if not (others > 0).all():
            group = rollouts.group
            elsewhere = (self.sum(self.first_return)[group] - self.first_return) / np.maximum(self.size[group] - 1, 1)
            baseline = np.where(others[turn] > 0, baseline, elsewhere[rollout])
        return self._zero_where_flat(self.returns - baseline)

    def _zero_where_flat(self, values: Doubles) -> Doubles:
        if self.varies.all():
            return values
        varies = self.of_transitions(self.varies)
        return np.where(varies if self.complete else varies | np.isnan(self.returns), values, 0.0)


def _differ(values: Doubles, owner: Ints, count: int, tolerance: float) -> Bools:
    """(count,) whether the values of each owner differ by more than the tolerance."""
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, owner, values)
    np.maximum.at(high, owner, values)
    return high - low > tolerance


def _differ_by_spans(
    rollouts: RolloutArrays, returns: Doubles, first_return: Doubles, scored: Bools, varies: Bools, tolerance: float
) -> Bools:
    """(groups,) whether rewards on spans distinguish rollouts with equal rewards. Without such rewards a group of equal rewards stays
    flat, whatever credit makes of the lengths of its rollouts. Looks at the groups that do not vary so far."""
    flat = ~varies
    members = np.flatnonzero(flat.take(rollouts.transition_group))
    group, finite = rollouts.transition_group[members], np.isfinite(returns[members])
    rewarded = np.bincount(group, rollouts.rewarded[members], len(varies)) > 0
    starts = scored & flat[rollouts.group]
    values = np.concatenate([first_return[starts], returns[members][finite]])
    return rewarded & _differ(values, np.concatenate([rollouts.group[starts], group[finite]]), len(varies), tolerance)


def _dense(keys: Ints, bound: int) -> Ints:
    """The keys themselves, or their ranks where they are too many for an array."""
    return keys if bound <= DENSE else np.unique(keys, return_inverse=True)[1].astype(np.int64)
