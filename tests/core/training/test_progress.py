from __future__ import annotations

import io

import pytest
from rich.console import Console

from agentlightning.training.progress import Progress, TrainingProgress, before_after_table, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def written(terminal: bool) -> tuple[TrainingProgress, io.StringIO, Clock]:
    file, clock = io.StringIO(), Clock()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None, legacy_windows=False)
    return TrainingProgress(console, clock), file, clock


def run(progress: TrainingProgress, clock: Clock) -> None:
    progress.begin(4, 0)
    progress.phase("evaluating")
    clock.now += 7
    progress.step({"step": 0, "eval.sampled": 0.125})
    for step in (1, 2):
        progress.phase("rollouts")
        progress.rollouts(3, 32, 29, 0.25, 1200)
        clock.now += 10
        progress.step({"step": step, "reward": 0.5, "tokens_per_second": 61.0})


def test_without_a_terminal_each_step_is_one_plain_line() -> None:
    progress, file, clock = written(terminal=False)
    run(progress, clock)
    progress.message("look at [this]")
    progress.end()
    assert file.getvalue().splitlines() == [
        "4 steps",
        "step 0/4: eval sampled 0.125",
        "step 1/4: reward 0.500, tokens/s 61, 30 s left",
        "step 2/4: reward 0.500, tokens/s 61, 20 s left",
        "look at [this]",
    ]


def test_on_a_terminal_steps_rollouts_rate_and_time_left_are_shown() -> None:
    progress, file, clock = written(terminal=True)
    run(progress, clock)
    progress.phase("rollouts")
    progress.rollouts(3, 32, 29, 0.25, 1200)
    clock.now += 4
    file.truncate(0)
    Console(file=file, force_terminal=True, width=120).print(progress.picture())
    last = file.getvalue()
    progress.end()
    progress.end()
    for text in ("step 2/4", "16 s left", "3/32 done", "29 in flight", "mean reward 0.250", "300 tokens/s", "eval sampled"):
        assert text in last, text


def test_the_time_left_counts_only_steps_and_not_the_evaluation_before_them() -> None:
    progress, _, clock = written(terminal=False)
    progress.begin(10, 4)
    assert progress.time_left() is None
    clock.now = 100
    progress.step({"step": 4, "eval.sampled": 0.1})
    assert progress.time_left() is None
    clock.now = 110
    progress.step({"step": 5})
    assert progress.time_left() == pytest.approx(50)
    clock.now = 114
    assert progress.time_left() == pytest.approx(46)
    clock.now = 1000
    assert progress.time_left() == pytest.approx(40)  # a step that takes longer than thought is not negative time


def test_the_silent_progress_takes_everything() -> None:
    silent = Progress()
    silent.begin(3)
    silent.phase("training", 0.5)
    silent.rollouts(1, 2, 1)
    silent.step({})
    silent.message("hello")
    silent.end()


def test_the_table_shows_before_and_after_and_says_what_was_not_measured() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(before_after_table({"eval": {"sampled": {"before": 0.19, "after": 0.88}, "greedy": {"after": 0.9}}}))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0.190" in text
    assert "+0.690" in text
    assert "not measured" in text


@pytest.mark.parametrize(("seconds", "text"), [(None, "unknown"), (0.4, "0 s"), (59.6, "1:00 min"), (187, "3:07 min"), (7505, "2:05 h")])
def test_durations_read_like_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
