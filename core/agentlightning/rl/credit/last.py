"""The last call earns the outcome."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.arrays import Doubles, Episodes
from agentlightning.rl.credit import outcome_alone


@outcome_alone
def last(episodes: Episodes) -> Doubles:
    """G = R at the last call of the attempt, in all its choices; the calls before it earn nothing and are not trained."""
    calls = np.full(len(episodes), -1, np.int64)
    calls[episodes.rollout] = episodes.call  # of several the last one stays
    return np.where(calls[episodes.rollout] == episodes.call, episodes.outcome[episodes.rollout], np.nan)
