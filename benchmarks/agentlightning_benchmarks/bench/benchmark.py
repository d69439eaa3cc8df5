"""What a benchmark is; the hook `register_benchmarks` registers one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One object for `agl bench NAME`: a folder of presets, and a reader of real tasks."""

    folder: Path
    """Has `cpu.toml` or `gpu.toml`, each a configuration of `agl train` with agent, tasks and `eval_tasks`. A supervised warm-up
    `cpu_warm_start.toml` runs before `cpu.toml`."""
    load: Callable[..., tuple[list[Any], list[Any]]] | None = None
    """`load(folder)` returns train and eval tasks of real files, for `--data DIR`. With a keyword `test_suite` it serves `--test-suite`
    too. Raises `ConfigError` that names the file."""

    def presets(self) -> list[str]:
        """Return the names of the presets."""
        return sorted(file.stem for file in self.folder.glob("*.toml") if not file.stem.endswith("_warm_start"))
