"""The TensorBoard tracker, read back with TensorBoard's own reader."""

from __future__ import annotations

from typing import Any

import pytest
from tracked_world import STEPS, Tracked, documented, needs, train

pytestmark = needs("tensorboard")


def read(folder: Any) -> Any:
    """The reader behind TensorBoard's own pages. It keeps scalars as tensors, too."""
    from tensorboard.backend.event_processing import plugin_event_accumulator as accumulator

    return accumulator.EventAccumulator(str(folder), size_guidance={}, tensor_size_guidance={"scalars": 0, "text": 0}).Reload()


def scalars(events: Any, name: str) -> list[tuple[int, float]]:
    from tensorboard.util import tensor_util

    return [(event.step, tensor_util.make_ndarray(event.tensor_proto).item()) for event in events.Tensors(name)]


@pytest.fixture(scope="module")
def events(tracked: Tracked) -> Any:
    return read(tracked.folder / "tensorboard")


def text(events: Any, name: str) -> list[tuple[int, str]]:
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(f"{name}/text_summary")]


def test_tensorboard_has_each_step_once_after_a_resumed_run(tracked: Tracked, events: Any) -> None:
    assert [step for step, _ in scalars(events, "reward")] == list(range(1, STEPS + 1))
    assert [step for step, _ in scalars(events, documented("tensorboard")["a metric"])] == [0, 2, 4]
    for name, key in (("reward", "reward"), ("eval/greedy", "eval.greedy"), ("seconds/training", "seconds.training")):
        expected = {row["step"]: row[key] for row in tracked.rows if key in row}
        assert dict(scalars(events, name)) == pytest.approx(expected)  # of the step that was repeated, the later


def test_tensorboard_shows_settings_evaluations_and_rollouts_as_text(tracked: Tracked, events: Any) -> None:
    shown = documented("tensorboard")
    config = text(events, shown["settings"])[-1][1]
    assert '        "lr": 0.001,' in config
    step, evaluation = text(events, shown["an evaluation"])[-1]
    assert step == STEPS
    lines = evaluation.splitlines()
    assert lines[0] == "| step | id | task | sampled_before | sampled | greedy_before | greedy |"
    assert lines[2].startswith(f"| {STEPS} | task-0 | task-0 Write \\| line 0. | ")
    assert lines[2].count(" | ") == 6
    rollouts = [text(events, f"rollouts/{place}") for place in range(4)]
    assert [[step for step, _ in shown] for shown in rollouts] == [list(range(1, STEPS + 1))] * 4
    assert rollouts[0] == text(events, shown["rollouts of a step"])
    assert ", reward 0" in rollouts[0][0][1]
    assert "\n    user: Write | line" in rollouts[0][0][1]


def test_a_folder_of_event_files_is_below_the_folder_of_runs(model: str, tmp_path: Any) -> None:
    run, _ = train(model, tmp_path, [{"name": "tensorboard", "folder": "events", "rollouts": 1}], steps=1)
    events = read(tmp_path / "events" / run.folder.name)
    assert [step for step, _ in scalars(events, "reward")] == [1]
    assert len(text(events, "rollouts/0")) == 1
    assert "rollouts/1/text_summary" not in events.Tags()["tensors"]
