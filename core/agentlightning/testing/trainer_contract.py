"""The contract of `Trainer` as tests that any implementation runs on itself.

    class TestMyTrainer(TrainerContract):
        async def make(self):
            return await MyTrainer.create(model_files, MySettings(), {})

The tests are coroutines: pytest-asyncio runs them in auto mode, or with a mark on the class (`pytestmark = pytest.mark.asyncio`).
They compare weights by the metrics of the next step, so that a trainer keeps its weights where it likes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from msgspec import structs

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import Mismatch, NonFinite, TrainerError, UnsupportedSetting
from agentlightning.rl.batch.build import make_batch
from agentlightning.rl.loss import PPOClip
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.testing.store import refused
from agentlightning.training.weight_sync import WeightCheck, folder_of
from agentlightning.types import Trajectory

CLOCK = ("seconds", "per_second", "memory")
"""Parts of the names of metrics that measure the machine, not the weights."""


@dataclass(frozen=True, kw_only=True)
class UnknownLoss(LossSettings):
    """A loss that no trainer has."""

    name: str = "a loss that no trainer has"


def batch_of(*advantages: float, turns: int = 2, vocabulary: int = 250) -> Batch:
    """One group with a rollout for each advantage: `turns` model calls below one prompt of 12 tokens. A rollout's tokens depend on its
    index alone."""
    prompt, trajectories = np.random.default_rng(0).integers(5, vocabulary, 12), list[Trajectory]()
    for index in range(len(advantages)):
        rng = np.random.default_rng(index)
        replies = [(rng.integers(5, vocabulary, 6), rng.integers(5, vocabulary, 3)) for _ in range(turns)]
        transitions = conversation(prompt, replies, id=f"c{index}", logprobs=rng.normal(-5, 0.3, 6))
        trajectories.append(trajectory(index, *transitions))
    return make_batch(trajectories, [np.full(turns, advantage) for advantage in advantages])


def of_weights(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that weights and batch decide."""
    return {name: value for name, value in metrics.items() if not any(part in name for part in CLOCK)}


class TrainerContract:
    """Subclass it and define `make`, which opens a trainer; each call gives the same fresh weights. pytest gives `tmp_path`."""

    loss: ClassVar[LossSettings] = PPOClip()
    vocabulary: ClassVar[int] = 250
    """Token ids below it are in the model's vocabulary."""
    several_updates: ClassVar[bool] = True
    """Whether it takes several optimizer steps on a batch (`loss.epochs`, `loss.minibatches`)."""

    async def make(self) -> Trainer:
        raise NotImplementedError("Define `make` in the subclass. It returns a fresh trainer.")

    @asynccontextmanager
    async def trainer(self) -> AsyncGenerator[Trainer]:
        trainer = await self.make()
        try:
            yield trainer
        finally:
            await trainer.close()

    def batch(self, *advantages: float, turns: int = 2) -> Batch:
        return batch_of(*(advantages or (1.0, -1.0, 0.5)), turns=turns, vocabulary=self.vocabulary)

    # --- steps ---------------------------------------------------------------------------------------------------------------------

    async def test_a_step_makes_the_next_version_of_the_policy(self) -> None:
        async with self.trainer() as trainer:
            before = trainer.policy
            policy, metrics = await trainer.step(self.batch(), self.loss)
            assert policy == trainer.policy == structs.replace(before, version=before.version + 1, uri=policy.uri)
            _, later = await trainer.step(self.batch(), self.loss)
            assert trainer.policy.version == before.version + 2
            assert of_weights(metrics) != of_weights(later), "the step did not change the weights"

    async def test_metrics_are_finite_floats(self) -> None:
        async with self.trainer() as trainer:
            _, metrics = await trainer.step(self.batch(), self.loss)
        assert metrics
        assert all(isinstance(name, str) and isinstance(value, float) and math.isfinite(value) for name, value in metrics.items())

    async def test_the_same_batch_gives_the_same_step(self) -> None:
        async with self.trainer() as one, self.trainer() as other:
            for batch in (self.batch(), self.batch(0.2, 0.3)):
                _, metrics = await one.step(batch, self.loss)
                _, again = await other.step(batch, self.loss)
                assert of_weights(metrics) == of_weights(again)

    async def test_a_batch_without_signal_trains_nothing_and_keeps_the_version(self) -> None:
        async with self.trainer() as trainer, self.trainer() as fresh:
            before = trainer.policy
            policy, _ = await trainer.step(self.batch(0.0, 0.0), self.loss)
            assert policy == trainer.policy == before
            _, metrics = await trainer.step(self.batch(), self.loss)
            assert of_weights(metrics) == of_weights((await fresh.step(self.batch(), self.loss))[1])

    async def test_the_log_probabilities_before_a_step_are_those_that_it_measured_or_are_not_told(self) -> None:
        async with self.trainer() as trainer:
            batch = self.batch()
            assert trainer.old_logprobs is None
            version = trainer.policy.version
            _, metrics = await trainer.step(batch, self.loss)
            logprobs = trainer.old_logprobs
            if logprobs is not None:
                assert (np.isfinite(logprobs) == batch.trained).all()
                compared = batch.trained & (batch.version == version)
                difference = float(np.abs(logprobs - batch.rollout_logprobs)[compared].mean())
                assert math.isclose(difference, metrics.get("mismatch_abs", difference), rel_tol=1e-4)
            await trainer.step(self.batch(0.0, 0.0), self.loss)
            assert trainer.old_logprobs is None

    async def test_a_step_that_is_not_finite_leaves_the_weights_as_they_were(self) -> None:
        async with self.trainer() as trainer, self.trainer() as fresh:
            batch = self.batch()
            endless = replace(batch, advantage=np.where(batch.trained, np.nan, 0.0))
            with refused(NonFinite):
                await trainer.step(endless, self.loss)
            assert trainer.policy == fresh.policy
            _, metrics = await trainer.step(batch, self.loss)
            assert of_weights(metrics) == of_weights((await fresh.step(batch, self.loss))[1])

    async def test_a_batch_of_other_weights_is_refused_and_leaves_the_weights_as_they_were(self) -> None:
        for several in (False, True):
            loss = replace(self.loss, epochs=2) if several and self.several_updates else self.loss
            async with self.trainer() as trainer, self.trainer() as fresh:
                trainer.mismatch_limit = 0.5
                batch = self.batch()
                other = replace(batch, rollout_logprobs=batch.rollout_logprobs - 9)
                with refused(Mismatch):
                    await trainer.step(other, loss)
                assert trainer.policy == fresh.policy
                later = replace(other, version=other.version - 1)  # sampled by an earlier version: a difference is expected
                _, metrics = await trainer.step(later, loss)
                assert of_weights(metrics) == of_weights((await fresh.step(later, loss))[1])

    # --- settings that it does not honour (law 11) -----------------------------------------------------------------------------------

    async def test_a_loss_that_it_does_not_have_is_refused(self) -> None:
        async with self.trainer() as trainer:
            assert self.loss.name in trainer.capabilities.losses
            with refused(UnsupportedSetting):
                await trainer.step(self.batch(), UnknownLoss())
            assert trainer.policy.version == 0

    async def test_a_setting_of_the_loss_that_it_does_not_honour_is_refused(self) -> None:
        async with self.trainer() as trainer:
            for setting in ("kl_coef", "entropy_coef"):
                if setting not in trainer.capabilities.extras:
                    with refused(UnsupportedSetting):
                        await trainer.step(self.batch(), replace(self.loss, **{setting: 0.1}))
            assert trainer.policy.version == 0

    async def test_a_conversation_that_is_too_long_is_refused_and_changes_nothing(self) -> None:
        async with self.trainer() as trainer:
            limit = trainer.capabilities.max_sequence_tokens
            if limit is not None:
                with refused(TrainerError):
                    await trainer.step(self.batch(1.0, -1.0, turns=limit // 9 + 2), self.loss)
            assert trainer.policy.version == 0

    async def test_values_are_those_of_trained_tokens_or_refused(self) -> None:
        async with self.trainer() as trainer:
            batch = self.batch()
            if not trainer.capabilities.critic:
                with refused(UnsupportedSetting):
                    await trainer.values(batch)
                return
            values = await trainer.values(batch)
            assert (np.isfinite(values) == batch.trained).all()

    # --- weights on disk -----------------------------------------------------------------------------------------------------------

    async def test_a_restored_trainer_takes_the_same_next_step(self, tmp_path: Path) -> None:
        async with self.trainer() as trainer, self.trainer() as restored:
            await trainer.step(self.batch(), self.loss)
            (tmp_path / "checkpoint").mkdir()
            await trainer.save(tmp_path / "checkpoint")
            policy, metrics = await trainer.step(self.batch(0.2, 0.3), self.loss)
            await restored.restore(tmp_path / "checkpoint")
            assert restored.policy.version == policy.version - 1
            again, metrics_again = await restored.step(self.batch(0.2, 0.3), self.loss)
            assert again == policy
            assert of_weights(metrics) == of_weights(metrics_again)

    async def test_a_folder_without_a_checkpoint_is_refused(self, tmp_path: Path) -> None:
        async with self.trainer() as trainer:
            with refused(TrainerError):
                await trainer.restore(tmp_path)
            assert trainer.policy.version == 0

    async def test_exported_weights_have_their_version_and_a_weight_check(self, tmp_path: Path) -> None:
        async with self.trainer() as trainer:
            if "file" not in trainer.capabilities.uris:
                with refused(UnsupportedSetting):
                    await trainer.export(tmp_path / "weights")
                return
            await trainer.step(self.batch(), self.loss)
            policy = await trainer.export(tmp_path / "weights")
            assert policy == structs.replace(trainer.policy, uri=policy.uri)
            assert policy.uri.startswith("file:")
            assert folder_of(policy) == tmp_path / "weights"
            assert WeightCheck.read(tmp_path / "weights") is not None

    # --- the end -----------------------------------------------------------------------------------------------------------------------

    async def test_a_closed_trainer_says_so(self) -> None:
        trainer = await self.make()
        await trainer.close()
        await trainer.close()
        with refused(TrainerError):
            await trainer.step(self.batch(), self.loss)
