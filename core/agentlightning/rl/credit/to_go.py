"""The reward to go, which several credits share."""

from __future__ import annotations

import numpy as np

from agentlightning.rl.arrays import RolloutArrays
from agentlightning.types import Doubles


def to_go(rollouts: RolloutArrays, gamma: float, last: Doubles) -> Doubles:
    """(transitions,) r_t + gamma * (the reward to go of the next call), with `last` (rollouts,) a reward of the last call."""
    call = rollouts.first[1:]  # (rollouts,) one past the last call
    has_choices = len(rollouts.call_rewards) < rollouts.transitions
    if has_choices:
        first_call = np.append(rollouts.call, len(rollouts.call_rewards))[rollouts.first]
        horizon, call = np.diff(first_call), first_call[1:]
    else:
        horizon = np.diff(rollouts.first)
    longest_first = np.argsort(-horizon, kind="stable")  # so the rollouts that have a call so far back are a prefix
    call, future = call[longest_first], last[longest_first]
    still_running = len(horizon) - np.cumsum(np.bincount(horizon))  # [k]: rollouts with more than k calls
    after = np.zeros(len(rollouts.call_rewards))  # (calls,) discounted reward to go after each call
    for count in still_running[:-1].tolist():  # the last call of every rollout, then the one before
        call -= 1
        calls, value = call[:count], future[:count]
        after[calls] = value
        value += rollouts.call_rewards[calls]
        value *= gamma
    return rollouts.rewards + (after[rollouts.call] if has_choices else after)
