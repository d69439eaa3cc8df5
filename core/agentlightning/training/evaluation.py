"""Evaluation: the rollouts on the eval tasks, and their metrics.

Every evaluation of a run has the same rollouts, so that two of them compare task by task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from agentlightning.config.schema import EvalConfig
from agentlightning.training.no_calls import made_no_call
from agentlightning.training.rollouts import RolloutSettings
from agentlightning.training.run_state import RunState
from agentlightning.training.services import Services
from agentlightning.types import Rollout, Task, Trajectory

Kind = Literal["sampled", "greedy"]
KINDS: tuple[Kind, ...] = ("sampled", "greedy")


class Evaluator:
    """Measures the policy on the eval tasks."""

    def __init__(self, services: Services, settings: EvalConfig, tasks: Sequence[Task]) -> None:
        self._services, self._settings, self._tasks = services, settings, list(tasks)

    def due(self, step: int, *, last: bool) -> bool:
        """Return whether a step (0: before the first one) ends with an evaluation."""
        every = self._settings.every
        return bool(self._tasks) and (step == 0 or last or bool(every and step % every == 0))

    async def measure(self, step: int) -> list[Trajectory]:
        """Return the trajectories of an evaluation with the weights as they are."""
        await self._services.clear_cache()
        return await self._services.collector.run(eval_rollouts(self._settings, self._tasks, self._services.rollouts, step))

    def judge(self, state: RunState, metrics: dict[str, Any]) -> RunState:
        """Return the state of the run after an evaluation: whether it is the best so far."""
        reward = metrics.get("eval.sampled", metrics.get("eval.greedy"))
        if reward is None:
            return state
        if state.best is None or reward > state.best:
            return replace(state, best=reward, best_step=metrics["step"], evals_without_gain=0)
        return replace(state, evals_without_gain=state.evals_without_gain + 1)

    def out_of_patience(self, state: RunState) -> bool:
        """Return whether the eval reward has not risen for `eval.patience` evaluations."""
        return self._settings.patience is not None and state.evals_without_gain >= self._settings.patience


def eval_rollouts(settings: EvalConfig, tasks: Sequence[Task], rollouts: RolloutSettings, step: int) -> list[Rollout]:
    """Return the rollouts of one evaluation: `samples` sampled ones of each task, and a greedy one."""
    kinds: dict[Kind, tuple[int, RolloutSettings]] = {
        "sampled": (settings.samples, rollouts),
        "greedy": (int(settings.greedy), rollouts.greedy()),
    }
    return [
        sampling.rollout(task, "eval", f"{kind}-{step}-{place}", index, step)
        for kind, (count, sampling) in kinds.items()
        for place, task in enumerate(tasks[: settings.tasks])
        for index in range(count)
    ]


def kind_of(group: str) -> Kind | None:
    """Return how the rollouts of a group were sampled; None: they belong to no evaluation."""
    return next((kind for kind in KINDS if group.startswith(f"{kind}-")), None)


def eval_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return the mean rewards of an evaluation, under the names of `metrics.jsonl`. Unscored rollouts are counted, not zero.

    Rollouts without a model call are counted, and their rewards count: an evaluation measures the agent.
    """
    row: dict[str, float] = {}
    for kind in KINDS:
        rewards = [trajectory.reward for trajectory in trajectories if kind_of(trajectory.group) == kind]
        scored = [reward for reward in rewards if reward is not None]
        if scored:
            row[f"eval.{kind}"] = float(np.mean(scored))
        if len(scored) < len(rewards):
            row[f"eval.{kind}.unscored"] = float(len(rewards) - len(scored))
        silent = sum(kind_of(trajectory.group) == kind and made_no_call(trajectory) for trajectory in trajectories)
        if silent:
            row[f"eval.{kind}.no_calls"] = float(silent)
    return row
