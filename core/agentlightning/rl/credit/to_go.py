"""The reward to go, which several credits share."""

from __future__ import annotations

import numpy as np

from agentlightning.errors import ConfigError
from agentlightning.rl.episodes import Doubles, Episodes


def to_go(episodes: Episodes, gamma: float, last: Doubles) -> Doubles:
    """(transitions,) r_t + gamma * (what comes after), with `last` (rollouts,) a reward of the last call."""
    owner = np.zeros(len(episodes.call_reward), np.int64)
    owner[episodes.call] = episodes.rollout
    count = np.bincount(owner, minlength=len(episodes)) if len(owner) else np.zeros(len(episodes), np.int64)
    stop = np.cumsum(count)
    after = np.zeros(len(owner))
    """What comes after each call, already discounted."""
    coming = last.copy()
    for back in range(int(count.max(initial=0))):  # the last call of every rollout, then the one before
        some = np.flatnonzero(count > back)
        call = stop[some] - 1 - back
        after[call] = coming[some]
        coming[some] = gamma * (coming[some] + episodes.call_reward[call])
    return episodes.reward + after[episodes.call]


def check_gamma(gamma: float) -> None:
    """`ConfigError` for what is no discount."""
    if not 0 <= gamma <= 1:
        raise ConfigError(f"credit.gamma is {gamma}; it must lie between 0 and 1")
