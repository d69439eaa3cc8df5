"""Calls that arrive while another one runs share the next transaction, so they share its round trips and its disk flush."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from agentlightning.errors import StoreUnavailable

A = TypeVar("A")
R = TypeVar("R")
TOGETHER = 256
"""Maximum number of calls in one transaction."""


class Combiner(Generic[A, R]):
    """Runs calls of one event loop, alone or together. `run` returns one result for each argument, or fails without an effect.

    If the store is away, all calls that wait together fail together.
    """

    def __init__(self, run: Callable[[list[A]], Awaitable[list[R]]]) -> None:
        self._run = run
        self._waiting: list[tuple[A, asyncio.Future[R]]] = []
        self._task: asyncio.Task[None] | None = None
        self._busy = False

    async def call(self, argument: A) -> R:
        if self._busy:
            future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
            self._waiting.append((argument, future))
            return await future
        self._busy = True
        try:
            (result,) = await self._run([argument])
        finally:
            if self._waiting:
                self._task = asyncio.create_task(self._serve())
            else:
                self._busy = False
        return result

    async def _serve(self) -> None:
        """Run the calls that wait, until there is none."""
        while self._waiting:
            batch, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            if not await self._serve_batch(batch):
                await self._serve_alone(batch)
        self._busy = False

    async def _serve_alone(self, batch: list[tuple[A, asyncio.Future[R]]]) -> None:
        """Run calls one by one, so that each fails alone. Once the store is away, the rest fails as well."""
        away: StoreUnavailable | None = None
        for argument, future in batch:
            if away is not None:
                future.set_exception(away)
                continue
            await self._serve_batch([(argument, future)])
            error = future.exception()
            away = error if isinstance(error, StoreUnavailable) else None

    async def _serve_batch(self, batch: list[tuple[A, asyncio.Future[R]]]) -> bool:
        """Run calls together, and answer them. Return False for several that failed because of one of them: they are not answered."""
        try:
            results = await self._run([argument for argument, _ in batch])
        except BaseException as error:
            if len(batch) > 1 and not isinstance(error, StoreUnavailable):
                return False
            for _, future in batch:  # no call is to blame if the store is away, and one after the other would wait for it again
                future.set_exception(error)
            return True
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
        return True
