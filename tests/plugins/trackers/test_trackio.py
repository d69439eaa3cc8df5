"""The Trackio tracker, read back from Trackio's own storage."""

from __future__ import annotations

from typing import Any

import pytest
from tracked_world import STEPS, Tracked, documented, needs

pytestmark = needs("trackio")


@pytest.fixture(scope="module")
def logs(tracked: Tracked) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    assert [run["name"] for run in SQLiteStorage.get_run_records("agentlightning")] == [tracked.folder.name]
    return SQLiteStorage.get_logs("agentlightning", tracked.folder.name)


def test_a_resumed_run_continues_the_run_of_trackio_and_logs_no_step_twice(tracked: Tracked, logs: list[dict[str, Any]]) -> None:
    rewards = [(row["step"], row["reward"]) for row in logs if "reward" in row]
    assert [step for step, _ in rewards] == list(range(1, STEPS + 1))
    assert rewards[2:] == [(row["step"], row["reward"]) for row in tracked.rows[3:]]
    assert [row["step"] for row in logs if documented("trackio")["a metric"] in row] == [0, 2, 4]


def test_trackio_has_the_settings_evaluations_and_rollouts(tracked: Tracked, logs: list[dict[str, Any]]) -> None:
    from trackio.sqlite_storage import SQLiteStorage

    config = SQLiteStorage.get_run_config("agentlightning", tracked.folder.name)
    assert config is not None
    shown = documented("trackio")
    assert config[shown["settings"]]["lr"] == 1e-3
    [evaluation] = [row[shown["an evaluation"]] for row in logs if shown["an evaluation"] in row and row["step"] == STEPS]
    assert [row["task"] for row in evaluation["_value"]] == ["task-0 Write | line 0.", "task-1 Write | line 1."]
    assert sum(row["greedy"] for row in evaluation["_value"]) / 2 == pytest.approx(tracked.rows[-1]["eval.greedy"])
    traces = SQLiteStorage.get_traces("agentlightning", tracked.folder.name)
    assert len(traces) == 4 * STEPS
    assert [message["role"] for message in traces[0]["messages"]] == ["user", "assistant"]
    assert {trace["key"] for trace in traces} == {shown["rollouts of a step"]}
    assert {"id", "task", "reward"} <= traces[0]["metadata"].keys()
