"""Measures a learning curve: `curves.py demo smollm2`, `curves.py math qwen05 --data FOLDER [--engine vllm] [--trainer verl]`.

Trains with the preset of `agl demo` or the GPU preset of `agl bench`, in fewer steps. `--data` supplies real tasks. An interrupted run
resumes.

Figures: mean reward on eval tasks by step, sampled and greedy, and seconds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentlightning.config.schema import Config, load_config
from agentlightning.registry.registry import registry
from agentlightning.training.job import Job, job_of
from agentlightning.training.metrics import read_metrics
from agentlightning.training.progress import TrainingProgress
from agentlightning.training.run import Run
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.train import run_job
from agentlightning_benchmarks.bench import catalog
from agentlightning_benchmarks.demo.command import CONFIG
from measuring import DRY, Figures
from models import model_files

STEPS = 40
HELD_OUT = 128
"""Maximum number of eval tasks."""
KEPT = ("reward", "eval.sampled", "eval.greedy", "seconds", "tokens_per_second", "mismatch_abs")
"""Metrics of a step that become figures."""


def make_job(options: argparse.Namespace, files: Any) -> Job:
    """Return the job of a preset at the size of this measurement."""
    real: str | None = options.data if options.data and Path(options.data).is_dir() else None
    config = load_config(CONFIG) if options.curve == "demo" else catalog.preset(catalog.find(options.curve), "gpu")
    trainer, engine = dict(config.trainer), dict(config.engine)
    if options.curve != "demo":
        if options.model == "smollm2":  # its prompts are shorter
            config = replace(config, agent=catalog.preset(catalog.find(options.curve), "cpu").agent)
        config = replace(config, steps=STEPS, eval=replace(config.eval, every=STEPS // 4, tasks=HELD_OUT))
    if DRY:
        config = toy(config)
        trainer, engine = {"name": "torch", "tokens_per_pack": 4096}, {"name": "torch"}
    if options.engine:
        engine = {"name": options.engine}
    if options.trainer:
        trainer = {"name": options.trainer, "lr": config.trainer["lr"], "python": sys.executable}
    model = files.path if DRY or options.model != "smollm2" else "smollm2-135m"
    config = replace(config, name=options.curve, model=model, folder=str(Path("runs").resolve()), trainer=trainer, engine=engine)
    if options.curve == "demo":
        return job_of(config)
    return catalog.job(catalog.find(options.curve), config, real=real, test_suite=False)


def toy(config: Config) -> Config:
    """Reduce a job to two rollouts and one step."""
    return replace(
        config,
        steps=1,
        tasks_per_step=1,
        algorithm={**config.algorithm, "group_size": 2},
        sampling=replace(config.sampling, max_tokens=8),
        eval=replace(config.eval, every=0, tasks=1, samples=1),
        runner=replace(config.runner, concurrency=2),
    )


def train(job: Job) -> Run:
    """Start a run, or resume the existing one."""
    before = [run for run in RunFolder.all("runs") if run.state.exists()]
    with TrainingProgress() as progress:
        if not before:
            return run_job(job, progress=progress)
        if before[-1].result.exists() and before[-1].read_state().finished:
            return Run(before[-1].path, before[-1].read_result())
        return run_job(job_of(load_config(before[-1].config)), resume=before[-1].path, progress=progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curve", choices=("demo", *registry().names("benchmarks")))
    parser.add_argument("model", choices=("smollm2", "qwen05"))
    parser.add_argument("--data", help="folder with real tasks (default: generated ones)")
    parser.add_argument("--engine", help="engine (default: torch)")
    parser.add_argument("--trainer", help="trainer (default: torch)")
    options = parser.parse_args(sys.argv[1:])
    run = train(make_job(options, model_files(options.model)))
    rows = read_metrics(run.folder)
    steps = [{"step": row["step"], **{name: row[name] for name in KEPT if row.get(name) is not None}} for row in rows]
    kept = ("steps", "finished", "seconds", "eval", "measured_after_step")
    tasks = "real" if options.data and Path(options.data).is_dir() else "generated"
    setup = {"curve": options.curve, "model": options.model, "tasks": tasks, "engine": options.engine or "torch"}
    figures = {**setup, "trainer": options.trainer or "torch", **{key: run.result[key] for key in kept if key in run.result}}
    Figures().add(**figures, metrics=steps)
    if run.stopped:
        raise SystemExit(130)


if __name__ == "__main__":
    main()
