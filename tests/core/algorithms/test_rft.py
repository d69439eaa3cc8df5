"""Rejection-sampled fine-tuning: which rollouts are chosen, what becomes of the others, and the settings."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentlightning as agl
from agentlightning.algorithms.sft import advantage, chosen
from agentlightning.config.schema import Config
from agentlightning.config.toml import to_toml
from agentlightning.contracts.batch import Batch
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import registry
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.settings import build
from agentlightning.types import Trajectory
from world import rollout


def batch_of(trajectories: list[Trajectory], *, loss_aggregation: Any = "token_mean", **settings: Any) -> Batch:
    found = chosen(trajectories, **settings)
    return make_batch(found, [advantage(each) for each in found], loss_aggregation=loss_aggregation)


def reasons(batch: Batch) -> dict[str, str]:
    return {each.rollout_id: each.reason for each in batch.untrained}


BELOW, WORSE = "the reward of its rollout is below min_reward (0.5)", "not among the best of its group (best = 2)"


def test_those_with_reward_enough_are_trained_and_the_others_say_why_not():
    some = [rollout(0, 0.4), rollout(1, 0.5), rollout(2, None), rollout(3, 1.0, replies=2)]
    batch = batch_of(some, min_reward=0.5)
    assert batch.rollout_ids == ("g1", "g3")
    assert reasons(batch) == {"g0": BELOW, "g2": "not scored"}
    assert (batch.advantage[batch.trained] == 1).all()
    assert batch.weight.sum() == pytest.approx(1), "what is left out has no part in the mean"
    assert np.unique(batch.weight).tolist() == pytest.approx([0, 1 / 9])
    assert np.unique(batch_of(some, min_reward=0.5, loss_aggregation="sequence_mean").weight).tolist() == pytest.approx([0, 1 / 12, 1 / 6])


def test_of_those_the_best_of_each_group_are_trained_and_of_equal_ones_the_first():
    some = [rollout(k, r) for k, r in enumerate([0.5, 0.9, 0.6, 0.9, 0.6])] + [
        rollout(k, r, "h") for k, r in enumerate([0.1, 0.7, 0.7, 0.7])
    ]
    batch = batch_of(some, min_reward=0.5, best=2)
    assert batch.rollout_ids == ("g1", "g3", "h1", "h2")
    assert reasons(batch) == {"g0": WORSE, "g2": WORSE, "g4": WORSE, "h0": BELOW, "h3": WORSE}
    assert batch_of(some, min_reward=-math.inf, best=1).rollout_ids == ("g1", "h1"), "without a least reward: the best of each group"


def test_a_reward_that_a_sum_of_floats_has_just_missed_is_enough():
    assert batch_of([rollout(0, sum([0.1] * 10))], min_reward=1.0).trained_tokens == 3


@given(st.lists(st.tuples(st.sampled_from("gh"), st.sampled_from([None, 0.0, 0.5, 0.5, 1.0]), st.integers(0, 2)), max_size=10), st.data())
def test_choosing_is_pure_needs_no_order_and_accounts_for_every_token(given_: list[tuple[str, float | None, int]], data: st.DataObject):
    some = [rollout(k, reward, group, replies) for k, (group, reward, replies) in enumerate(given_)]
    best = data.draw(st.sampled_from([None, 1, 2]))
    before = copy.deepcopy(some)
    batch = batch_of(some, min_reward=0.5, best=best)
    assert some == before
    assert batch == batch_of(data.draw(st.permutations(some)), min_reward=0.5, best=best)
    assert batch.trained_tokens + sum(each.tokens for each in batch.untrained) == batch.stats.sampled_tokens
    for group in "gh":
        good = sorted((r for g, r, n in given_ if g == group and r is not None and r >= 0.5 and n), reverse=True)
        kept = [some[int(each[1:])].reward for each in batch.rollout_ids if each[0] == group]
        assert len(kept) <= len(good) if best is None else len(kept) <= best
        if best is None:
            assert sorted(kept, reverse=True) == good  # type: ignore[type-var]


def test_settings_come_from_a_table_and_what_is_wrong_is_named():
    kind = registry().load("algorithms", "rft")
    algorithm = build(kind, {"name": "rft", "group_size": 4, "min_reward": 0.5, "best": 1, "minibatches": 2}, "algorithm")
    assert algorithm == agl.RFT(group_size=4, min_reward=0.5, best=1, minibatches=2)
    assert algorithm.loss_settings() == SFTLoss(minibatches=2)
    for wrong, says in [
        ({"min_reward": math.nan}, r"algorithm\.min_reward is nan\. Use a finite number \(-inf accepts every reward\)"),
        ({"min_reward": math.inf}, r"algorithm\.min_reward is inf"),
        ({"group_size": 0}, r"algorithm\.group_size is 0\. Use a whole number of at least 1"),
        ({"best": 0}, r"algorithm\.best is 0"),
        ({"epochs": 0}, r"algorithm\.epochs is 0"),
        ({"minibatches": 0}, r"algorithm\.minibatches is 0"),
        ({"loss_aggregation": "constant_length"}, r"algorithm\.loss_aggregation is 'constant_length'"),
        ({"kl_coef": 0.1}, "Unknown key 'kl_coef' in .algorithm."),
    ]:
        with pytest.raises(ConfigError, match=says) as raised:
            build(kind, {"name": "rft", **wrong}, "algorithm")
        assert "\n" not in str(raised.value)


def test_no_least_reward_is_written_down_as_it_was_given():
    import tomllib

    config = build(Config, {"agent": "a:b", "tasks": "t", "model": "m", "algorithm": {"name": "rft", "min_reward": -math.inf}})
    assert tomllib.loads(to_toml(config))["algorithm"]["min_reward"] == -math.inf
