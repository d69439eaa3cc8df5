"""What the tests of the gateway share: a gateway over a memory store and a scripted engine, real openai clients, messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from agentlightning.contracts.store import AttemptRecords
from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import Script, ScriptedEngine
from agentlightning.testing.tokenizer import make_tokenizer
from agentlightning.types import LLM, Attempt, Rollout, Sampling, Task, new_id

CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "works out an arithmetic expression.\nMore.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]},
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "search",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}}},
    },
}


class House:
    """Everything that a test of the gateway needs."""

    def __init__(self, engine: ScriptedEngine, stack: AsyncExitStack, **options: Any) -> None:
        self.store, self.engine, self._stack = open_store("memory:"), engine, stack
        self.gateway = Gateway(self.store, engine, **options)

    async def attempt(self, sampling: Sampling | None = None, **more: Any) -> Attempt:
        fields = {"mode": "train", "sampling": sampling or Sampling(), "task": Task(new_id(), None), **more}
        return await self.store.begin(Rollout(**fields), "test", lease=60)

    def client(self, attempt: Attempt | str, **more: Any) -> openai.AsyncOpenAI:
        key = attempt if isinstance(attempt, str) else attempt.key
        client = openai.AsyncOpenAI(base_url=self.gateway.base_url, api_key=key, **{"max_retries": 0, **more})
        self._stack.push_async_callback(client.close)
        return client

    async def records(self, attempt: Attempt) -> AttemptRecords:
        return await self.store.records(attempt.id)

    def llm(self, attempt: Attempt) -> LLM:
        return self.gateway.llm(attempt)

    def text(self, ids: Any) -> str:
        return self.engine.tokenizer.decode(list(ids))


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
            started = House(ScriptedEngine(tokenizer_folder, script, **engine), stack, **(options or {}))
            await started.gateway.start()
            stack.push_async_callback(started.gateway.stop)
            return started

        yield make


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def slowly(house: House, monkeypatch: Any) -> None:
    """Make the store take its time to record: whatever leaves before it has recorded is seen to."""
    record = house.store.record

    async def later(records: Any) -> None:
        await asyncio.sleep(0.1)
        await record(records)

    monkeypatch.setattr(house.store, "record", later)


async def eventually(condition: Any, seconds: float = 5.0) -> None:
    """Wait until an async condition holds."""
    for _ in range(int(seconds / 0.02)):
        if await condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come true in time")
