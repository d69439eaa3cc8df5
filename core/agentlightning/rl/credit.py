"""Credit: how much of an attempt's return each of its transitions earned.

Each function gives one float64 array (transitions,) for each trajectory, NaN throughout where it was never scored. With R the outcome,
t the calls of the attempt in order and r_t the rewards of call t's own spans (each counted once). The choices of one call (`n > 1`)
stand beside each other: a choice earns its own rewards and what comes after the call, and what came before earns those of all choices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from agentlightning.errors import ConfigError
from agentlightning.model import Reward, Trajectory

Returns = list[NDArray[np.float64]]
"""One array (transitions,) for each trajectory."""


def identical(trajectories: Sequence[Trajectory]) -> Returns:
    """G_t = R. Rewards of spans are not used. Source: arXiv 2508.03680 (LightningRL)."""
    return [np.full(len(each.transitions), np.nan if each.reward is None else each.reward) for each in trajectories]


def discounted(trajectories: Sequence[Trajectory], *, gamma: float = 0.95) -> Returns:
    """G_t = r_t + gamma G_{t+1}, where R counts as a reward of the last call. Source: AReaL, `apply_reward_discount`."""
    _check_gamma(gamma)
    return [_to_go(each, gamma, each.reward, 0.0) for each in trajectories]


def per_step(trajectories: Sequence[Trajectory], *, outcome: float = 1.0, gamma: float = 1.0) -> Returns:
    """G_t = outcome R + sum_{k >= t} gamma^(k - t) r_k: own rewards, and an outcome that early calls do not lose.

    gamma 0 is the mixture of turn and outcome of arXiv 2505.11821, which is biased where the policy chooses when to stop; gamma 1 is the
    reward to go and is not. outcome 0: the spans alone score a rollout, which is then unscored only without any reward on them.
    """
    _check_gamma(gamma)
    if not math.isfinite(outcome):
        raise ConfigError(f"credit.outcome is {outcome}; expected a finite number, the weight of the outcome")
    returns: Returns = []
    for each in trajectories:
        spans_score = not outcome and each.status == "succeeded" and any(t.rewards for t in each.transitions)
        reward = 0.0 if spans_score else None if each.reward is None else outcome * each.reward
        returns.append(_to_go(each, gamma, None if reward is None else 0.0, reward or 0.0))
    return returns


def _to_go(trajectory: Trajectory, gamma: float, last: float | None, always: float) -> NDArray[np.float64]:
    """always + reward to go, with `last` a reward of the last call; NaN where `last` is None."""
    returns = np.full(len(trajectory.transitions), np.nan)
    if last is None:
        return returns
    to_go = last
    calls = [list(each) for _, each in groupby(trajectory.transitions, key=lambda t: t.call_id)]
    for number, choices in enumerate(reversed(calls)):
        after = gamma * to_go if number else to_go
        for t in choices:
            returns[t.index] = always + after + _total(t.rewards)
        to_go = after + _total({r.id: r for t in choices for r in t.rewards}.values())
    return returns


def _total(rewards: Iterable[Reward]) -> float:
    return math.fsum(r.value for r in rewards)


def _check_gamma(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ConfigError(f"credit.gamma is {gamma}; it must lie between 0 and 1")
