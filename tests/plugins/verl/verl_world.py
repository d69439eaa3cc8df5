"""For the tests of the verl trainer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.contracts.trainer import Capabilities, Trainer, TrainerSettings
from agentlightning.rl.batch.build import make_batch
from agentlightning.testing.rollouts import conversation, trajectory
from agentlightning.training.weight_sync import WeightCheck
from agentlightning.types import Policy, Trajectory
from agentlightning_torch.trainer import Settings as TorchSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_verl.settings import VerlSettings
from agentlightning_verl.trainer import VerlTrainer

PYTHON = os.environ.get("AGL_TEST_VERL")
"""A Python that has verl (`make test-verl`)."""
LR = 1e-3


def batch_of(seed: int = 0, *, temperature: float = 1.0, advantages: tuple[float, ...] = (1.0, -1.0, 0.5, -0.2, 0.3)) -> Batch:
    """Rollouts of two turns below one prompt, of different lengths."""
    rng = np.random.default_rng(seed)
    shared, trajectories = rng.integers(5, 250, 20), list[Trajectory]()
    for index in range(len(advantages)):
        turns = [(rng.integers(5, 250, 4 + index), rng.integers(5, 250, 4)) for _ in range(2)]
        recorded = rng.normal(-5, 0.5, 4 + index)
        trajectories.append(trajectory(index, *conversation(shared, turns, id=f"c{index}", logprobs=recorded, temperature=temperature)))
    return make_batch(trajectories, [np.full(2, advantage) for advantage in advantages])


@dataclass(frozen=True, kw_only=True)
class BothSettings(TrainerSettings):
    lr: float = LR


class Both(Trainer):
    """verl's trainer, with the torch trainer beside it on every batch; `seen` has what both said."""

    Settings = BothSettings
    seen: list[dict[str, tuple[float, float]]] = []  # noqa: RUF012 (of the one run that a test makes)

    def __init__(self, verl: VerlTrainer, torch_trainer: TorchTrainer) -> None:
        self.verl, self.torch = verl, torch_trainer
        self.capabilities = verl.capabilities

    @classmethod
    async def create(cls, model: ModelFiles, settings: BothSettings, share: Share) -> Both:
        torch.set_num_threads(1)
        cls.seen.clear()
        own: Any = TorchSettings(lr=settings.lr, device="cpu", dtype="float32")
        beside = await TorchTrainer.create(model, own, {})
        return cls(await VerlTrainer.create(model, VerlSettings(python=PYTHON, lr=settings.lr, device="cpu"), share), beside)

    @classmethod
    def offers(cls, settings: BothSettings) -> Capabilities:
        return VerlTrainer.offers(VerlSettings())

    @property
    def policy(self) -> Policy:
        return self.verl.policy

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        policy, metrics = await self.verl.step(batch, loss)
        _, expected = await self.torch.step(batch, loss)
        if batch.trained_tokens:
            compared = ("loss", "grad_norm", "entropy", "mismatch_abs", "mismatch_abs_error", "mismatch_abs_max")
            self.seen.append({name: (metrics[name], expected[name]) for name in compared})
        return policy, metrics

    async def export(self, folder: Path) -> Policy:
        policy = await self.verl.export(folder)
        await self.torch.export(folder.with_name(f"{folder.name}-torch"))
        ours, theirs = WeightCheck.read(folder), WeightCheck.read(folder.with_name(f"{folder.name}-torch"))
        assert ours is not None
        assert theirs is not None
        if self.seen:
            self.seen[-1]["probe"] = (ours.difference(theirs.logprobs), 0.0)
        return policy

    async def save(self, folder: Path) -> None:
        await self.verl.save(folder)

    async def restore(self, folder: Path) -> None:
        await self.verl.restore(folder)

    async def close(self) -> None:
        await self.verl.close()
        await self.torch.close()
