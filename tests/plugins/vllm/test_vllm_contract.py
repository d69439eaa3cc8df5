"""The vLLM engine keeps the contract that every engine keeps, with one policy and with several."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_world import PolicyWorld, World

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles, Share
from agentlightning.testing.engine_contract import EngineContract
from agentlightning.types import Policy
from agentlightning_torch.trainer import Settings as TrainerSettings
from agentlightning_torch.trainer import TorchTrainer
from agentlightning_vllm.engine import VllmEngine
from agentlightning_vllm.settings import VllmSettings

# vLLM itself takes minutes to start
pytestmark = pytest.mark.timeout(900 if os.environ.get("AGL_TEST_VLLM") else 240)


@pytest.fixture(scope="class")
def shared_world(python: str, files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One server for all tests of the contract; the last one closes the engine."""
    folder: Path = tmp_path_factory.mktemp("weights")

    async def open_world() -> World:
        torch.set_num_threads(1)
        share: Share = {}
        trainer = await TorchTrainer.create(files, TrainerSettings(dtype="float32", device="cpu"), share)
        world = World(trainer, await VllmEngine.create(files, VllmSettings(python=python), share), folder)
        await world.serve()
        return world

    async def close(world: World) -> None:
        await world.engine.close()
        await world.trainer.close()

    world = asyncio.run(open_world())
    yield world
    asyncio.run(close(world))


class TestVllmEngine(EngineContract):
    @pytest.fixture
    def engine(self, shared_world: World) -> VllmEngine:
        self.world = shared_world
        return shared_world.engine

    async def next_policy(self, engine: Any) -> Policy:
        self.world.change()
        return await self.world.export()


@pytest.fixture(scope="class")
def policy_world(python: str, files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PolicyWorld]:
    """One server with two policies for all tests of the contract."""

    async def open_world() -> PolicyWorld:
        world = await PolicyWorld.open(files, tmp_path_factory.mktemp("policies"), {"writer": 4, "editor": 4}, VllmSettings(python=python))
        await world.serve_changed("writer", "editor")
        return world

    world = asyncio.run(open_world())
    yield world
    asyncio.run(world.close())


class TestOneOfSeveralVllmPolicies(EngineContract):
    @pytest.fixture
    def engine(self, policy_world: PolicyWorld) -> Engine:
        self.world = policy_world
        return policy_world.engine.policies["editor"]

    async def next_policy(self, engine: Engine) -> Policy:
        self.world.change("editor")
        return await self.world.export("editor")
