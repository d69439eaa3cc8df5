"""Evaluation: the rollouts on the eval tasks, and their metrics.

Every evaluation of a run has the same rollouts, so that two of them compare task by task.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from agentlightning.config.schema import EvalConfig
from agentlightning.training.choice import BOTH, LEAST_CHANGED, Differences, Evaluation, choose, differences, incomplete
from agentlightning.training.eval_rollouts import KINDS, eval_rollouts, kind_of
from agentlightning.training.evaluation_cache import EvaluationCache
from agentlightning.training.no_calls import made_no_call
from agentlightning.training.run_state import Evaluated, ReusedEvaluation, RunState
from agentlightning.training.services import Services
from agentlightning.types import Task, Trajectory


@dataclass(frozen=True, slots=True)
class Measured:
    """The rollouts of an evaluation."""

    trajectories: list[Trajectory]
    reused: list[ReusedEvaluation]
    """The parts of it that ran earlier."""
    version: int
    """Of the policy."""
    prompts: dict[str, str] = field(default_factory=dict[str, str])
    """Texts that replaced the agent's own prompts."""


class Evaluator:
    """Measures the policy on the eval tasks."""

    def __init__(self, services: Services, settings: EvalConfig, tasks: Sequence[Task], cache: EvaluationCache) -> None:
        self._services, self._settings, self._tasks, self._cache = services, settings, list(tasks), cache

    def due(self, step: int, *, last: bool) -> bool:
        """Return whether a step (0: before the first one) ends with an evaluation."""
        every = self._settings.every
        return bool(self._tasks) and (step == 0 or last or bool(every and step % every == 0))

    async def measure(self, step: int, state: RunState) -> Measured:
        """Return an evaluation of the weights as they are. Rollouts of the same weights that ran earlier do not run again."""
        settings, version = self._services.rollouts, self._services.version
        if state.search is not None and step:
            settings = settings.with_prompts(state.search.in_force(step))
        rollouts = eval_rollouts(self._settings, self._tasks, settings, step)
        earlier = await self._cache.of_step(step, state, version, rollouts)
        trajectories = list[Trajectory]()
        if missing := earlier.missing(rollouts):
            self._cache.forget(step)
            await self._services.clear_cache()
            trajectories = await self._services.collector.run(missing)
        await self._cache.keep(step, trajectories)
        return Measured(earlier.join(rollouts, trajectories), earlier.reused, version, settings.prompts)

    def decide(self, state: RunState, metrics: dict[str, Any], measured: Measured) -> tuple[RunState, dict[str, float]]:
        """Return the state of the run after an evaluation (its highest reward, and the step with the best weights), and the metrics of the
        change from before training. Blocks for seconds if there are many tasks.

        An incomplete evaluation changes neither reward nor step.
        """
        evaluation = evaluation_of(metrics["step"], measured.trajectories)
        change = {} if state.first is None or evaluation.step == 0 else differences(state.first, evaluation)
        return self._decide(state, metrics, measured, evaluation, change), change_metrics(change)

    def _decide(
        self, state: RunState, metrics: dict[str, Any], measured: Measured, evaluation: Evaluation, change: Differences
    ) -> RunState:
        step, reward = metrics["step"], metrics.get("eval.sampled", metrics.get("eval.greedy"))
        evaluated = Evaluated(step=step, version=measured.version, measured=time.time(), prompts=measured.prompts)
        state = replace(state, evaluated=evaluated, reused=[*state.reused, *measured.reused])
        fullest = fullest_of(state)
        if reward is None or incomplete(evaluation, fullest):
            return state
        if state.best is None or reward > state.best or not (fullest is None or fullest.covers(evaluation)):
            state = replace(state, best=reward, evals_without_gain=0)
        else:
            state = replace(state, evals_without_gain=state.evals_without_gain + 1)
        if evaluation.step == 0:
            return replace(state, first=evaluation)
        choice = choose(state.choice, state.strongest, change, evaluation)
        strongest = evaluation if state.strongest is None or evaluation.beats(state.strongest) else state.strongest
        return replace(state, choice=choice, strongest=strongest)

    def out_of_patience(self, state: RunState) -> bool:
        """Return whether the eval reward has not risen for `eval.patience` evaluations."""
        return self._settings.patience is not None and state.evals_without_gain >= self._settings.patience


def evaluation_of(step: int, trajectories: Sequence[Trajectory]) -> Evaluation:
    """Return the rewards of an evaluation by kind and task."""
    return Evaluation.of(step, {kind: [rollout for rollout in trajectories if kind_of(rollout.group) == kind] for kind in KINDS})


def fullest_of(state: RunState) -> Evaluation | None:
    """Return the earlier evaluation with the most scored tasks; None: there is none."""
    return max((evaluation for evaluation in (state.first, state.strongest) if evaluation), key=lambda it: it.scored, default=None)


def change_metrics(change: Differences) -> dict[str, float]:
    """Return what changed from the evaluation before training, with intervals; nothing if too few tasks changed."""
    row: dict[str, float] = {}
    for kind, difference in change.items():
        if kind != BOTH and difference.changed >= LEAST_CHANGED:
            interval = difference.interval
            row |= {
                f"eval.{kind}.change": interval.mean,
                f"eval.{kind}.change_low": interval.low,
                f"eval.{kind}.change_high": interval.high,
            }
    return row


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
