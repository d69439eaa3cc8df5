"""Which folders are runs, in the order in which the runs began."""

from __future__ import annotations

import re
import time
from pathlib import Path

STORE, STATE = "store.db", "state.json"
"""Files of a run: its records, and for a training run its state."""


def began(folder: Path) -> str:
    """When a run began, as text that sorts: its folder's name, or the time of its config if it was renamed. Empty: it is no run."""
    if re.match(r"\d{8}-\d{6}-", folder.name):
        return folder.name
    config = folder / "config.toml"
    if not (config.is_file() and any((folder / name).is_file() for name in (STORE, STATE))):
        return ""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.localtime(config.stat().st_mtime))}-{folder.name}"


def run_folders(root: Path | str) -> list[Path]:
    """Return the runs under a folder, oldest first."""
    if not Path(root).is_dir():
        return []
    times = {path: time for path in Path(root).iterdir() if path.is_dir() and (time := began(path))}
    return [path.resolve() for path in sorted(times, key=times.__getitem__)]


def latest_training(root: Path | str = "runs") -> Path | None:
    """Return the newest training run under a folder; those of `agl rollout` are none. None: there is none."""
    return next((folder for folder in reversed(run_folders(root)) if (folder / STATE).is_file()), None)
