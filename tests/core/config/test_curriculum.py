"""The curriculum, against exact chances and simulated policies."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.config.curriculum import HALF_LIFE, Curriculum
from agentlightning.config.samplers import Epochs
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError
from agentlightning.types import Doubles

SIZE = 8


def curriculum(count: int, seed: int = 0) -> Curriculum:
    return Curriculum(load_tasks([{"id": f"t{number}"} for number in range(count)]), seed)


def train(sampler: Curriculum, successes: Doubles, steps: int, count: int, seed: int, *, gain: float = 0.0) -> list[float]:
    """Train a simulated policy, and return the share of groups with signal in each step. A group with signal raises its task's success."""
    rng, shares = np.random.default_rng([seed, 1]), list[float]()
    for _ in range(steps):
        groups = []
        for task in sampler.next(count):
            place = int(task.id[1:])
            rewards = (rng.random(SIZE) < successes[place]).astype(float).tolist()
            groups.append((task.id, rewards))
        sampler.learn(groups)
        signal = [len(set(rewards)) > 1 for _, rewards in groups]
        for (task_id, _), differs in zip(groups, signal, strict=True):
            successes[int(task_id[1:])] += gain * differs * (1 - successes[int(task_id[1:])])
        shares.append(float(np.mean(signal)))
    return shares


def hard_and_easy(count: int, useful: float) -> Doubles:
    """Chances of success: a share `useful` of the tasks near one half, and the others never or always right."""
    successes = np.random.default_rng(9).permutation(count) / count
    return np.where(successes < useful, 0.3 + 0.4 * successes / useful, np.where(successes < (1 + useful) / 2, 0.0, 1.0))


def test_a_curriculum_stays_with_the_few_tasks_that_have_signal() -> None:
    for count in (60, 2000):
        shares = train(curriculum(count), hard_and_easy(count, 0.2), 40, 8, seed=0)
        assert np.mean(shares[:3]) < 0.4
        assert np.mean(shares[20:]) > 0.65, "with uniform sampling it is 0.2"


def test_tasks_that_are_solved_leave_the_pool_and_hard_ones_come_back() -> None:
    sampler = curriculum(20)
    sampler.learn([("t0", [0.0, 1.0] * 4), ("t1", [1.0] * 8), ("t2", [0.0] * 8)])
    first = sampler.chances(1)
    assert first[0] > first[3] > max(first[1], first[2]) > 0
    sampler.learn([("t0", [1.0] * 8)])
    sampler.learn([("t0", [1.0] * 8)])
    assert sampler.chances(1)[0] < first[0] / 2
    wait = [sampler.chances(1)]
    for _ in range(80):
        sampler.learn([])
        wait.append(sampler.chances(1))
    assert wait[0][2] < wait[10][2] < wait[20][2]
    assert wait[20][2] < 3 * wait[20][3], "old failures are no evidence of signal"
    np.testing.assert_allclose(wait[-1], 1 / 20, err_msg="every task is forgotten")


def test_the_worth_of_a_task_is_the_posterior_mean_of_p_times_1_minus_p() -> None:
    sampler = curriculum(3)
    sampler.learn([("t0", [1.0, 0.0, 0.0, 0.0]), ("t1", [1.0] * 4)])
    worth, pool = sampler._worth()
    mean = (1 / 4 + 4 / 4) / 2
    for place, (right, wrong) in enumerate([(1, 3), (4, 0), (0, 0)]):
        a, b = mean + right, 1 - mean + wrong
        logs = [math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y) for x, y in ((a + 1, b + 1), (a, b))]
        assert worth[place] == pytest.approx(math.exp(logs[0] - logs[1]))
    assert pool.tolist() == [True, False, False]


def test_real_rewards_are_worth_their_variance_wherever_they_lie() -> None:
    sampler, moved = curriculum(4), curriculum(4)
    groups = [("t0", [0.0, 1.0, 0.0, 1.0]), ("t1", [0.5, 0.5, 0.5, 0.5]), ("t2", [0.4, 0.6, 0.4, 0.6])]
    sampler.learn(groups)
    moved.learn([(name, [100 - 20 * reward for reward in rewards]) for name, rewards in groups])
    worth = sampler._worth()[0]
    assert worth[0] > worth[2] > worth[1], "a constant reward teaches nothing, even in the middle"
    assert worth[1] < worth[0] / 3
    np.testing.assert_allclose(moved._worth()[0], worth)


states = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=12)


@given(states, st.integers(1, 12), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_the_chances_of_a_draw_add_up_to_its_tasks_and_forget_none(measured: list[tuple[int, int]], count: int, idle: int) -> None:
    sampler = curriculum(12)
    for place, (right, times) in enumerate(measured):
        for _ in range(times):
            sampler.learn([(f"t{place}", [1.0] * right + [0.0] * (8 - right))])
    for _ in range(10 * idle):
        sampler.learn([])
    chances = sampler.chances(count)
    assert chances.sum() == pytest.approx(count)
    assert chances.min() > 0
    assert chances.max() <= 1 + 1e-12
    drawn = sampler.next(count)
    assert len({task.id for task in drawn}) == count


def test_each_task_is_drawn_with_exactly_its_chance() -> None:
    sampler = curriculum(7)
    sampler.learn([("t0", [0.0, 1.0]), ("t1", [0.0, 0.0, 1.0, 0.0]), ("t2", [1.0] * 8), ("t3", [0.0, 1.0] * 4)])
    chances, draws = sampler.chances(3), 6000
    drawn = Counter(task.id for _ in range(draws) for task in sampler.next(3))
    for place, chance in enumerate(chances):
        error = np.sqrt(draws * chance * (1 - chance)) + 1e-9
        assert abs(drawn[f"t{place}"] - draws * chance) < 4 * error


def test_more_tasks_than_there_are_come_in_rounds() -> None:
    assert sorted(Counter(task.id for task in curriculum(3).next(7)).values()) == [2, 2, 3]


def test_the_saved_rollouts_are_unbiased_and_their_interval_holds() -> None:
    """Against the truth of a policy that does not change, over many runs."""
    errors, covered, saved = [], [], []
    for seed in range(120):
        successes = hard_and_easy(80, 0.25)
        sampler = curriculum(80, seed)
        train(sampler, successes, 25, 6, seed)
        summary: Any = sampler.summary()
        assert (summary["groups"], summary["rollouts"]) == (150, 150 * SIZE)
        uniform = float(np.mean(successes**SIZE + (1 - successes) ** SIZE))
        truth = uniform * summary["rollouts"] - summary["no_signal_rollouts"]
        errors.append((summary["saved_rollouts"] - truth) / summary["rollouts"])
        covered.append(summary["saved_rollouts_low"] <= truth <= summary["saved_rollouts_high"])
        saved.append(summary["saved_rollouts"] / summary["rollouts"])
    assert abs(np.mean(errors)) < 0.01 + 3 * np.std(errors) / np.sqrt(len(errors))
    assert np.mean(covered) > 0.9
    assert np.mean(saved) > 0.3


def test_a_curriculum_that_cannot_help_says_that_it_saved_about_nothing() -> None:
    saved = []
    for seed in range(40):
        sampler = curriculum(50, seed)
        train(sampler, np.full(50, 0.5), 20, 5, seed)
        summary: Any = sampler.summary()
        saved.append(summary["saved_rollouts"] / summary["rollouts"])
    assert abs(np.mean(saved)) < 0.01
    assert curriculum(3).summary() == {}


def test_a_curriculum_goes_on_where_it_was_with_groups_under_way() -> None:
    one, other = curriculum(6, seed=1), curriculum(6, seed=2)
    one.next(3)
    one.learn([("t0", [0.0, 1.0]), ("t1", [0.0, 0.0]), ("t2", [0.3, 0.4])])
    ahead = one.next(2)
    other.restore(json.loads(json.dumps(one.state())))
    for _ in range(4):
        groups = [(task.id, [0.0, float(task.id == "t3")]) for task in ahead]
        one.learn(groups)
        other.learn(groups)
        assert [task.id for task in one.next(3)] == [task.id for task in other.next(3)]
    assert one.state() == other.state()
    with pytest.raises(ConfigError, match="differ from those that this run started with"):
        curriculum(3).restore(one.state())


def test_a_task_whose_text_has_changed_is_an_unknown_one_to_a_resumed_run() -> None:
    one, tasks = curriculum(3), [{"id": "t0"}, {"id": "t1", "text": "corrected"}, {"id": "t2"}]
    one.next(3)
    one.learn([("t0", [0.0, 1.0])])
    one.learn([("t1", [0.0, 1.0])])
    one.next(3)
    other = Curriculum(load_tasks(tasks), 0)
    other.restore(json.loads(json.dumps(one.state())))
    assert other._now[:, 0].tolist() == [one._now[0, 0], 0.0, 0.0]


def test_the_state_of_another_sampler_is_refused() -> None:
    epochs = Epochs(curriculum(3).tasks, 0)
    with pytest.raises(ConfigError, match="not one of the sampler Curriculum"):
        curriculum(3).restore(epochs.state())
    with pytest.raises(ConfigError, match="not one of the sampler Epochs"):
        epochs.restore(curriculum(3).state())


def test_another_run_starts_from_what_was_measured_of_the_starting_weights() -> None:
    first = curriculum(6)
    first.learn([("t0", [0.0, 1.0] * 4)])
    for _ in range(int(HALF_LIFE)):
        first.learn([])
    first.learn([("t0", [1.0] * 8), ("t1", [0.0] * 8)])
    state = json.loads(json.dumps(first.state()))
    second = Curriculum(load_tasks([{"id": "new"}, {"id": "t1"}, {"id": "t0"}, {"id": "t5"}]))
    assert second.carry(iter([{"position": 3}, {"start": {}}, state])) == 2
    worth = second._worth()[0]
    assert worth[2] > worth[0] > worth[1]
    weight = second._now[:, 0]
    assert weight[1] == pytest.approx(8 * 2 ** (-(HALF_LIFE + 1) / HALF_LIFE)), "the policy had changed when it was measured"
    assert second.summary() == {}, "the rollouts were those of another run"
    third = curriculum(6)
    third.carry([json.loads(json.dumps(second.state()))])
    assert third._now[1, 0] == pytest.approx(weight[1]), "a run that was stopped before its first step loses nothing"
    assert curriculum(2).carry([]) == 0
    changed = Curriculum(load_tasks([{"id": "t0", "text": "another task with the same id"}]))
    assert changed.carry([state]) == 0
