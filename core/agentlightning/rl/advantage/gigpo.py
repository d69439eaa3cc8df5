"""Group-in-group policy optimisation: transitions that met the same state are compared with one another."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from agentlightning.rl.advantage import compares_groups, reads_rewards
from agentlightning.rl.advantage.groups import Groups, check, check_eps
from agentlightning.rl.advantage.grpo import grpo
from agentlightning.rl.arrays import Doubles, Ints, RolloutArrays


@compares_groups
@reads_rewards
def gigpo(
    rollouts: RolloutArrays,
    returns: Doubles,
    *,
    omega: float = 1.0,
    std: bool = True,
    ddof: int = 1,
    eps: float = 1e-6,
    tolerance: float = 1e-6,
) -> Doubles:
    """A = A_episode + omega A_step. Source: arXiv 2505.10978.

    A_episode is `grpo` of the whole reward of a rollout, outcome and spans. A_step compares credit's returns G_t (discounted in the paper)
    of those transitions of a group that stand in the same state: (G_t - mean) / (deviation + eps), without the division where `std` is
    false; a transition alone in its state has 0. The state is what the agent sees anew: its name, and the tokens that its prompt adds to
    the transition that it continues (the whole prompt where it continues none).
    """
    check(omega >= 0 and math.isfinite(omega), "omega", omega, "a number of 0 or more")
    check(ddof in (0, 1), "ddof", ddof, "0 or 1")
    check_eps(eps)
    finite = np.isfinite(returns)
    owner = np.zeros(len(rollouts.call_rewards), np.int64)
    owner[rollouts.call] = rollouts.rollout
    whole = np.nan_to_num(rollouts.returns) + np.bincount(owner, rollouts.call_rewards, len(rollouts))
    known = ~np.isnan(rollouts.returns) | (np.bincount(rollouts.rollout, finite, len(rollouts)) > 0)
    summed = replace(rollouts, returns=np.where(known, whole, np.nan))
    episode = np.where(finite, whole[rollouts.rollout], np.nan)
    above = grpo(summed, episode, std=std, ddof=ddof, eps=eps, tolerance=tolerance)
    states = anchors(rollouts)
    there = np.where(finite, returns, 0.0)
    count = np.bincount(states, finite)
    mean = np.bincount(states, there) / np.maximum(count, 1)
    off = np.where(finite, returns - mean[states], 0.0)
    deviation = np.sqrt(np.bincount(states, off * off) / np.maximum(count - ddof, 1))
    alike = (deviation <= tolerance) | (count < 2)
    step = np.where(alike[states], 0.0, off / ((deviation + eps)[states] if std else 1.0))
    quiet = ~Groups.of(rollouts, returns, tolerance).signal[rollouts.group][rollouts.rollout]
    return above + omega * np.where(quiet, 0.0, step)


def anchors(rollouts: RolloutArrays) -> Ints:
    """(transitions,) number of the state in which each transition stands, within its group."""
    numbers: dict[tuple[str, str | None, bytes], int] = {}
    found: list[int] = []
    for each in rollouts.trajectories:
        by_index = {t.index: t for t in each.transitions}
        for t in each.transitions:
            before = by_index.get(t.continues) if t.continues is not None else None
            seen = 0 if before is None else len(before.prompt_ids) + len(before.response_ids)
            key = (each.group, t.agent, t.prompt_ids[seen:].tobytes())
            found.append(numbers.setdefault(key, len(numbers)))
    return np.array(found, np.int64)
