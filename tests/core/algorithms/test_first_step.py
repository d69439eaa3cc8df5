"""An advantage that compares rollouts needs groups, and a first step without any advantage is reported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentlightning.algorithms.lightning import LightningRL
from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.errors import AgentError, ConfigError
from agentlightning.rl.arrays import RolloutArrays
from agentlightning.rl.marks import independent
from agentlightning.training.metrics import step_metrics
from agentlightning.training.step_checks import StepChecks, check_first
from agentlightning.types import Doubles, Trajectory
from world import rollout


def best_but_one(rollouts: RolloutArrays, returns: Doubles) -> Doubles:
    best = [np.sort(rollouts.returns[rollouts.group == g])[-2:][0] for g in range(rollouts.group.max(initial=-1) + 1)]
    return returns - np.array(best)[rollouts.group][rollouts.rollout]


@independent
def above_a_half(rollouts: RolloutArrays, returns: Doubles) -> Doubles:
    return returns - 0.5


@dataclass
class OneStep:
    """A session that plays given trajectories."""

    trajectories: list[Trajectory]
    max_staleness: int = 0
    messages: list[str] = field(default_factory=list[str])
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    batch: Batch | None = None

    def say(self, text: str) -> None:
        self.messages.append(text)

    def steps(self) -> Iterator[int]:
        return iter([0, 1])

    async def collect(self, step: int, group_size: int) -> list[Trajectory]:
        return self.trajectories

    async def values(self, batch: Batch) -> Doubles:
        raise AssertionError("no critic")

    async def update(self, batch: Batch, loss: LossSettings) -> dict[str, float]:
        return {"trained": float(batch.trained_tokens)}

    async def finish_step(
        self,
        step: int,
        trajectories: Sequence[Trajectory],
        returns: Sequence[Any],
        advantages: Sequence[Any],
        batch: Batch,
        metrics: dict[str, float],
    ) -> None:
        self.metrics, self.batch = metrics, batch


def test_an_unmarked_advantage_is_refused_with_groups_of_one() -> None:
    with pytest.raises(ConfigError, match=r"compares the rollouts of a group\. Set group_size to 2 or more.*rl\.marks\.independent"):
        LightningRL(group_size=1, advantage=best_but_one).parts()
    assert LightningRL(group_size=2, advantage=best_but_one).needs.group


def test_an_independent_advantage_takes_groups_of_one() -> None:
    algorithm = LightningRL(group_size=1, advantage=above_a_half)
    algorithm.parts()
    assert not algorithm.needs.group
    mixed = LightningRL(group_size=1, advantage={"write": above_a_half, "check": best_but_one})
    assert mixed.needs.group, "one part that compares is enough"


def notices(session: OneStep, step: int) -> list[str]:
    """The notices about the last step of a session, if that step had this number."""
    asyncio.run(LightningRL(group_size=2).run(session))
    assert session.batch is not None
    row = {"step": step, **step_metrics(session.trajectories, session.batch), **session.metrics}
    return StepChecks(None, 0.1, Path("runs/x")).notices(row, session.trajectories)


def test_a_first_step_without_rollouts_is_an_error_that_says_so() -> None:
    with pytest.raises(AgentError, match="has no rollouts"):
        check_first([], None)


def test_a_first_step_whose_advantages_are_all_zero_is_reported_once() -> None:
    session = OneStep([rollout(index, 1.0) for index in range(2)])
    (message,) = notices(session, 1)
    assert message.startswith(
        "Step 1: every advantage is zero, so the policy learns nothing from this step (every rollout has the reward 1)"
    )
    assert session.messages == [], "the checks alone report it"
    assert session.metrics == {"trained": 0.0, "nonzero_advantages": 0.0}
    assert notices(session, 2) == ["Step 2: no update, every advantage is zero."]


def test_a_first_step_that_teaches_is_not_reported() -> None:
    session = OneStep([rollout(index, float(index)) for index in range(2)])
    assert notices(session, 1) == session.messages == []
    assert session.metrics["nonzero_advantages"] == 1.0
