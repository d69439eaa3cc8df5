"""What is asked of a policy in a step, and how well it did: the rollouts of training and of eval evaluation.

An evaluation is the same set of rollouts at every step, so that two of them are compared task by task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from agentlightning.config.schema import Config
from agentlightning.types import Mode, Rollout, Sampling, Task, Trajectory

Kind = Literal["sampled", "greedy"]
KINDS: tuple[Kind, ...] = ("sampled", "greedy")


def new_rollout(
    config: Config, task: Task, mode: Mode, group: str, index: int, step: int, temperature: float | None = None, *, seed: int | None = None
) -> Rollout:
    """A rollout as a config has it; without a temperature, at that of training, without a seed, with that of the run."""
    return Rollout(
        task=task,
        mode=mode,
        group=group,
        index=index,
        step=step,
        seed=config.seed if seed is None else seed,
        sampling=Sampling(
            temperature=config.sampling.temperature if temperature is None else temperature, max_tokens=config.sampling.max_tokens
        ),
        max_attempts=config.runner.attempts,
    )


def evaluation_rollouts(config: Config, tasks: Sequence[Task], step: int) -> list[Rollout]:
    """The rollouts of one eval evaluation: of each task some sampled ones and a greedy one, as `evaluate` says."""
    settings = config.eval
    asked: dict[Kind, tuple[int, float]] = {
        "sampled": (settings.samples, config.sampling.temperature),
        "greedy": (int(settings.greedy), 0.0),
    }
    return [
        new_rollout(config, task, "eval", f"{kind}-{step}-{place}", index, step, temperature)
        for kind, (count, temperature) in asked.items()
        for place, task in enumerate(tasks[: settings.tasks])
        for index in range(count)
    ]


def kind_of(group: str) -> Kind | None:
    """How a rollout of this group was sampled; None: it belongs to no evaluation."""
    return next((kind for kind in KINDS if group.startswith(f"{kind}-")), None)


def eval_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """The numbers of an evaluation, under the names of `metrics.jsonl`; what was never scored is counted, not zero."""
    row: dict[str, float] = {}
    for kind in KINDS:
        rewards = [each.reward for each in trajectories if kind_of(each.group) == kind]
        scored = [reward for reward in rewards if reward is not None]
        if scored:
            row[f"eval.{kind}"] = float(np.mean(scored))
        if len(scored) < len(rewards):
            row[f"eval.{kind}.unscored"] = float(len(rewards) - len(scored))
    return row
