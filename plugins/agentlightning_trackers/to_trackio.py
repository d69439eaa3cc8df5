"""Shows a run in Trackio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trackio

from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker
from agentlightning.types import JSON
from agentlightning_trackers.settings import PROJECT, TrackioSettings
from agentlightning_trackers.tables import EVALUATION, evaluation_rows, grouped, numbers, texts


class TrackioTracker(Tracker):
    """Its own run of Trackio, beside one that the agent may have: Trackio keeps one for each thread."""

    Settings = TrackioSettings
    advice = "Check TRACKIO_DIR, or the server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names."

    def __init__(self, run: Any) -> None:
        """`run`: of Trackio."""
        self._run = run

    @classmethod
    def create(cls, run: TrackedRun, settings: TrackioSettings) -> TrackioTracker:
        project, config = settings.project or PROJECT, {"agentlightning_id": run.id, **run.config}
        return cls(trackio.init(project, name=run.folder.name, group=run.name, config=config, resume="allow", embed=False))

    def log(self, metrics: Mapping[str, JSON]) -> None:
        values = {grouped(name): value for name, value in {**numbers(metrics), **texts(metrics)}.items() if name != "step"}
        self._run.log(values, step=int(metrics["step"]))

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        self._run.log({"tables/evaluation": trackio.Table(columns=list(EVALUATION), data=evaluation_rows(step, tasks))}, step=step)

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        traces = [
            trackio.Trace(
                [dict(message) for message in rollout.messages], {"id": rollout.id, "task": rollout.task, "reward": rollout.reward}
            )
            for rollout in rollouts
        ]
        self._run.log({"tables/rollouts": traces}, step=step)

    def close(self, end: RunEnd) -> None:
        self._run.finish()
