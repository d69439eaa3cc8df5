"""Rollouts without training: the agent runs once on each task, and its rewards are reported."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agentlightning.config.schema import Config
from agentlightning.config.toml import to_toml
from agentlightning.errors import ConfigError
from agentlightning.training.controls import Controls, run_in_thread
from agentlightning.training.eval_rollouts import Kind, group_of
from agentlightning.training.job import Job, job_of, with_store
from agentlightning.training.metrics import request_counts
from agentlightning.training.no_calls import no_calls_report
from agentlightning.training.plan import plan_rollouts
from agentlightning.training.progress import Progress
from agentlightning.training.rollouts import first_error, mean_reward
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.services import open_rollout_services
from agentlightning.types import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The result of `agl rollout`."""

    folder: Path
    rollouts: int
    scored: int
    reward: float | None
    """Mean over the scored rollouts."""
    statuses: dict[str, int]
    requests: dict[str, int]
    sampled_tokens: int | None
    """None: an upstream returned the token ids of some replies only, or of none."""
    seconds: float
    error: str | None
    """Of the first rollout that failed."""
    scoring: dict[str, float]
    """Metrics of the judge, as in `metrics.jsonl`; empty without one."""
    no_calls: str | None = None
    """The number of rollouts without a model call, and the likely cause; None: every rollout made one."""


def rollout_config(config: Config, *, limit: int | None = None, greedy: bool = False, progress: Progress | None = None) -> Scored:
    """Run the agent of a config once on each eval task (each training task if it has no eval tasks), without training. `greedy`: at
    temperature 0, as in the greedy evaluations of a run."""
    job = job_of(config)
    return run_in_thread(lambda stop: _score(job, limit, greedy, Controls(progress or Progress(), stop)))


async def _score(job: Job, limit: int | None, greedy: bool, controls: Controls) -> Scored:
    config = job.config
    if job.agent is None:
        raise ConfigError('The config has a replay and no agent to run. Set agent = "module:function" and eval_tasks.')
    plan = await plan_rollouts(config, job.agent, controls.progress)
    folder = RunFolder.create(config.folder, f"{config.name}-rollout")
    config = with_store(job, folder).config
    with folder.lock():
        folder.write_config(to_toml(config))
        began, tasks = time.monotonic(), (job.eval_tasks or job.tasks)[:limit]
        async with open_rollout_services(config, plan, folder, controls) as services:
            settings = services.rollouts.greedy() if greedy else services.rollouts
            kind: Kind = "greedy" if greedy else "sampled"
            rollouts = [settings.rollout(task, "eval", group_of(kind, 0, place), 0, 0) for place, task in enumerate(tasks)]
            trajectories = await services.collector.run(rollouts)
            counts = services.scoring.counts() if services.scoring is not None else {}
        report = _report(folder.path, trajectories, counts, time.monotonic() - began)
        measured = {key: value for key, value in asdict(report).items() if value is not None and key not in ("folder", "error", "no_calls")}
        folder.write_result({"name": config.name, "model": config.model, "seed": config.seed, "reward": None, **measured})
    return report


def _report(folder: Path, trajectories: Sequence[Trajectory], scoring: dict[str, float], seconds: float) -> Scored:
    requests = Counter[str]()
    for trajectory in trajectories:
        requests.update(request_counts(trajectory))
    replies = [len(transition.response_ids) for trajectory in trajectories for transition in trajectory.transitions]
    return Scored(
        folder=folder,
        rollouts=len(trajectories),
        scored=sum(trajectory.reward is not None for trajectory in trajectories),
        reward=mean_reward(trajectories),
        statuses=dict(Counter(str(trajectory.status) for trajectory in trajectories)),
        requests=dict(requests),
        sampled_tokens=sum(replies) if all(replies) else None,  # a reply of no tokens makes no transition, unless its ids are missing
        seconds=seconds,
        error=first_error(trajectories),
        scoring=scoring,
        no_calls=no_calls_report(trajectories),
    )
