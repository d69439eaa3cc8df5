"""The advantages that verl lacks, or has for outcomes alone, against references written from their papers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from agentlightning.algorithms.lightning import LightningRL, learner_batch, with_target, with_values
from agentlightning.errors import ConfigError, RewardError, TrainerError
from agentlightning.rl.advantage import Estimate
from agentlightning.rl.advantage.gae import gae
from agentlightning.rl.advantage.gigpo import gigpo
from agentlightning.rl.advantage.grpo import grpo
from agentlightning.rl.advantage.maxrl import maxrl
from agentlightning.rl.advantage.opo import opo
from agentlightning.rl.advantage.per_agent import PerAgent
from agentlightning.rl.advantage.reinforce import reinforce
from agentlightning.rl.advantage.reinforce_pp import reinforce_pp
from agentlightning.rl.advantage.rloo import rloo
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.credit.discounted import discounted
from agentlightning.rl.credit.identical import identical
from agentlightning.rl.credit.last import last
from agentlightning.rl.credit.learned import learned
from agentlightning.rl.credit.per_step import per_step
from agentlightning.rl.marks import Needs, needs_of_advantage, needs_of_credit
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.types import Reward, Trajectory, Transition


def rollout(
    index: int, reward: float | None, *calls: tuple[Any, ...], group: str = "g", continues: bool = True, status: str = "succeeded"
) -> Trajectory:
    """Calls of `(agent, tokens of each choice, rewards of each choice, what the prompt adds)`; the last three may be left out."""
    made: list[Transition] = []
    turns: dict[str, int] = {}
    history = np.array([1, 2], np.int32)
    for number, (agent, *more) in enumerate(calls):
        lengths, own, added = [*more, *[(1,), (0.0,) * len(more[0] if more else (1,)), (7,)][len(more) :]]
        before = len(made) - 1 if continues and made else None
        history = np.concatenate([history, np.array(added, np.int32)])
        for length, value in zip(lengths, own, strict=True):
            made.append(
                transition(
                    len(made),
                    history,
                    [3] * length,
                    id=f"{group}{index}.{len(made)}",
                    call_id=f"{group}{index}.{number}",
                    agent=agent,
                    turn=turns.get(agent, 0),
                    rewards=(Reward(attempt_id="a", value=value),) if value else (),
                    continues=before,
                )
            )
        history = np.concatenate([history, made[-1].response_ids])
        turns[agent] = turns.get(agent, 0) + 1
    return trajectory(index, *made, group=group, reward=reward, status=status)


def test_maxrl_divides_by_the_mean_of_the_group() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0], group=[0, 0, 0, 0, 1, 1, 1], rollout=range(7))
    expected = [(1 - 0.25) / 0.25, *[-1.0] * 3, *[(1 - 2 / 3) / (2 / 3)] * 2, -1.0]
    np.testing.assert_allclose(maxrl(rollouts, identical(rollouts)), expected, rtol=1e-12)
    none = RolloutArrays.from_arrays(returns=[0.0, 0.0], group=[0, 0], rollout=[0, 1])
    assert maxrl(none, identical(none)).tolist() == [0.0, 0.0]


def test_maxrl_refuses_a_group_whose_mean_is_not_positive_by_name() -> None:
    rollouts = RolloutArrays.of([rollout(0, -1.0, ("a",)), rollout(1, 0.5, ("a",))])
    with pytest.raises(RewardError, match=r"rollouts g0, g1 is -0\.25\. Use rewards of 0 or more"):
        maxrl(rollouts, identical(rollouts))


def test_a_constant_baseline_is_taken_off_and_needs_no_group() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[1.0, np.nan, 0.25], group=[0, 1, 2], rollout=[0, 0, 1, 2])
    np.testing.assert_array_equal(reinforce(rollouts, identical(rollouts), baseline=0.5), [0.5, 0.5, np.nan, -0.25])
    assert needs_of_advantage(reinforce) == Needs()


def test_the_length_of_a_rollout_weighs_in_the_baseline_of_opo() -> None:
    ts = [rollout(0, 1.0, ("a", (3,)), ("a", (5,))), rollout(1, 0.0, ("a", (2,))), rollout(2, 0.5)]
    rollouts = RolloutArrays.of(ts)
    baseline = 8 * 1.0 / 10  # the rollout without a call has no length
    np.testing.assert_allclose(opo(rollouts, identical(rollouts)), [1 - baseline, 1 - baseline, -baseline], rtol=1e-12)


def test_the_last_call_alone_is_credited_in_all_its_choices() -> None:
    ts = [rollout(0, 1.0, ("a",), ("b", (1, 2), (0.0, 0.0))), rollout(1, 0.0, ("a",)), rollout(2, None, ("a",))]
    rollouts = RolloutArrays.of(ts)
    returns = last(rollouts)
    np.testing.assert_array_equal(returns, [np.nan, 1.0, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(rloo(rollouts, returns), [np.nan, 1.0, 1.0, -1.0, np.nan])
    batch = learner_batch(rollouts, Estimate(rloo(rollouts, returns), np.full(6, np.nan)), loss_aggregation="sequence_mean", length=None)
    assert {u.completion_id: u.reason for u in batch.untrained} == {"g0.0": "earned no credit", "g2.0": "not scored"}
    assert batch.weight[batch.trained].tolist() == [1 / 6, 1 / 6, 1 / 6, 1 / 2]  # of two scored rollouts


def slow_gae(
    chain: list[list[tuple[float, list[float]]]], gamma: float, lam: float
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """Advantages and targets of the tokens of calls of choices `(reward, values)`, straight from the definition."""
    advantages: list[list[list[float]]] = [[] for _ in chain]
    coming, value_after = 0.0, 0.0
    for number in range(len(chain) - 1, -1, -1):
        for reward, values in chain[number]:
            row: list[float] = []
            after, tail = value_after, coming
            for k in range(len(values) - 1, -1, -1):
                delta = (reward if k == len(values) - 1 else 0.0) + gamma * after - values[k]
                tail = delta + gamma * lam * tail
                after = values[k]
                row.insert(0, tail)
            advantages[number].append(row)
        coming = float(np.mean([row[0] for row in advantages[number]]))
        value_after = float(np.mean([values[0] for _, values in chain[number]]))
    targets = [
        [[a + v for a, v in zip(row, values, strict=True)] for row, (_, values) in zip(rows, call, strict=True)]
        for rows, call in zip(advantages, chain, strict=True)
    ]
    return advantages, targets


@given(
    st.lists(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), max_size=4), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.sampled_from(["tokens", "transitions"]),
    st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_generalised_advantages_are_their_definition_over_tokens_and_transitions_and_choices(
    shapes: list[list[list[int]]], gamma: float, lam: float, over: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ts = [
        rollout(k, float(rng.normal()), *[("a", tuple(call), tuple(rng.normal(size=len(call)))) for call in calls])
        for k, calls in enumerate(shapes)
    ]
    rollouts = RolloutArrays.of(ts)
    values = rng.normal(size=int(rollouts.tokens.sum()))
    rollouts = replace(rollouts, values=values)
    returns = per_step(rollouts)
    made = gae(rollouts, returns, gamma=gamma, lam=lam, over=over, whiten=False)
    at, k = 0, 0
    advantages, targets = rollouts.per_token(made.advantage), made.target
    for calls in shapes:
        chain, first = [], k
        for call in calls:
            chain.append([])
            for length in call:
                kept = values[at : at + length].tolist()
                chain[-1].append([returns[k], kept if over == "tokens" else kept[:1]])
                at, k = at + length, k + 1
        for number, call in enumerate(chain):  # what is lost from one call to the next is its reward
            after = np.mean([g for g, _ in chain[number + 1]]) if number + 1 < len(chain) else 0.0
            for choice in call:
                choice[0] = choice[0] - after
        want, want_target = slow_gae([[tuple(c) for c in call] for call in chain], gamma, lam)
        offsets = rollouts.offsets
        for row, target, place in zip([r for c in want for r in c], [r for c in want_target for r in c], range(first, k), strict=True):
            some = slice(int(offsets[place]), int(offsets[place + 1]))
            if over == "tokens":
                np.testing.assert_allclose(advantages[some], row, atol=1e-12)
                np.testing.assert_allclose(targets[some], target, atol=1e-12)
            else:
                np.testing.assert_allclose(advantages[some], row[0], atol=1e-12)
                assert targets[some][0] == pytest.approx(target[0], abs=1e-12)
                assert np.isnan(targets[some][1:]).all()
    if gamma == lam == 1:
        first_tokens = advantages[rollouts.offsets[:-1]]
        np.testing.assert_allclose(first_tokens, returns - values[rollouts.offsets[:-1]], atol=1e-12)


def test_what_is_not_trained_is_no_step_of_the_critic_and_its_reward_goes_to_what_came_before() -> None:
    t = rollout(0, 1.0, ("a", (2,)), ("b", (3,), (0.5,)))
    t = structs.replace(t, transitions=(t.transitions[0], structs.replace(t.transitions[1], trained=False, reason="another agent")))
    rollouts = replace(RolloutArrays.of([t]), values=np.array([0.1, 0.2, np.nan, np.nan, np.nan]))
    made = gae(rollouts, per_step(rollouts), lam=1.0, whiten=False)
    np.testing.assert_allclose(made.advantage, [1.5 - 0.1, 1.5 - 0.2, np.nan, np.nan, np.nan])


def test_generalised_advantages_without_values_are_refused() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[1.0], group=[0], rollout=[0])
    with pytest.raises(TrainerError, match="needs a critic"):
        gae(rollouts, identical(rollouts))


def slow_lambda_returns(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """G_t = r_t + gamma ((1 - lam) V_{t+1} + lam G_{t+1}): the recurrence of TD(lambda), after the last step 0."""
    made: list[float] = []
    after, coming = 0.0, 0.0
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        coming = reward + gamma * ((1 - lam) * after + lam * coming)
        after = value
        made.insert(0, coming)
    return made


@given(
    st.lists(st.lists(st.integers(1, 4), max_size=5), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.sampled_from([0.0, 0.9, 1.0]),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_learned_credit_is_the_lambda_return_of_the_critics_values(shapes: list[list[int]], gamma: float, lam: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = [rng.normal(size=len(calls)).tolist() for calls in shapes]
    ts = [
        rollout(k, float(rng.normal()), *[("a", (length,), (reward,)) for length, reward in zip(calls, rewards, strict=True)])
        for k, (calls, rewards) in enumerate(zip(shapes, own, strict=True))
    ]
    rollouts = RolloutArrays.of(ts)
    values = rng.normal(size=int(rollouts.tokens.sum()))
    made = learned(replace(rollouts, values=values), gamma=gamma, lam=lam)
    first, at, expected = values[rollouts.offsets[:-1]].tolist(), 0, []
    for t, rewards in zip(ts, own, strict=True):
        if rewards:
            steps = [*rewards[:-1], rewards[-1] + float(t.reward or 0)]
            expected += slow_lambda_returns(steps, first[at : at + len(rewards)], gamma, lam)
            at += len(rewards)
    np.testing.assert_allclose(made, expected, atol=1e-12)
    if lam == 1:
        np.testing.assert_allclose(made, discounted(rollouts, gamma=gamma), atol=1e-12)


def test_learned_credit_of_what_is_not_scored_or_not_trained_and_of_choices() -> None:
    ts = [rollout(0, None, ("a", (2,))), rollout(1, 1.0, ("a", (1,)), ("b", (1, 1), (0.25, 0.5))), rollout(2, 0.5, ("a", (1,)))]
    ts[2] = structs.replace(ts[2], transitions=(structs.replace(ts[2].transitions[0], trained=False, reason="sampled greedily"),))
    rollouts = replace(RolloutArrays.of(ts), values=np.array([np.nan, np.nan, 0.1, 0.2, 0.4, np.nan]))
    made = learned(rollouts, lam=0.5)
    last = [0.25 + 1, 0.5 + 1]
    first = 0.75 - np.mean([0.25, 0.5]) + 0.5 * np.mean([0.2, 0.4]) + 0.5 * np.mean(last)  # before it all choices' rewards count
    np.testing.assert_allclose(made, [np.nan, first, *last, 0.5])
    assert needs_of_credit(learned).critic
    with pytest.raises(TrainerError, match="needs a critic"):
        learned(replace(rollouts, values=None))


def test_the_critic_learns_what_learned_credit_says_unless_the_advantage_gives_it_more() -> None:
    rollouts = RolloutArrays.of([rollout(0, 1.0, ("a", (2,)), ("a", (3,))), rollout(1, 0.0, ("a", (1,)))])
    rollouts = replace(rollouts, values=np.linspace(0.1, 0.6, 6))
    returns = learned(rollouts, lam=0.5)
    none = np.full(6, np.nan)
    alone = with_target(rollouts, Estimate(rloo(rollouts, returns), none), returns)
    np.testing.assert_array_equal(alone.target, [returns[0], np.nan, returns[1], np.nan, np.nan, returns[2]])
    both = gae(rollouts, returns)
    np.testing.assert_array_equal(with_target(rollouts, both, returns).target, both.target)


def test_a_critic_learns_from_a_group_without_signal_too() -> None:
    rollouts = replace(RolloutArrays.of([rollout(k, 1.0, ("a", (2,))) for k in range(2)]), values=np.full(4, 0.25))
    returns = learned(rollouts)
    advantage = rloo(rollouts, returns)
    assert advantage.tolist() == [0.0, 0.0]
    batch = learner_batch(
        rollouts, with_target(rollouts, Estimate(advantage, np.full(4, np.nan)), returns), loss_aggregation="sequence_mean", length=None
    )
    assert (batch.trained_tokens, batch.stats.zero_variance_groups) == (4, 1)
    assert batch.returns is not None
    assert np.isfinite(batch.returns).sum() == 2
    without = learner_batch(
        RolloutArrays.of(rollouts.trajectories), Estimate(advantage, np.full(4, np.nan)), loss_aggregation="sequence_mean", length=None
    )
    assert (without.trained_tokens, without.stats.zero_variance_groups) == (0, 1)


def test_a_filtered_rollout_counts_in_the_denominator_with_a_critic_too() -> None:
    first, second = (rollout(k, float(k), ("a", (2,))) for k in range(2))
    filtered = structs.replace(first, transitions=(structs.replace(first.transitions[0], trained=False, reason="filtered"),))
    unscored = rollout(2, None, ("a", (2,)))
    rollouts = replace(RolloutArrays.of([filtered, second, unscored]), values=np.full(6, 0.25))
    returns = identical(rollouts)
    batch = learner_batch(rollouts, gae(rollouts, returns, whiten=False), returns, loss_aggregation="sequence_mean", length=None)
    assert batch.stats.scored_rollouts == 2
    assert batch.weight.sum() == pytest.approx(0.5)


def own_credit(rollouts: RolloutArrays) -> Any:
    return identical(rollouts)


@pytest.mark.parametrize(
    ("table", "ignored"),
    [
        ({}, True),
        ({"credit": "last"}, True),
        ({"credit": "per_step"}, False),
        ({"credit": "learned"}, False),
        ({"credit": own_credit}, False),
        ({"credit": {"name": own_credit}, "advantage": "rloo"}, False),
        ({"advantage": "gigpo"}, False),  # it reads them itself
        ({"advantage": {"write": "gigpo", "*": "rloo"}}, False),
    ],
)
def test_rewards_of_steps_count_unless_credit_and_advantage_are_known_not_to_look(table: dict[str, Any], ignored: bool) -> None:
    assert (LightningRL(**table).ignores_step_rewards is not None) == ignored


def test_what_credit_and_advantage_need_is_what_the_run_needs() -> None:
    assert LightningRL(credit="learned").needs == Needs(group=True, critic=True)
    assert LightningRL(credit={"name": "learned", "lam": 0.5}, advantage="reinforce").needs == Needs(critic=True)
    assert LightningRL(advantage="gigpo").needs == Needs(group=True, rewards=True)


def test_values_of_a_batch_reach_their_tokens_and_what_it_left_out_is_not_trained() -> None:
    ts = [rollout(0, 1.0, ("a", (2,)), ("a", (3,))), rollout(1, None, ("a", (1,))), rollout(2, 0.0, ("a", (2,)))]
    rollouts = RolloutArrays.of(ts)
    ones = Estimate(np.where(np.isnan(identical(rollouts)), np.nan, 1.0), np.full(8, np.nan))
    batch = learner_batch(rollouts, ones, loss_aggregation="sequence_mean", length=None)
    values = np.where(batch.trained, np.arange(len(batch)) / 100, np.nan)
    found = with_values(rollouts, batch, values)
    assert found.values is not None
    assert found.trained.tolist() == [True, True, False, True]
    again = learner_batch(found, Estimate(np.ones(4), found.values * 2), loss_aggregation="sequence_mean", length=None)
    assert again.value is not None
    assert again.returns is not None
    np.testing.assert_array_equal(again.value[again.trained & np.isfinite(again.value)], values[batch.trained])
    np.testing.assert_array_equal(again.returns, 2 * again.value)


def slow_gigpo(ts: list[Trajectory], returns: list[float], states: list[Any], omega: float) -> list[float]:
    """Of one group, from the paper: GRPO of the rollouts' rewards, and of the returns of equal states."""
    totals = [float(t.reward or 0) + sum(r.value for s in t.transitions for r in s.rewards) for t in ts]
    episode = (np.array(totals) - np.mean(totals)) / (np.std(totals, ddof=1) + 1e-6)
    above = [float(episode[k]) for k, t in enumerate(ts) for _ in t.transitions]
    steps: list[float] = []
    for value, state in zip(returns, states, strict=True):
        alike = [v for v, s in zip(returns, states, strict=True) if s == state]
        spread = np.std(alike, ddof=1) if len(alike) > 1 else 0.0
        steps.append(0.0 if spread <= 1e-6 else float((value - np.mean(alike)) / (spread + 1e-6)))
    return [a + omega * s for a, s in zip(above, steps, strict=True)]


def test_gigpo_compares_transitions_that_stand_in_the_same_state() -> None:
    ts = [
        rollout(0, 1.0, ("a", (2,), (0.0,), (7,)), ("a", (1,), (0.0,), (8,)), ("a", (1,), (0.0,), (9,))),
        rollout(1, 0.0, ("a", (1,), (0.0,), (7,)), ("a", (3,), (0.0,), (9,))),
        rollout(2, 0.5, ("a", (1,), (0.25,), (7,)), ("b", (1,), (0.0,), (9,))),  # another agent: another state
    ]
    rollouts = RolloutArrays.of(ts)
    returns = discounted(rollouts, gamma=0.5)
    states = ["start", "8", "9", "start", "9", "start", "b9"]
    expected = slow_gigpo(ts, returns.tolist(), states, omega=0.7)
    np.testing.assert_allclose(gigpo(rollouts, returns, omega=0.7), expected, rtol=1e-9)


def test_equal_outcomes_carry_no_signal_for_gigpo_and_groups_are_kept_apart() -> None:
    quiet = [rollout(k, 1.0, *[("a",)] * (k + 1)) for k in range(2)]
    loud = [rollout(k, float(k), ("a",), group="h") for k in range(2)]
    rollouts = RolloutArrays.of(quiet + loud)
    made = gigpo(rollouts, discounted(rollouts, gamma=0.5))
    assert made[:3].tolist() == [0.0] * 3  # whatever the discount makes of their lengths
    np.testing.assert_allclose(made[3:], 2 * np.array([-0.5, 0.5]) / (np.sqrt(0.5) + 1e-6), rtol=1e-9)


def test_each_agent_has_the_advantage_that_is_named_for_it() -> None:
    ts = [
        rollout(0, 1.0, ("write", (2,)), ("check", (1,))),
        rollout(1, 0.0, ("write", (1,)), ("other", (1,))),
        rollout(2, 0.0, ("write", (1,))),
    ]
    rollouts = RolloutArrays.of(ts)
    returns = identical(rollouts)
    parts = {"write": grpo, "check": rloo, "*": reinforce_pp}
    made = PerAgent(parts)(rollouts, returns)
    advantage = made.advantage[rollouts.offsets[:-1]]
    names = [t.agent for each in ts for t in each.transitions]
    for name, part in (("write", grpo), ("check", rloo)):
        mine = [k for k, each in enumerate(names) if each == name]
        np.testing.assert_allclose(advantage[mine], part(rollouts, returns)[mine], rtol=1e-12)
    assert advantage[names.index("other")] == 0.0  # alone among its own tokens, so nothing to normalise by
    with pytest.raises(ConfigError, match=r"names 'write', 'check', and agent 'other' is trained as well"):
        PerAgent({"write": grpo, "check": rloo})(rollouts, returns)
    assert needs_of_advantage(PerAgent({"a": rloo, "b": gae})) == Needs(group=True, critic=True)


def test_the_advantages_of_an_agent_are_weighted() -> None:
    ts = [rollout(0, 1.0, ("write", (2,)), ("check", (1,))), rollout(1, 0.0, ("write", (1,)), ("checker", (1,)))]
    rollouts = RolloutArrays.of(ts)
    algorithm = LightningRL(group_size=2, advantage="rloo", agent_weights={"check": 0.0, "check*": 0.5})
    _, advantage, _ = algorithm.parts()
    made = algorithm.estimate(rollouts, identical(rollouts), advantage)
    assert made.advantage.tolist() == [1.0, 1.0, 0.0, -1.0, -0.5]


def test_an_advantage_of_another_shape_is_refused_by_name() -> None:
    rollouts = RolloutArrays.from_arrays(returns=[1.0, 0.0], group=[0, 0], rollout=[0, 1], tokens=[3, 4])
    algorithm = LightningRL(advantage="rloo")
    with pytest.raises(ConfigError, match=r"algorithm\.advantage 'rloo' returned an array of shape \(3,\) for 2 transitions with 7 tokens"):
        algorithm.estimate(rollouts, identical(rollouts), lambda *_: np.zeros(3))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (
            {"group_size": 1},
            r"group_size is 1, and algorithm\.advantage 'grpo' compares the rollouts of a group. Set group_size to 2 or more",
        ),
        ({"group_size": 0, "advantage": "reinforce"}, "group_size is 0"),
        ({"group_size": 1, "advantage": {"write": "reinforce", "check": "rloo"}}, "write = 'reinforce', check = 'rloo'.* compares"),
        ({"advantage": {}}, "advantage is an empty table"),
        ({"advantage": {"write": "gpro"}}, r"advantage\.write: no advantage 'gpro'|Unknown advantage 'gpro'"),
        ({"advantage": "gea"}, "gae"),
        ({"advantage": {"name": "gae", "lam": 2}}, r"advantage\.lam is 2\. Use a number from 0 to 1"),
        ({"advantage": {"name": "gae", "gamma": 1.5}}, r"advantage\.gamma is 1\.5"),
        ({"advantage": {"name": "gae", "over": "turns"}}, r"advantage\.over is 'turns'\. Use 'tokens' or 'transitions'"),
        ({"advantage": {"name": "gigpo", "omega": -1}}, r"advantage\.omega is -1\. Use a finite number of at least 0"),
        ({"advantage": {"name": "gigpo", "omega": np.inf}}, r"advantage\.omega is inf"),
        ({"advantage": {"name": "grpo", "ddof": 2}}, r"advantage\.ddof is 2\. Use 0 or 1"),
        ({"advantage": {"name": "grpo", "eps": -1.0}}, r"advantage\.eps is -1\.0"),
        ({"advantage": {"name": "rloo", "tolerance": np.nan}}, r"advantage\.tolerance is nan"),
        ({"advantage": {"name": "reinforce_pp", "tolerance": -1}}, r"advantage\.tolerance is -1"),
        ({"advantage": {"name": "reinforce", "baseline": np.inf}}, r"advantage\.baseline is inf\. Use a finite number"),
        ({"credit": {"name": "per_step", "rollout_weight": np.inf}}, r"credit\.rollout_weight is inf\. Use a finite number"),
        ({"credit": {"name": "learned", "lam": -0.1}}, r"credit\.lam is -0\.1"),
        ({"agent_weights": {"write": np.inf}}, r"agent_weights\.write is inf"),
        ({"loss": {"name": "ppo_clip", "clip_low": -0.2}}, r"loss\.clip_low is -0\.2"),
        ({"loss": {"name": "gspo", "clip_high": -1}}, r"loss\.clip_high is -1"),
        ({"loss": {"name": "gspo", "sequence": "tokens"}}, r"loss\.sequence"),
        ({"loss": {"name": "ppo_clip", "kl_coef": -1}}, r"loss\.kl_coef is -1"),
        ({"loss": {"name": "ppo_clip", "kl_estimator": "k4"}}, r"loss\.kl_estimator"),
        ({"loss": {"name": "ppo_clip", "correction": "truncate"}}, r"loss\.correction: .*tis"),
        ({"loss": {"name": "ppo_clip", "correction": {"name": "tis", "clip": 0}}}, r"loss\.correction\.clip is 0"),
        ({"loss": {"name": "ppo_clip", "correction": {"name": "icepop", "low": 1.5}}}, r"correction\.low is 1\.5\. Use .*0\.5 is usual"),
        ({"loss": {"name": "ppo_clip", "correction": {"name": "sequence_masking", "level": "token"}}}, "level"),
    ],
)
def test_bad_settings_are_one_clear_line_each(table: dict[str, Any], said: str) -> None:
    from agentlightning.settings import build

    with pytest.raises(ConfigError, match=said) as raised:
        build(LightningRL, table, "algorithm").parts()
    assert "\n" not in str(raised.value)
