"""Models by name: a registered model, which is downloaded once, a folder, or a hub id."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError, unknown
from agentlightning.registry.registry import Registry, registry
from agentlightning.types import new_id

FetchProgress = Callable[[str, float | None], None]
"""Called with a phase (`downloading`) and its finished fraction, 0 to 1; None: unknown."""


def cache_folder() -> Path:
    """Return `AGL_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("AGL_CACHE") or platformdirs.user_cache_dir("agentlightning"))


def find_model(name: str, *, progress: FetchProgress | None = None, plugins: Registry | None = None) -> ModelFiles:
    """Find a model, and download a registered one that is not in the cache yet.

    Returns a hub id (`owner/name`) unchanged; the engine and the trainer download it. Raises `ConfigError` for any other name.
    """
    plugins = plugins or registry()
    if name in plugins.names("models"):
        folder = cache_folder() / "models" / name
        if not (folder / "config.json").is_file():
            _fetch(name, folder, progress or (lambda what, part: None), plugins)
        return ModelFiles(name, str(folder))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ConfigError(f"The model folder {name!r} has no config.json. Name a folder that `from_pretrained` loads.")
        return ModelFiles(Path(name).resolve().name, str(Path(name).resolve()))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelFiles(name, name)
    raise ConfigError(unknown("model", name, plugins.names("models")) + " You can also name a folder, or a hub id (`owner/name`).")


def _fetch(name: str, folder: Path, progress: FetchProgress, plugins: Registry) -> None:
    """Fill a temporary folder and rename it, so that a broken download never looks like a model."""
    fetch = plugins.load("models", name)
    part = folder.with_name(f".{name}.{new_id()}")
    part.mkdir(parents=True)
    try:
        fetch(part, progress)
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
