"""The record of a run under way: its state on the disk, its metrics, and the time it has taken."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from agentlightning.registry.registry import registry
from agentlightning.training.metrics import Trackers
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.types import JSON


class RunRecord:
    """Keeps the state of a run, in memory and in its folder."""

    def __init__(self, folder: RunFolder, state: RunState, trackers: Trackers, progress: Progress, *, steps: int) -> None:
        """`steps`: of the whole run."""
        self.folder, self.state, self.steps = folder, state, steps
        self._trackers, self._progress = trackers, progress
        self._began = time.monotonic() - state.seconds

    def save(self, *, sampler: JSON, pending: list[JSON], unlogged: dict[str, Any] | None) -> None:
        """Write the state after a step. `unlogged`: the metrics of the step if they are not logged yet."""
        self.state = replace(
            self.state,
            sampler=sampler,
            pending=pending,
            seconds=time.monotonic() - self._began,
            finished=self.state.step == self.steps and unlogged is None,
            unlogged=unlogged,
        )
        self.folder.write_state(self.state)

    def log(self, row: dict[str, Any]) -> None:
        """Log the metrics of a step: to every tracker, to the user and to plugins."""
        self._trackers.log(row)
        self._progress.step(row)
        registry().hook.step_finished(metrics=row)
