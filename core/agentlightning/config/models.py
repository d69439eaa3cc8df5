"""Models by name: a registered one (fetched once into the cache), a folder, or the id of a hub."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import platformdirs

from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import Registry, registry, unknown
from agentlightning.types import new_id

Progress = Callable[[str, float | None], None]
"""Called with what is being done and the part done so far, 0 to 1 (None: not known)."""


def cache_folder() -> Path:
    """`AGL_CACHE`, or the user's cache folder of this system."""
    return Path(os.environ.get("AGL_CACHE") or platformdirs.user_cache_dir("agentlightning"))


def find_model(name: str, *, progress: Progress | None = None, plugins: Registry | None = None) -> ModelFiles:
    """Find a model, and fetch a registered one that is not in the cache yet.

    An id of a hub (`owner/name`) is returned as it is; it is fetched by whoever loads it. Raises `ConfigError` for a name that is
    none of these.
    """
    plugins = plugins or registry()
    if name in plugins.names("models"):
        folder = cache_folder() / "models" / name
        if not (folder / "config.json").is_file():
            _fetch(name, folder, progress or (lambda what, part: None), plugins)
        return ModelFiles(name, str(folder))
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise ConfigError(f"the model folder {name!r} has no config.json; expected a folder that `from_pretrained` loads")
        return ModelFiles(Path(name).resolve().name, str(Path(name).resolve()))
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return ModelFiles(name, name)
    raise ConfigError(unknown("model", name, plugins.names("models")) + "; a folder or a hub id (`owner/name`) works as well")


def _fetch(name: str, folder: Path, progress: Progress, plugins: Registry) -> None:
    """Fill a folder beside the final one and rename it, so that a broken download is never taken for a model."""
    fetch = plugins.load("models", name)
    part = folder.with_name(f".{name}.{new_id()}")
    part.mkdir(parents=True)
    try:
        fetch(part, progress)
        if not folder.exists():
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
