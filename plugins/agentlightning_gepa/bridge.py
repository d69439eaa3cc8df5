"""Calls from the thread of the library into the run's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from agentlightning.training.controls import Stopped

T = TypeVar("T")


class Bridge:
    """Runs coroutines on a loop for another thread, until it is closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._closed = loop, False
        self._running: Future[Any] | None = None

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of a coroutine, or raise its error. Raises `Stopped` after `close`."""
        if self._closed:
            work.close()
            raise Stopped
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running = future
        return future.result()

    def close(self) -> None:
        """End the call that is running, and refuse others."""
        self._closed = True
        if self._running is not None:
            self._running.cancel()
