"""Generalised advantage estimation with a critic, over tokens or over transitions."""

from __future__ import annotations

from typing import Literal

import numpy as np

from agentlightning.errors import TrainerError
from agentlightning.rl.advantage import Estimate, uses_critic
from agentlightning.rl.advantage.groups import check
from agentlightning.rl.advantage.whiten import whiten as whitened
from agentlightning.rl.episodes import Doubles, Episodes, Ints


@uses_critic
def gae(
    episodes: Episodes,
    returns: Doubles,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    over: Literal["tokens", "transitions"] = "tokens",
    whiten: bool = True,
) -> Estimate:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = sum_k (gamma lam)^k delta_{t+k}, and V learns A_t + V_t. Source: arXiv 1506.02438.

    The steps t are the sampled tokens of a rollout, or its transitions, one after the other; what others wrote between two of them is no
    step. V is the critic's value before the step. Rewards are what credit's return loses from one transition to the next, r_t = G_t -
    G_{t+1}, and stand at a transition's last token: with identical credit the outcome comes at the very end, and with gamma = lam = 1 A_t =
    G_t - V_t. After a call stands the mean of the choices of the next one. With `whiten` advantages have mean 0 and variance 1 over the
    tokens trained.
    """
    for name, value in (("gamma", gamma), ("lam", lam)):
        check(0 <= value <= 1, name, value, "a number from 0 to 1")
    check(over in ("tokens", "transitions"), "over", over, "'tokens' or 'transitions'")
    some = np.flatnonzero(episodes.trained & np.isfinite(returns) & (episodes.tokens > 0))
    every = int(episodes.tokens.sum())
    if len(some) and episodes.values is None:
        raise TrainerError("advantage 'gae' needs the values of a critic, and Episodes.values is None")
    advantage, target = np.full(every, np.nan), np.full(every, np.nan)
    if not len(some) or episodes.values is None:
        return Estimate(advantage, target)
    first = episodes.offsets[some]
    length = episodes.tokens[some] if over == "tokens" else np.ones(len(some), np.int64)
    before = episodes.values[first]
    call, rollout = np.unique(episodes.call[some], return_inverse=True)[1], episodes.rollout[some]
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
    value = episodes.values[place]
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
    made = made + (gamma * lam) ** left * np.repeat(tail, length)

    target[place] = made + value
    if whiten:
        weight = np.ones(len(made), np.int64) if over == "tokens" else episodes.tokens[some]
        made = whitened(made, weight, np.ones(len(made), np.bool_), 0.0)
    if over == "transitions":
        each = np.full(episodes.transitions, np.nan)
        each[some] = made
        return Estimate(each, target)
    advantage[place] = made
    return Estimate(advantage, target)


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
