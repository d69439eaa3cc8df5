"""What `agl.rollout` blocks share: an event loop for synchronous callers, and a store for each address.

A service may have hundreds of blocks open at once. Each would otherwise start a thread and open a store, which for PostgreSQL is a pool of
connections. The last block to end closes what it shared.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from agentlightning.contracts.store import LightningStore
from agentlightning.stores.common import open_store

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Shared:
    store: LightningStore
    users: int = 0


_stores: dict[tuple[asyncio.AbstractEventLoop, str, str], _Shared] = {}
"""Open stores by the loop that uses them, address, and current folder."""


@asynccontextmanager
async def shared_store(store: LightningStore | str) -> AsyncGenerator[LightningStore]:
    """Open the store of an address, shared by the blocks of this event loop that use it now. A store itself stays open after the block."""
    if not isinstance(store, str):
        yield store
        return
    key = asyncio.get_running_loop(), store, _folder()
    shared = _stores.get(key)
    if shared is None:
        shared = _stores[key] = _Shared(open_store(store))
    shared.users += 1
    try:
        yield shared.store
    finally:
        shared.users -= 1
        if not shared.users:
            _stores.pop(key, None)
            await shared.store.close()


def _folder() -> str:
    """The current folder, to which a relative address belongs. Empty if it was deleted."""
    try:
        return os.getcwd()
    except OSError:
        return ""


class LoopThread:
    """An event loop in a thread, for synchronous callers. All that are open at once share one."""

    _lock = threading.Lock()
    _shared: LoopThread | None = None

    def __init__(self) -> None:
        self._users = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="agentlightning-rollout", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls) -> LoopThread:
        """Return the shared one. Close it once."""
        with cls._lock:
            if cls._shared is None:
                cls._shared = cls()
            cls._shared._users += 1
            return cls._shared

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end. If the caller is interrupted, `work` is cancelled, because the loop goes on for others."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        with LoopThread._lock:
            self._users -= 1
            if self._users:
                return
            if LoopThread._shared is self:
                LoopThread._shared = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @classmethod
    def forget(cls) -> None:
        """Begin anew in a forked process. It has no copy of the thread, and connections are its parent's."""
        cls._lock, cls._shared = threading.Lock(), None
        _stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LoopThread.forget)
