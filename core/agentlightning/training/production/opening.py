"""Opens the production replay of a config, on the store that `[replay]` names."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from agentlightning.config.schema import Config
from agentlightning.config.store_address import store_file
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import RunError, StoreError
from agentlightning.gateway.rendering.load import load_tokenizer
from agentlightning.stores.common import open_store
from agentlightning.training.controls import Controls
from agentlightning.training.plan import TrainingPlan
from agentlightning.training.production.reading import ReplayReader
from agentlightning.training.production.replay import ProductionReplay
from agentlightning.training.rollouts import trajectory_reader
from agentlightning.training.run_folder import RunFolder

ADVICE = {
    "production": "Record rollouts with `agl.rollout(task)` and `agl serve`, score them with agl.reward or agl.reward_later, or set "
    "replay.wait = true to wait for them.",
    "train": "Name the store of a run that trained, or score its rollouts with `agl score`. A model that learned from them needs new ones.",
}
"""What to do if a store has nothing to train on, by `replay.mode`."""


@asynccontextmanager
async def open_replay(
    config: Config, plan: TrainingPlan, controls: Controls, *, trained: Collection[str] = ()
) -> AsyncGenerator[ProductionReplay | None]:
    """Open the production replay of a config; None: it has none. `trained`: ids of rollouts that the run has trained already."""
    if config.replay is None:
        yield None
        return
    store = open_filled(config.replay.store)
    try:
        _, tokenizer = await asyncio.to_thread(load_tokenizer, plan.files.name, plan.files.path)
        earlier = await asyncio.to_thread(trained_before, config.model, Path(config.path or "."))
        reader = ReplayReader(store, trajectory_reader(config), tokenizer)
        yield ProductionReplay(
            reader,
            controls,
            compares=plan.algorithm.needs.group,
            tasks_per_step=config.tasks_per_step,
            mode=config.replay.mode,
            wait=config.replay.wait,
            trained=earlier | set(trained),
        )
    finally:
        await store.close()


async def check_replay(config: Config, plan: TrainingPlan, controls: Controls) -> None:
    """Raise `StoreError` if a production replay has nothing to train on and does not wait for it."""
    async with open_replay(config, plan, controls) as replay:
        if replay is not None and config.replay is not None and not await replay.more():
            raise StoreError(
                f"replay.store: there is nothing to train on in {config.replay.store!r}; its {config.replay.mode} rollouts: "
                f"{replay.account() or 'none has ended'}. {ADVICE[config.replay.mode]}"
            )


def open_filled(address: str) -> LightningStore:
    """Open a store that exists. Raises `StoreError` in place of making a new one."""
    file = store_file(address)
    if file is not None and not file.is_file():
        raise StoreError(
            f"replay.store: there is no store file {str(file)!r}. Name the file that `agl serve` and `agl.rollout` write: AGL_STORE, or "
            "agl.db in the folder where they run."
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
