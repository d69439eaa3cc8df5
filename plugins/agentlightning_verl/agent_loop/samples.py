"""Converts verl's prompts to tasks, and our trajectories to verl's samples."""

# verl has an environment of its own.
# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from tensordict import NonTensorData, NonTensorStack, TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from agentlightning.contracts.batch import Batch
from agentlightning.errors import AgentError
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.batch.packs import Pack, leaf_rows
from agentlightning.types import Trajectory

PRIVATE = ("uid", "global_steps", "validate", "agent_name", "priority", "__rollout_n__", "__do_sample__", "tools_kwargs")
"""Fields of a row that only verl uses. The task has the others."""


def prompt_rows(prompts: TensorDict) -> list[dict[str, Any]]:
    """Return the rows of one of verl's batches as dictionaries."""

    def value(column: Any, index: int) -> Any:
        if isinstance(column, NonTensorStack):
            return column[index].data
        return column.data if isinstance(column, NonTensorData) else column[index]

    return [{name: value(column, index) for name, column in prompts.items()} for index in range(len(prompts))]


def task_of(row: Mapping[str, Any]) -> Any:
    """Return the task in a row as JSON: all fields except tensors and verl's own."""
    return {name: _plain(value) for name, value in row.items() if not isinstance(value, torch.Tensor) and name not in PRIVATE}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def samples_of(trajectory: Trajectory) -> list[AgentLoopOutput]:
    """Return the root-to-leaf rows of an attempt, ordered by their last call.

    Each sampled token is trained in exactly one row. Raises `AgentError` without a reward, or without anything to train.
    """
    if trajectory.status != "succeeded" or trajectory.reward is None:
        reason = trajectory.error or "no reward was recorded"
        raise AgentError(f"Rollout {trajectory.rollout_id} {trajectory.status} without a reward: {reason}")
    # verl scores validation with greedy replies, so it needs their rows too
    transitions = [step if step.temperature else replace(step, temperature=1.0, trained=True) for step in trajectory.transitions]
    batch = make_batch([replace(trajectory, transitions=tuple(transitions))], [np.ones(len(transitions))])
    packs = [pack for pack in leaf_rows(batch) if pack.trained.any()]
    if not packs:
        reason = batch.untrained[0].reason if batch.untrained else "it never called the model"
        raise AgentError(f"Rollout {trajectory.rollout_id} has nothing to train: {reason}")
    packs.sort(key=lambda pack: int(batch.transition[pack.index].max()))
    return [_sample(pack, batch, trajectory.reward, turns=2 * len(transitions)) for pack in packs]


def _sample(pack: Pack, batch: Batch, reward: float, *, turns: int) -> AgentLoopOutput:
    """Return one row. Its prompt ends before the first trained token."""
    first = int(np.flatnonzero(pack.trained)[0])
    ids, index, mask = batch.token_ids[pack.index], pack.index[first:], pack.trained[first:]
    versions = batch.version[index[mask]]
    return AgentLoopOutput(
        prompt_ids=ids[:first].tolist(),
        response_ids=ids[first:].tolist(),
        response_mask=mask.astype(int).tolist(),
        response_logprobs=np.where(mask, batch.rollout_logprobs[index], 0.0).tolist(),
        reward_score=reward,
        num_turns=turns,
        metrics=AgentLoopMetrics(),
        extra_fields={
            "reward_extra_info": {},
            "min_global_steps": int(versions.min()),
            "max_global_steps": int(versions.max()),
        },
    )
