"""What the tests of the vLLM engine share: a trainer, and an engine that serves its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from agentlightning.types import Policy
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_vllm.engine import VllmEngine


class World:
    """A trainer and an engine that serves what it makes."""

    def __init__(self, trainer: TorchTrainer, engine: VllmEngine, folder: Path) -> None:
        self.trainer, self.engine, self.folder = trainer, engine, folder

    @property
    def model(self) -> Any:
        return self.trainer.weights.model

    def change(self, amount: float = 0.02) -> None:
        """What a step does: other weights, the next version."""
        weights = self.trainer.weights
        with weights.lock, torch.no_grad():
            version = weights.policy.version + 1
            for parameter in weights.model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(version))
                    parameter.add_(amount * noise)
            weights.policy = replace(weights.policy, version=version)

    async def export(self) -> Policy:
        return await self.trainer.export(self.folder / f"version-{self.trainer.policy.version}")

    async def serve(self) -> dict[str, float]:
        return await self.engine.load(await self.export())
