"""A production replay as the source of a run's steps: opened on the store that `[replay]` names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from agentlightning.config.schema import store_file
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import RunError, StoreError
from agentlightning.stores.common import open_store
from agentlightning.training.production.replay import ProductionReplay
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.step_source import Counts, ReplyLimits, StepSource
from agentlightning.types import Trajectory


class ReplaySteps(StepSource):
    """The step source of a run on production rollouts."""

    name = "replay"
    phase = "reading the store"
    samples = False

    def __init__(self, replay: ProductionReplay, limits: ReplyLimits, *, tasks_per_step: int) -> None:
        self._replay, self._limits, self._tasks_per_step = replay, limits, tasks_per_step

    async def next(self, step: int, group_size: int) -> tuple[list[Trajectory], Counts]:
        return self._limits.apply(await self._replay.next(self._tasks_per_step, group_size))

    async def more(self) -> bool:
        return await self._replay.more()

    def counts(self) -> Counts:
        return self._replay.counts()

    def account(self) -> str:
        return self._replay.account()


def open_filled(address: str) -> LightningStore:
    """Open a store that exists. Raises `StoreError` in place of making a new one."""
    file = store_file(address)
    if file is not None and not file.is_file():
        raise StoreError(
            f"replay.store: there is no store file {str(file)!r}. `agl serve` and `agl.rollout` write it to AGL_STORE, or to agl.db in the "
            "folder where they run; name that file."
        )
    return open_store(address)


def trained_before(model: str, base: Path) -> set[str]:
    """Return the ids of the rollouts that made the weights of a model: of the run whose checkpoint it is, and of the runs before that one.

    `base`: the folder that a relative path of the model starts from. Raises `RunError` if such a run cannot be read.
    """
    rollout_ids: set[str] = set()
    while (match := re.fullmatch(r"step-(\d+)", (path := (base / model).resolve()).name)) and path.parent.name == "checkpoints":
        run = RunFolder(path.parent.parent)
        rollout_ids |= run.read_batches(int(match[1])).keys()
        try:
            earlier = tomllib.loads(run.config.read_text())
            model, base = str(earlier["model"]), Path(str(earlier.get("path", ".")))
        except (OSError, ValueError, KeyError) as error:
            raise RunError(
                f"The model is a checkpoint of {run.path}, but its config.toml cannot be read: {error}. Restore the file, or copy the "
                "checkpoint out of its run to train on every rollout again."
            ) from error
    return rollout_ids
