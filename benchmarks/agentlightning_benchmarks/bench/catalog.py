"""The benchmarks by name: what each needs, its presets, its tasks. What is missing is named with the way to install it."""

from __future__ import annotations

import inspect
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agentlightning.config.schema import Config, load_config
from agentlightning.config.tasks import load_tasks
from agentlightning.errors import ConfigError
from agentlightning.registry.registry import Entry, unknown
from agentlightning.training.job import INLINE, Job, job_of

COMMON = ("torch", "transformers", "matplotlib")
REAL_TASKS = 32
"""Test tasks of real files that the CPU preset is measured on."""
AFTER_WARM_START = 1_000_000
"""Added to the seed of a warm start, so that the training after it does not begin with the very tasks that were shown."""


def _entry(name: str, summary: str, *needs: str) -> Entry:
    package = f"agentlightning_benchmarks.{name.replace('-', '_')}"
    return Entry("benchmarks", name, f"{package}.tasks:load", "benchmarks", summary, "bench", (*needs, *COMMON))


BENCHMARKS = {
    entry.name: entry
    for entry in (
        _entry("math", "AutoGen: word problems with a calculator", "autogen_agentchat", "autogen_ext", "simpleeval"),
        _entry("rag", "OpenAI Agents SDK: multi-hop questions with a search tool", "agents", "bm25s"),
        _entry("text-to-sql", "LangGraph: write, execute, check, rewrite", "langgraph", "langchain_openai"),
    )
}


def find(name: str) -> Entry:
    """The benchmark of a name. `ConfigError` names the nearest; `MissingExtra` says how to install what it needs."""
    if name not in BENCHMARKS:
        raise ConfigError(unknown("benchmark", name, sorted(BENCHMARKS)))
    entry = BENCHMARKS[name]
    entry.load()
    return entry


def preset_file(entry: Entry, name: str) -> Path | None:
    """A configuration that lies in the benchmark's package; None: there is none of this name."""
    package = str(entry.target).partition(".tasks:")[0]
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the benchmark {entry.name!r} has no package {package!r} in this installation")
    path = Path(spec.origin).parent / f"{name}.toml"
    return path if path.is_file() else None


def preset(entry: Entry, name: str) -> Config:
    """The configuration of a preset."""
    path = preset_file(entry, name)
    if path is None:
        raise ConfigError(f"the benchmark {entry.name!r} has no preset {name!r} ({name}.toml in its package)")
    return load_config(path)


def warm_start(entry: Entry, name: str, seed: int) -> Config | None:
    """The supervised run that comes before a preset; None: it has none."""
    path = preset_file(entry, f"{name}_warm_start")
    return None if path is None else replace(load_config(path), seed=seed + AFTER_WARM_START)


def job(entry: Entry, config: Config, *, real: str | None, test_suite: bool) -> Job:
    """The job of a configuration, on the tasks that it names or on those of real files (in the folder `real`)."""
    if test_suite and real is None:
        raise ConfigError("--test-suite scores on the variants of real databases; give their folder with --data DIR")
    if real is None:
        return job_of(config)
    train, test = _load(entry, Path(real), test_suite)
    config = replace(config, tasks=INLINE, eval_tasks=INLINE)
    assert config.agent is not None  # a benchmark's agent is a function
    return Job(config, config.agent, load_tasks(train), load_tasks(test))


def _load(entry: Entry, folder: Path, test_suite: bool) -> tuple[list[Any], list[Any]]:
    load = entry.load()
    if not test_suite:
        return load(folder)
    if "test_suite" not in inspect.signature(load).parameters:
        raise ConfigError(f"the benchmark {entry.name!r} has no test suite; --test-suite belongs to text-to-sql")
    return load(folder, test_suite=True)
