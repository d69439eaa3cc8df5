"""The reward to go, which several credits share."""

from __future__ import annotations

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.arrays import Doubles, Episodes


def to_go(episodes: Episodes, gamma: float, last: Doubles) -> Doubles:
    """(transitions,) r_t + gamma * (what comes after), with `last` (rollouts,) a reward of the last call."""
    stop = episodes.first[1:]  # one past the last call of each rollout
    several = len(episodes.call_reward) < episodes.transitions  # choices of one call
    if several:
        calls = np.append(episodes.call, len(episodes.call_reward))[episodes.first]
        count, stop = np.diff(calls), calls[1:]
    else:
        count = np.diff(episodes.first)
    order = np.argsort(-count, kind="stable")  # the longest rollouts first, so that those with a call so far back are the first ones
    stop, coming = stop[order], last[order]
    longer = len(count) - np.cumsum(np.bincount(count))
    """How many rollouts have more than 0, 1, 2, ... calls."""
    after = np.zeros(len(episodes.call_reward))
    """What comes after each call, already discounted."""
    for some in longer[:-1].tolist():  # the last call of every rollout, then the one before
        stop -= 1
        call, value = stop[:some], coming[:some]
        after[call] = value
        value += episodes.call_reward[call]
        value *= gamma
    return episodes.reward + (after[episodes.call] if several else after)


def check_gamma(gamma: float) -> None:
    """`ConfigError` for what is no discount."""
    if not 0 <= gamma <= 1:
        raise ConfigError(f"credit.gamma is {gamma}; it must lie between 0 and 1")
