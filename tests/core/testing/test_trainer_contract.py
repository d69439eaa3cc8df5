"""The table trainer keeps the contract of trainers, and the contract catches trainers that break it."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from agentlightning.contracts.trainer import Capabilities
from agentlightning.errors import LightningError
from agentlightning.rl.loss import PPOClip
from agentlightning.testing.trainer import TableSettings, TableTrainer
from agentlightning.testing.trainer_contract import TrainerContract, batch_of
from agentlightning.types import Policy


class TestTableTrainer(TrainerContract):
    several_updates = False

    async def make(self) -> TableTrainer:
        return TableTrainer()


async def test_a_step_of_the_table_trainer_is_the_gradient_of_the_loss() -> None:
    """Compared with a difference quotient of sum(weight * advantage * log-probability)."""
    trainer, batch = TableTrainer(TableSettings(vocabulary=8)), batch_of(1.0, -0.5, vocabulary=8)
    trainer.logits = np.random.default_rng(0).normal(size=(8, 8))
    index = np.flatnonzero(batch.trained)
    before, token = batch.token_ids[batch.parent[index]], batch.token_ids[index]

    def gain(logits: Any) -> float:
        logprob = logits[before] - np.log(np.exp(logits[before]).sum(1, keepdims=True))
        return float((batch.weight[index] * batch.advantage[index] * logprob[np.arange(len(index)), token]).sum())

    old = trainer.logits.copy()
    await trainer.step(batch, PPOClip())
    for row, column in ((5, 6), (6, 7), (7, 5)):
        nudge = np.zeros_like(old)
        nudge[row, column] = 1e-6
        assert trainer.logits[row, column] - old[row, column] == pytest.approx((gain(old + nudge) - gain(old - nudge)) / 2e-6, abs=1e-6)


class SameVersion(TableTrainer):
    async def step(self, batch: Any, loss: Any) -> Any:
        _, metrics = await super().step(batch, loss)
        self.policy = Policy(version=0, base="table", uri="memory:table")
        return self.policy, metrics


class EndlessMetric(TableTrainer):
    async def step(self, batch: Any, loss: Any) -> Any:
        policy, metrics = await super().step(batch, loss)
        return policy, {**metrics, "entropy": float("nan")}


class Random(TableTrainer):
    async def step(self, batch: Any, loss: Any) -> Any:
        self.logits = self.logits + np.random.default_rng().normal(size=self.logits.shape)
        return await super().step(batch, loss)


class StepsOnNothing(TableTrainer):
    async def step(self, batch: Any, loss: Any) -> Any:
        policy, metrics = await super().step(batch, loss)
        if not batch.trained_tokens:
            self.policy = policy = structs.replace(policy, version=policy.version + 1)
        return policy, metrics


class Stale(TableTrainer):
    """Tells the log-probabilities of a batch again after one that trained nothing."""

    async def step(self, batch: Any, loss: Any) -> Any:
        before = self.old_logprobs
        answer = await super().step(batch, loss)
        self.old_logprobs = self.old_logprobs if batch.trained_tokens else before
        return answer


class Careless(TableTrainer):
    """Takes a step that is not finite half-way."""

    async def step(self, batch: Any, loss: Any) -> Any:
        try:
            return await super().step(batch, loss)
        except LightningError:
            self.logits = self.logits + 1.0 * np.arange(len(self.logits))
            raise


class Trusting(TableTrainer):
    """Compares nothing with the engine's log-probabilities."""

    async def step(self, batch: Any, loss: Any) -> Any:
        self.mismatch_limit = math.inf
        return await super().step(batch, loss)


class Eager(TableTrainer):
    """Honours less than it is asked for, and says nothing."""

    async def step(self, batch: Any, loss: Any) -> Any:
        return await super().step(batch, PPOClip())


class Limited(Eager):
    @classmethod
    def offers(cls, settings: Any) -> Capabilities:
        return replace(super().offers(settings), max_sequence_tokens=64)


class Guessing(TableTrainer):
    async def values(self, batch: Any) -> Any:
        return np.zeros(len(batch))


class Forgetful(TableTrainer):
    async def restore(self, folder: Path) -> None:
        logits = self.logits
        await super().restore(folder)
        self.logits = logits


class Accepting(TableTrainer):
    async def restore(self, folder: Path) -> None:
        return


class WithoutWeightCheck(TableTrainer):
    @classmethod
    def offers(cls, settings: Any) -> Capabilities:
        return replace(super().offers(settings), uris=frozenset({"file"}))

    async def export(self, folder: Path) -> Policy:
        folder.mkdir(parents=True, exist_ok=True)
        await self.save(folder)
        return structs.replace(self.policy, uri=f"file:{folder}")


class Undead(TableTrainer):
    async def close(self) -> None:
        return


BROKEN = {
    "next_version": SameVersion,
    "finite_floats": EndlessMetric,
    "same_batch": Random,
    "without_signal": StepsOnNothing,
    "log_probabilities": Stale,
    "not_finite": Careless,
    "other_weights": Trusting,
    "does_not_have": Eager,
    "setting_of_the_loss": Eager,
    "too_long": Limited,
    "values": Guessing,
    "same_next_step": Forgetful,
    "without_a_checkpoint": Accepting,
    "weight_check": WithoutWeightCheck,
    "closed": Undead,
}
"""For each test of the contract a trainer that it catches."""
TESTS = [name for name, _ in inspect.getmembers(TrainerContract) if name.startswith("test_")]


def test_every_test_of_the_contract_has_a_trainer_that_it_catches() -> None:
    assert [sum(part in name for part in BROKEN) for name in TESTS] == [1] * len(TESTS)
    assert len(TESTS) == len(BROKEN)


@pytest.mark.parametrize("part", BROKEN)
async def test_the_contract_catches_a_trainer_that_breaks_it(part: str, tmp_path: Path) -> None:
    class Checked(TrainerContract):
        several_updates = False

        async def make(self) -> TableTrainer:
            return BROKEN[part]()

    (name,) = [name for name in TESTS if part in name]
    test = getattr(Checked(), name)
    with pytest.raises(AssertionError):
        await test(*([tmp_path] if "tmp_path" in inspect.signature(test).parameters else []))
