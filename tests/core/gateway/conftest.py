"""`house`: a started gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from gateway_house import House

from agentlightning.testing.engine import Script, ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(folder, merges=[("t", "h"), ("th", "e")])
    return folder


@pytest.fixture
async def house(tokenizer_folder: Path) -> AsyncIterator[Any]:
    """`house(script, ...)`: a started gateway; stopped after the test."""
    async with AsyncExitStack() as stack:

        async def make(script: Script, *, options: dict[str, Any] | None = None, **engine: Any) -> House:
            made = House(ScriptedEngine(tokenizer_folder, script, **engine), stack, **(options or {}))
            await made.gateway.start()
            stack.push_async_callback(made.gateway.stop)
            return made

        yield make
