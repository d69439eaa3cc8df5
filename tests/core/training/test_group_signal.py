"""The suggestions of a dry run, on constructed groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from agentlightning.training.group_signal import GroupSignal, Suggestion, group_signal, remedy, suggest
from agentlightning.types import Task, Trajectory, Transition, floats, ints


def rollout(group: int, index: int, reward: float | None, reply: Sequence[int]) -> Trajectory:
    name = f"{group}-{index}"
    transition = Transition(
        completion_id=name, call_id=name, prompt_ids=ints([1]), response_ids=ints(reply), logprobs=floats([-1.0] * len(reply)),
        versions=ints([0] * len(reply)), temperature=1.0, agent=None, index=0, turn=0,
    )  # fmt: skip
    return Trajectory(
        task=Task(str(group), None), rollout_id=name, attempt_id=name, group=str(group), index=index, mode="train", status="succeeded",
        reward=reward, transitions=(transition,),
    )  # fmt: skip


def signal_of(*groups: Sequence[float | None], same: bool = False) -> GroupSignal | None:
    trajectories = [
        rollout(place, index, reward, [7] if same else [place, index])
        for place, rewards in enumerate(groups)
        for index, reward in enumerate(rewards)
    ]
    return group_signal(trajectories, len(groups[0]))


def settings_of(signal: GroupSignal | None, **run: Any) -> dict[str, Suggestion]:
    assert signal is not None
    values = {"tasks_per_step": 8, "tasks": 100, "temperature": 1.0, "sampler": "epochs", **run}
    return {suggestion.setting: suggestion for suggestion in suggest(signal, **values)}


WRONG, RIGHT, ONE, HALF = [0.0] * 8, [1.0] * 8, [1.0] + [0.0] * 7, [0.0, 1.0] * 4


def test_groups_that_differ_need_no_other_setting() -> None:
    signal = signal_of(*[HALF] * 6, ONE, WRONG)
    assert signal is not None
    assert (signal.groups, signal.with_signal, signal.cause, signal.identical) == (8, 7, "all_wrong", 0.0)
    assert signal.low < 7 / 8 < signal.high
    suggestions = settings_of(signal)
    assert list(suggestions) == ["algorithm.group_size", "tasks_per_step", "sampling.temperature"]
    assert all(suggestion.value == suggestion.now for suggestion in suggestions.values())
    assert "algorithm.group_size = 8 (as now): about" in suggestions["algorithm.group_size"].text
    assert remedy(signal) is None


def test_rare_successes_ask_for_larger_groups_and_a_curriculum() -> None:
    signal = signal_of(ONE, ONE, ONE, WRONG, WRONG, WRONG, WRONG, WRONG)
    assert signal is not None
    suggestions = settings_of(signal)
    size = suggestions["algorithm.group_size"]
    assert size.value in (16, 32)
    assert signal.chances[size.value] >= 0.5 > signal.chances[size.value // 2]
    assert suggestions["sampler"].text.startswith('sampler = "curriculum" (now epochs)')
    assert "sampler" not in settings_of(signal, sampler="curriculum")


def test_few_groups_with_signal_in_a_step_ask_for_more_tasks_up_to_those_that_exist() -> None:
    signal = signal_of(HALF, WRONG, HALF, ONE)
    assert settings_of(signal, tasks_per_step=2)["tasks_per_step"].value in (5, 6, 7)
    assert settings_of(signal, tasks_per_step=2, tasks=4)["tasks_per_step"].value == 4
    assert settings_of(signal, tasks_per_step=1)["tasks_per_step"].value == 4, "not more than four times as many"
    assert settings_of(signal, tasks_per_step=64)["tasks_per_step"].value == 64


@pytest.mark.parametrize(
    ("groups", "cause", "says"),
    [
        ([WRONG] * 4, "constant", "the format that your reward reads"),
        ([RIGHT] * 4, "all_right", "harder tasks"),
        ([[0.2] * 8, [0.9] * 8] * 2, "mixed", "between the two"),
        ([[0.2] * 8] * 7 + [[0.9] * 8], "all_wrong", "easier tasks"),
    ],
)
def test_what_no_setting_mends_has_a_remedy(groups: list[list[float]], cause: str, says: str) -> None:
    signal = signal_of(*groups)
    assert signal is not None
    assert signal.cause == cause
    assert says in (remedy(signal) or "")
    size = settings_of(signal)["algorithm.group_size"]
    assert (size.value, size.reason[:23]) == (8, "even of groups of 32, o")


def test_more_tasks_are_not_suggested_if_even_they_have_no_signal() -> None:
    suggestion = settings_of(signal_of(*[WRONG] * 8), tasks_per_step=2)["tasks_per_step"]
    assert (suggestion.value, suggestion.reason) == (2, "even 8 tasks seldom have a group with signal")


def test_identical_replies_ask_for_a_higher_temperature_and_hot_nonsense_for_a_lower_one() -> None:
    same = signal_of(*[WRONG] * 4, same=True)
    assert settings_of(same, temperature=0.6)["sampling.temperature"].value == 1.0
    assert settings_of(same)["sampling.temperature"].value == 1.2
    assert settings_of(same, temperature=1.4)["sampling.temperature"].value == 1.4
    assert "100% of the replies in a group are identical" in settings_of(same)["sampling.temperature"].reason
    diverse = signal_of(*[WRONG] * 4)
    assert settings_of(diverse, temperature=1.3)["sampling.temperature"].value == 1.0
    assert settings_of(diverse)["sampling.temperature"].value == 1.0


def test_what_was_not_measured_is_missing() -> None:
    assert signal_of([None, 1.0], [None, None]) is None
    signal = signal_of([None, 1.0, 0.0], [None, None, 1.0])
    assert signal is not None
    assert (signal.groups, signal.with_signal) == (1, 1)
    silent = [Trajectory(
        task=Task("t", None), rollout_id=str(k), attempt_id=str(k), group="g", index=k, mode="train", status="succeeded", reward=float(k)
    ) for k in range(2)]  # fmt: skip
    signal = group_signal(silent, 2)
    assert signal is not None
    assert signal.identical is None
    assert "sampling.temperature" not in settings_of(signal)
