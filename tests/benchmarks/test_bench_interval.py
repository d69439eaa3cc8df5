"""The bootstrap interval: against every resample that there is, against the normal approximation, and where pairs are missing."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from agentlightning.training.interval import bootstrap


def test_it_has_the_quantiles_of_every_resample_that_there_is():
    differences = np.array([[0.0, 1.0, -0.5], [0.25, 0.5, 1.5]])
    means = [
        differences[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(3), repeat=3)
    ]
    assert len(means) == 4 * 27
    found = bootstrap(differences, resamples=200_000, level=0.8)
    assert found is not None
    for end, part in ((found.low, 0.1), (found.high, 0.9)):
        below, up_to = np.mean(np.array(means) < end - 1e-9), np.mean(np.array(means) < end + 1e-9)
        assert below - 0.005 <= part <= up_to + 0.005, f"{end} is not the quantile {part}: {below} to {up_to} of all resamples"
    assert found.mean == pytest.approx(differences.mean())
    assert found.low > differences.min(), "so that the interval is not simply the range"


def test_with_many_tasks_it_is_the_normal_approximation():
    differences = np.random.default_rng(5).normal(0.1, 0.4, (1, 4000))
    found = bootstrap(differences)
    error = 1.96 * differences.std() / np.sqrt(differences.size)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((differences.mean() - error, differences.mean() + error), rel=0.03)
    assert found.rises


def test_what_all_tasks_share_within_a_seed_widens_the_interval():
    noise = np.random.default_rng(1).normal(0, 0.05, (3, 64))
    shared = noise + np.array([[-0.3], [0.1], [0.5]])
    alone, together = bootstrap(noise + 0.1), bootstrap(shared)
    assert alone is not None
    assert together is not None
    assert together.high - together.low > 5 * (alone.high - alone.low)
    assert alone.rises
    assert not together.rises


def test_a_pair_of_which_one_half_is_missing_is_left_out_and_counted():
    differences = np.array([[1.0, np.nan, 1.0], [1.0, 1.0, np.nan]])
    found = bootstrap(differences)
    assert found is not None
    assert (found.mean, found.low, found.high, found.pairs, found.unpaired) == (1.0, 1.0, 1.0, 4, 2)
    assert bootstrap(np.full((2, 3), np.nan)) is None


def test_the_same_numbers_give_the_same_interval():
    differences = np.random.default_rng(0).normal(size=(3, 64))
    assert bootstrap(differences) == bootstrap(differences)


def test_many_tasks_are_resampled_in_parts_with_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(3).normal(size=(1, 2_000))
    tracemalloc.start()
    try:
        interval = bootstrap(differences, resamples=5_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 50e6, "all resamples at once take 80 MB for each of four arrays"
    monkeypatch.setattr("agentlightning.training.interval.LARGEST", 10**9)
    at_once = bootstrap(differences, resamples=5_000)
    assert interval is not None
    assert at_once is not None
    assert (interval.low, interval.high) == pytest.approx((at_once.low, at_once.high), abs=1e-12)


def test_an_interval_from_zero_does_not_rise_by_rounding():
    differences = np.array([[0.0, 0.9, 0.1, -0.9, 0.9, -0.1, 0.0, 0.0, 0.9, 0.1, 0.9, 0.1, 0.9]])
    found = bootstrap(differences, resamples=2000)
    assert found is not None
    assert found.low == 0.0, "some sums of these numbers are 4e-18 without rounding"
    assert not found.rises
