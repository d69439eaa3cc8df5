"""A dry run: one group of rollouts and one training step, measured, and from them the time and disk of the whole run."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from agentlightning.algorithms.base import Algorithm
from agentlightning.algorithms.dpo import trial_batch
from agentlightning.config.model_facts import model_facts
from agentlightning.config.parts import Part
from agentlightning.config.schema import Config
from agentlightning.contracts.model import ModelFiles
from agentlightning.files import folder_bytes
from agentlightning.gateway.rendering.report import report_rendering
from agentlightning.rl.batch.build import make_batch
from agentlightning.training.controls import Controls, run_in_thread
from agentlightning.training.job import Job, job_of
from agentlightning.training.plan import TrainingPlan, plan_training
from agentlightning.training.production.opening import check_replay, open_replay
from agentlightning.training.progress import Progress
from agentlightning.training.rollouts import first_error, mean_reward
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import Services, open_services
from agentlightning.training.step_checks import check_first
from agentlightning.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measurements of one group of rollouts and one training step."""

    rollouts: int
    reward: float | None
    """Mean of the group; None: no rollout was scored."""
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
    memory_bytes: int
    """Peak memory of this process so far."""
    checkpoint_bytes: int
    store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun(Measured):
    """The measurements, and estimates for the run."""

    step_seconds: float | None
    """For one step: rollouts and training grow with the number of tasks in it."""
    run_seconds: float | None
    """For all steps with their evaluations."""
    disk_bytes: int
    """For the complete run folder."""
    free_bytes: int
    model: tuple[str, ...] = ()
    """Size, renderer, and turns of the model, a line each."""


def dry_run(config: Config, *, progress: Progress | None = None) -> DryRun:
    """Check everything that a run needs, with one group of rollouts and one training step, in a temporary folder."""
    if config.replay is not None:
        config = replace(config, replay=replace(config.replay, wait=False))  # the rollouts so far are enough to try it
    job = job_of(config)
    return run_in_thread(lambda stop: _dry_run(job, Controls(progress or Progress(), stop)))


async def _dry_run(job: Job, controls: Controls) -> DryRun:
    plan = await plan_training(job.config, job.agent, controls.progress)
    group_size = plan.algorithm.group_size
    report = estimate(job, group_size, await measure(job, plan, group_size, controls))
    return replace(report, model=await asyncio.to_thread(_describe, job.config, plan.files))


def _describe(config: Config, files: ModelFiles) -> tuple[str, ...]:
    """The short form of `agl models check`."""
    facts = model_facts(files.path)
    return f"{facts.architecture}, {facts.size}", *report_rendering(files.name, files.path, config.rendering(files.path)).short


async def measure(job: Job, plan: TrainingPlan, group_size: int, controls: Controls) -> Measured:
    """Run one group of rollouts and one training step. Raises the errors of a run."""
    config = job.config
    await check_replay(config, plan, controls)
    with TemporaryDirectory(prefix="agl-dry-run-") as temporary:
        folder, checkpoint = RunFolder(Path(temporary)), Path(temporary) / "checkpoint"
        async with AsyncExitStack() as exits:
            replay = await exits.enter_async_context(open_replay(config, plan, controls))
            services = await exits.enter_async_context(open_services(config, plan, folder, controls))
            began = time.monotonic()
            if replay is not None:
                trajectories = await replay.take(1, group_size)
            else:
                rollouts = [services.rollouts.rollout(job.tasks[0], "train", "dry-run", index, 0) for index in range(group_size)]
                trajectories = await services.collector.run(rollouts)
            rollout_seconds = time.monotonic() - began
            check_first(trajectories, config.agents)
            training_seconds = await _try_training(services, plan.algorithm, trajectories)
            controls.progress.phase("writing checkpoint")
            checkpoint.mkdir()
            await services.trainer.save(checkpoint)
        transitions = [transition for trajectory in trajectories for transition in trajectory.transitions]
        checkpoint_bytes = folder_bytes(checkpoint)
        return Measured(
            rollouts=len(trajectories),
            reward=mean_reward(trajectories),
            failed=sum(trajectory.status != "succeeded" for trajectory in trajectories),
            error=first_error(trajectories),
            transitions=len(transitions),
            sampled_tokens=sum(len(transition.response_ids) for transition in transitions),
            prompt_tokens=sum(len(transition.prompt_ids) for transition in transitions),
            rollout_seconds=rollout_seconds,
            training_seconds=training_seconds,
            memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            checkpoint_bytes=checkpoint_bytes,
            store_bytes=folder_bytes(folder.path) - checkpoint_bytes,
        )


async def _try_training(services: Services, algorithm: Algorithm, trajectories: Sequence[Trajectory]) -> float | None:
    """Try the algorithm's parts and one training step; return the step's seconds, None if there is no reply to train on."""
    algorithm.try_out(trajectories)
    if not any(trajectory.transitions for trajectory in trajectories):
        return None
    services.controls.progress.phase("training")
    # Any advantages and pairs will do: only the work counts, and the weights are discarded.
    loss = algorithm.loss_settings() or Part.parse("losses", "ppo_clip", "algorithm.loss").make()
    advantages = [np.ones(len(trajectory.transitions)) for trajectory in trajectories]
    demonstrations = algorithm.demonstrate is not None
    batch = trial_batch(trajectories) if loss.over_pairs else make_batch(trajectories, advantages, demonstrations=demonstrations)
    began = time.monotonic()
    await services.engine.pause()
    await services.trainer.step(batch, loss)
    return time.monotonic() - began


def estimate(job: Job, group_size: int, measured: Measured) -> DryRun:
    """Return the measurements with estimates for the run."""
    config, eval_rollouts = job.config, _eval_rollouts(job)
    step_seconds = run_seconds = None
    if measured.training_seconds is not None:
        step_seconds = (measured.rollout_seconds + measured.training_seconds) * config.tasks_per_step
        if not eval_rollouts or config.replay is None:  # with a replay nobody has measured the agent
            run_seconds = step_seconds * config.steps + measured.rollout_seconds / group_size * eval_rollouts
    keep_every = config.checkpoints.keep_every
    checkpoints = min(config.checkpoints.last + 1 + (config.steps // keep_every if keep_every else 0), config.steps + 1)
    rollouts = group_size * config.tasks_per_step * config.steps + eval_rollouts
    return DryRun(
        **asdict(measured),
        step_seconds=step_seconds,
        run_seconds=run_seconds,
        disk_bytes=measured.checkpoint_bytes * checkpoints + measured.store_bytes // group_size * rollouts,
        free_bytes=shutil.disk_usage(_existing(Path(config.folder))).free,
    )


def _eval_rollouts(job: Job) -> int:
    """Return the rollouts in all evaluations of a run."""
    settings = job.config.eval
    evaluations = 2 + ((job.config.steps - 1) // settings.every if settings.every else 0)
    return evaluations * len(job.eval_tasks[: settings.tasks]) * (settings.samples + settings.greedy)


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.exists())
