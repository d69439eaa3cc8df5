"""Transitions, trajectories and rollouts, as tests of rl, algorithms and trainers build them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agentlightning.types import Task, Trajectory, Transition


def transition(index: int, prompt: Sequence[int], response: Sequence[int], **fields: Any) -> Transition:
    """A sampled transition; `id` is short for `completion_id`, and `fields` override any other default."""
    defaults = {
        "completion_id": fields.pop("id", f"c{index}"),
        "call_id": f"call{index}",
        "logprobs": np.linspace(-1, -0.5, len(response), dtype=np.float32),
        "versions": np.full(len(response), 3, np.int32),
        "temperature": 1.0,
        "agent": None,
        "turn": index,
    }
    ids = {"prompt_ids": np.array(prompt, np.int32), "response_ids": np.array(response, np.int32)}
    return Transition(index=index, **ids, **{**defaults, **fields})


def trajectory(index: int, *transitions: Transition, group: str = "g", reward: float | None = 1.0, **fields: Any) -> Trajectory:
    """A rollout that succeeded. Its task is named like its group."""
    defaults = {
        "task": Task(group, None),
        "rollout_id": f"{group}r{index}",
        "attempt_id": f"{group}a{index}",
        "mode": "train",
        "status": "succeeded",
    }
    return Trajectory(group=group, index=index, reward=reward, transitions=transitions, **{**defaults, **fields})


def rollout(index: int, reward: float | None, group: str = "g", replies: int = 1, *, logprobs: bool = True) -> Trajectory:
    """A rollout named `group` + `index`, with replies of three tokens after prompts of three."""
    name = f"{group}{index}"
    replied = [
        transition(
            turn,
            [1, 5, turn],
            [10 + index, 20, 2],
            id=f"{name}.{turn}",
            logprobs=np.full(3, -0.5, np.float32) if logprobs else None,
            versions=np.zeros(3, np.int32),
        )
        for turn in range(replies)
    ]
    return trajectory(index, *replied, group=group, reward=reward, rollout_id=name, attempt_id=name)
