"""The wandb tracker, offline, read back with wandb's own reader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tracked_world import STEPS, Tracked, documented, needs, warned

pytestmark = needs("wandb")


def records(session: Path) -> list[dict[str, Any]]:
    """The records of an offline run."""
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(session)]
    printed = subprocess.run(reader, capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def sessions(tracked: Tracked) -> list[list[dict[str, Any]]]:
    return [records(folder) for folder in sorted((tracked.folder / "wandb").glob("offline-run-*"))]


def of_kind(session: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in session if record["type"] == kind]


def table(tracked: Tracked, item: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of a table that was logged at a step."""
    [file] = tracked.folder.glob(f"wandb/offline-run-*/files/{item[f'{name}.path']}")
    content = json.loads(file.read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def test_a_resumed_run_continues_the_run_of_wandb_and_logs_no_step_twice(tracked: Tracked, sessions: list[list[dict[str, Any]]]) -> None:
    runs = [of_kind(session, "run")[0] for session in sessions]
    assert len({run["run_id"] for run in runs}) == 1
    assert [run["resume"] for run in runs] == [True, True]
    steps = [[row["item"]["_step"] for row in of_kind(session, "history")] for session in sessions]
    assert steps == [[0, 1, 2], [3, 4]]
    assert [of_kind(session, "exit")[0]["exit_code"] for session in sessions] == [0, 0]


def test_wandb_has_the_metrics_the_settings_and_the_tables(tracked: Tracked, sessions: list[list[dict[str, Any]]]) -> None:
    run, history = of_kind(sessions[1], "run")[0], [row["item"] for session in sessions for row in of_kind(session, "history")]
    assert (run["project"], run["display_name"], run["run_group"]) == ("agentlightning", tracked.folder.name, "tiny")
    config = run["config"]["update"]
    shown = documented("wandb")
    assert config[shown["settings"]]["lr"] == 1e-3
    assert config["sampling"]["temperature"] == 1.0
    for row, item in zip(tracked.rows[3:], history[3:], strict=True):
        assert item["reward"] == row["reward"]
        assert item["seconds/rollouts"] == row["seconds.rollouts"]
    assert history[-1][shown["a metric"]] == tracked.rows[-1]["eval.sampled"]
    evaluation = table(tracked, history[STEPS], shown["an evaluation"])
    assert [row["task"] for row in evaluation] == ["task-0 Write | line 0.", "task-1 Write | line 1."]
    assert sum(row["greedy"] for row in evaluation) / 2 == pytest.approx(tracked.rows[-1]["eval.greedy"])
    assert sum(row["greedy_before"] for row in evaluation) / 2 == pytest.approx(tracked.rows[0]["eval.greedy"])
    rollouts = table(tracked, history[1], shown["rollouts of a step"])
    assert len(rollouts) == 4
    assert all(row["messages"].startswith("user: Write | line") and "\n\nassistant: " in row["messages"] for row in rollouts)


def test_without_a_key_wandb_records_offline_and_says_so_in_one_line(tracked: Tracked) -> None:
    said = [message for message in tracked.said if "wandb" in message]
    line = f"wandb has no API key, so it records offline. Upload with: wandb sync {tracked.folder}/wandb/offline-run-*"
    assert said == [line, line]  # one of each session


def test_no_tracker_failed_and_each_step_is_counted_in_the_run_folder(tracked: Tracked) -> None:
    assert warned(tracked.said) == []
    steps = json.loads((tracked.folder / "trackers.json").read_text())
    assert set(steps.values()) == {STEPS}
    assert "wandb" in steps
