"""What the server tells of changes: LISTEN on the channel named like the schema. Waiters ask the server nothing while it is open.

A message holds the newest sequence number, the statuses that rollouts took and, of a claim, the seconds of its lease. So the feed wakes
those who wait for such a status. It knows when the next lease may expire, and looks then: the lease has been extended, or it is collected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

import psycopg
from psycopg import sql

from agentlightning.errors import StoreError
from agentlightning.stores.common import Changes
from agentlightning.types import RolloutStatus
from agentlightning_postgres.address import Address
from agentlightning_postgres.schema import session

Look = Callable[[], Awaitable[tuple[int, float | None]]]
PAUSE = 0.004
"""Seconds in which messages are batched after the first one."""


class Feed:
    """Open from the first `start`. A lost connection wakes every waiter, and the next `start` opens the feed again.

    `look` collects expired leases. It returns the newest sequence number, and the seconds until the next lease expires.
    """

    def __init__(self, address: Address, changes: Changes, look: Look) -> None:
        self._address, self._changes, self._look = address, changes, look
        self._lock: asyncio.Lock | None = None
        self._task: asyncio.Task[None] | None = None
        self._expiry: float | None = None  # when the next lease may expire, on the monotonic clock
        self._statuses: set[RolloutStatus] = set()  # of the messages since the last `notify`
        self.open = False
        """Whether every change is reported."""
        self.newest = 0
        """The newest sequence number, while the feed is open."""

    async def start(self) -> None:
        """Return once the feed is open. Raises psycopg's error if the server cannot be reached."""
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            if self.open:
                return
            await self.close()
            connection = await psycopg.AsyncConnection.connect(self._address.conninfo, autocommit=True)
            try:
                await connection.execute(session(self._address.schema))
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._address.schema)))
                await self._look_once()  # messages have begun, so nothing falls between
            except BaseException:
                await connection.close()
                raise
            self.open = True
            self._task = asyncio.create_task(self._report(connection))

    async def _look_once(self) -> None:
        self.newest, left = await self._look()
        self._expiry = None if left is None else time.monotonic() + left

    async def _report(self, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            while True:
                left = None if self._expiry is None else max(0.0, self._expiry - time.monotonic())
                async for message in connection.notifies(timeout=left, stop_after=1):
                    self._hear(message.payload)
                if self._expiry is not None and self._expiry <= time.monotonic():
                    await self._look_once()
                self._changes.notify(self.newest, self._statuses)
                self._statuses.clear()
                await asyncio.sleep(PAUSE)
        except (psycopg.Error, StoreError):
            pass  # waiters start the feed again, and get the error if that fails
        finally:
            self.open = False
            self._changes.notify()
            with suppress(psycopg.Error):
                await connection.close()

    def _hear(self, message: str) -> None:
        seq, statuses, *lease = message.split(" ")
        self.newest = max(self.newest, int(seq))
        self._statuses.update(cast("list[RolloutStatus]", statuses.split(",")))
        if lease:
            expiry = time.monotonic() + float(lease[0])
            self._expiry = expiry if self._expiry is None else min(self._expiry, expiry)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
