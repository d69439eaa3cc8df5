"""The rollouts of an evaluation: how a run requests them, and how a store gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

from agentlightning.config.schema import EvalConfig
from agentlightning.contracts.store import LightningStore
from agentlightning.training.rollouts import ReadTrajectory, RolloutSettings
from agentlightning.types import Rollout, Task, Trajectory

Kind: TypeAlias = Literal["sampled", "greedy"]
KINDS: tuple[Kind, ...] = ("sampled", "greedy")
Place: TypeAlias = tuple[Kind, str, int]
"""Kind, task id, and index of a rollout. It is the same in every evaluation."""


def eval_rollouts(settings: EvalConfig, tasks: Sequence[Task], rollouts: RolloutSettings, step: int) -> list[Rollout]:
    """Return the rollouts of one evaluation: `samples` sampled ones of each task, and a greedy one.

    Those of one task are neighbours. They run together, so the engine prefills their prompt once.
    """
    kinds: dict[Kind, tuple[int, RolloutSettings]] = {
        "sampled": (settings.samples, rollouts),
        "greedy": (int(settings.greedy), rollouts.greedy()),
    }
    return [
        sampling.rollout(task, "eval", group_of(kind, step, place), index, step)
        for place, task in enumerate(settings.chosen(tasks))
        for kind, (count, sampling) in kinds.items()
        for index in range(count)
    ]


def group_of(kind: Kind, step: int, place: int) -> str:
    """Return the group of the rollouts of a task in an evaluation. `place`: of the task."""
    return f"{kind}-{step}-{place}"


def kind_of(group: str) -> Kind | None:
    """Return how the rollouts of a group were sampled; None: they belong to no evaluation."""
    return next((kind for kind in KINDS if group.startswith(f"{kind}-")), None)


def place_of(rollout: Rollout) -> Place | None:
    """Return the place of a rollout in its evaluation; None: it belongs to none."""
    kind = kind_of(rollout.group or "")
    return None if kind is None else (kind, rollout.task.id, rollout.index)


async def read_evaluation(store: LightningStore, step: int, read: ReadTrajectory) -> dict[Place, Trajectory]:
    """Return the trajectories of the rollouts that a step's evaluation left in a store. Of a repeated evaluation the later ones count."""
    trajectories: dict[Place, Trajectory] = {}
    states, cursor = await store.list(mode="eval", step=step, limit=200)
    while states:
        for state in states:
            place = place_of(state.rollout)
            if place is not None and state.status in ("succeeded", "failed"):
                trajectories[place] = read(*await store.read(state.rollout.id))
        states, cursor = await store.list(after=cursor, mode="eval", step=step, limit=200)
    return trajectories
