"""The torch engine keeps the contract that every engine keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from agentlightning.contracts.model import ModelFiles
from agentlightning.testing.engine_contract import EngineContract
from agentlightning.types import Policy
from agentlightning_torch.engine import Settings as EngineSettings
from agentlightning_torch.engine import TorchEngine
from agentlightning_torch.testing import tiny_model


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("tiny"))


class TestTorchEngine(EngineContract):
    @pytest.fixture
    async def engine(self, files: ModelFiles) -> AsyncIterator[TorchEngine]:
        engine = await TorchEngine.create(files, EngineSettings(device="cpu", dtype="float32"), {})
        yield engine
        await engine.close()

    async def next_policy(self, engine: Any) -> Policy:
        """The weights that the engine shares have moved on."""
        weights = engine._weights
        weights.policy = replace(weights.policy, version=weights.policy.version + 1)
        return weights.policy
