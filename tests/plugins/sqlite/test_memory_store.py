"""The store in memory keeps the contract."""

from __future__ import annotations

import asyncio

import pytest

from agentlightning.errors import StoreError
from agentlightning.registry.registry import registry
from agentlightning.stores.common import open_store
from agentlightning.testing.store import StoreContract, rollouts
from agentlightning_sqlite.store import SQLiteStore, open_memory


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> SQLiteStore:
        return open_memory("memory:")


def test_the_registry_opens_it() -> None:
    assert registry().load("stores", "memory") is open_memory
    assert repr(open_store("memory:")) == "SQLiteStore(':memory:')"
    assert repr(open_store("sqlite::memory:")) == "SQLiteStore(':memory:')"


def test_an_address_that_names_something_else_is_refused() -> None:
    with pytest.raises(StoreError, match=r"'memory:shared' .* Write 'memory:'"):
        open_memory("memory:shared")


async def test_each_store_in_memory_is_a_database_of_its_own() -> None:
    first, second = open_store("memory:"), open_store("memory:")
    await first.add(rollouts(2))
    assert await second.list() == ([], 0)
    assert len((await first.list())[0]) == 2


async def test_closing_wakes_waiters() -> None:
    store = open_memory("memory:")
    waiting = asyncio.ensure_future(store.wait(0))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await asyncio.wait_for(waiting, 1)
