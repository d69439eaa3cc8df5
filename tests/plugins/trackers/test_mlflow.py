"""The MLflow tracker, on a local database, read back with MLflow's client."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tracked_world import STEPS, Tracked, documented, needs, train

pytestmark = needs("mlflow")


def open_client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


@pytest.fixture(scope="module")
def client(tracked: Tracked) -> Any:
    return open_client(f"sqlite:///{tracked.folder.parent}/mlflow.db")


@pytest.fixture(scope="module")
def run(client: Any) -> Any:
    experiment = client.get_experiment_by_name("agentlightning")
    [run] = client.search_runs([experiment.experiment_id])
    return run


def steps(client: Any, run: Any, name: str) -> dict[int, float]:
    history = client.get_metric_history(run.info.run_id, name)
    assert len({metric.step for metric in history}) == len(history)
    return {metric.step: metric.value for metric in history}


def test_a_resumed_run_continues_the_run_of_mlflow_and_logs_no_step_twice(tracked: Tracked, client: Any, run: Any) -> None:
    assert (run.info.run_name, run.info.status) == (tracked.folder.name, "FINISHED")
    rewards = steps(client, run, "reward")
    assert list(rewards) == list(range(1, STEPS + 1))
    assert {step: rewards[step] for step in (3, 4)} == {row["step"]: row["reward"] for row in tracked.rows[3:]}
    assert list(steps(client, run, documented("mlflow")["a metric"])) == [0, 2, 4]


def table(client: Any, run: Any, folder: Path, name: str) -> list[dict[str, str]]:
    file = client.download_artifacts(run.info.run_id, name, str(folder))
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def test_mlflow_has_the_settings_evaluations_and_rollouts(tracked: Tracked, client: Any, run: Any, tmp_path: Path) -> None:
    shown = documented("mlflow")
    assert run.data.params[shown["settings"]] == "0.001"
    assert run.data.params["sampling.max_tokens"] == "null"
    config = json.loads(Path(client.download_artifacts(run.info.run_id, "config.json", str(tmp_path))).read_text())
    assert config["checkpoints"]["last"] == 9
    evaluation = table(client, run, tmp_path, shown["an evaluation"])
    assert [row["task"] for row in evaluation] == ["task-0 Write | line 0.", "task-1 Write | line 1."]
    assert sum(float(row["sampled"]) for row in evaluation) / 2 == pytest.approx(tracked.rows[-1]["eval.sampled"])
    rollouts = table(client, run, tmp_path, shown["rollouts of a step"])
    assert len(rollouts) == 4
    assert all("\n\nassistant: " in row["messages"] for row in rollouts)


@pytest.mark.slow
def test_a_run_that_is_stopped_is_killed_in_mlflow_and_settings_name_the_database(model: str, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/own.db"
    stopped, _ = train(model, tmp_path, [{"name": "mlflow", "tracking_uri": uri, "experiment": "mine"}], stop=1)
    assert stopped.stopped
    client = open_client(uri)
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.status == "KILLED"


def test_a_server_that_is_gone_stops_no_run(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, _ = train(model, tmp_path, [{"name": "mlflow", "tracking_uri": "http://127.0.0.1:9"}], steps=1)
    assert run.result["finished"]
    [warning] = [record.getMessage() for record in caplog.records if "Tracker 'mlflow'" in record.getMessage()]
    assert "did not start: MlflowException: API request to http://127.0.0.1:9" in warning
    assert warning.endswith("The run continues without it. Check that its server answers at `tracking_uri` (or MLFLOW_TRACKING_URI).")
