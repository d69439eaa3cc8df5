"""An event loop in a thread of its own, so that every caller's loop may use the same connections."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for callers on any thread's event loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()
        self._lock = threading.Lock()
        self._running: set[asyncio.Future[Any]] = set()
        self.closed = False

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end. A cancelled caller stops waiting, and the work goes on. Raises `RuntimeError` after `close`."""
        with self._lock:
            if self.closed:
                work.close()
                raise RuntimeError("the loop is closed")
            running = asyncio.run_coroutine_threadsafe(self._counted(work), self._loop)
        future = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            future.add_done_callback(_forget)
            raise

    async def _counted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            return await work
        finally:
            self._running.discard(task)

    async def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Accept nothing more, wait for the running coroutines, run `last`, and end the thread."""
        with self._lock:
            if self.closed:
                last.close()
                return
            self.closed = True
            ending = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        await asyncio.wrap_future(ending)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    def abandon(self) -> None:
        """End the thread without waiting for work, for an object that was never closed."""
        with self._lock:
            if self.closed:
                return
            self.closed = True
        asyncio.run_coroutine_threadsafe(self._cancel(), self._loop)
        self._thread.join(timeout=1)
        if not self._loop.is_running():
            self._loop.close()

    async def _cancel(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        await asyncio.gather(*self._running, return_exceptions=True)
        await last
        self._loop.call_soon(self._loop.stop)


def _forget(future: asyncio.Future[Any]) -> None:
    """Take the error that nobody waits for."""
    if not future.cancelled():
        future.exception()
