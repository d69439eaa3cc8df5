"""`agl.train`: from agent, tasks and model to a finished run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentlightning.algorithms.base import Algorithm
from agentlightning.algorithms.lightning import LightningRL
from agentlightning.config.samplers import Sampler
from agentlightning.config.schema import Config
from agentlightning.config.toml import to_toml
from agentlightning.contracts.tracker import TrackedRun
from agentlightning.errors import Mismatch, RunError
from agentlightning.registry.registry import registry
from agentlightning.runner.runner import Agent
from agentlightning.telemetry.metrics import TrainingMetrics
from agentlightning.training.controls import Controls, Stopped, run_in_thread
from agentlightning.training.earlier_runs import earlier_samplers
from agentlightning.training.evaluation import Evaluator
from agentlightning.training.evaluation_cache import evaluation_cache
from agentlightning.training.job import Job, job_of, keep_tasks, make_job, not_held_out, with_store
from agentlightning.training.joint import JointAlgorithm
from agentlightning.training.learning_rate import lr_of_model, lr_warning
from agentlightning.training.metrics import cut_metrics, read_metrics
from agentlightning.training.plan import TrainingPlan, config_in_force, plan_training, with_defaults
from agentlightning.training.production.opening import check_replay, open_replay
from agentlightning.training.progress import Progress, TrainingProgress
from agentlightning.training.prompt_trials import RunTrials
from agentlightning.training.result import write_result
from agentlightning.training.run import Run
from agentlightning.training.run_diagnosis import RunDiagnosis
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_record import RunRecord
from agentlightning.training.run_state import RunState
from agentlightning.training.services import Services, open_services
from agentlightning.training.session import Session
from agentlightning.training.stages import keep_second, second_folder, weights_job
from agentlightning.training.step_checks import StepChecks
from agentlightning.training.step_groups import StepGroups
from agentlightning.training.step_history import Facts
from agentlightning.training.tracked_run import without_secrets
from agentlightning.training.trackers import Trackers
from agentlightning.types import JSON

log = logging.getLogger("agentlightning")


def train(
    agent: Agent | str | None = None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    progress: Progress | bool = True,
    resume: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train an agent's model with reinforcement learning, and return the run when it ends.

    `agent(task, llm) -> float` is any sync or async callable, or `"module:function"`. It returns the reward, or calls `agl.reward(value)`
    and returns None. `tasks` and `eval_tasks` are lists of JSON values, or .jsonl files. Further settings are those of `Config`, with the
    tables as mappings or settings objects: `model`, `steps`, `tasks_per_step`, `algorithm=LightningRL(...)`, `sampling`, `engine`,
    `trainer`, `runner`, `eval`, `seed`, `name`, `folder`, ... With `replay={"store": ...}` it trains on the rollouts of a deployed agent;
    it then needs no tasks, and an agent only for `eval_tasks`.

    Runs in a thread with an event loop of its own, so it works in notebooks. The first Ctrl-C stops between two steps; `resume` continues
    the run. The second Ctrl-C stops at once. Raises a `LightningError` if something is wrong.
    """
    return run_job(make_job(agent, tasks=tasks, **settings), resume=resume, progress=progress)


async def train_async(
    agent: Agent | str | None = None,
    *,
    tasks: Sequence[JSON] | str | Path | None = None,
    progress: Progress | bool = True,
    resume: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train as `train` does, on the caller's event loop. Cancelling it stops the run and leaves it resumable."""
    job = make_job(agent, tasks=tasks, **settings)
    return await train_job(job, progress=_progress(progress), resume=resume, stop=asyncio.Event())


def train_config(config: Config, *, resume: str | Path | None = None, progress: Progress | bool = True) -> Run:
    """Train as `train` does, with every setting from a config (`agl train CONFIG.toml`)."""
    return run_job(job_of(config), resume=resume, progress=progress)


def run_job(job: Job, *, resume: str | Path | None = None, progress: Progress | bool = True) -> Run:
    """Train as `train` does, with every argument in a job."""
    return run_in_thread(lambda stop: train_job(job, progress=_progress(progress), resume=resume, stop=stop))


async def train_job(job: Job, *, progress: Progress, resume: str | Path | None, stop: asyncio.Event) -> Run:
    """Restore a run or start a new one, open it, train, and write its result. A run in two stages returns the second, once it began."""
    check = weights_job(job)
    if check is not None:
        await plan_training(check.config, check.agent, progress)  # its errors come before the search
    run = await _train_run(job, progress=progress, resume=resume, stop=stop)
    if check is None or run.stopped:
        return run
    first, weights = RunFolder(run.folder), weights_job(job, run.folder)
    assert weights is not None
    progress.message(f"The search for prompts has ended ({first.name}). Training the weights with the best ones.")
    return await _train_run(weights, progress=progress, resume=second_folder(first), stop=stop, begun=lambda it: keep_second(first, it))


async def _train_run(
    job: Job,
    *,
    progress: Progress,
    resume: str | Path | None,
    stop: asyncio.Event,
    begun: Callable[[RunFolder], None] = lambda folder: None,
) -> Run:
    """Train one run. `begun` is called with its folder."""
    config = job.config
    controls = Controls(progress, stop)
    plan = await plan_training(config, job.agent, progress)
    if resume is None:
        await check_replay(config, plan, controls)
    sampler: Sampler | None = None if config.replay is not None else registry().load("samplers", config.sampler)(job.tasks, config.seed)
    folder = RunFolder.open(resume) if resume is not None else RunFolder.create(config.folder, config.name)
    job = with_store(job, folder)
    begun(folder)
    with folder.lock():
        start = _restore(folder, sampler, config, resumed=resume is not None)
        progress.begin(config.steps, start.state.step)
        if resume is not None:
            resumed = f"Resuming after step {start.state.step}."
            progress.message(resumed if start.checkpoint else f"{folder.name} has no checkpoint yet: starting again.")
        elif warning := not_held_out(job):
            progress.message(warning)
        if start.carried:
            progress.message(f"An earlier run measured {start.carried} of the {len(job.tasks)} tasks. The sampler starts from its rewards.")
        folder.failure.unlink(missing_ok=True)
        try:
            async with _open(job, plan, folder, start, controls) as session:
                stopped = await _train(session, plan.algorithm)
        except Stopped:
            raise
        except Exception as error:
            _keep_failure(folder, error)
            raise
        finally:
            progress.end()
        return Run(folder.path, folder.read_result(), stopped)


def _keep_failure(folder: RunFolder, error: Exception) -> None:
    try:
        folder.write_failure(error)
    except RunError as other:  # the first error says more
        log.warning("The reason of the failure was not kept: %s", other)


@dataclass(frozen=True, slots=True)
class Start:
    """The position at which a run starts."""

    state: RunState
    sampler: Sampler | None
    """At its position in the tasks; None: a production replay has no tasks."""
    checkpoint: Path | None
    """None: the run starts with the model's own weights."""
    carried: int = 0
    """Tasks that earlier runs measured for the sampler."""

    @property
    def logged(self) -> int:
        """The last step whose line stays in the metrics; -1: none. A step whose evaluation is still due is logged after it."""
        return -1 if self.checkpoint is None else self.state.step - (self.state.unlogged is not None)


def _restore(folder: RunFolder, sampler: Sampler | None, config: Config, *, resumed: bool) -> Start:
    if not resumed or not folder.steps():
        carried = 0 if sampler is None else sampler.carry(earlier_samplers(folder.path, Path(config.folder), to_toml(config)))
        return Start(RunState(started=time.time(), sampler=sampler.state() if sampler else {}), sampler, None, carried)
    checkpoint, state = folder.resume_point()
    if sampler is not None:
        sampler.restore(cast("dict[str, JSON]", state.sampler))
    return Start(state, sampler, checkpoint)


@asynccontextmanager
async def _open(job: Job, plan: TrainingPlan, folder: RunFolder, start: Start, controls: Controls) -> AsyncGenerator[Session]:
    """Open the session of a run; write the run's result when it closes."""
    config = job.config
    async with AsyncExitStack() as exits:
        trained = folder.read_batches(start.state.step)
        replay = await exits.enter_async_context(open_replay(config, plan, controls, trained=trained))
        suggested_lr = await _suggested_lr(plan, controls)
        services = await exits.enter_async_context(open_services(config, plan, folder, controls, restore=start.checkpoint))
        source = replay or _step_groups(job, services, start)
        # The folder changes from here on: every error of config and checkpoint has been raised.
        folder.cut_back(start.state.step)
        cut_metrics(folder.path, after=start.logged)
        config = keep_tasks(job, folder).config
        folder.write_config(to_toml(with_defaults(config)))
        folder.write_state(start.state)
        settings = without_secrets(config_in_force(config, plan))
        tracked = TrackedRun(folder.tracking_id(), folder.path, config.name, settings, max(0, start.logged + 1), controls.progress.message)
        served = TrainingMetrics(services.metrics, config.steps).log
        trackers = await exits.enter_async_context(Trackers(plan.trackers, tracked, served))
        checks = StepChecks(
            config.agents, config.mismatch_alarm, folder.path, services.choice, tuple(services.trainers), not plan.algorithm.trains_unscored
        )
        sampler = start.sampler
        session = Session(
            services,
            RunRecord(folder, start.state, trackers, services.save, config.checkpoints, plan.rendering, controls.progress),
            source=source,
            evaluator=Evaluator(services, config.eval, job.eval_tasks, evaluation_cache(job, plan, folder)),
            checks=checks,
            diagnosis=_diagnosis(config, plan, folder, services, suggested_lr, samples=source.samples),
            trials=None if sampler is None else RunTrials(services, sampler, job.tasks, config.tasks_per_step, checks),
        )
        try:
            yield session
        finally:
            write_result(folder, session.state, config, weights=plan.files.path)


async def _train(session: Session, algorithm: Algorithm) -> bool:
    """Run an algorithm to its end; return whether the user stopped it. A run that ends early keeps its finished steps."""
    try:
        await session.begin()
        await _run(session, algorithm)
        await session.end()
    except (Stopped, asyncio.CancelledError):
        await session.rescue()
        return True
    except Exception:
        try:
            await session.rescue()
        except Exception as error:  # the first error says more
            log.warning("No checkpoint of the finished steps was written: %s", error)
        raise
    return False


async def _run(session: Session, algorithm: Algorithm) -> None:
    """Run an algorithm to its end. It starts again at a step that was sampled from other weights than the trainer's."""
    while True:
        try:
            return await algorithm.run(session)
        except Mismatch as mismatch:
            await session.start_again(mismatch)


async def _suggested_lr(plan: TrainingPlan, controls: Controls) -> float | None:
    """Return the learning rate that fits the model, and warn of one far from it. The rule is one of reinforcement learning."""
    algorithms = list(plan.algorithm.policies.values()) if isinstance(plan.algorithm, JointAlgorithm) else [plan.algorithm]
    if not any(isinstance(algorithm, LightningRL) for algorithm in algorithms):
        return None
    settings = plan.trainer[1]
    suggested = await asyncio.to_thread(lr_of_model, plan.files.path, settings)
    warning = lr_warning(getattr(settings, "lr", None), suggested, lora=getattr(settings, "train", None) == "lora")
    if warning is not None:
        controls.progress.message(warning)
    return suggested


def _diagnosis(
    config: Config, plan: TrainingPlan, folder: RunFolder, services: Services, suggested_lr: float | None, *, samples: bool
) -> RunDiagnosis:
    """Return the diagnosis of a run, with the lines of the steps before."""

    def facts(state: RunState) -> Facts:
        named = config.agent is None or not ("<" in config.agent or config.agent.startswith("__main__:"))
        return Facts(
            lr=getattr(plan.trainer[1], "lr", None),
            suggested_lr=suggested_lr,
            max_tokens=config.sampling.max_tokens,
            mismatch_alarm=config.mismatch_alarm,
            sampler=config.sampler,
            filters=config.collection.filter is not None,
            config=_shown(folder.config) if named else None,
            # of several policies, a checkpoint holds their adapters, and no run starts from it
            checkpoints={} if config.policies else {step: _shown(folder.checkpoint(step)) for step in folder.steps()},
            best=state.best_step,
            samples=samples,
        )

    return RunDiagnosis(read_metrics(folder.path), facts, config.agents, services.store, services.controls.progress)


def _shown(path: Path) -> str:
    """A path as you would type it in this folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _step_groups(job: Job, services: Services, start: Start) -> StepGroups:
    """Return the source of a run's rollouts, at the position where the run starts."""
    config = job.config
    assert start.sampler is not None
    groups = StepGroups(services, config.collection, start.sampler, tasks_per_step=config.tasks_per_step, steps=config.steps)
    groups.resume(cast("list[dict[str, Any]]", start.state.pending), job.tasks)
    return groups


def _progress(progress: Progress | bool) -> Progress:
    if isinstance(progress, bool):
        return TrainingProgress() if progress else Progress()
    return progress
