"""Supervised fine-tuning: which rollouts are learned from, and with what; the settings and the reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import agentlightning as agl
from agentlightning.algorithms.sft import advantage, chosen
from agentlightning.errors import ConfigError
from agentlightning.records.accounts import account
from agentlightning.registry.registry import registry
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import SFTLoss
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.settings import build
from agentlightning.stores.common import open_store
from agentlightning.training.metrics import contributions, step_metrics
from agentlightning.types import Call, Completion, Reward, Rollout, Sampling, Task, Trajectory


def demonstrate(task: Any, messages: Any, tools: Any) -> None:
    return None


async def made(*kinds: str, reward: float | None = 1.0, group: str = "g") -> Any:
    """A finished rollout with one call of each kind (`demonstrated`, `sampled`), and its trajectory."""
    store = open_store("memory:")
    rollout = Rollout(task=Task(group, None), mode="train", group=group, step=0, sampling=Sampling())
    attempt = await store.begin(rollout, "test", lease=60)
    for index, kind in enumerate(kinds):
        call = Call(id=f"{rollout.id}-{index}", attempt_id=attempt.id, index=index, status="completed", choices=1)
        response = [10 + index, 20, 2]
        given: dict[str, Any] = {"logprobs": [-0.5] * 3, "versions": [0] * 3}
        if kind == "demonstrated":
            given = {"logprobs": None, "versions": [-1] * 3, "demonstrated": True}
        completion = Completion(
            call_id=call.id, attempt_id=attempt.id, prompt_ids=[1, 5, index], response_ids=response, sampling=Sampling(),
            finish_reason="stop", **given,
        )  # fmt: skip
        await store.record([completion, call])
    if reward is not None:
        await store.record([Reward(attempt_id=attempt.id, value=reward, name="return")])
    await store.finish(attempt.id, "succeeded")
    state, records = await store.read(rollout.id)
    return state, records, trajectory(state, records)


def sft(**settings: Any) -> agl.SFT:
    return agl.SFT(demonstrations=demonstrate, **settings)


def batch_of(algorithm: agl.SFT, *trajectories: Trajectory) -> Any:
    kept = chosen(trajectories, min_reward=algorithm.min_reward)
    return make_batch(kept, [advantage(each) for each in kept], loss_aggregation=algorithm.loss_aggregation, demonstrations=True)


async def test_only_rollouts_that_earned_enough_are_learned_from():
    good, poor, unscored = [(await made("demonstrated", reward=reward, group=str(reward)))[2] for reward in (1.0, 0.4, None)]
    batch = batch_of(sft(), good, poor, unscored)
    assert batch.rollout_ids == (good.rollout_id,)
    reasons = {left.rollout_id: left.reason for left in batch.untrained}
    assert reasons == {poor.rollout_id: "the reward of its rollout is below min_reward (1)", unscored.rollout_id: "not scored"}
    assert batch.weight.sum() == pytest.approx(1), "what is left out has no part in the mean"
    assert batch_of(sft(min_reward=0.4), good, poor, unscored).trained_tokens == 6


async def test_a_reward_that_a_sum_of_floats_has_just_missed_is_enough():
    _, _, one = await made("demonstrated", reward=1 - 2**-53)  # the sum of ten 0.1, before Python 3.12
    assert one.reward < 1
    assert batch_of(sft(), one).trained_tokens == 3


async def test_weights_are_those_of_tokens_or_of_rollouts():
    long, short = (await made("demonstrated", "demonstrated", group="a"))[2], (await made("demonstrated", group="b"))[2]
    assert np.unique(batch_of(sft(), long, short).weight).tolist() == pytest.approx([0, 1 / 9])
    assert np.unique(batch_of(sft(loss_aggregation="sequence_mean"), long, short).weight).tolist() == pytest.approx([0, 1 / 12, 1 / 6])


async def test_a_step_accounts_for_every_token_and_calls_no_demonstrated_reward_the_policys():
    state, records, one = await made("demonstrated", "sampled")
    algorithm = sft()
    (kept_one,) = chosen([one], min_reward=algorithm.min_reward)
    values = advantage(kept_one)
    batch = make_batch([kept_one], [values], demonstrations=True)
    row = step_metrics([kept_one], batch)
    assert (row["demonstrated_reward"], row["demonstrated_tokens"], row["sampled_tokens"], row["trained_tokens"]) == (1.0, 3, 3, 3)
    assert "reward" not in row
    assert row["unscored"] == 0
    kept = contributions([kept_one], [values], [values], batch)[one.rollout_id]
    sums = account(state, records, one, kept)
    assert (sums.sampled, sums.demonstrated, sums.trained, dict(sums.left_out)) == (6, 3, 3, {"sampled, not demonstrated": 3})


def test_settings_come_from_a_table_and_what_is_wrong_is_named():
    kind = registry().load("algorithms", "sft")
    table = {"name": "sft", "demonstrations": f"{__name__}:demonstrate", "min_reward": 0.5, "loss_aggregation": "sequence_mean"}
    algorithm = build(kind, table, "algorithm")
    assert algorithm.demonstrate is demonstrate or algorithm.demonstrate.__name__ == "demonstrate"
    assert algorithm.loss_settings() == SFTLoss()
    for wrong, says in [
        ({"loss_aggregation": "constant_length"}, "loss_aggregation"),
        ({"demonstrations": "nowhere"}, "Set it to 'module:function'"),
        ({"min_rewards": 1}, "Unknown key 'min_rewards'"),
    ]:
        with pytest.raises(ConfigError, match=says):
            build(kind, {**table, **wrong}, "algorithm")
    with pytest.raises(ConfigError, match="No module"):
        build(kind, {**table, "demonstrations": "no_such_module:f"}, "algorithm").parts()
    assert build(kind, {"name": "sft"}, "algorithm").needs.answers, "without a function, a teacher answers"
