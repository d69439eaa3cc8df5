"""The `Benchmark` class. The hook `register_benchmarks` registers its instances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark for `agl bench NAME`: a folder of presets and a loader for real tasks."""

    folder: Path
    """Folder with `cpu.toml` or `gpu.toml`: config files for `agl train` with an agent, tasks, and `eval_tasks`. If `cpu_warm_start.toml`
    exists, this supervised warm-up runs before `cpu.toml`, and before presets such as `cpu-other.toml`."""
    load: Callable[..., tuple[list[Any], list[Any]]] | None = None
    """`load(folder)` returns training and eval tasks from real files, for `--data DIR`. If it has a `test_suite` keyword, it also serves
    `--test-suite`. Raises a `ConfigError` that names the file."""

    def presets(self) -> list[str]:
        """Return the names of the presets."""
        return sorted(file.stem for file in self.folder.glob("*.toml") if not file.stem.endswith("_warm_start"))
