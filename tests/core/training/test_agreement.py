"""How far a judge agrees with labels: pandas' correlation, kappa by hand, intervals that hold, and nothing invented."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from msgspec.structs import replace
from test_judge import rollout

from agentlightning.errors import RewardError
from agentlightning.training.rewards.agreement import Labelled, accuracy, agreement, kappa, label_of, spearman
from agentlightning.training.rewards.recorded_rollout import RecordedRollout
from agentlightning.types import Reward


def rows(scores: list[float | None], labels: list[float | None]) -> list[Labelled]:
    return [Labelled(str(task), score, label) for task, (score, label) in enumerate(zip(scores, labels, strict=True))]


def test_the_correlation_is_that_of_pandas_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, labels = rng.integers(0, 5, 30).astype(float), rng.integers(0, 3, 30).astype(float)
        assert spearman(scores, labels) == pytest.approx(pd.DataFrame([scores, labels]).T.corr(method="spearman").iloc[0, 1])


def test_kappa_is_the_agreement_beyond_chance() -> None:
    scores = np.array([0.9] * 20 + [0.8] * 5 + [0.2] * 10 + [0.1] * 15)
    labels = np.array([1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15)
    assert accuracy(scores, labels) == pytest.approx(0.7)
    assert kappa(scores, labels) == pytest.approx(0.4)  # the worked example of Cohen's kappa in textbooks: 20, 5, 10, 15


def test_missing_labels_and_scores_are_counted_and_are_no_zeros() -> None:
    measured = agreement(rows([1.0, 0.0, 0.3, None, None], [1.0, 0.0, None, 1.0, None]))
    assert (measured.pairs, measured.tasks, measured.without_label, measured.without_score) == (2, 2, 2, 1)
    assert measured.measures["accuracy"] is not None
    assert measured.measures["accuracy"].value == 1.0
    assert agreement(rows([None], [1.0])).measures == {}


def test_labels_that_are_not_0_and_1_have_a_correlation_alone() -> None:
    assert list(agreement(rows([0.1, 0.5, 0.9], [1.0, 3.0, 5.0])).measures) == ["Spearman's correlation"]


def test_what_is_undefined_is_not_a_number() -> None:
    measured = agreement(rows([0.5, 0.5, 0.5], [1.0, 0.0, 1.0]))
    assert measured.measures["Spearman's correlation"] is None
    same_side = agreement(rows([0.9, 0.8], [1.0, 1.0])).measures
    assert same_side["Cohen's kappa"] is None
    one_task = agreement([Labelled("t", 0.1, 0.0), Labelled("t", 0.9, 1.0)]).measures["accuracy"]
    assert one_task is not None
    assert (one_task.value, one_task.low) == (1.0, None)


def test_intervals_take_tasks_as_the_sample_not_rollouts() -> None:
    """Sixteen copies of each rollout of a task say nothing new."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 40).astype(float)
    scores = np.where(rng.random(40) < 0.8, labels, 1 - labels)
    once = [Labelled(str(task), score, label) for task, (score, label) in enumerate(zip(scores, labels, strict=True))]
    (single, many) = (agreement(found).measures["accuracy"] for found in (once, once * 16))
    assert single is not None
    assert many is not None
    assert (single.value, single.low, single.high) == (many.value, many.low, many.high)
    assert 0.05 < (single.high or 0) - (single.low or 0) < 0.4


def test_intervals_contain_the_true_accuracy_about_as_often_as_they_say() -> None:
    inside = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 2, 60).astype(float)
        scores = np.where(rng.random(60) < 0.7, labels, 1 - labels)
        measured = agreement(rows(list(scores), list(labels)), seed=seed).measures["accuracy"]
        assert measured is not None
        inside += measured.low is not None and measured.high is not None and measured.low <= 0.7 <= measured.high
    assert inside >= 17


def test_a_label_is_a_reward_or_a_key_of_the_task() -> None:
    recorded = rollout("5", {"good": True, "text": "a"})
    assert label_of(recorded, "task.good") == 1.0
    assert label_of(recorded, "task.other") is None
    assert label_of(recorded, "human") is None
    with pytest.raises(RewardError, match=r"'task\.text' of rollout .* is 'a'"):
        label_of(recorded, "task.text")
    human = Reward(attempt_id=recorded.records.attempt.id, name="human", value=0.25)
    assert label_of(RecordedRollout(recorded.state, replace(recorded.records, rewards=(human,))), "human") == 0.25
    assert label_of(rollout("5", "a text"), "task.good") is None
