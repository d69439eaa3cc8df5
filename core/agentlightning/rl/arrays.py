"""Trajectories as arrays, the input of credit and advantage.

Rollouts, transitions and tokens keep the order of the trajectories. The transitions of a rollout are adjacent, and so are the choices of a
call and the tokens of a response. All arrays are read-only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentlightning.types import Bools, Doubles, Ints, Trajectory


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RolloutArrays:
    """The winning attempts of some rollouts as arrays."""

    returns: Doubles
    """(rollouts,) NaN: never scored."""
    group: Ints
    """(rollouts,) index of the group, from 0."""
    rollout: Ints
    """(transitions,) index of the rollout, ascending."""
    agent: Ints
    """(transitions,) index in `agents`."""
    turn: Ints
    """(transitions,) calls that the agent made before."""
    call: Ints
    """(transitions,) index of the call, ascending; the choices of one call share it."""
    rewards: Doubles
    """(transitions,) sum of the rewards of its own call or span."""
    call_rewards: Doubles
    """(calls,) the same over all choices of a call, each reward once."""
    rewarded: Bools
    """(transitions,) whether it has a reward of its own, be it 0."""
    tokens: Ints
    """(transitions,) length of the response."""
    trained: Bools
    """(transitions,) whether it may be trained."""
    agents: tuple[str | None, ...] = (None,)
    succeeded: Bools | None = None
    """(rollouts,) whether the winning attempt succeeded; None: all."""
    trajectories: tuple[Trajectory, ...] = ()
    """The source of the arrays; empty after `from_arrays`."""
    values: Doubles | None = None
    """(tokens,) the critic's expected return before each token; None unless credit or advantage uses a critic."""
    first: Ints = field(init=False)
    """(rollouts + 1,) first transition of each rollout; the last one is the number of transitions."""
    transition_group: Ints = field(init=False)
    """(transitions,) index of the group."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "transition_group", _frozen(self.group[self.rollout], np.int64))
        object.__setattr__(self, "first", _starts(self.rollout, len(self.returns)))

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory]) -> RolloutArrays:
        """The arrays of some trajectories."""
        groups: dict[str, int] = {}
        agents: dict[str | None, int] = {}
        rows: list[tuple[int, int, int, int, float, bool, int, bool]] = []
        call_rewards: list[float] = []
        for rollout, trajectory in enumerate(trajectories):
            groups.setdefault(trajectory.group, len(groups))
            call_id: str | None = None
            counted: set[str] = set()
            for t in trajectory.transitions:
                if t.call_id != call_id:
                    call_id, counted = t.call_id, set()
                    call_rewards.append(0.0)
                reward = math.fsum(r.value for r in t.rewards) if t.rewards else 0.0
                if t.rewards:
                    call_rewards[-1] = math.fsum([call_rewards[-1], *(r.value for r in t.rewards if r.id not in counted)])
                    counted.update(r.id for r in t.rewards)
                agent = agents.setdefault(t.agent, len(agents))
                rows.append((rollout, agent, t.turn, len(call_rewards) - 1, reward, bool(t.rewards), len(t.response_ids), t.trained))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 8
        return cls(
            returns=_frozen([np.nan if t.reward is None else t.reward for t in trajectories], np.float64),
            group=_frozen([groups[t.group] for t in trajectories], np.int64),
            rollout=_frozen(columns[0], np.int64),
            agent=_frozen(columns[1], np.int64),
            turn=_frozen(columns[2], np.int64),
            call=_frozen(columns[3], np.int64),
            rewards=_frozen(columns[4], np.float64),
            call_rewards=_frozen(call_rewards, np.float64),
            rewarded=_frozen(columns[5], np.bool_),
            tokens=_frozen(columns[6], np.int64),
            trained=_frozen(columns[7], np.bool_),
            agents=tuple(agents),
            succeeded=_frozen([t.status == "succeeded" for t in trajectories], np.bool_),
            trajectories=tuple(trajectories),
        )

    @classmethod
    def from_arrays(
        cls,
        returns: ArrayLike,
        group: ArrayLike,
        rollout: ArrayLike,
        *,
        rewards: ArrayLike | None = None,
        tokens: ArrayLike | None = None,
    ) -> RolloutArrays:
        """Arrays of one agent with one choice a call. `returns` and `group` are (rollouts,), the others (transitions,). By default no
        transition has a reward of its own, and a response is one token long."""
        owner = np.asarray(rollout, np.int64)
        size = len(owner)
        index = np.arange(size)
        step_rewards = np.zeros(size) if rewards is None else np.asarray(rewards, np.float64)
        return cls(
            returns=_frozen(returns, np.float64),
            group=_frozen(group, np.int64),
            rollout=_frozen(owner, np.int64),
            agent=_frozen(np.zeros(size), np.int64),
            turn=_frozen(index - _starts(owner, len(np.asarray(returns)))[owner], np.int64),
            call=_frozen(index, np.int64),
            rewards=_frozen(step_rewards, np.float64),
            call_rewards=_frozen(step_rewards, np.float64),
            rewarded=_frozen(step_rewards != 0, np.bool_),
            tokens=_frozen(np.ones(size) if tokens is None else tokens, np.int64),
            trained=_frozen(np.ones(size), np.bool_),
        )

    def __len__(self) -> int:
        """Rollouts."""
        return len(self.returns)

    @property
    def transitions(self) -> int:
        return len(self.rollout)

    @property
    def offsets(self) -> Ints:
        """(transitions + 1,) first token of each transition; the last one is the number of tokens."""
        return np.append(0, np.cumsum(self.tokens))

    def acts(self, pattern: str) -> Bools:
        """(transitions,) whether the agent's name matches a pattern (`fnmatch`); a transition without an agent matches `*` alone."""
        fits = [pattern == "*" if name is None else fnmatchcase(name, pattern) for name in self.agents]
        return np.array([*fits, False], np.bool_)[self.agent]

    def only(self, chosen: Bools) -> RolloutArrays:
        """The same arrays, in which only the chosen transitions are trained."""
        return replace(self, trained=self.trained & chosen)

    def per_token(self, values: ArrayLike) -> Doubles:
        """(tokens,) from (transitions,) or (tokens,). Raises `ValueError` for another shape."""
        array, tokens = np.asarray(values, np.float64), int(self.tokens.sum())
        if array.shape == (self.transitions,):
            return np.repeat(array, self.tokens)
        if array.shape != (tokens,):
            raise ValueError(
                f"an array of shape {array.shape} for {self.transitions} transitions with {tokens} tokens. "
                "Return one number for each transition, or one for each token."
            )
        return array

    def split(self, values: Doubles) -> list[Doubles]:
        """The part of each trajectory, from (transitions,) or (tokens,)."""
        if not len(self):
            return []
        ends = self.first[1:-1]
        if values.shape != (self.transitions,):
            self.per_token(values)
            ends = self.offsets[ends]
        return np.split(values, ends)


def _starts(owner: Ints, owners: int) -> Ints:
    """(owners + 1,) first index of each owner's adjacent entries; the last one is the number of entries."""
    return _frozen(np.append(0, np.cumsum(np.bincount(owner, minlength=owners))), np.int64)


def _frozen(values: ArrayLike, kind: type[np.generic]) -> NDArray[Any]:
    array = np.array(values, dtype=kind)
    array.flags.writeable = False
    return array
