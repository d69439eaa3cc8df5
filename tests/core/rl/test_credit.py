from __future__ import annotations

import numpy as np
import pytest
from by_rollout import by_rollout
from msgspec.structs import replace

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.errors import ConfigError
from agentlightning.rl.credit.discounted import discounted as flat_discounted
from agentlightning.rl.credit.identical import identical as flat_identical
from agentlightning.rl.credit.last import last as flat_last
from agentlightning.rl.credit.per_step import per_step as flat_per_step
from agentlightning.testing import rollouts
from agentlightning.testing.rollouts import transition
from agentlightning.types import Reward, Trajectory, Transition

identical, last, discounted, per_step = map(by_rollout, (flat_identical, flat_last, flat_discounted, flat_per_step))


def trajectory(reward: float | None, *own: float | list[float], status: str = "succeeded") -> Trajectory:
    """One call for each of `own`: its reward, or those of its choices."""
    transitions: list[Transition] = []
    for turn, rewards in enumerate(own):
        for value in rewards if isinstance(rewards, list) else [rewards]:
            earned = (Reward(attempt_id="a", value=value),) if value else ()
            transitions.append(transition(len(transitions), [1], [2], call_id=f"c{turn}", turn=turn, rewards=earned))
    return rollouts.trajectory(0, *transitions, reward=reward, status=status)


def test_identical_credit_gives_every_transition_the_outcome() -> None:
    assert identical([trajectory(0.5, 0.1, 0.0)])[0].tolist() == [0.5, 0.5]


def test_discounted_credit_follows_its_recurrence() -> None:
    (returns,) = discounted([trajectory(1.0, 0.1, 0.2, 0.4)], gamma=0.5)
    expected = [0.0, 0.0, 0.4 + 1.0]
    expected[1] = 0.2 + 0.5 * expected[2]
    expected[0] = 0.1 + 0.5 * expected[1]
    np.testing.assert_allclose(returns, expected, rtol=1e-15)


def test_per_step_credit_adds_the_undiscounted_outcome_to_the_reward_to_go() -> None:
    (returns,) = per_step([trajectory(1.0, 0.1, 0.2, 0.4)], rollout_weight=2.0, gamma=0.5)
    np.testing.assert_allclose(returns, [2 + 0.1 + 0.5 * 0.2 + 0.25 * 0.4, 2 + 0.2 + 0.5 * 0.4, 2 + 0.4], rtol=1e-15)


def test_per_step_credit_with_gamma_zero_is_turn_plus_outcome() -> None:
    assert per_step([trajectory(1.0, 0.25, 0.5)], gamma=0.0)[0].tolist() == [1.25, 1.5]


@pytest.mark.parametrize("credit", [identical, discounted, per_step])
def test_never_scored_is_nan_and_no_transition_is_no_return(credit: object) -> None:
    unscored, silent = credit([trajectory(None, 0.3, 0.0), trajectory(1.0)])  # type: ignore[operator]
    assert np.isnan(unscored).all()
    assert len(unscored) == 2
    assert silent.shape == (0,)
    assert silent.dtype == np.float64


def test_without_weight_on_the_outcome_the_spans_alone_score_an_attempt_that_succeeded() -> None:
    scored, bare, failed = per_step(
        [trajectory(None, 0.25, 0.5), trajectory(None, 0.0), trajectory(None, 0.5, status="failed")], rollout_weight=0
    )
    assert scored.tolist() == [0.75, 0.5]
    assert np.isnan(bare).all()
    assert np.isnan(failed).all()


def test_choices_of_one_call_stand_beside_each_other() -> None:
    t = trajectory(1.0, 0.0, [0.25, 0.5], 0.125)
    np.testing.assert_allclose(per_step([t])[0], [1.875, 1.375, 1.625, 1.125])
    np.testing.assert_allclose(discounted([t], gamma=0.5)[0], [0.5 * (0.75 + 0.5625), 0.25 + 0.5625, 0.5 + 0.5625, 1.125])


def test_a_reward_of_a_whole_call_counts_once_for_the_calls_before() -> None:
    t = trajectory(0.0, 0.0, [1.0, 1.0])
    before, one, two = t.transitions
    t = replace(t, transitions=(before, one, replace(two, rewards=one.rewards)))
    assert per_step([t])[0].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("credit", ["discounted", "per_step", "learned"])
@pytest.mark.parametrize("gamma", [-0.1, 1.1, float("nan")])
def test_a_gamma_outside_zero_and_one_is_refused(credit: str, gamma: float) -> None:
    with pytest.raises(ConfigError, match=r"algorithm\.credit\.gamma is .*\. Use a number from 0 to 1 \(discount of later rewards"):
        LightningRL(credit={"name": credit, "gamma": gamma}).parts()
