"""Group-in-group policy optimisation: transitions that met the same state are compared with one another."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.rl.advantage.groups import Groups
from agentlightning.rl.advantage.grpo import grpo
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import reads_rewards
from agentlightning.rl.parameters import Ddof, Epsilon, Std, Tolerance
from agentlightning.settings import FiniteNonNegative
from agentlightning.types import Bools, Doubles, Ints


@reads_rewards
def gigpo(
    rollouts: RolloutArrays,
    returns: Doubles,
    *,
    omega: Annotated[FiniteNonNegative, Meta(description="the weight of A_step")] = 1.0,
    std: Std = True,
    ddof: Ddof = 1,
    eps: Epsilon = 1e-6,
    tolerance: Tolerance = 1e-6,
) -> Doubles:
    """A = A_episode + omega A_step. Source: arXiv 2505.10978.

    A_episode is `grpo` of the total reward of a rollout, outcome and spans. A_step compares credit's returns G_t (discounted in the paper)
    of the transitions of a group that share a state: (G_t - mean) / (deviation + eps), without the division if `std` is false; 0 for a
    transition alone in its state. The state is the agent's new observation: its name, and the tokens that its prompt adds to the
    transition that it continues (the full prompt if it continues none).
    """
    credited = np.isfinite(returns)
    episode = grpo(*_episode_returns(rollouts, credited), std=std, ddof=ddof, eps=eps, tolerance=tolerance)
    state = anchor_states(rollouts)
    count = np.bincount(state, credited)
    mean = np.bincount(state, np.where(credited, returns, 0.0)) / np.maximum(count, 1)
    deviation = np.where(credited, returns - mean[state], 0.0)
    sigma = np.sqrt(np.bincount(state, deviation * deviation) / np.maximum(count - ddof, 1))
    flat_state = (sigma <= tolerance) | (count < 2)
    step = np.where(flat_state[state], 0.0, deviation / ((sigma + eps)[state] if std else 1.0))
    varies = Groups.of(rollouts, returns, tolerance).varies[rollouts.transition_group]
    return episode + omega * np.where(varies, step, 0.0)


def _episode_returns(rollouts: RolloutArrays, credited: Bools) -> tuple[RolloutArrays, Doubles]:
    """The rollouts with outcome and spans summed as their return, and that return at each credited transition."""
    owner = np.zeros(len(rollouts.call_rewards), np.int64)
    owner[rollouts.call] = rollouts.rollout
    total = np.nan_to_num(rollouts.returns) + np.bincount(owner, rollouts.call_rewards, len(rollouts))
    scored = ~np.isnan(rollouts.returns) | (np.bincount(rollouts.rollout, credited, len(rollouts)) > 0)
    return replace(rollouts, returns=np.where(scored, total, np.nan)), np.where(credited, total[rollouts.rollout], np.nan)


def anchor_states(rollouts: RolloutArrays) -> Ints:
    """(transitions,) number of each transition's state; transitions of different groups share none."""
    numbers: dict[tuple[str, str | None, bytes], int] = {}
    states: list[int] = []
    for trajectory in rollouts.trajectories:
        by_index = {t.index: t for t in trajectory.transitions}
        for t in trajectory.transitions:
            before = by_index.get(t.continues) if t.continues is not None else None
            seen = 0 if before is None else len(before.prompt_ids) + len(before.response_ids)
            key = (trajectory.group, t.agent, t.prompt_ids[seen:].tobytes())
            states.append(numbers.setdefault(key, len(numbers)))
    return np.array(states, np.int64)
