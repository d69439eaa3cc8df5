"""Shows a run in MLflow."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NAME

from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker
from agentlightning.types import JSON
from agentlightning_trackers.settings import MLflowSettings
from agentlightning_trackers.tables import EVALUATION, ROLLOUTS, evaluation_rows, flat, numbers, rollout_rows, texts

EXPERIMENT = "agentlightning"
ID = "agentlightning.id"
"""The tag by which a resumed run finds its own."""
STATUS: Mapping[RunEnd, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
PARAM_LIMIT, BATCH = 500, 100
"""Characters of a parameter that every server takes, and parameters of one request."""


class MLflowTracker(Tracker):
    """A run of MLflow. Parameters keep their first values; `config.json` has the settings of the last session."""

    Settings = MLflowSettings
    advice = "Check that its server answers at `tracking_uri` (or MLFLOW_TRACKING_URI)."

    def __init__(self, client: MlflowClient, run: Any) -> None:
        """`run`: of MLflow."""
        self._client, self._id = client, run.info.run_id

    @classmethod
    def create(cls, run: TrackedRun, settings: MLflowSettings) -> MLflowTracker:
        client = MlflowClient(settings.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run.folder.parent}/mlflow.db")
        name = settings.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        opened = _opened(client, _experiment(client, name, run.folder.parent / "mlflow"), run)
        client.log_dict(opened.info.run_id, dict(run.config), "config.json")
        first_values = opened.data.params
        params = [Param(key, _param(value)) for key, value in flat(run.config).items() if key not in first_values]
        for start in range(0, len(params), BATCH):
            client.log_batch(opened.info.run_id, params=params[start : start + BATCH])
        return cls(client, opened)

    def log(self, metrics: Mapping[str, JSON]) -> None:
        step, now = int(metrics["step"]), int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(name, value, now, step) for name, value in numbers(metrics).items()])
        for name, text in texts(metrics).items():
            self._client.set_tag(self._id, name, text)

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        self._client.log_text(self._id, _csv([EVALUATION, *evaluation_rows(step, tasks)]), f"evaluations/step-{step:05d}.csv")

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        self._client.log_text(self._id, _csv([ROLLOUTS, *rollout_rows(step, rollouts)]), f"rollouts/step-{step:05d}.csv")

    def close(self, end: RunEnd) -> None:
        self._client.set_terminated(self._id, STATUS[end])


def _experiment(client: MlflowClient, name: str, artifacts: Path) -> str:
    """The id of an experiment. A new one of a local database keeps its files in the folder `artifacts`."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    return client.create_experiment(name, artifact_location=artifacts.as_uri() if local else None)


def _opened(client: MlflowClient, experiment: str, run: TrackedRun) -> Any:
    """The run of MLflow with this run's id, or a new one."""
    runs = client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
    if not runs:
        return client.create_run(experiment, tags={ID: run.id, MLFLOW_RUN_NAME: run.folder.name, "name": run.name})
    client.update_run(runs[0].info.run_id, status="RUNNING")
    return runs[0]


def _param(value: JSON) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:PARAM_LIMIT]


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer).writerows(rows)
    return buffer.getvalue()
