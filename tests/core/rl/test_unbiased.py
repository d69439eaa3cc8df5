"""The gradient of a batch against the exact one, on a policy small enough to enumerate every trajectory.

A policy of one prompt: two actions a turn, up to three turns, and the first action may stop. A sampled group gives the gradient of a batch
of it, `sum weight * advantage * grad log pi`; its mean over many groups lies in the confidence interval of the exact gradient, or it does
not. The policy is trained on the arrays that a trainer gets (advantages and weights of `make_batch`), so that weights are tested as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from agentlightning.algorithms.lightning import learner_batch
from agentlightning.rl.advantage import Estimate
from agentlightning.rl.advantage.gae import gae
from agentlightning.rl.advantage.grpo import dr_grpo, grpo
from agentlightning.rl.advantage.reinforce import reinforce
from agentlightning.rl.advantage.rloo import rloo
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.batch.build import LossAggregation
from agentlightning.rl.credit.identical import identical
from agentlightning.testing import rollouts
from agentlightning.testing.rollouts import conversation
from agentlightning.types import Trajectory

GROUP, GROUPS = 4, 20_000
LOGITS = np.array([0.3, -0.4, 0.8])
"""Of going on, after 0, 1 and 2 steps; a rollout stops when it does not go on, and after three steps."""
LENGTHS = (1, 2, 4)
"""Tokens of the replies of each step: what a mean over tokens mixes up."""
EVEN = 3
"""Tokens of every rollout where lengths are even: an early stop is a longer reply."""
GO = 1 / (1 + np.exp(-LOGITS))
REWARDS = {(0,): 0.2, (1, 0): 1.0, (1, 1, 0): 0.0, (1, 1, 1): 0.6}
"""Of each way through: 1 goes on, 0 stops."""
PATHS = list(REWARDS)


def probability(path: tuple[int, ...]) -> float:
    return float(np.prod([GO[t] if a else 1 - GO[t] for t, a in enumerate(path)]))


def score(path: tuple[int, ...]) -> np.ndarray:
    """(turns, parameters) the gradient of the log-probability of each action."""
    made = np.zeros((len(path), len(LOGITS)))
    for t, a in enumerate(path):
        made[t, t] = a - GO[t]
    return made


EXACT = sum(probability(p) * REWARDS[p] * score(p).sum(0) for p in PATHS)
VALUES = [
    sum(probability(p) * REWARDS[p] for p in PATHS if len(p) > t) / sum(probability(p) for p in PATHS if len(p) > t) for t in range(3)
]
"""What the return is worth before each turn."""


def trajectory(path: tuple[int, ...], index: int, even: bool) -> Trajectory:
    """The action of a turn is the first token of its reply; the others follow from it."""
    lengths = [(1 if action else EVEN - turn) if even else LENGTHS[turn] for turn, action in enumerate(path)]
    turns = [([2 + action] * length, ()) for action, length in zip(path, lengths, strict=True)]
    return rollouts.trajectory(index, *conversation([1], turns, id=str(index)), reward=REWARDS[path], rollout_id=str(index))


@dataclass(frozen=True)
class Estimator:
    advantage: Callable[[RolloutArrays], Estimate]
    loss_aggregation: LossAggregation = "constant_length"
    length: int | None = 1
    scale: float = 1.0
    """Of the exact gradient that it has on average."""
    even: bool = False


def plain(function: Callable[..., Any], **settings: Any) -> Callable[[RolloutArrays], Estimate]:
    def called(rollouts: RolloutArrays) -> Estimate:
        made = function(rollouts, identical(rollouts), **settings)
        return made if isinstance(made, Estimate) else Estimate(made, np.full(int(rollouts.tokens.sum()), np.nan))

    return called


def with_critic(rollouts: RolloutArrays) -> Estimate:
    """The exact values, but for an error that depends on the turn alone."""
    values = np.concatenate([np.full(n, VALUES[t] + 0.1 * t) for n, t in zip(rollouts.tokens, rollouts.turn, strict=True)])
    return plain(gae, gamma=1.0, lam=1.0, over="transitions", whiten=False)(replace(rollouts, values=values))


def mixed_turns(rollouts: RolloutArrays) -> Estimate:
    """What a baseline over rows is: each transition counts, so a long rollout counts more often in its own group's mean."""
    returns = identical(rollouts)
    return Estimate(returns - returns.mean(), np.full(int(rollouts.tokens.sum()), np.nan))


def gradients(estimator: Estimator) -> tuple[np.ndarray, np.ndarray]:
    """Mean gradient of a group of GROUP rollouts and its standard error, over GROUPS groups. Only the multiset of a group matters, so each
    is converted once."""
    rng = np.random.default_rng(0)
    chance = np.array([probability(p) for p in PATHS])
    drawn = np.sort(rng.choice(len(PATHS), (GROUPS, GROUP), p=chance), axis=1)
    kinds, counts = np.unique(drawn, axis=0, return_counts=True)
    made = np.stack([of_group([PATHS[k] for k in kind], estimator) for kind in kinds])
    mean = (counts[:, None] * made).sum(0) / GROUPS
    variance = (counts[:, None] * (made - mean) ** 2).sum(0) / (GROUPS - 1)
    return mean, np.sqrt(variance / GROUPS)


def of_group(paths: list[tuple[int, ...]], estimator: Estimator) -> np.ndarray:
    rollouts = RolloutArrays.of([trajectory(p, k, estimator.even) for k, p in enumerate(paths)])
    batch = learner_batch(rollouts, estimator.advantage(rollouts), loss_aggregation=estimator.loss_aggregation, length=estimator.length)
    total = np.zeros(len(LOGITS))
    if not len(batch):
        return total
    first = {name: int(places[0]) for name, places in batch.by_transition(np.arange(len(batch), dtype=np.float64)).items()}
    for index, path in enumerate(paths):
        for turn, slope in enumerate(score(path)):
            place = first.get(f"{index}.{turn}")
            if place is not None:  # only the first token of a reply has a choice
                total += batch.weight[place] * batch.advantage[place] * slope
    return total


UNBIASED = {
    "rloo": Estimator(plain(rloo)),
    "leave-one-out dr_grpo, (G - 1) / G": Estimator(plain(dr_grpo), scale=(GROUP - 1) / GROUP),
    "reinforce with a constant baseline": Estimator(plain(reinforce, baseline=0.4)),
    "gae(1, 1)": Estimator(with_critic),
}
UNBIASED |= {
    f"{name}, tokens of a rollout sharing its weight": replace(
        each, loss_aggregation="sequence_mean", length=None, even=True, scale=each.scale / EVEN
    )
    for name, each in UNBIASED.items()
}
BIASED = {
    "tokens of rollouts of different lengths sharing their weight": Estimator(plain(rloo), loss_aggregation="sequence_mean", length=None),
    "grpo with the deviation": Estimator(plain(grpo)),
    "token mean": Estimator(plain(rloo), loss_aggregation="token_mean", length=None),
    "turns mixed in the baseline": Estimator(mixed_turns),
}


def off(estimator: Estimator, scale: float) -> float:
    """How many standard errors the mean gradient is away from `scale` times the exact one, in the worst parameter."""
    mean, error = gradients(estimator)
    return float((np.abs(mean - scale * np.asarray(EXACT)) / error).max())


@pytest.mark.parametrize("name", UNBIASED)
def test_an_unbiased_estimator_has_the_exact_gradient_within_its_confidence_interval(name: str) -> None:
    assert off(UNBIASED[name], UNBIASED[name].scale) < 3


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_estimator_fails_the_same_test_whatever_its_scale(name: str) -> None:
    mean, error = gradients(BIASED[name])
    exact = np.asarray(EXACT)
    best = float((mean * exact / error**2).sum() / (exact**2 / error**2).sum())  # the scale that fits best
    assert off(BIASED[name], best) > 6


def test_the_exact_gradient_is_the_slope_of_the_expected_reward() -> None:
    def expected(logits: np.ndarray) -> float:
        go = 1 / (1 + np.exp(-logits))
        return sum(REWARDS[p] * float(np.prod([go[t] if a else 1 - go[t] for t, a in enumerate(p)])) for p in PATHS)

    slope = [(expected(LOGITS + 1e-6 * e) - expected(LOGITS - 1e-6 * e)) / 2e-6 for e in np.eye(3)]
    np.testing.assert_allclose(EXACT, slope, rtol=1e-6)
    assert sum(probability(p) for p in PATHS) == pytest.approx(1)
