"""The registered benchmarks: their presets, warm-ups, and jobs."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentlightning.config.schema import Config, load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError, PluginError
from agentlightning.registry.registry import registry
from agentlightning.training.job import INLINE, Job, job_of
from agentlightning_benchmarks.bench.benchmark import Benchmark

SUFFIX = ".toml"
REAL_TASKS = 32
"""Number of real test tasks that the CPU preset evaluates."""
AFTER_WARM_START = 1_000_000
"""Added to the warm-up's seed, so that training starts with different tasks."""


def find(name: str) -> Benchmark:
    """Return a benchmark by name. `ConfigError` suggests the nearest name. `MissingExtra` gives the install command."""
    entry = registry().entry("benchmarks", name)
    benchmark = entry.load()
    if not isinstance(benchmark, Benchmark):
        raise PluginError(
            f"Plugin {entry.plugin!r} registered benchmark {name!r} as {type(benchmark).__name__}. Register an "
            "agentlightning_benchmarks.bench.benchmark.Benchmark."
        )
    return benchmark


def preset_name(text: str) -> str:
    """Return the preset that a user named: a name as it is, a config file as its absolute path."""
    return str(Path(text).resolve()) if text.endswith(SUFFIX) else text


def preset(benchmark: Benchmark, name: str) -> Config:
    """Return the config of a preset, or of a config file."""
    if name.endswith(SUFFIX):
        return load_config(Path(name))
    if name not in benchmark.presets():
        presets = ", ".join(benchmark.presets()) or "none"
        raise ConfigError(f"{benchmark.folder} has no preset {name!r}. It has: {presets}. Or name a config file of yours (FILE{SUFFIX}).")
    return load_config(benchmark.folder / f"{name}{SUFFIX}")


def family(name: str) -> str | None:
    """Return the preset whose warm-up and real tasks a preset shares: `cpu` for `cpu` and `cpu-x`; None: it is a config file."""
    return None if name.endswith(SUFFIX) else name.partition("-")[0]


def warm_start(benchmark: Benchmark, name: str, seed: int) -> Config | None:
    """Return the supervised run before a preset; None: it has none. A config file never has one."""
    path = benchmark.folder / f"{family(name)}_warm_start{SUFFIX}"
    return replace(load_config(path), seed=seed + AFTER_WARM_START) if path.is_file() else None


def job(benchmark: Benchmark, config: Config, *, real: str | None, test_suite: bool) -> Job:
    """Return the job of a config. `real` is a folder of real tasks that replace the config's own."""
    if test_suite and real is None:
        raise ConfigError("--test-suite needs Spider's databases. Pass their folder with --data DIR.")
    if real is None:
        return job_of(config)
    train, test = _load(benchmark, Path(real), test_suite)
    config = replace(config, tasks=INLINE, eval_tasks=INLINE)
    assert config.agent is not None  # every benchmark's agent is a function
    return Job(config, config.agent, load_tasks(train), load_tasks(test))


def _load(benchmark: Benchmark, folder: Path, test_suite: bool) -> tuple[list[Any], list[Any]]:
    if benchmark.load is None:
        raise ConfigError("This benchmark has no real tasks. Leave out --data.")
    if not test_suite:
        return benchmark.load(folder)
    if "test_suite" not in inspect.signature(benchmark.load).parameters:
        raise ConfigError("This benchmark has no test suite. Leave out --test-suite.")
    return benchmark.load(folder, test_suite=True)
