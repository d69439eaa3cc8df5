"""When a run writes checkpoints, and which of them stay on the disk."""

from __future__ import annotations

from agentlightning.config.schema import CheckpointConfig
from agentlightning.contracts.trainer import Trainer
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState


class Checkpoints:
    """Writes the checkpoints of a run. Each is the state between two steps."""

    def __init__(self, settings: CheckpointConfig, folder: RunFolder, trainer: Trainer, progress: Progress) -> None:
        self._settings, self._folder, self._trainer, self._progress = settings, folder, trainer, progress

    def due(self, state: RunState, *, last: bool) -> bool:
        """Return whether a finished step ends with a checkpoint."""
        every = self._settings.every
        return last or (self._settings.best and state.best_step == state.step) or bool(every and state.step % every == 0)

    async def write(self, state: RunState) -> None:
        """Write the checkpoint of a state, unless it exists, and remove those that need not stay."""
        if state.step in self._folder.steps():
            return
        self._progress.phase("writing checkpoint")
        with self._folder.new_checkpoint(state) as path:
            await self._trainer.save(path)
        best = state.best_step if self._settings.best else None
        self._folder.prune(best=best, every=self._settings.keep_every, last=self._settings.last)
