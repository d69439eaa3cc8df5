"""A dry run: a few groups of rollouts and one training step, measured, and from them the signal, time and disk of the whole run."""

from __future__ import annotations

import asyncio
import math
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from agentlightning.algorithms.base import Algorithm
from agentlightning.algorithms.dpo import trial_batch
from agentlightning.config.model_facts import model_facts
from agentlightning.config.parts import Part
from agentlightning.config.schema import Config
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import ConfigError
from agentlightning.files import folder_bytes
from agentlightning.gateway.rendering.report import report_rendering
from agentlightning.rl.batch.build import make_batch
from agentlightning.training.controls import Controls, run_in_thread
from agentlightning.training.group_signal import GroupSignal, Suggestion, group_signal, remedy, suggest
from agentlightning.training.job import Job, job_of
from agentlightning.training.joint import JointAlgorithm, only
from agentlightning.training.plan import TrainingPlan, plan_training
from agentlightning.training.policies import check_first_calls
from agentlightning.training.production.opening import check_replay, open_replay
from agentlightning.training.progress import Progress
from agentlightning.training.rollouts import first_error, mean_reward
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import Services, open_services
from agentlightning.training.stages import weights_job
from agentlightning.training.step_checks import check_first
from agentlightning.types import Task, Trajectory

TASKS = 8
"""Tasks of a dry run, at most. It takes no longer than one step of the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The measurements of a few groups of rollouts and one training step on them."""

    groups: int
    rollouts: int
    reward: float | None
    """Mean of the rollouts; None: none was scored."""
    signal: GroupSignal | None
    """None: the algorithm compares no rollouts of this policy, or too few were scored."""
    failed: int
    error: str | None
    """Of the first rollout that failed."""
    transitions: int
    sampled_tokens: int
    prompt_tokens: int
    rollout_seconds: float
    """For all groups together."""
    training_seconds: float | None
    """Forward, backward and step on all groups; None: nothing was sampled."""
    memory_bytes: int
    """Peak memory of this process so far."""
    checkpoint_bytes: int
    store_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun(Measured):
    """The measurements, and estimates for the run."""

    step_seconds: float | None
    """For one step: rollouts and training grow with the number of tasks in it."""
    step_prompt_tokens: float
    step_sampled_tokens: float
    suggestions: tuple[Suggestion, ...]
    """Group size, tasks per step and temperature for the measured signal; empty: it was not measured."""
    suggested_step_seconds: float | None
    """For one step with the suggested group size and number of tasks."""
    advice: str | None
    """What to change about tasks or reward; None: a group size has enough signal, or it was not measured."""
    run_seconds: float | None
    """For all steps with their evaluations."""
    disk_bytes: int
    """For the complete run folder."""
    free_bytes: int
    model: tuple[str, ...] = ()
    """Size, renderer, and turns of the model, a line each."""


def dry_run(config: Config, *, progress: Progress | None = None) -> DryRun:
    """Check everything that a run needs, with a few groups of rollouts and one training step, in a temporary folder."""
    if config.replay is not None:
        config = replace(config, replay=replace(config.replay, wait=False))  # the rollouts so far are enough to try it
    job = job_of(config)
    return run_in_thread(lambda stop: _dry_run(job, Controls(progress or Progress(), stop)))


async def _dry_run(job: Job, controls: Controls) -> DryRun:
    job = weights_job(job) or job  # of two stages the second, which has steps of training
    plan = await plan_training(job.config, job.agent, controls.progress)
    if not plan.algorithm.trains_weights:
        raise ConfigError(
            f"A dry run measures a training step, and algorithm {job.config.algorithm['name']!r} trains no weights. Start the run with a "
            "small algorithm.rollouts instead."
        )
    group_size = plan.algorithm.group_size
    report = estimate(job, group_size, await measure(job, plan, group_size, controls))
    return replace(report, model=await asyncio.to_thread(_describe, job.config, plan.files))


def _describe(config: Config, files: ModelFiles) -> tuple[str, ...]:
    """The short form of `agl models check`."""
    facts = model_facts(files.path)
    return f"{facts.architecture}, {facts.size}", *report_rendering(files.name, files.path, config.rendering(files.path)).short


async def measure(job: Job, plan: TrainingPlan, group_size: int, controls: Controls) -> Measured:
    """Run a group of rollouts for a few tasks, and one training step. Raises the errors of a run."""
    config = replace(job.config, store=None)  # nothing stays
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
                rollouts = [
                    services.rollouts.rollout(task, "train", f"dry-run-{place}", index, 0)
                    for place, task in enumerate(_few_tasks(job))
                    for index in range(group_size)
                ]
                trajectories = await services.collector.run(rollouts)
            rollout_seconds = time.monotonic() - began
            check_first(trajectories, config.agents, needs_rewards=not plan.algorithm.trains_unscored)
            if services.choice.names:
                check_first_calls(trajectories, services.choice, tuple(services.trainers))
            training_seconds = await _try_training(services, plan.algorithm, trajectories)
            controls.progress.phase("writing checkpoint")
            checkpoint.mkdir()
            await services.save(checkpoint)
        transitions = [transition for trajectory in trajectories for transition in trajectory.transitions]
        checkpoint_bytes = folder_bytes(checkpoint)
        return Measured(
            groups=max(1, len(trajectories) // group_size),
            rollouts=len(trajectories),
            reward=mean_reward(trajectories),
            signal=group_signal(trajectories, group_size) if _compares_own(config, plan.algorithm) else None,
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


def _few_tasks(job: Job) -> list[Task]:
    """Random tasks, because a file may begin with the easy ones."""
    count = min(TASKS, job.config.tasks_per_step, len(job.tasks))
    places = np.random.default_rng(job.config.seed).choice(len(job.tasks), count, replace=False)
    return [job.tasks[place] for place in places]


def _compares_own(config: Config, algorithm: Algorithm) -> bool:
    """Whether the algorithm compares the rollouts of a group, and this policy sampled them."""
    return algorithm.needs.group and config.replay is None and algorithm.demonstrate is None and not algorithm.needs.answers


async def _try_training(services: Services, algorithm: Algorithm, trajectories: Sequence[Trajectory]) -> float | None:
    """Try the algorithm's parts and one training step; return the step's seconds, None if there is no reply to train on."""
    algorithm.try_out(trajectories)
    if not any(trajectory.transitions for trajectory in trajectories):
        return None
    services.controls.progress.phase("training")
    await services.engine.pause()
    if not isinstance(algorithm, JointAlgorithm):
        return await _try_step(services.trainer, algorithm, trajectories)
    seconds = 0.0
    for name, own in algorithm.policies.items():
        seconds += await _try_step(services.trainers[name], own, [only(trajectory, name) for trajectory in trajectories])
    return seconds


async def _try_step(trainer: Trainer, algorithm: Algorithm, trajectories: Sequence[Trajectory]) -> float:
    """Take a step, and return its seconds. Any advantages and pairs will do: only the work counts, and the weights are discarded."""
    loss = algorithm.loss_settings() or Part.parse("losses", "ppo_clip", "algorithm.loss").make()
    advantages = [np.ones(len(trajectory.transitions)) for trajectory in trajectories]
    demonstrations = algorithm.demonstrate is not None or algorithm.needs.answers
    batch = trial_batch(trajectories) if loss.over_pairs else make_batch(trajectories, advantages, demonstrations=demonstrations)
    began = time.monotonic()
    await trainer.step(batch, loss)
    return time.monotonic() - began


def estimate(job: Job, group_size: int, measured: Measured) -> DryRun:
    """Return the measurements with estimates for the run."""
    config, eval_rollouts = job.config, _eval_rollouts(job)
    scale, sampled, step_seconds, run_seconds = config.tasks_per_step / measured.groups, max(1, measured.rollouts), None, None
    if measured.training_seconds is not None:
        step_seconds = (measured.rollout_seconds + measured.training_seconds) * scale
        if not eval_rollouts or config.replay is None:  # with a replay nobody has measured the agent
            run_seconds = step_seconds * config.steps + measured.rollout_seconds / sampled * eval_rollouts
    suggestions = _suggestions(job, measured.signal)
    keep_every = config.checkpoints.keep_every
    checkpoints = min(config.checkpoints.last + 1 + (config.steps // keep_every if keep_every else 0), config.steps + 1)
    rollouts = group_size * config.tasks_per_step * config.steps + eval_rollouts
    return DryRun(
        **{setting.name: getattr(measured, setting.name) for setting in fields(measured)},
        step_seconds=step_seconds,
        step_prompt_tokens=measured.prompt_tokens * scale,
        step_sampled_tokens=measured.sampled_tokens * scale,
        suggestions=suggestions,
        suggested_step_seconds=None if step_seconds is None or not suggestions else step_seconds * _growth(suggestions),
        advice=None if measured.signal is None else remedy(measured.signal),
        run_seconds=run_seconds,
        disk_bytes=measured.checkpoint_bytes * checkpoints + measured.store_bytes // sampled * rollouts,
        free_bytes=shutil.disk_usage(_existing(Path(config.folder))).free,
    )


def _suggestions(job: Job, signal: GroupSignal | None) -> tuple[Suggestion, ...]:
    config = job.config
    if signal is None:
        return ()
    return suggest(
        signal,
        tasks_per_step=config.tasks_per_step,
        tasks=len(job.tasks),
        temperature=config.sampling.temperature,
        sampler=config.sampler,
    )


def _growth(suggestions: Sequence[Suggestion]) -> float:
    """How many times as many rollouts a step has with the suggested settings."""
    return math.prod(suggestion.growth for suggestion in suggestions)


def _eval_rollouts(job: Job) -> int:
    """Return the rollouts in all evaluations of a run."""
    settings = job.config.eval
    evaluations = 2 + ((job.config.steps - 1) // settings.every if settings.every else 0)
    return evaluations * len(settings.chosen(job.eval_tasks)) * (settings.samples + settings.greedy)


def _existing(path: Path) -> Path:
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.exists())
