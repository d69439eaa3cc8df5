from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from by_rollout import by_rollout
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.rl.advantage.grpo import dr_grpo as flat_dr_grpo
from agentlightning.rl.advantage.grpo import grpo as flat_grpo
from agentlightning.rl.advantage.rloo import rloo as flat_rloo
from agentlightning.rl.credit.discounted import discounted as flat_discounted
from agentlightning.rl.credit.identical import identical as flat_identical
from agentlightning.rl.credit.per_step import per_step as flat_per_step
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Reward, Trajectory

grpo, dr_grpo, rloo = map(by_rollout, (flat_grpo, flat_dr_grpo, flat_rloo))
identical, discounted, per_step = map(by_rollout, (flat_identical, flat_discounted, flat_per_step))
ESTIMATORS = [grpo, dr_grpo, rloo]


def rollout(reward: float | None, agents: str = "a", own: tuple[float, ...] = (), group: str = "g", index: int = 0) -> Trajectory:
    """One call for each letter of `agents`."""
    transitions = []
    for k, agent in enumerate(agents):
        rewards = tuple(Reward(attempt_id="a", value=value) for value in own[k : k + 1])
        transitions.append(transition(k, [1], [2], agent=agent, turn=agents[:k].count(agent), rewards=rewards))
    return trajectory(index, *transitions, group=group, reward=reward)


def firsts(estimator: Callable[..., list[np.ndarray]], rewards: list[float | None], **settings: object) -> list[float]:
    ts = [rollout(r, index=k) for k, r in enumerate(rewards)]
    return [float(a[0]) for a in estimator(ts, identical(ts), **settings)]


def test_grpo_is_the_published_formula() -> None:
    rewards = np.array([1.0, 0.0, 0.25, 0.0, 0.9])
    expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(firsts(grpo, rewards.tolist()), expected, rtol=1e-14)
    assert firsts(grpo, [1.0, 0.0, 0.0, 0.0])[0] == pytest.approx(1.5, abs=1e-4)  # verl, slime
    assert firsts(grpo, [1.0, 0.0, 0.0, 0.0], ddof=0)[0] == pytest.approx(1.7320, abs=1e-4)  # rLLM


def test_dr_grpo_is_the_reward_less_the_mean() -> None:
    np.testing.assert_allclose(firsts(dr_grpo, [1.0, 0.0, 0.5]), [0.5, -0.5, 0.0], atol=1e-15)


def test_rloo_is_the_reward_less_the_mean_of_the_others() -> None:
    rewards = [1.0, 0.0, 0.25, 0.0]
    expected = [r - (sum(rewards) - r) / 3 for r in rewards]
    np.testing.assert_allclose(firsts(rloo, rewards), expected, rtol=1e-14)
    np.testing.assert_allclose(firsts(rloo, rewards), 4 / 3 * np.array(firsts(dr_grpo, rewards)), rtol=1e-14)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_group_of_one_and_a_group_of_equal_outcomes_have_advantage_zero(estimator: Callable[..., list[np.ndarray]]) -> None:
    assert firsts(estimator, [0.7]) == [0.0]
    assert firsts(estimator, [0.3, 0.3, 0.3]) == [0.0] * 3
    assert firsts(estimator, [0.3, 0.3 + 1e-7, 0.3]) == [0.0] * 3  # noise is no signal (facts: 0.52 elsewhere)
    ts = [rollout(1.0, "a" * (k + 1), index=k) for k in range(3)]  # equal outcomes, discounted over different lengths
    assert all((a == 0).all() for a in estimator(ts, discounted(ts, gamma=0.5)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rewards_on_spans_tell_rollouts_with_equal_outcomes_apart(estimator: Callable[..., list[np.ndarray]]) -> None:
    ts = [rollout(1.0, "a", (1.0,), index=0), rollout(1.0, "a", (0.0,), index=1)]
    first, second = estimator(ts, per_step(ts))
    assert first[0] > 0 > second[0]
    assert all((a == 0).all() for a in estimator(ts, identical(ts)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_rollout_that_never_called_the_model_counts_in_the_baseline(estimator: Callable[..., list[np.ndarray]]) -> None:
    ts = [rollout(1.0, index=0), rollout(1.0, index=1), rollout(0.0, "", index=2)]
    first, second, silent = estimator(ts, identical(ts))
    assert first[0] == second[0] > 0
    assert silent.shape == (0,)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_long_rollout_counts_once_in_the_baseline(estimator: Callable[..., list[np.ndarray]]) -> None:
    short = [rollout(1.0, index=0), rollout(0.0, index=1)]
    long = [rollout(1.0, index=0), rollout(0.0, "a" * 9, index=1)]
    assert estimator(short, identical(short))[0][0] == estimator(long, identical(long))[0][0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_unscored_rollout_is_nan_and_out_of_the_baseline(estimator: Callable[..., list[np.ndarray]]) -> None:
    with_it, without = firsts(estimator, [1.0, None, 0.0]), firsts(estimator, [1.0, 0.0])
    assert np.isnan(with_it[1])
    assert [with_it[0], with_it[2]] == without


def test_the_baseline_by_turn_is_the_mean_of_the_others_at_that_agents_turn() -> None:
    ts = [
        rollout(0.0, "ab", (1.0, 2.0), index=0),
        rollout(0.0, "ba", (4.0, 8.0), index=1),
        rollout(0.0, "aba", (16.0, 32.0, 64.0), index=2),
    ]
    returns = per_step(ts)
    assert [r.tolist() for r in returns] == [[3, 2], [12, 8], [112, 96, 64]]
    expected = [
        [3 - (8 + 112) / 2, 2 - (12 + 96) / 2],
        [12 - (2 + 96) / 2, 8 - (3 + 112) / 2],
        [112 - (3 + 8) / 2, 96 - (2 + 12) / 2, 64 - (3 + 12) / 2],  # no other has a second turn of a: their mean G_0
    ]
    for estimator in (rloo, dr_grpo):
        assert [a.tolist() for a in estimator(ts, returns)] == expected
    deviation = np.std([3, 12, 112], ddof=1) + 1e-6
    for got, want in zip(grpo(ts, returns), expected, strict=True):
        np.testing.assert_allclose(got, np.array(want) / deviation, rtol=1e-14)


def test_equal_rollout_returns_are_not_divided_by() -> None:
    ts = [rollout(0.0, "aa", (1.0, 0.0), index=0), rollout(0.0, "aa", (0.0, 1.0), index=1)]
    assert [a.tolist() for a in grpo(ts, per_step(ts))] == [[0.0, -1.0], [0.0, 1.0]]


def expected_gradient(estimator: Callable[..., list[np.ndarray]], size: int, *, span_rewards: bool) -> tuple[np.ndarray, np.ndarray]:
    """By enumeration of every group: the mean of sum_t A_t grad log pi, and the true gradient of the return.

    The policy stops at once (probability p), or goes on and then chooses one of two actions (probability q).
    """
    p, q = 0.3, 0.6
    # probability, agents' turns, own rewards, outcome, grad log pi per turn with respect to (p, q)
    kinds = [
        (p, "a", (0.5,), 0.2, [(1 / p, 0.0)]),
        ((1 - p) * q, "aa", (-0.25, 1.0), 1.0, [(-1 / (1 - p), 0.0), (0.0, 1 / q)]),
        ((1 - p) * (1 - q), "aa", (-0.25, 0.0), 0.0, [(-1 / (1 - p), 0.0), (0.0, -1 / (1 - q))]),
    ]

    def total(own: tuple[float, ...], outcome: float) -> float:
        return outcome + (sum(own) if span_rewards else 0.0)

    true = sum(prob * total(own, outcome) * np.sum(scores, axis=0) for prob, _, own, outcome, scores in kinds)
    mean = np.zeros(2)
    for group in itertools.product(kinds, repeat=size):
        probability = float(np.prod([kind[0] for kind in group]))
        ts = [rollout(kind[3], kind[1], kind[2] if span_rewards else (), index=k) for k, kind in enumerate(group)]
        advantages = estimator(ts, per_step(ts) if span_rewards else identical(ts))
        for a, kind in zip(advantages, group, strict=True):
            mean += probability / size * (a[:, None] * np.array(kind[4])).sum(0)
    return mean, np.asarray(true)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rloo_is_unbiased_where_the_policy_chooses_when_to_stop(size: int) -> None:
    for span_rewards in (False, True):
        mean, true = expected_gradient(rloo, size, span_rewards=span_rewards)
        np.testing.assert_allclose(mean, true, atol=1e-12)


def test_dr_grpo_is_unbiased_up_to_the_scale_of_the_group_mean() -> None:
    mean, true = expected_gradient(dr_grpo, 3, span_rewards=False)
    np.testing.assert_allclose(mean, 2 / 3 * true, atol=1e-12)
    mean, true = expected_gradient(dr_grpo, 3, span_rewards=True)
    np.testing.assert_allclose(mean, true, atol=1e-12)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, None]), st.integers(0, 3), st.sampled_from("gh")), max_size=8), st.randoms())
@settings(max_examples=100, deadline=None)
def test_advantages_fit_their_transitions_and_order_does_not_matter(rows: list[tuple[float | None, int, str]], random: object) -> None:
    ts = [rollout(r, "a" * n, (0.5,) * n, group, k) for k, (r, n, group) in enumerate(rows)]
    order = list(range(len(ts)))
    random.shuffle(order)  # type: ignore[attr-defined]
    mixed = [ts[k] for k in order]
    for estimator in ESTIMATORS:
        for credit in (identical, per_step, discounted):
            returns = credit(ts)
            kept = [r.copy() for r in returns]
            made = estimator(ts, returns)
            for before, after in zip(kept, returns, strict=True):
                np.testing.assert_array_equal(before, after)
            again = estimator(mixed, credit(mixed))
            for k, t in enumerate(ts):
                assert made[k].shape == (len(t.transitions),)  # law 4
                assert np.isnan(made[k]).all() == (t.reward is None) or not t.transitions
                np.testing.assert_allclose(made[k], again[order.index(k)], atol=1e-12)
            if credit is identical:
                for group in "gh":  # the group's advantages, one for each rollout, sum to zero
                    some = [a[0] for a, t in zip(made, ts, strict=True) if t.group == group and t.transitions and t.reward is not None]
                    whole = all(t.transitions for t in ts if t.group == group and t.reward is not None)
                    assert not whole or abs(sum(some)) < 1e-9


def test_returns_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="1 transitions"):
        rloo([rollout(1.0)], [np.zeros(2)])
