"""The reference store keeps the contract."""

from __future__ import annotations

import asyncio

import pytest

from agentlightning.errors import StoreError
from agentlightning.stores.memory import MemoryStore, open_memory
from agentlightning.testing.store import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return open_memory("memory:")


def test_an_address_that_names_something_else_is_refused() -> None:
    with pytest.raises(StoreError, match="expected 'memory:'"):
        open_memory("memory:shared")


async def test_closing_wakes_whoever_waits() -> None:
    store = open_memory("memory:")
    waiting = asyncio.ensure_future(store.wait(0))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await asyncio.wait_for(waiting, 1)
