"""Earlier runs that a new one can learn from: their samplers have measured the same tasks with the same model."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from agentlightning.errors import RunError
from agentlightning.training.run_folder import RunFolder
from agentlightning.types import JSON

ALIKE = ("name", "model", "agent", "command", "reward", "reward_weights", "sampling", "prompts")
"""Settings that decide how hard a task is, and the name: seeds of a benchmark have names of their own and stay independent."""


def earlier_samplers(own: Path, root: Path, config: str) -> Iterator[Mapping[str, JSON]]:
    """Yield the sampler states of the runs under a folder whose tasks are as hard as those of a config (TOML), newest first.

    `own`: the run's own folder, which is skipped. So is a run that cannot be read.
    """
    wanted = tomllib.loads(config)
    for run in reversed(RunFolder.all(root)):
        try:
            if run.path == own:
                continue
            settings = tomllib.loads(run.config.read_text())
            if all(settings.get(key) == wanted.get(key) for key in ALIKE):
                state = run.read_state().sampler
                if isinstance(state, Mapping):
                    yield cast("Mapping[str, JSON]", state)
        except (OSError, ValueError, RunError):
            continue
