"""`--eval-only`: one evaluation of a model as it is, in a run folder that reads like that of a training run."""

from __future__ import annotations

import asyncio
import time

from agentlightning.config.toml import to_toml
from agentlightning.training.collector import Collector
from agentlightning.training.evaluation import eval_metrics, evaluation_rollouts
from agentlightning.training.job import Job, Run, keep_tasks, run_in_thread, write_result
from agentlightning.training.metrics import Trackers
from agentlightning.training.progress import Progress
from agentlightning.training.run_folder import RunFolder, RunState
from agentlightning.training.services import open_stack, plan
from agentlightning.training.session import check_first


def evaluate(job: Job, *, progress: Progress) -> Run:
    """Do the eval rollouts of a job once, with the model that its config names."""
    return run_in_thread(lambda stop: _evaluate(job, progress, stop))


async def _evaluate(job: Job, progress: Progress, stop: asyncio.Event) -> Run:
    planned = await plan(job.config, job.agent, progress=progress, train=False)
    folder = RunFolder.create(job.config.folder, job.config.name)
    with folder.lock():
        config = keep_tasks(folder, job.config, job)
        folder.write_config(to_toml(config))
        began, started = time.monotonic(), time.time()
        progress.begin(0)
        try:
            async with open_stack(planned, store=folder.store_address, weights=folder.weights, progress=progress) as stack:
                progress.phase("evaluating")
                collector = Collector(
                    stack.store, stack.runners, stop, progress, agents=config.agents, reward_weights=config.reward_weights
                )
                trajectories = await collector.run(evaluation_rollouts(config, job.eval_tasks, 0))
                check_first(trajectories, None, see=folder.path)
        finally:
            progress.end()
        seconds = time.monotonic() - began
        with Trackers(config.trackers, folder.path) as trackers:
            trackers.log({"step": 0, "rollouts": len(trajectories), **eval_metrics(trajectories), "seconds": seconds})
        state = RunState(started=started, seconds=seconds, finished=True)
        folder.write_state(state)
        write_result(folder, config, state)
        return Run(folder.path, folder.read_result())
