"""Rollouts and batches that tests of algorithms and trainers share."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from agentlightning.contracts.batch import Batch
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import conversation, trajectory, transition
from agentlightning.types import Trajectory


def rollout(index: int, reward: float | None, group: str = "g", replies: int = 1, *, logprobs: bool = True) -> Trajectory:
    """A rollout named `group` + `index`, with replies of three tokens after prompts of three."""
    fields = {"logprobs": -0.5 if logprobs else None}
    transitions = [transition(turn, [1, 5, turn], [10 + index, 20, 2], id=f"{group}{index}.{turn}", **fields) for turn in range(replies)]
    return trajectory(index, *transitions, group=group, reward=reward)


def two_turns(seed: int = 0, advantages: Sequence[float] = (1.0, -1.0, 0.5, -0.5)) -> Batch:
    """A batch of one group: rollouts of two turns of 6 tokens below one prompt of 20."""
    rng = np.random.default_rng(seed)
    shared, trajectories = rng.integers(5, 60, 20), list[Trajectory]()
    for index in range(len(advantages)):
        turns = [(rng.integers(5, 60, 6), rng.integers(5, 60, 4)) for _ in range(2)]
        trajectories.append(trajectory(index, *conversation(shared, turns, id=f"c{index}", logprobs=-4.0)))
    return make_batch(trajectories, [np.full(2, advantage) for advantage in advantages])


def two_groups(rewards: Sequence[float] = (1.0,) * 7) -> list[Trajectory]:
    """Rollouts of two turns, four below one prompt and three below another; the second turn is sampled at another temperature."""
    rng = np.random.default_rng(0)
    prompts, trajectories = {group: rng.integers(5, 60, 6) for group in "gh"}, list[Trajectory]()
    for index, (group, reward) in enumerate(zip("gggghhh", rewards, strict=True)):
        turns = [(rng.integers(5, 60, 3 + (index + turn) % 3), (40 + turn, 41)) for turn in range(2)]
        first, second = conversation(prompts[group], turns, id=f"c{index}", logprobs=-4.0)
        transitions = first, structs.replace(second, temperature=0.7, continues=0)
        trajectories.append(trajectory(index, *transitions, group=group, reward=float(reward)))
    return trajectories


def forget_temporary_modules(patch: pytest.MonkeyPatch) -> None:
    """Unload the code that other tests wrote, loaded, and perhaps changed, so that evaluations of the code that is left can be reused."""
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if "/pytest-" in path and path.startswith(tempfile.gettempdir()):
            patch.delitem(sys.modules, name)


class StopAfter:
    """Progress that stops the run, as Ctrl-C does, once a step is done."""

    def __init__(self, step: int) -> None:
        self.at, self.stop = step, asyncio.Event()

    def step(self, row: Any) -> None:
        if row["step"] == self.at:
            self.stop.set()

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None
