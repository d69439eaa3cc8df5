"""A benchmark in progress: its folder, its order, and its runs.

    runs/bench-math-20261123-231500/
        order.json      the arguments
        result.json     every number of the existing runs
        reward.png      train and test curve
        <time>-math-warm-start-seed-0/    ordinary runs for `agl show`, `agl serve`, and `agl train --resume`
        <time>-math-seed-0/

Repeating the command continues: it reads finished runs and resumes unfinished ones.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from agentlightning.config.schema import Config, load_config
from agentlightning.errors import RunError
from agentlightning.files import write_file
from agentlightning.training.job import Job, job_of
from agentlightning.training.progress import TrainingProgress
from agentlightning.training.run import Run
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.stages import weights_job
from agentlightning.training.train import run_job
from agentlightning_benchmarks.bench import catalog
from agentlightning_benchmarks.bench.evaluation import evaluate
from agentlightning_torch.heap import give_back

ORDER = "order.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The arguments of `agl bench`, as stored in `order.json`."""

    benchmark: str
    preset: str = "cpu"
    data: str | None = None
    eval_only: bool = False
    model: str | None = None
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    test_suite: bool = False
    eval_cache: bool = True
    """Reuse earlier evaluations of the same weights."""
    rendering: dict[str, Any] = field(default_factory=dict[str, Any])
    """The keys of a config that change how messages become tokens."""


@dataclass(frozen=True, slots=True)
class Phases:
    """The runs of one seed."""

    seed: int
    warm_start: Run | None
    run: Run | None
    """None if the warm-up was stopped early."""

    @property
    def stopped(self) -> bool:
        return self.run is None or self.run.stopped


def create(order: Order, root: Path) -> Path:
    """Create a benchmark's folder."""
    stem = f"bench-{order.benchmark}-{time.strftime('%Y%m%d-%H%M%S')}"
    path = next(path_of_number for n in range(1, 1000) if not (path_of_number := root / (stem if n == 1 else f"{stem}-{n}")).exists())
    write_file(path / ORDER, msgspec.json.format(msgspec.json.encode(order), indent=2) + b"\n")
    return path


def open_order(path: Path) -> Order:
    """Return the order of a folder that `create` created."""
    try:
        return msgspec.json.decode((path / ORDER).read_bytes(), type=Order)
    except FileNotFoundError as error:
        raise RunError(f"{path} is not a benchmark folder: it has no {ORDER}. Use the folder that `agl bench` printed.") from error
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{path / ORDER} cannot be read: {error}") from error


def run_seed(order: Order, seed: int, folder: Path, say: Callable[[str], None]) -> Phases:
    """Run the unfinished phases of one seed."""
    benchmark = catalog.find(order.benchmark)
    config = replace(catalog.preset(benchmark, order.preset), seed=seed, folder=str(folder), **order.rendering)
    config = replace(config, name=f"{order.benchmark}-{'evaluation-' if order.eval_only else ''}seed-{seed}")
    if order.data is not None and catalog.family(order.preset) == "cpu":
        config = replace(config, eval=replace(config.eval, tasks=catalog.REAL_TASKS))
    if not order.eval_cache:
        config = replace(config, eval=replace(config.eval, cache=False))
    if order.model is not None:
        config = replace(config, model=order.model)
    if order.steps is not None:
        config = replace(config, steps=order.steps)
    if order.eval_only:
        say(f"seed {seed}: evaluation of {config.model}")
        done = _finished(folder, config.name)
        if done is not None:
            return Phases(seed, None, done)
        with TrainingProgress() as progress:
            return Phases(seed, None, evaluate(_job(order, config, folder), progress=progress))
    warm: Run | None = None
    # A warm-up teaches the preset's own model the generated tasks. Another model on real tasks starts as it is.
    as_it_is = order.model is not None and order.data is not None
    warm_config = None if as_it_is else catalog.warm_start(benchmark, order.preset, seed)
    if warm_config is not None:
        name = f"{order.benchmark}-warm-start-seed-{seed}"
        warm_config = replace(warm_config, folder=str(folder), name=name, model=order.model or warm_config.model, **order.rendering)
        say(f"seed {seed}: supervised warm-up, {warm_config.steps} steps of {warm_config.tasks_per_step} demonstrated tasks")
        warm = _run(folder, job_of(warm_config))
        if warm.stopped:
            return Phases(seed, warm, None)
        config = replace(config, model=str(warm.checkpoint))
    say(f"seed {seed}: training, {config.steps} steps" + (" from the policy of the warm-up" if warm else ""))
    return Phases(seed, warm, _run(folder, _job(order, config, folder)))


def _job(order: Order, config: Config, folder: Path) -> Job:
    job = catalog.job(catalog.find(order.benchmark), config, real=order.data, test_suite=order.test_suite)
    return replace(job, earlier_runs=str(folder.parent))


def _run(folder: Path, job: Job) -> Run:
    """Return the training run with this name: read it, resume it, or start it. Of a run in two stages, return the second."""
    done = _finished(folder, (weights_job(job) or job).config.name)
    if done is not None:
        return done
    before = _named(folder, job.config.name)
    resume = before[-1] if before and before[-1].state.exists() else None
    if resume is not None:
        job = job_of(load_config(resume.config))
    gc.collect()  # Reference cycles keep the previous run's weights alive. Without this, two runs need twice the memory.
    give_back()
    with TrainingProgress() as progress:
        return run_job(job, resume=resume.path if resume else None, progress=progress)


def _finished(folder: Path, name: str) -> Run | None:
    for run in reversed(_named(folder, name)):
        if run.state.exists() and run.result.exists() and run.read_state().finished:
            return Run(run.path, run.read_result())
    return None


def _named(folder: Path, name: str) -> list[RunFolder]:
    """Return the runs with this name, oldest first."""
    return [run for run in RunFolder.all(folder) if run.name.split("-", 2)[2:] == [name]]
