"""The trainer of a run that trains no weights: it keeps the engine's own version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agentlightning.contracts.batch import Batch
from agentlightning.contracts.loss import LossSettings
from agentlightning.contracts.trainer import Capabilities, Trainer
from agentlightning.errors import TrainerError
from agentlightning.types import Policy


class FrozenTrainer(Trainer):
    """Takes no step, and saves nothing."""

    capabilities = Capabilities(losses=frozenset(), uris=frozenset())

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    @classmethod
    def offers(cls, settings: Any) -> Capabilities:
        return cls.capabilities

    async def step(self, batch: Batch, loss: LossSettings) -> tuple[Policy, dict[str, float]]:
        raise TrainerError("This run trains no weights. Use an algorithm that does, such as 'lightning'.")

    async def save(self, folder: Path) -> None:
        """Do nothing. The run's state is beside it."""

    async def restore(self, folder: Path) -> None:
        """Do nothing. See `save`."""
