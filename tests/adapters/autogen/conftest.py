from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from autogen_world import World, planned

import agentlightning_autogen
from agentlightning.gateway import Gateway
from agentlightning.memory import MemoryStore
from agentlightning.testing.engine import ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autogen-tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture
def script() -> Any:
    """What the model says; a test overrides it."""
    return planned


@pytest.fixture
def delay() -> float:
    return 0.0


@pytest.fixture
async def world(script: Any, delay: float, tokenizer_folder: Path) -> AsyncIterator[World]:
    store = MemoryStore()
    gateway = Gateway(store, ScriptedEngine(tokenizer_folder, script, chunk=16, delay=delay))
    await gateway.start()
    yield World(store, gateway)
    await gateway.stop()


@pytest.fixture
def installed() -> None:
    agentlightning_autogen.install(models=["gpt-4o-mini"])


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    agentlightning_autogen.uninstall()
