"""Generalised advantage estimation, which the advantage `gae` and the credit `learned` share. Source: arXiv 1506.02438."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from agentlightning.errors import TrainerError
from agentlightning.rl.arrays import Doubles, Ints, RolloutArrays

Over: TypeAlias = Literal["tokens", "transitions"]


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """What a critic makes of the steps of a batch: sampled tokens, or transitions."""

    transition: Ints
    """(chosen,) those transitions that are trained, have a return and are not empty."""
    place: Ints
    """(steps,) the token before which the step's value stands."""
    advantage: Doubles
    """(steps,) A_t."""
    value: Doubles
    """(steps,) V_t."""


def steps(rollouts: RolloutArrays, returns: Doubles, *, gamma: float, lam: float, over: Over) -> Steps:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = sum_k (gamma lam)^k delta_{t+k}.

    The steps t are the sampled tokens of a rollout, or its transitions, one after the other; what others wrote between two of them is no
    step. V is the critic's value before the step. Rewards are what `returns` (transitions,) lose from one transition to the next, r_t =
    G_t - G_{t+1}, and stand at a transition's last token. After a call stands the mean of the choices of the next one.
    """
    some = np.flatnonzero(rollouts.trained & np.isfinite(returns) & (rollouts.tokens > 0))
    if not len(some):
        return Steps(some, some, np.zeros(0), np.zeros(0))
    if rollouts.values is None:
        raise TrainerError("advantage estimation needs the values of a critic, and RolloutArrays.values is None")
    first = rollouts.offsets[some]
    length = rollouts.tokens[some] if over == "tokens" else np.ones(len(some), np.int64)
    before = rollouts.values[first]
    call, rollout = np.unique(rollouts.call[some], return_inverse=True)[1], rollouts.rollout[some]
    follows = _next(call, rollout)
    choices = np.bincount(call).astype(np.float64)

    def mean(values: Doubles) -> Doubles:
        """(some,) of the choices of the call after each transition; 0 where it is the last."""
        at = np.append(np.bincount(call, values) / choices, 0.0)
        return at[follows]

    reward = returns[some] - mean(returns[some])
    after = mean(before)
    # Within each transition, as if nothing came after it ...
    starts = np.append(0, np.cumsum(length))[:-1]
    place = np.arange(int(length.sum())) + np.repeat(first - starts, length)
    value = rollouts.values[place]
    upcoming = np.append(value[1:], 0.0)
    upcoming[starts + length - 1] = after
    delta = gamma * upcoming - value
    delta[starts + length - 1] += reward
    made = _backward(delta, starts, length, gamma * lam)
    # ... then what does come after it, from the last call to the first.
    decay = (gamma * lam) ** length
    head = made[starts].copy()
    tail = np.zeros(len(some))
    for some_calls in _from_the_last(call, rollout):
        tail[some_calls] = mean(head)[some_calls]
        head[some_calls] = made[starts[some_calls]] + decay[some_calls] * tail[some_calls]
    left = np.repeat(length, length) - (np.arange(len(place)) - np.repeat(starts, length))  # steps to the end of the transition
    return Steps(some, place, made + (gamma * lam) ** left * np.repeat(tail, length), value)


def _next(call: Ints, rollout: Ints) -> Ints:
    """(transitions,) the call after each transition's own in its rollout; -1 where it is the last."""
    owner = np.zeros(int(call.max()) + 2, np.int64) - 1
    owner[call] = rollout
    return np.where(owner[call + 1] == rollout, call + 1, -1)


def _from_the_last(call: Ints, rollout: Ints) -> list[Ints]:
    """Transitions by how many calls of their rollout come after theirs: the last ones first."""
    last = np.zeros(int(rollout.max()) + 1, np.int64)
    last[rollout] = call  # of several the last one stays
    back = last[rollout] - call
    order = np.argsort(back, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(back[order])) + 1)


def _backward(delta: Doubles, starts: Ints, length: Ints, decay: float) -> Doubles:
    """A_t = delta_t + decay A_{t+1} within each run of steps, all runs side by side."""
    made = delta.copy()
    order = np.argsort(-length, kind="stable")
    long = -np.sort(-length)
    for back in range(1, int(long[0])):
        some = order[: int(np.searchsorted(-long, -back, side="left"))]  # runs longer than `back`
        at = starts[some] + length[some] - 1 - back
        made[at] += decay * made[at + 1]
    return made
