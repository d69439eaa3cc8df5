"""The record of a run under way: its state and checkpoints on the disk, its metrics, and the time it has taken."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentlightning.config.schema import CheckpointConfig
from agentlightning.contracts.rendering import RenderingSettings, save_rendering
from agentlightning.registry.registry import registry
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.training.trackers import Trackers
from agentlightning.types import JSON


class RunRecord:
    """Keeps the state of a run, in memory and in its folder."""

    def __init__(
        self,
        folder: RunFolder,
        state: RunState,
        trackers: Trackers,
        save: Callable[[Path], Awaitable[None]],
        settings: CheckpointConfig,
        rendering: RenderingSettings,
        progress: Progress,
    ) -> None:
        self.folder, self.state, self.trackers, self._rendering = folder, state, trackers, rendering
        self._save, self._settings, self._progress = save, settings, progress
        self._began = time.monotonic() - state.seconds

    def save(self, *, sampler: JSON, pending: list[JSON], unlogged: dict[str, Any] | None, finished: bool) -> None:
        """Write the state after a step. `unlogged`: the metrics of the step if they are not logged yet."""
        seconds = time.monotonic() - self._began
        self.state = replace(self.state, sampler=sampler, pending=pending, seconds=seconds, finished=finished, unlogged=unlogged)
        self.folder.write_state(self.state)

    def log(self, row: dict[str, Any]) -> None:
        """Log the metrics of a step: to every tracker, to the user and to plugins."""
        self.trackers.log(row)
        self._progress.step(row)
        registry().hook.step_finished(metrics=row)

    def checkpoint_due(self, *, last: bool) -> bool:
        """Return whether the finished step ends with a checkpoint."""
        every, step = self._settings.every, self.state.step
        return last or (self._settings.best and self.state.best_step == step) or bool(every and step % every == 0)

    async def write_checkpoint(self) -> None:
        """Write the checkpoint of the state between two steps, unless it exists, and remove those that need not stay."""
        if self.state.step in self.folder.steps():
            return
        self._progress.phase("writing checkpoint")
        with self.folder.new_checkpoint(self.state) as path:
            await self._save(path)
            for folder in (path, *(inner for inner in path.iterdir() if inner.is_dir())):  # one of each policy, if there are several
                save_rendering(folder, self._rendering)
        best = self.state.best_step if self._settings.best else None
        self.folder.prune(best=best, every=self._settings.keep_every, last=self._settings.last)
