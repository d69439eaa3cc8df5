from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from adapter_world import World, open_world

from agentlightning.testing.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters-tokenizer")
    make_tokenizer(folder)
    return folder


@pytest.fixture
def delay() -> float:
    """Seconds that the model takes for a piece; a test overrides it."""
    return 0.0


@pytest.fixture
async def world(script: Any, delay: float, tokenizer_folder: Path) -> AsyncIterator[World]:
    """`script`, of each framework's own conftest, is what the model says."""
    async with open_world(tokenizer_folder, script, delay=delay) as world:
        yield world
