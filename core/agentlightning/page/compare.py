"""Two runs, or a run and its model before training, on the eval tasks of both."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, cast

from agentlightning.errors import RunError
from agentlightning.page.library import Library
from agentlightning.page.rows import sampling_kind, start_of
from agentlightning.page.runs import read_state
from agentlightning.records.comparison import Side, base_side, latest_side, paired_rewards, served_side
from agentlightning.training.choice import BOTH, differences
from agentlightning.training.eval_rollouts import KINDS
from agentlightning.types import JSON

PAGE = 200


async def compare(library: Library, first: str, second: str) -> dict[str, JSON]:
    """Compare the served weights of two runs. Without a second one, compare the last evaluation of the first with its model before
    training."""
    run = library.run(first)
    if second:
        before, after = await served_side(run), await served_side(library.run(second))
    else:
        before, after = base_side(run), await latest_side(run)
    changes = await asyncio.to_thread(differences, before.evaluation, after.evaluation)
    if BOTH not in changes:
        raise RunError(f"{before.name} and {after.name} have no evaluated task in common. Compare runs with the same eval_tasks.")
    return {
        "sides": [_side(library, side) for side in (before, after)],
        "kinds": {kind: _kind(kind, before, after, asdict(changes[kind])) for kind in KINDS if kind in changes},
        "both": asdict(changes[BOTH]),
    }


def _side(library: Library, side: Side) -> dict[str, JSON]:
    return {"name": side.name, "run": library.name_of(side.run.path), "step": side.evaluation.step}


def _kind(kind: str, before: Side, after: Side, change: dict[str, Any]) -> dict[str, JSON]:
    rewards = paired_rewards(kind, before.evaluation, after.evaluation)
    tasks = sorted(rewards.items(), key=lambda item: (-(abs(item[1][1] - item[1][0])), item[0]))
    return {
        "before": sum(old for old, _ in rewards.values()) / len(rewards),
        "after": sum(new for _, new in rewards.values()) / len(rewards),
        "won": sum(new > old for old, new in rewards.values()),
        "lost": sum(new < old for old, new in rewards.values()),
        "interval": change["interval"],
        "changed": change["changed"],
        "tasks": [[task, old, new] for task, (old, new) in tasks],
    }


async def eval_tasks(library: Library, name: str, step: int, kind: str) -> dict[str, JSON]:
    """The eval tasks at a step: how each begins, and the ids of its rollouts in the run that has them."""
    owner, owner_step = _owner(library, name, step, kind)
    source = await library.source(owner)
    tasks, cursor = dict[str, dict[str, JSON]](), 0
    while True:
        states, cursor = await source.store.list(after=cursor, limit=PAGE, mode="eval", step=owner_step)
        for state in states:
            rollout = state.rollout
            if sampling_kind(rollout) == kind:
                ids = tasks.setdefault(rollout.task.id, {"start": start_of(rollout.task), "ids": []})["ids"]
                cast("list[JSON]", ids).append(rollout.id)
        if not states:
            return {"run": owner, "tasks": tasks}


def _owner(library: Library, name: str, step: int, kind: str) -> tuple[str, int]:
    """The run and the step that have the rollouts of an evaluation: earlier ones if it was reused."""
    run = library.run(name)
    state = read_state(run)
    for entry in () if state is None else state.reused:
        if (entry.step, entry.kind) != (step, kind):
            continue
        if entry.run == ".":
            return name, entry.run_step
        owner = library.name_of(run.path / entry.run)
        if owner is None:
            raise RunError(f"The run {entry.run} has these rollouts, and it is not in this folder. Open it with `agl view`.")
        return owner, entry.run_step
    return name, step
