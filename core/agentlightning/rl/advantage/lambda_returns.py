"""Generalised advantage estimation, which the advantage `gae` and the credit `learned` share. Source: arXiv 1506.02438."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from agentlightning.errors import TrainerError
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.types import Doubles, Ints

Over: TypeAlias = Literal["tokens", "transitions"]


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The time steps of a batch, sampled tokens or transitions, with advantage and value."""

    transition: Ints
    """(chosen,) the transitions that are trained, have a return and are not empty."""
    token: Ints
    """(steps,) the token before which the step's value is taken."""
    advantage: Doubles
    """(steps,) A_t."""
    value: Doubles
    """(steps,) V_t."""


def estimate(rollouts: RolloutArrays, returns: Doubles, *, gamma: float, lam: float, over: Over) -> Steps:
    """delta_t = r_t + gamma V_{t+1} - V_t, A_t = sum_k (gamma lam)^k delta_{t+k}.

    The steps t are the sampled tokens of a rollout, or its transitions, in order; text by others between two of them is no step. V_t is the
    critic's value before the step. The reward of a transition is the loss of return to the next one, r_t = G_t - G_{t+1}, at its last
    token. Where a call has several choices, the value and the advantage after the call before it are their mean.
    """
    chosen = np.flatnonzero(rollouts.trained & np.isfinite(returns) & (rollouts.tokens > 0))
    if not len(chosen):
        return Steps(chosen, chosen, np.zeros(0), np.zeros(0))
    if rollouts.values is None:
        raise TrainerError("Advantage estimation needs a critic, and RolloutArrays.values is None. Set trainer.critic = true.")
    first_token = rollouts.offsets[chosen]  # (chosen,), like all arrays down to `token`
    length = rollouts.tokens[chosen] if over == "tokens" else np.ones(len(chosen), np.int64)
    call, rollout = np.unique(rollouts.call[chosen], return_inverse=True)[1], rollouts.rollout[chosen]
    next_call = _next_call(call, rollout)
    choices = np.bincount(call).astype(np.float64)

    def at_next_call(values: Doubles) -> Doubles:
        """(chosen,) the mean over the choices of the next call; 0 after the last one."""
        return np.append(np.bincount(call, values) / choices, 0.0)[next_call]

    reward = returns[chosen] - at_next_call(returns[chosen])
    # Within each transition, as if nothing came after it ...
    start = np.append(0, np.cumsum(length))[:-1]
    last = start + length - 1
    token = np.arange(int(length.sum())) + np.repeat(first_token - start, length)  # (steps,)
    value = rollouts.values[token]
    next_value = np.append(value[1:], 0.0)
    next_value[last] = at_next_call(value[start])
    delta = gamma * next_value - value
    delta[last] += reward
    advantage = _discounted_sums(delta, start, length, gamma * lam)
    # ... then the advantage of the next call, from the last call to the first.
    decay = (gamma * lam) ** length
    head = advantage[start]  # A at the first step of each transition
    tail = np.zeros(len(chosen))  # A after its last step
    for members in _backwards(call, rollout):
        tail[members] = at_next_call(head)[members]
        head[members] = advantage[start[members]] + decay[members] * tail[members]
    steps_left = np.repeat(last + 1, length) - np.arange(len(token))  # to the end of the transition
    return Steps(chosen, token, advantage + (gamma * lam) ** steps_left * np.repeat(tail, length), value)


def _next_call(call: Ints, rollout: Ints) -> Ints:
    """(transitions,) the call after each transition's own in its rollout; -1 after the last one."""
    owner = np.full(int(call.max()) + 2, -1, np.int64)
    owner[call] = rollout
    return np.where(owner[call + 1] == rollout, call + 1, -1)


def _backwards(call: Ints, rollout: Ints) -> list[Ints]:
    """Transitions by the number of later calls in their rollout, the last calls first."""
    last = np.zeros(int(rollout.max()) + 1, np.int64)
    last[rollout] = call  # calls ascend, so the last one remains
    later = last[rollout] - call
    order = np.argsort(later, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(later[order])) + 1)


def _discounted_sums(delta: Doubles, start: Ints, length: Ints, decay: float) -> Doubles:
    """(steps,) A_t = delta_t + decay A_{t+1} within each run of steps, all runs at once."""
    advantage = delta.copy()
    longest_first = np.argsort(-length, kind="stable")
    descending = -length[longest_first]
    for back in range(1, -int(descending[0])):
        members = longest_first[: int(np.searchsorted(descending, -back, side="left"))]  # runs longer than `back`
        t = start[members] + length[members] - 1 - back
        advantage[t] += decay * advantage[t + 1]
    return advantage
