"""Direct preference optimisation: which rollouts make a pair, the batch of the pairs, and the settings."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import agentlightning as agl
from agentlightning.algorithms.dpo import pairs_of, preferred, trial_batch
from agentlightning.contracts.batch import Batch
from agentlightning.errors import ConfigError, TrainerError
from agentlightning.registry.registry import registry
from agentlightning.rl.batch.build import make_batch, trainable
from agentlightning.rl.correction.tis import TruncatedImportanceSampling
from agentlightning.rl.loss import DPOLoss
from agentlightning.settings import build
from agentlightning.types import Trajectory
from world import rollout


def batch_of(trajectories: list[Trajectory], tolerance: float = 1e-6) -> Batch:
    pairs = pairs_of(trajectories, tolerance)
    return make_batch(trajectories, preferred(trajectories, pairs), loss_aggregation="pair_mean", pairs=pairs)


def names(trajectories: list[Trajectory], pairs: list[tuple[int, int]]) -> list[tuple[str, str]]:
    return [(trajectories[better].rollout_id, trajectories[worse].rollout_id) for better, worse in pairs]


def test_the_best_is_paired_with_the_worst_the_second_with_the_second_worst():
    some = [rollout(k, r) for k, r in enumerate([0.2, 1.0, 0.0, 0.7, 0.4])]
    assert names(some, pairs_of(some)) == [("g1", "g2"), ("g3", "g0")]
    assert names(some, pairs_of(some, 0.5)) == [("g1", "g2")], "0.7 and 0.2 do not differ by more than that"
    assert pairs_of(some, 1.0) == []
    some += [rollout(0, 5.0, "h"), rollout(1, 4.0, "h")]
    assert names(some, pairs_of(some)) == [("g1", "g2"), ("g3", "g0"), ("h0", "h1")], "never across groups"


def test_of_equal_rewards_the_first_is_the_better_one_and_equal_ones_make_no_pair():
    some = [rollout(k, r) for k, r in enumerate([1.0, 0.0, 1.0, 1.0, 0.0])]
    assert names(some, pairs_of(some)) == [("g0", "g4"), ("g2", "g1")]
    assert pairs_of([rollout(k, 1.0) for k in range(4)]) == []
    assert pairs_of([rollout(0, 1.0), rollout(1, 1.0 + 1e-9)], 1e-6) == []


def test_what_was_not_scored_or_has_nothing_to_train_is_in_no_pair():
    some = [rollout(0, None), rollout(1, 1.0, logprobs=False), rollout(2, 0.9, replies=0), rollout(3, 0.8), rollout(4, 0.1)]
    assert names(some, pairs_of(some)) == [("g3", "g4")]
    why = {each.rollout_id: each.reason for each in batch_of(some).untrained}
    assert why == {"g0": "not scored", "g1": "no logprobs were recorded"}


def test_a_batch_of_pairs_weighs_each_pair_the_same_and_names_what_is_in_none():
    some = [rollout(0, 1.0, replies=3), rollout(1, 0.5), rollout(2, 0.0), rollout(0, 1.0, "h"), rollout(1, 0.0, "h"), rollout(0, 1.0, "i")]
    batch = batch_of(some)
    assert batch.pairs is not None
    assert [tuple(batch.rollout_ids[k] for k in pair) for pair in batch.pairs] == [("g0", "g2"), ("h0", "h1")]
    sign = {name: set(batch.advantage[batch.trained & (owner(batch) == k)]) for k, name in enumerate(batch.rollout_ids)}
    assert sign == {"g0": {1.0}, "g2": {-1.0}, "h0": {1.0}, "h1": {-1.0}}
    assert set(batch.weight[batch.trained]) == {1 / 2}, "of every token, whatever the length"
    assert {each.rollout_id: each.reason.split(":")[0] for each in batch.untrained} == {"g1": "in no pair", "i0": "in no pair"}
    assert (batch.stats.groups, batch.stats.zero_variance_groups) == (3, 1)


def owner(batch: Batch) -> np.ndarray:
    return np.append(batch.transition_rollout, -1)[batch.transition]


def test_without_a_pair_nothing_is_trained_and_every_scored_group_is_without_signal():
    batch = batch_of([rollout(0, 1.0), rollout(1, 1.0), rollout(0, None, "h"), rollout(0, 0.0, "i")])
    assert batch.trained_tokens == 0
    assert batch.pairs is not None
    assert batch.pairs.shape == (0, 2)
    assert (batch.stats.groups, batch.stats.zero_variance_groups) == (3, 2)


def test_pairs_that_cannot_be_are_refused():
    some = [rollout(0, 1.0), rollout(1, 0.0), rollout(2, 0.0, logprobs=False)]
    for pairs, says in [
        ([(0, 1), (0, 2)], "Trajectory 0 of 3 is in 2 places"),
        ([(1, 1)], "Trajectory 1 of 3 is in 2 places"),
        ([(0, 3)], "Trajectory 3 of 3 is in 1 places"),
        ([(0, 2)], "Rollout g2 is in a pair, and none of its tokens can be trained"),
    ]:
        with pytest.raises(TrainerError, match=says):
            make_batch(some, preferred(some, pairs), loss_aggregation="pair_mean", pairs=pairs)
    for more in ({"loss_aggregation": "pair_mean"}, {"pairs": [(0, 1)]}):
        with pytest.raises(ConfigError, match="Use 'pair_mean' exactly when you pass pairs"):
            make_batch(some, preferred(some, []), **more)  # type: ignore[arg-type]


@given(st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_pairing_is_pure_needs_no_order_and_accounts_for_every_token(seed: int):
    rng = random.Random(seed)
    some = [
        rollout(k, rng.choice([None, 0.0, 0.3, 0.3, 1.0]), rng.choice("gh"), rng.randint(0, 3), logprobs=rng.random() < 0.9)
        for k in range(rng.randint(0, 12))
    ]
    tolerance = rng.choice([0.0, 0.5])
    before = copy.deepcopy(some)
    pairs, batch = pairs_of(some, tolerance), batch_of(some, tolerance)
    assert some == before
    mixed = rng.sample(some, len(some))
    assert sorted(names(mixed, pairs_of(mixed, tolerance))) == sorted(names(some, pairs))
    assert batch == batch_of(some, tolerance) == batch_of(mixed, tolerance)
    used = [k for pair in pairs for k in pair]
    assert len(used) == len(set(used))
    for better, worse in pairs:
        high, low = some[better].reward, some[worse].reward
        assert high is not None
        assert low is not None
        assert high - low > tolerance
        assert some[better].group == some[worse].group
    for group in "gh":  # whoever is left differs from nobody who is left
        rewards = [t.reward for k, t in enumerate(some) if t.group == group and k not in used and t.reward is not None and trainable(t)]
        assert not rewards or max(rewards) - min(rewards) <= tolerance
    assert batch.trained_tokens + sum(each.tokens for each in batch.untrained) == batch.stats.sampled_tokens
    assert batch.trained_tokens == sum(len(t.response_ids) for k in used for t in some[k].transitions)


def test_the_batch_of_a_dry_run_has_pairs_whatever_the_rewards():
    batch = trial_batch([rollout(k, 1.0, logprobs=k != 1) for k in range(6)])
    assert batch.pairs is not None
    assert len(batch.pairs) == 2
    assert batch.trained_tokens == 12
    assert trial_batch([]).trained_tokens == trial_batch([rollout(0, 1.0)]).trained_tokens == 0


def test_settings_come_from_a_table_and_what_is_wrong_is_named():
    kind = registry().load("algorithms", "dpo")
    algorithm = build(kind, {"name": "dpo", "group_size": 4, "beta": 0.5, "epochs": 2}, "algorithm")
    assert algorithm == agl.DPO(group_size=4, beta=0.5, epochs=2)
    assert algorithm.loss_settings() == DPOLoss(beta=0.5, epochs=2)
    for wrong, says in [
        ({"beta": 0.0}, r"algorithm\.beta is 0\.0\. Use a finite number above 0 \(0\.1 is usual\)"),
        ({"beta": -0.1}, r"algorithm\.beta is -0\.1"),
        ({"beta": math.nan}, r"algorithm\.beta is nan"),
        ({"group_size": 1}, r"algorithm\.group_size is 1\. Use a whole number of at least 2"),
        ({"tolerance": -1.0}, r"algorithm\.tolerance is -1\.0"),
        ({"epochs": 0}, r"algorithm\.epochs is 0"),
        ({"minibatches": 0}, r"algorithm\.minibatches is 0"),
        ({"kl_coef": 0.1}, "Unknown key 'kl_coef' in .algorithm."),
        ({"loss_aggregation": "token_mean"}, "Unknown key 'loss_aggregation' in .algorithm."),
    ]:
        with pytest.raises(ConfigError, match=says) as raised:
            build(kind, {"name": "dpo", **wrong}, "algorithm")
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("more", [{"kl_coef": 0.1}, {"entropy_coef": 0.1}, {"correction": TruncatedImportanceSampling()}])
def test_what_the_loss_has_no_term_for_is_refused_by_name(more: dict[str, Any]):
    with pytest.raises(ConfigError, match=rf"loss\.{next(iter(more))} is set, and loss 'dpo' has no term for it"):
        DPOLoss(**more)


def test_the_loss_comes_by_its_algorithm_alone():
    for loss in (DPOLoss(), "agentlightning.rl.loss:DPOLoss"):
        with pytest.raises(
            ConfigError, match=r"compares pairs of rollouts, and algorithm 'lightning' makes none. Use algorithm = \{name = 'dpo'\}"
        ):
            agl.LightningRL(loss=loss).parts()
    with pytest.raises(ConfigError, match="Unknown loss 'dpo'"):
        agl.LightningRL(loss="dpo").parts()


def test_the_order_of_a_production_group_is_that_of_attempts_where_indices_are_equal():
    some = [replace(rollout(0, 1.0), rollout_id=name, attempt_id=name) for name in "cab"] + [rollout(0, 0.0)]
    assert names(some, pairs_of(some)) == [("a", "g0")]
    assert names(some[::-1], pairs_of(some[::-1])) == [("a", "g0")]
