"""`--eval-only`: evaluates a model once, in a run folder with the layout of a training run."""

from __future__ import annotations

import asyncio
import time

from agentlightning.config.toml import plain_settings, to_toml
from agentlightning.contracts.tracker import TrackedRun
from agentlightning.training.controls import Controls, run_in_thread
from agentlightning.training.eval_rollouts import eval_rollouts
from agentlightning.training.evaluation import eval_metrics, evaluation_of
from agentlightning.training.evaluation_cache import evaluation_cache, notices
from agentlightning.training.job import Job, keep_tasks
from agentlightning.training.plan import chosen_trackers, plan_rollouts
from agentlightning.training.progress import Progress
from agentlightning.training.result import write_result
from agentlightning.training.rollouts import RolloutSettings
from agentlightning.training.run import Run
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import RunState
from agentlightning.training.services import open_rollout_services
from agentlightning.training.step_checks import check_first
from agentlightning.training.tracked_run import evaluated_tasks, without_secrets
from agentlightning.training.trackers import Trackers
from agentlightning.types import Trajectory


def evaluate(job: Job, *, progress: Progress) -> Run:
    """Run a job's eval rollouts once, with the model named in its config."""
    return run_in_thread(lambda stop: _evaluate(job, progress, stop))


async def _evaluate(job: Job, progress: Progress, stop: asyncio.Event) -> Run:
    assert job.agent is not None
    controls = Controls(progress, stop)
    chosen = chosen_trackers(job.config.trackers)
    plan = await plan_rollouts(job.config, job.agent, progress)
    folder = RunFolder.create(job.config.folder, job.config.name)
    with folder.lock():
        config = keep_tasks(job, folder).config
        folder.write_config(to_toml(config))
        began, started = time.monotonic(), time.time()
        cache, rollouts = evaluation_cache(job, plan, folder), eval_rollouts(config.eval, job.eval_tasks, RolloutSettings.of(config), 0)
        progress.begin(0)
        try:
            earlier = await cache.of_base(rollouts)
            for notice in notices(earlier.reused, folder):
                progress.message(notice)
            ran = list[Trajectory]()
            if missing := earlier.missing(rollouts):
                async with open_rollout_services(config, plan, folder, controls) as services:
                    progress.phase("evaluating")
                    ran = await services.collector.run(missing)
                    await cache.keep(0, ran)
            trajectories = earlier.join(rollouts, ran)
            check_first(trajectories, None, folder=folder.path)
        finally:
            progress.end()
        seconds = time.monotonic() - began
        run = TrackedRun(
            folder.tracking_id(), folder.path, config.name, without_secrets(plain_settings(config, none=None)), 0, progress.message
        )
        async with Trackers(chosen, run) as trackers:
            evaluation = evaluation_of(0, trajectories)
            trackers.log_evaluation(0, evaluated_tasks(evaluation, evaluation, trajectories))
            trackers.log({"step": 0, "rollouts": len(trajectories), **eval_metrics(trajectories), "seconds": seconds})
        state = RunState(started=started, seconds=seconds, finished=True, reused=earlier.reused)
        folder.write_state(state)
        write_result(folder, state, config)
        return Run(folder.path, folder.read_result())
