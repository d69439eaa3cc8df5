"""The torch engine and the torch trainer keep the contracts."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch
from msgspec import structs

from agentlightning.contracts.model import ModelFiles
from agentlightning.testing.engine_contract import EngineContract
from agentlightning.testing.trainer_contract import TrainerContract
from agentlightning.types import Policy
from agentlightning_torch.engine import TorchEngine, TorchEngineSettings
from agentlightning_torch.testing import tiny_model
from agentlightning_torch.trainer import Settings as TrainerSettings
from agentlightning_torch.trainer import TorchTrainer


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    torch.set_num_threads(1)
    return tiny_model(tmp_path_factory.mktemp("tiny"))


class TestTorchEngine(EngineContract):
    @pytest.fixture
    async def engine(self, files: ModelFiles) -> AsyncIterator[TorchEngine]:
        engine = await TorchEngine.create(files, TorchEngineSettings(device="cpu", dtype="float32"), {})
        yield engine
        await engine.close()

    async def test_closing_the_iterator_frees_its_place(self, engine: Any) -> None:
        engine._weights.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))  # a complete reply takes seconds
        await super().test_closing_the_iterator_frees_its_place(engine)

    async def next_policy(self, engine: Any) -> Policy:
        """The weights that the engine shares have moved on."""
        weights = engine._weights
        weights.policy = structs.replace(weights.policy, version=weights.policy.version + 1)
        return weights.policy


class TestOneOfSeveralTorchPolicies(TestTorchEngine):
    @pytest.fixture
    async def engine(self, files: ModelFiles) -> AsyncIterator[Any]:
        engine = await TorchEngine.create(files, TorchEngineSettings(device="cpu", dtype="float32"), {})
        for name in ("first", "second"):
            await engine.load(Policy(name=name, version=0, base=files.name, uri=f"file:{files.path}"))
        self.weights = engine._weights
        yield engine.policies["second"]
        await engine.close()

    async def test_closing_the_iterator_frees_its_place(self, engine: Any) -> None:
        self.weights.model.register_forward_pre_hook(lambda *_: time.sleep(0.01))
        await EngineContract.test_closing_the_iterator_frees_its_place(self, engine)

    async def next_policy(self, engine: Any) -> Policy:
        return structs.replace(engine.policy, version=engine.policy.version + 1)


class TestTorchTrainer(TrainerContract):
    settings: dict[str, Any] = {}  # noqa: RUF012 (a subclass replaces it)

    @pytest.fixture(autouse=True)
    def model(self, files: ModelFiles) -> None:
        self.files = files

    async def make(self) -> TorchTrainer:
        settings = {"lr": 1e-3, "device": "cpu", "dtype": "float32", "tokens_per_pack": 200, **self.settings}
        return await TorchTrainer.create(self.files, TrainerSettings(**settings), {})


class TestTorchTrainerWithLoRA(TestTorchTrainer):
    settings = {"train": "lora"}  # noqa: RUF012


class TestTorchTrainerWithCritic(TestTorchTrainer):
    settings = {"critic": True}  # noqa: RUF012
