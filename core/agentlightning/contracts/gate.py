"""A gate for engines: in-flight replies finish, new ones wait. It works from any event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from threading import Lock


class Gate:
    """Open at first. Each `hold` needs its own `release`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held = 0
        self._in_flight = 0
        self._open = _future(done=True)
        self._idle = _future(done=True)

    @asynccontextmanager
    async def reply(self) -> AsyncGenerator[None]:
        """Wait until the gate is open; the block is one in-flight reply."""
        while not self._enter():
            await _wait(self._open)
        try:
            yield
        finally:
            self._leave()

    async def hold(self) -> None:
        """Close the gate, and return when no reply is in flight."""
        with self._lock:
            self._held += 1
            if self._open.done():
                self._open = _future(done=False)
        await _wait(self._idle)

    def release(self) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._held = max(0, self._held - 1)
            if not self._held and not self._open.done():
                self._open.set_result(None)

    def _enter(self) -> bool:
        with self._lock:
            if self._held:
                return False
            self._in_flight += 1
            if self._idle.done():
                self._idle = _future(done=False)
            return True

    def _leave(self) -> None:
        with self._lock:
            self._in_flight -= 1
            if not self._in_flight:
                self._idle.set_result(None)


def _future(*, done: bool) -> Future[None]:
    future: Future[None] = Future()
    if done:
        future.set_result(None)
    return future


async def _wait(future: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(future))
