"""The records that an argument names: of a run, a store file, or a store's address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

from agentlightning.config.store_address import store_file
from agentlightning.errors import ConfigError, StoreError
from agentlightning.registry.registry import registry
from agentlightning.training.recorded import run_config, trajectory_settings
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned


@dataclass(frozen=True, slots=True)
class RecordsSource:
    """The store that rollouts are read from, and the run's own data about them."""

    address: str
    """Of the store."""
    run: RunFolder | None = None
    learned: Mapping[str, Learned] = field(default_factory=dict[str, Learned])
    """By rollout id; empty outside a run folder."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """How the run made its trajectories: arguments of `trajectory`."""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The run's config file, unchecked."""
    production: str | None = None
    """Address of the store in which the run's `replay` found its training rollouts."""
    notes: tuple[str, ...] = ()
    """What of the run's settings could not be followed."""


def find_records(name: str) -> RecordsSource:
    """Return the records that an argument names: of a run, a store file, or a store's address."""
    if is_store_address(name):
        if name.startswith("sqlite:"):
            _check_file(store_file(name))
        return RecordsSource(name)
    if name == "latest" and not any(run.begun for run in RunFolder.all("runs")):
        recorded = os.environ.get("AGL_STORE") or ("agl.db" if Path("agl.db").is_file() else None)
        if recorded:
            return find_records(recorded)
    if name.endswith(".db"):
        _check_file(Path(name))
    if Path(name).is_file():
        return RecordsSource(f"sqlite:{Path(name).resolve()}")
    run = RunFolder.latest() if name == "latest" else RunFolder.open(name)
    return replaced(run_records(run), learned=run.read_batches())


def is_store_address(name: str) -> bool:
    """Whether an argument is the address of a store, with its scheme."""
    return "://" in name or name.partition(":")[0] in registry().names("stores")


def run_records(run: RunFolder) -> RecordsSource:
    """Return the records of a run, without the contributions of its rollouts."""
    config = run_config(run)
    if not run.has_store:
        raise StoreError(f"Run {run.name} has no store.db, because nothing was recorded yet. Start it again with `agl train`.")
    settings, notes = trajectory_settings(config)
    production = config.get("replay", {}).get("store")
    return RecordsSource(run.store_address, run, {}, settings, config, production, notes)


def load_tokenizer(source: RecordsSource) -> Any | None:
    """The tokenizer of the run's model; None where it is not on this machine."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    for folder in _tokenizer_folders(source):
        file = folder / "tokenizer.json"
        if file.is_file():
            return Tokenizer.from_file(str(file))
    return None


def _tokenizer_folders(source: RecordsSource) -> list[Path]:
    """Checkpoints of the run first; then its model, where that is here already (`agl show` downloads nothing)."""
    from agentlightning.config.models import cache_folder

    folders: list[Path] = []
    if source.run is not None:
        folders += [source.run.checkpoint(step) for step in reversed(source.run.steps())]
    if model := source.config.get("model"):
        folders += [cache_folder() / "models" / model, Path(model)]
    return folders


def _check_file(file: Path | None) -> None:
    """Raise `ConfigError` for a store file that does not exist, because opening it would create it."""
    if file is not None and not file.is_file():
        raise ConfigError(f"There is no store file {str(file)!r}. Name a run (`latest`), or a file that `agl.rollout(task)` recorded into.")
