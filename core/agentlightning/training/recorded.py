"""The recorded rollouts of a run, as the run's own settings read them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from agentlightning.config.schema import load_config
from agentlightning.contracts.rendering import RenderingSettings, saved_rendering
from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import ConfigError, LightningError
from agentlightning.stores.common import open_store
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned
from agentlightning.types import Rollout, Task, Trajectory, is_greedy

QUESTIONS = ("question", "problem", "prompt", "input", "text", "query", "instruction", "task")
"""The usual names of a task's question."""


@dataclass(frozen=True, slots=True, repr=False)
class RunRollout:
    """A rollout of a run with everything that was recorded. Notebooks show it as a tree."""

    state: RolloutState
    attempts: tuple[AttemptRecords, ...]
    trajectory: Trajectory | None
    """None: no attempt has counted yet, or its records contradict themselves (`problem`)."""
    problem: str | None
    learned: Learned | None
    """Its part in a training step. None: it had none."""

    @property
    def id(self) -> str:
        return self.state.rollout.id

    @property
    def reward(self) -> float | None:
        """None: it was never scored."""
        return None if self.trajectory is None else self.trajectory.reward

    @property
    def seconds(self) -> float | None:
        """The time of its finished attempts. None: none has finished."""
        attempts = [attempt for attempt in self.state.attempts if attempt.finished is not None]
        return sum((attempt.finished or 0.0) - attempt.started for attempt in attempts) if attempts else None

    def __repr__(self) -> str:
        return f"RunRollout(id={self.id!r}, status={self.state.status!r}, reward={self.reward})"  # without the attempts' keys

    def _repr_html_(self) -> str:
        from agentlightning.training.notebook import rollout_html

        return rollout_html(self)


def run_config(run: RunFolder) -> dict[str, Any]:
    """Return the run's config file unchecked: a mistake in it must not hide the records."""
    try:
        return tomllib.loads(run.config.read_text())
    except (OSError, ValueError):
        return {}


def run_rendering(run: RunFolder, weights: Path) -> RenderingSettings:
    """Return how a run rendered messages for its best `weights`. Raises `ConfigError` if its config does not say so any more."""
    result = run.read_result()
    if "policies" in result or result.get("policy_step") == 0:  # neither an adapter nor the model before training knows it
        return load_config(run.config).rendering(str(weights))
    return saved_rendering(weights)


def trajectory_settings(config: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return how a run made its trajectories, as arguments of `trajectory`, and notes of settings that cannot be followed any more."""
    rewards, notes = _step_rewards(config)
    return {"agents": config.get("agents"), "reward_weights": config.get("reward_weights"), "step_rewards": rewards}, notes


def _step_rewards(config: Mapping[str, Any]) -> tuple[Sequence[Any], tuple[str, ...]]:
    if not config.get("step_rewards"):
        return (), ()
    from agentlightning.config.parts import build_step_rewards
    from agentlightning.config.schema import import_from

    try:
        import_from(Path(config.get("path", ".")))
        return build_step_rewards(config["step_rewards"]), ()
    except Exception as error:  # a user's module may raise anything
        return (), (f"the run's step_rewards are not shown: {error}",)


def read_trajectory(
    state: RolloutState, attempts: tuple[AttemptRecords, ...], settings: Mapping[str, Any]
) -> tuple[Trajectory | None, str | None]:
    """Return the trajectory of a rollout, or None, perhaps with the problem of its records."""
    from agentlightning.rl.trajectory.build import trajectory

    if state.winner is None:
        return None, None
    try:
        return trajectory(state, attempts, **settings), None
    except LightningError as error:
        return None, str(error)


async def rollout_states(store: LightningStore, **filters: Any) -> AsyncGenerator[RolloutState]:
    """Yield every rollout that fits, page by page."""
    states, after = await store.list(limit=200, **filters)
    while states:
        for state in states:
            yield state
        states, after = await store.list(after=after, limit=200, **filters)


async def find_rollout(store: LightningStore, name: str) -> str:
    """Return the id of the only rollout whose id starts or ends with `name`."""
    ids = [state.rollout.id async for state in rollout_states(store)]
    matches = [rollout_id for rollout_id in ids if rollout_id.endswith(name) or rollout_id.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(f"{name!r} fits {len(matches)} rollouts: {', '.join(matches[:4])} ... Give more of the id.")
    raise ConfigError(f"There is no rollout {name!r} in this store. `agl show RUN` lists the rollouts.")


async def read_rollouts(run: RunFolder, name: str | None = None) -> AsyncGenerator[RunRollout]:
    """Yield the rollouts of a run, in the order in which they were added, or the one whose id starts or ends with `name`."""
    settings, _ = trajectory_settings(run_config(run))
    learned = run.read_batches()
    store = open_store(run.store_address)
    try:
        ids = [await find_rollout(store, name)] if name is not None else [state.rollout.id async for state in rollout_states(store)]
        for rollout_id in ids:
            state, attempts = await store.read(rollout_id)
            yield RunRollout(state, attempts, *read_trajectory(state, attempts, settings), learned.get(rollout_id))
    finally:
        await store.close()


def finished_step(rollout: Rollout) -> int | None:
    """The step as `metrics.jsonl` counts it: how many were finished with it. (A training rollout is made before its step ends.)"""
    if rollout.step is None:
        return None
    return rollout.step + 1 if rollout.mode == "train" else rollout.step


def kind_of_rollout(rollout: Rollout) -> str:
    """The mode of a rollout; of an evaluation also whether its replies are the likeliest or sampled."""
    if rollout.mode != "eval" or rollout.sampling is None:
        return rollout.mode
    return f"{'greedy' if is_greedy(rollout.sampling.temperature) else 'sampled'} {rollout.mode}"


def question_of(task: Task) -> str:
    """What a task asks, on one line: its latest message, a field by its usual name, or everything."""
    text = _question(task.input)
    return " ".join((text if isinstance(text, str) else json.dumps(text, ensure_ascii=False, default=str)).split())


def task_text(task: Task) -> str:
    """What a task asks, after its id, unless that is only a hash."""
    question = question_of(task)
    return question if is_hash(task.id) else f"{task.id} {question}"


def is_hash(task_id: str) -> bool:
    """Whether a task's id was made for it, so that it tells a reader nothing."""
    return re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", task_id) is not None


def _question(input: Any) -> Any:
    if not isinstance(input, dict):
        return input
    fields = cast("dict[str, Any]", input)
    messages: Any = fields.get("messages") or fields.get("input")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        return cast("dict[str, Any]", messages[-1]).get("content")
    rest = {name: value for name, value in fields.items() if name != "id"}
    usual = next((rest[name] for name in QUESTIONS if isinstance(rest.get(name), str)), None)
    return usual if usual is not None else next(iter(rest.values())) if len(rest) == 1 else rest
