from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from agentlightning.errors import RunError
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import trajectory, transition
from agentlightning.training.metrics import JSONLines, contributions, cut_metrics, read_metrics


def fill(folder: Path, steps: int) -> None:
    tracker = JSONLines(folder)
    for step in range(steps):
        tracker.log({"step": step, "reward": step / 10})
    tracker.close("finished")


def test_each_line_is_in_the_file_when_log_returns(tmp_path: Path) -> None:
    tracker = JSONLines(tmp_path)
    for step in range(3):
        tracker.log({"step": step})
        assert len((tmp_path / "metrics.jsonl").read_bytes().splitlines()) == step + 1
    tracker.close("finished")


def test_numbers_of_numpy_are_written_and_nan_becomes_null(tmp_path: Path) -> None:
    tracker = JSONLines(tmp_path)
    tracker.log({"step": np.int64(1), "reward": np.float32(0.5), "loss": math.nan})
    tracker.close("finished")
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "reward": 0.5, "loss": None}


def test_a_torn_last_line_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "rew')
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]
    assert "ignoring the last line" in caplog.text


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(RunError, match="line 2"):
        read_metrics(tmp_path)


def test_appending_after_a_torn_line_keeps_both(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path, 1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "rew')
    tracker = JSONLines(tmp_path)
    tracker.log({"step": 1})
    tracker.close("finished")
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1]
    assert not caplog.text
    assert (tmp_path / "metrics.jsonl.bak").read_text() == '{"step": 1, "rew\n'


def test_steps_beyond_the_resumed_one_are_set_aside_and_never_lost(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    assert cut_metrics(tmp_path, after=2) == 2
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]
    fill(tmp_path, 1)  # appends
    assert cut_metrics(tmp_path, after=1) == 1
    aside = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl.bak").read_text().splitlines()]
    assert aside == [3, 4, 2]


def test_a_run_without_metrics_has_no_rows(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    assert cut_metrics(tmp_path, after=3) == 0


def test_a_reply_of_an_agent_that_is_not_selected_has_no_advantage() -> None:
    chosen = transition(0, [1, 2], [3, 4], agent="write")
    other = transition(1, [1, 2, 3, 4], [5], agent="check", trained=False, reason="agent 'check' is not selected")
    rollouts = [trajectory(index, chosen, other, reward=float(index)) for index in (0, 1)]
    advantages = [np.array([-1.0, -1.0]), np.array([1.0, 1.0])]
    learned = contributions(rollouts, advantages, advantages, make_batch(rollouts, advantages))
    assert [learned[rollout.rollout_id].advantages for rollout in rollouts] == [(-1.0, None), (1.0, None)]
