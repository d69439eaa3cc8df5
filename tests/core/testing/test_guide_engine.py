"""The engine of CONTRIBUTING.md keeps the contract of engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from guide import code, length, module_of

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning.errors import EngineError
from agentlightning.registry.registry import Registry
from agentlightning.testing.engine_contract import EngineContract, ask
from agentlightning.types import Policy

SOURCE = code("CONTRIBUTING.md", "# my_package/engine.py")
MODULE = module_of(SOURCE, "my_package.engine")


def write_table(folder: Path, seed: int) -> Path:
    folder.mkdir()
    np.save(folder / "logits.npy", np.random.default_rng(seed).normal(size=(40, 40)))
    return folder


class TestTheEngineOfTheGuide(EngineContract):
    @pytest.fixture
    async def engine(self, tmp_path: Path) -> AsyncIterator[Engine]:
        self.folder = tmp_path
        files = ModelFiles("table", str(write_table(tmp_path / "version-0", seed=0)))
        engine = await MODULE.TableEngine.create(files, MODULE.TableEngineSettings(), {})
        yield engine
        await engine.close()

    async def next_policy(self, engine: Engine) -> Policy:
        return Policy(version=1, base="table", uri=f"file:{write_table(self.folder / 'version-1', seed=1)}")

    async def test_it_refuses_what_it_does_not_honour(self, engine: Engine) -> None:
        with pytest.raises(EngineError, match="full distribution"):
            await ask(engine, self.prompt, top_k=3)
        with pytest.raises(EngineError, match=r"holds no logits\.npy"):
            await engine.load(Policy(version=1, base="table", uri="file:/nowhere"))


def test_the_engine_of_the_guide_is_short_and_can_be_registered() -> None:
    assert length(SOURCE) <= 60
    plugin = type("Plugin", (), {"register_engines": lambda self, register: register("table", MODULE.TableEngine)})()
    assert Registry({"my_package": plugin}).load("engines", "table") is MODULE.TableEngine
