"""The two sides of a comparison of runs: which evaluation stands for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import RunError
from agentlightning.records.source import run_records
from agentlightning.stores.common import open_store
from agentlightning.training.choice import Evaluation
from agentlightning.training.eval_rollouts import Place, read_evaluation
from agentlightning.training.evaluation import evaluation_of
from agentlightning.training.recorded import is_hash, question_of, rollout_states
from agentlightning.training.rollouts import ReadTrajectory
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import ReusedEvaluation
from agentlightning.types import Trajectory

TASK_START = 60
"""Characters of a task in a comparison."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison."""

    run: RunFolder
    name: str
    evaluation: Evaluation


async def served_side(run: RunFolder) -> Side:
    """The evaluation of the weights that a run serves, or the rollouts of `agl rollout`."""
    if not run.state.exists():
        return Side(run, run.name, await _read(run, 0))
    state = run.read_state()
    step = state.best_step if state.best_step is not None else state.evaluated.step if state.evaluated is not None else None
    if step is None:
        raise RunError(f"Run {run.name} was never evaluated. Set eval_tasks, and train it.")
    return await read_side(run, step)


async def read_side(run: RunFolder, step: int, reward_weights: Mapping[str, float] | None = None) -> Side:
    """The evaluation of a step. `reward_weights`: read its rewards by these instead of the run's own."""
    state, label = run.read_state(), f"{run.name} step {step}"
    for evaluation in (state.first, state.strongest) if reward_weights is None else ():
        if evaluation is not None and evaluation.step == step:
            return Side(run, label, evaluation)
    return Side(run, label, await _read(run, step, state.reused, reward_weights))


async def latest_side(run: RunFolder) -> Side:
    """The last evaluation of a run, whichever weights it serves."""
    state = run.read_state()
    if state.evaluated is None or state.evaluated.step == 0:
        raise RunError(f"Run {run.name} was not evaluated after training began. Wait for its next evaluation.")
    return await read_side(run, state.evaluated.step)


async def trained_side(run: RunFolder) -> Side:
    """The evaluation of the weights that a run serves. If it serves the model before training, the last evaluation."""
    side = await served_side(run)
    return side if side.evaluation.step else await latest_side(run)


def base_side(run: RunFolder) -> Side:
    """The evaluation of a run's model before training."""
    first = run.read_state().first
    if first is None:
        raise RunError(f"Run {run.name} did not evaluate its model before training. Name another run to compare it with.")
    return Side(run, "before training", first)


async def asked_tasks(side: Side) -> dict[str, str]:
    """How each evaluated task of a side begins, by id, where its id is only a hash. A reused evaluation is in another run's store."""
    names: dict[str, str] = {}
    if not side.run.has_store:
        return names
    source = run_records(side.run)
    store = open_store(source.address)
    try:
        async for state in rollout_states(store, mode="eval", step=side.evaluation.step):
            task = state.rollout.task
            if is_hash(task.id):
                question = question_of(task)
                names[task.id] = question if len(question) <= TASK_START else question[:TASK_START] + "…"
    finally:
        await store.close()
    return names


async def _read(
    run: RunFolder, step: int, reused: Sequence[ReusedEvaluation] = (), reward_weights: Mapping[str, float] | None = None
) -> Evaluation:
    """The evaluation of a step, from the store of the run, and from those of earlier runs whose rollouts it reused."""
    from agentlightning.rl.trajectory.build import trajectory

    settings: dict[str, Any] = {**run_records(run).settings}
    if reward_weights is not None:
        settings["reward_weights"] = reward_weights

    def read(state: RolloutState, attempts: Sequence[AttemptRecords]) -> Trajectory:
        return trajectory(state, attempts, **settings)

    rollouts = await _rollouts(run, step, read)
    for entry in reused:
        if entry.step == step:
            earlier = await _rollouts(RunFolder.open(run.path / entry.run), entry.run_step, read)
            rollouts |= {place: rollout for place, rollout in earlier.items() if place[0] == entry.kind}
    return evaluation_of(step, list(rollouts.values()))


async def _rollouts(run: RunFolder, step: int, read: ReadTrajectory) -> dict[Place, Trajectory]:
    store = open_store(run.store_address)
    try:
        return await read_evaluation(store, step, read)
    finally:
        await store.close()


def paired_rewards(kind: str, before: Evaluation, after: Evaluation) -> dict[str, tuple[float, float]]:
    """The rewards of each task that both scored, by its id."""
    old, new = before.rewards.get(kind, {}), after.rewards.get(kind, {})
    return {task: (reward, new[task]) for task, reward in old.items() if task in new}
