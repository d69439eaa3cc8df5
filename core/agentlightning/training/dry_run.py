"""Running without training: a dry run that says what a run will need, and rollouts that are only scored."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from agentlightning.algorithms.dpo import trial_batch
from agentlightning.algorithms.lightning import algorithm_from
from agentlightning.config.schema import Config, to_toml
from agentlightning.config.tables import build_loss
from agentlightning.errors import ConfigError
from agentlightning.rl.batch.build import make_batch
from agentlightning.training.collector import Collector
from agentlightning.training.evaluation import new_rollout
from agentlightning.training.job import Job, job_of, run_in_thread
from agentlightning.training.production import check_source, open_source
from agentlightning.training.progress import Progress, Silent
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import Stack, open_stack, plan
from agentlightning.training.session import check_first
from agentlightning.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """What one group of rollouts and one forward and backward pass tell about the run."""

    rollouts: int
    reward: float | None
    """Mean of the group; None: none was scored."""
    failed: int
    error: str | None
    """Of the first rollout that failed."""
    transitions: int
    sampled_tokens: int
    prompt_tokens: int
    rollout_seconds: float
    """For the group."""
    training_seconds: float | None
    """Forward, backward and step on the group; None: nothing was sampled."""
    step_seconds: float | None
    """Estimate for one step: rollouts and training grow with the number of tasks in it."""
    evaluations: int
    run_seconds: float | None
    """Estimate for all steps with their evaluations."""
    memory_bytes: int
    """Most that this process has used so far."""
    checkpoint_bytes: int
    disk_bytes: int
    """Estimate for the whole run folder."""
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What `agl rollout` found."""

    folder: Path
    rollouts: int
    scored: int
    reward: float | None
    """Mean over the scored rollouts."""
    statuses: dict[str, int]
    requests: dict[str, int]
    sampled_tokens: int | None
    """None: an upstream told the ids of some replies only, or of none."""
    seconds: float
    error: str | None
    """Of the first rollout that failed."""


def dry_run(config: Config, *, progress: Progress | None = None) -> DryRun:
    """Check everything that a run needs, with one group of rollouts and one training step on it, in a folder that is thrown away."""
    job = job_of(config)
    return run_in_thread(lambda stop: _dry_run(job, progress or Silent(), stop))


def rollout_config(config: Config, *, limit: int | None = None, progress: Progress | None = None) -> Scored:
    """Run the agent once on each task (the eval ones where the config has some) and score it, without training."""
    job = job_of(config)
    return run_in_thread(lambda stop: _score(job, limit, progress or Silent(), stop))


async def _dry_run(job: Job, progress: Progress, stop: asyncio.Event) -> DryRun:
    config = job.config
    if config.replay is not None:
        config = replace(config, replay=replace(config.replay, wait=False))  # what is there is enough to try it
    algorithm = algorithm_from(config.algorithm)
    loss = algorithm.loss_settings() or build_loss("ppo_clip", where="algorithm.loss")
    demonstrate = algorithm.demonstrate
    size = algorithm.group_size
    planned = await plan(config, job.agent, progress=progress, algorithm=algorithm)
    await check_source(planned, algorithm, progress=progress, stop=stop)
    trained: float | None = None
    with TemporaryDirectory(prefix="agl-dry-run-") as temporary:
        folder = Path(temporary)
        address = f"sqlite:{folder / 'store.db'}"
        async with (
            open_source(planned, algorithm, progress=progress, stop=stop) as source,
            open_stack(planned, store=address, weights=folder / "weights", progress=progress, demonstrate=demonstrate) as stack,
        ):
            assert stack.trainer is not None
            began = time.monotonic()
            if source is not None:
                trajectories = await source.next(1, size)
            else:
                rollouts = [new_rollout(config, job.tasks[0], "train", "dry-run", index, 0) for index in range(size)]
                trajectories = await _collector(stack, config, progress, stop).run(rollouts)
            collected = time.monotonic() - began
            check_first(trajectories, config.agents)
            algorithm.try_out(trajectories)
            transitions = [transition for each in trajectories for transition in each.transitions]
            if transitions:
                progress.phase("training")
                # Made-up advantages and pairs: what counts here is the work, and the weights are thrown away.
                advantages = [np.ones(len(each.transitions)) for each in trajectories]
                batch = (
                    trial_batch(trajectories)
                    if loss.over_pairs
                    else make_batch(trajectories, advantages, demonstrations=demonstrate is not None)
                )
                began = time.monotonic()
                await stack.engine.pause()
                await stack.trainer.step(batch, loss)
                trained = time.monotonic() - began
            progress.phase("writing checkpoint")
            (folder / "checkpoint").mkdir()
            await stack.trainer.save(folder / "checkpoint")
        checkpoint = _bytes(folder / "checkpoint")
        store = _bytes(folder) - checkpoint
    step = None if trained is None else (collected + trained) * config.tasks_per_step
    evaluations, evaluated = _evaluated(job)
    run = None if step is None else step * config.steps + collected / size * evaluated
    if evaluated and config.replay is not None:
        run = None  # nobody has seen how long the agent takes
    rewards = [each.reward for each in trajectories if each.reward is not None]
    kept = config.checkpoints.last + 1 + (config.steps // config.checkpoints.keep_every if config.checkpoints.keep_every else 0)
    return DryRun(
        rollouts=len(trajectories),
        reward=float(np.mean(rewards)) if rewards else None,
        failed=sum(each.status != "succeeded" for each in trajectories),
        error=next((each.error for each in trajectories if each.error), None),
        transitions=len(transitions),
        sampled_tokens=sum(len(each.response_ids) for each in transitions),
        prompt_tokens=sum(len(each.prompt_ids) for each in transitions),
        rollout_seconds=collected,
        training_seconds=trained,
        step_seconds=step,
        evaluations=evaluations,
        run_seconds=run,
        memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        checkpoint_bytes=checkpoint,
        disk_bytes=checkpoint * min(kept, config.steps + 1) + store // size * (size * config.tasks_per_step * config.steps + evaluated),
        free_bytes=shutil.disk_usage(_existing(Path(config.folder))).free,
    )


def _evaluated(job: Job) -> tuple[int, int]:
    """Evaluations in a run, and the rollouts in all of them."""
    settings = job.config.eval
    if not job.eval_tasks:
        return 0, 0
    times = 2 + ((job.config.steps - 1) // settings.every if settings.every else 0)
    return times, times * len(job.eval_tasks[: settings.tasks]) * (settings.samples + settings.greedy)


def _bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(each for each in (path, *path.parents) if each.exists())


async def _score(job: Job, limit: int | None, progress: Progress, stop: asyncio.Event) -> Scored:
    config = job.config
    if job.agent is None:
        raise ConfigError('there is no agent to run: the configuration has a source; give agent = "module:function" and eval_tasks')
    tasks = (job.eval_tasks or job.tasks)[:limit]
    planned = await plan(config, job.agent, progress=progress, train=False)
    folder = RunFolder.create(config.folder, f"{config.name}-rollout")
    with folder.lock():
        folder.write_config(to_toml(config))
        began = time.monotonic()
        async with open_stack(planned, store=folder.store_address, weights=folder.weights, progress=progress) as stack:
            rollouts = [new_rollout(config, task, "eval", f"task-{place}", 0, 0) for place, task in enumerate(tasks)]
            trajectories = await _collector(stack, config, progress, stop).run(rollouts)
        seconds = time.monotonic() - began
        report = _report(folder.path, trajectories, seconds)
        folder.write_result({"name": config.name, "model": config.model, "seed": config.seed, "reward": report.reward, **_plain(report)})
    return report


def _plain(report: Scored) -> dict[str, Any]:
    plain = {key: getattr(report, key) for key in ("rollouts", "scored", "statuses", "requests", "sampled_tokens", "seconds")}
    return {key: value for key, value in plain.items() if value is not None}


def _report(folder: Path, trajectories: Sequence[Trajectory], seconds: float) -> Scored:
    rewards = [each.reward for each in trajectories if each.reward is not None]
    requests = Counter[str]()
    for each in trajectories:
        requests.update(each.calls)
    replies = [len(transition.response_ids) for each in trajectories for transition in each.transitions]
    return Scored(
        folder=folder,
        rollouts=len(trajectories),
        scored=len(rewards),
        reward=float(np.mean(rewards)) if rewards else None,
        statuses=dict(Counter(str(each.status) for each in trajectories)),
        requests=dict(requests),
        sampled_tokens=sum(replies) if all(replies) else None,  # a reply of no tokens makes no transition, unless its ids are missing
        seconds=seconds,
        error=next((each.error for each in trajectories if each.error), None),
    )


def _collector(stack: Stack, config: Config, progress: Progress, stop: asyncio.Event) -> Collector:
    return Collector(stack.store, stack.runners, stop, progress, agents=config.agents, reward_weights=config.reward_weights)
