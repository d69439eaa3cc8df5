"""The reward to go, which several credits share."""

from __future__ import annotations

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.arrays import Doubles, RolloutArrays


def to_go(rollouts: RolloutArrays, gamma: float, last: Doubles) -> Doubles:
    """(transitions,) r_t + gamma * (what comes after), with `last` (rollouts,) a reward of the last call."""
    stop = rollouts.first[1:]  # one past the last call of each rollout
    several = len(rollouts.call_rewards) < rollouts.transitions  # choices of one call
    if several:
        calls = np.append(rollouts.call, len(rollouts.call_rewards))[rollouts.first]
        count, stop = np.diff(calls), calls[1:]
    else:
        count = np.diff(rollouts.first)
    order = np.argsort(-count, kind="stable")  # the longest rollouts first, so that those with a call so far back are the first ones
    stop, coming = stop[order], last[order]
    longer = len(count) - np.cumsum(np.bincount(count))
    """How many rollouts have more than 0, 1, 2, ... calls."""
    after = np.zeros(len(rollouts.call_rewards))
    """What comes after each call, already discounted."""
    for some in longer[:-1].tolist():  # the last call of every rollout, then the one before
        stop -= 1
        call, value = stop[:some], coming[:some]
        after[call] = value
        value += rollouts.call_rewards[call]
        value *= gamma
    return rollouts.rewards + (after[rollouts.call] if several else after)


def check_gamma(gamma: float) -> None:
    """`ConfigError` for what is no discount."""
    if not 0 <= gamma <= 1:
        raise ConfigError(f"credit.gamma is {gamma}; it must lie between 0 and 1")
