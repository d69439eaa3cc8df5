"""The connection that hears of changes: LISTEN on the channel named like the schema; each message is the newest sequence number."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import sql

from agentlightning.stores.common import Changes
from agentlightning_postgres.address import Address
from agentlightning_postgres.schema import session


class Listener:
    """Listens from the first `start`. After a lost connection it wakes every waiter, and the next `start` listens again."""

    def __init__(self, address: Address, changes: Changes) -> None:
        self._address, self._changes = address, changes
        self._lock: asyncio.Lock | None = None
        self._task: asyncio.Task[None] | None = None
        self.newest = 0
        """The newest sequence number that was reported; 0 while nothing is."""

    @property
    def active(self) -> bool:
        """Whether it listens, as far as it knows."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Return once changes are reported. Raises psycopg's error if the server cannot be reached."""
        self._lock = self._lock or asyncio.Lock()
        async with self._lock:
            if self.active:
                return
            connection = await psycopg.AsyncConnection.connect(self._address.conninfo, autocommit=True)
            try:
                await connection.execute(session(self._address.schema))
                await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._address.schema)))
            except BaseException:
                await connection.close()
                raise
            self._task = asyncio.create_task(self._report(connection))

    async def _report(self, connection: psycopg.AsyncConnection[Any]) -> None:
        try:
            async for message in connection.notifies():
                self.newest = max(self.newest, int(message.payload))
                self._changes.notify(self.newest)
        except psycopg.Error:
            pass  # waiters look for themselves
        finally:
            self.newest = 0  # messages may be missed from now on
            with suppress(psycopg.Error):
                await connection.close()
            asyncio.get_running_loop().call_soon(self._changes.notify)  # once this task is done, so that waiters listen again

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
