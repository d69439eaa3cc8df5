"""The chance of signal, against exact enumeration in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest

from agentlightning.rl.signal import CONCENTRATIONS, has_signal, share_interval, signal_chance


def true_chance(successes: Sequence[float], size: int) -> float:
    """Of rewards of 0 and 1, averaged over tasks with these chances of success."""
    return float(np.mean([1 - p**size - (1 - p) ** size for p in successes]))


def binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def group(right: int, size: int) -> list[float]:
    return [1.0] * right + [0.0] * (size - right)


def expected(successes: Sequence[float], measured: int, size: int) -> tuple[float, float]:
    """Mean and root mean squared error of the estimate over every outcome of a dry run with `measured` rollouts of each task."""
    truth, mean, squares = true_chance(successes, size), 0.0, 0.0
    for outcome in itertools.product(range(measured + 1), repeat=len(successes)):
        chance = math.prod(binomial(k, measured, p) for k, p in zip(outcome, successes, strict=True))
        estimate = signal_chance([group(k, measured) for k in outcome], size)
        mean += chance * estimate
        squares += chance * (estimate - truth) ** 2
    return mean, math.sqrt(squares)


def test_two_rewards_have_the_posterior_mean_of_a_beta_prior() -> None:
    groups, size = [group(1, 4), group(4, 4), group(0, 3)], 5
    share = 5 / 11

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    logs, means = [], []
    for concentration in CONCENTRATIONS:
        a, b = concentration * share, concentration * (1 - share)
        tasks = [(a + sum(rewards), b + len(rewards) - sum(rewards)) for rewards in groups]
        logs.append(sum(log_beta(x, y) - log_beta(a, b) for x, y in tasks))
        means.append(
            np.mean(
                [1 - math.exp(log_beta(x + size, y) - log_beta(x, y)) - math.exp(log_beta(x, y + size) - log_beta(x, y)) for x, y in tasks]
            )
        )
    weight = np.exp(np.array(logs) - max(logs))
    assert signal_chance(groups, size) == pytest.approx(float(weight @ np.array(means) / weight.sum()), abs=1e-12)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("successes", [(0.1, 0.1, 0.1), (0.5, 0.5, 0.5), (0.0, 0.5, 1.0), (0.02, 0.3, 0.9), (0.0, 0.0, 1.0)])
def test_the_estimate_is_near_the_truth_on_average_over_all_outcomes(successes: tuple[float, ...], size: int) -> None:
    mean, error = expected(successes, 4, size)
    assert mean == pytest.approx(true_chance(successes, size), abs=0.15)
    assert error < 0.25


@pytest.mark.parametrize(("a", "b"), [(0.3, 1.0), (0.1, 0.3), (2.0, 2.0)])
def test_larger_groups_than_those_measured_are_estimated_with_little_bias(a: float, b: float) -> None:
    """Over dry runs of 8 tasks with 8 rollouts, whose success has a Beta distribution."""
    rng = np.random.default_rng(3)
    for size in (8, 16, 32):
        truth = true_chance(rng.beta(a, b, 50_000).tolist(), size)
        runs = [[group(int(rng.binomial(8, p)), 8) for p in rng.beta(a, b, 8)] for _ in range(200)]
        estimates = [signal_chance(groups, size) for groups in runs]
        assert np.mean(estimates) == pytest.approx(truth, abs=0.06)


@pytest.mark.parametrize("successes", [(0.1, 0.1, 0.1), (0.5, 0.5, 0.5), (0.02, 0.3, 0.9)])
def test_the_estimate_is_nearer_than_the_share_of_groups_with_signal(successes: tuple[float, ...]) -> None:
    truth, squares = true_chance(successes, 4), 0.0
    for outcome in itertools.product((False, True), repeat=3):
        singles = [true_chance([p], 4) for p in successes]
        chance = math.prod(q if hit else 1 - q for hit, q in zip(outcome, singles, strict=True))
        squares += chance * (np.mean(outcome) - truth) ** 2
    assert expected(successes, 4, 4)[1] < math.sqrt(squares)


def test_with_many_tasks_the_estimate_is_that_of_all_subsets() -> None:
    """The chance that n of the m rewards, drawn without replacement, are equal is unbiased for n <= m."""
    rng = np.random.default_rng(5)
    rights = rng.binomial(8, rng.beta(0.4, 1.2, 400))
    for size in (2, 4, 8):
        equal = [(math.comb(int(k), size) + math.comb(8 - int(k), size)) / math.comb(8, size) for k in rights]
        assert signal_chance([group(int(k), 8) for k in rights], size) == pytest.approx(1 - np.mean(equal), abs=0.01)


def test_larger_groups_have_more_signal_and_equal_rewards_never_prove_that_there_is_none() -> None:
    groups = [group(k, 8) for k in (0, 0, 0, 1, 8, 0)]
    chances = [signal_chance(groups, size) for size in (1, 2, 4, 8, 16, 32)]
    assert chances[0] == pytest.approx(0, abs=1e-12)
    assert chances == sorted(chances)
    failures = signal_chance([group(0, 8)] * 8, 8)
    assert 0.01 < failures < 0.1
    assert signal_chance([group(0, 8)], 8) > failures, "one task proves less than eight"


def test_real_rewards_count_by_their_equal_values_alone() -> None:
    rng = np.random.default_rng(2)
    continuous = rng.random((6, 8)).tolist()
    assert signal_chance(continuous, 8) > 0.99
    constant = [[value] * 8 for value in (0.1, 0.25, 0.5, 0.7)]
    assert signal_chance(constant, 8) < 0.1
    partial = [[0.0, 0.0, 0.3, 0.0], [1.0, 1.0, 1.0, 0.3]]
    moved = [[10 - 4 * reward for reward in rewards] for rewards in partial]
    assert signal_chance(partial, 6) == pytest.approx(signal_chance(moved, 6), abs=1e-12)
    noisy = [[reward + 1e-9 * k for k, reward in enumerate(rewards)] for rewards in partial]
    assert signal_chance(noisy, 6) == signal_chance(partial, 6)


def test_the_interval_of_a_share_contains_it_in_95_of_100_cases() -> None:
    for total in (8, 20):
        covered = []
        for share in np.linspace(0.02, 0.98, 49):
            hits = [k for k in range(total + 1) if share_interval(k, total)[0] <= share <= share_interval(k, total)[1]]
            covered.append(sum(binomial(k, total, float(share)) for k in hits))
        assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    assert share_interval(0, 8) == pytest.approx((0.0, 0.3244), abs=1e-4)


def test_a_group_has_signal_if_its_rewards_differ() -> None:
    assert has_signal([0.0, 1.0])
    assert not has_signal([1.0, 1.0 + 1e-9])
    assert not has_signal([1.0])
    assert not has_signal([])
