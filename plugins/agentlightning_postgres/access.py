"""Connections to the server, and repetition after a lost one.

An operation is repeated until it has its answer. Before that, the lost connection's session is ended on the server, so its transaction has
either committed or never will. The repetition then sees in the tables what was done: operations are written so that this is enough.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, finalize

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from agentlightning.errors import StoreError, StoreUnavailable
from agentlightning.stores.common import Changes, closed_store
from agentlightning_postgres.address import CONNECTIONS, Address
from agentlightning_postgres.combiner import Combiner
from agentlightning_postgres.failures import passes, translated
from agentlightning_postgres.feed import Feed
from agentlightning_postgres.loop import LoopThread
from agentlightning_postgres.schema import session
from agentlightning_postgres.transaction import Row, Transaction

A = TypeVar("A")
T = TypeVar("T")
Connection = psycopg.AsyncConnection[Row]
Work = Callable[[Transaction], Awaitable[T]]

PATIENCE = 30.0
"""Seconds in which an operation is repeated, as `StoreClient` does."""
END_SESSION = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s::timestamptz
"""

POOL = "agl-postgres"
"""Name of every pool, and start of its messages."""
QUIET = (f"error connecting in '{POOL}", f"reconnection attempt in pool '{POOL}", "discarding ", "error ignored terminating")


def _news(record: logging.LogRecord) -> bool:
    """Whether a message of psycopg says more than that a connection was lost. Operations report that if it lasts."""
    return not record.getMessage().startswith(QUIET)


for logger in ("psycopg", "psycopg.pool"):
    logging.getLogger(logger).addFilter(_news)


@dataclass(frozen=True, slots=True)
class Session:
    """A connection's process on the server. A process id alone may be given out again."""

    pid: int
    started: str


class Access:
    """Runs operations on a pool of connections, in an event loop of its own."""

    def __init__(self, address: Address, changes: Changes, look: Work[tuple[int, float | None]]) -> None:
        self.address, self._changes = address, changes
        self._thread = LoopThread(POOL)
        finalize(self, self._thread.abandon)
        self._pool: AsyncConnectionPool[Connection] | None = None
        self._feed = Feed(address, changes, lambda: self.persist(look))
        self._sessions: WeakKeyDictionary[Connection, Session] = WeakKeyDictionary()

    async def run(self, work: Work[T]) -> T:
        """Run an operation until it has its answer. `work` must be able to run again after it took effect."""
        return await self._on_thread(self.persist(work))

    async def call(self, combiner: Combiner[A, T], argument: A) -> T:
        """Run an operation that may share its transaction with others. The combiner's work runs through `persist`."""
        return await self._on_thread(combiner.call(argument))

    async def listen(self) -> None:
        """Return once changes are reported from now on."""
        if not self._feed.open or self._thread.closed:
            await self._on_thread(self._listen())

    @property
    def newest(self) -> int:
        """The newest sequence number that was reported since `listen`."""
        return self._feed.newest

    async def _on_thread(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await self._thread.run(work)
        except RuntimeError as error:
            if not self._thread.closed:
                raise
            raise closed_store(self.address) from error

    async def persist(self, work: Work[T]) -> T:
        """Like `run`, on this object's own event loop."""
        deadline, pause = None, 0.02  # a connection that stalls may take long to fail, so patience begins then
        lost: list[Session] = []
        while True:
            connection: Connection | None = None
            try:
                left = PATIENCE if deadline is None else max(0.1, deadline - time.monotonic())
                async with (await self._opened()).connection(timeout=left) as connection:
                    while lost:
                        await self._end(connection, lost[-1], time.monotonic() + left)
                        lost.pop()
                    return await work(Transaction(connection))
            except PoolTimeout as error:
                raise await self._unreachable(error) from error
            except psycopg.Error as error:
                if not passes(error, connection):
                    raise translated(error, self.address) from error
                deadline = deadline or time.monotonic() + PATIENCE
                if time.monotonic() + pause > deadline:
                    raise self._late(error) from error
                if connection is not None and connection.closed and (ended := self._sessions.get(connection)) is not None:
                    lost.append(ended)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)
            await (await self._opened()).check()  # the others may be lost as well

    async def _end(self, connection: Connection, lost: Session, deadline: float) -> None:
        """End a lost session, and return once it is gone. Its last statement may still be on its way to the server."""
        while await Transaction(connection).query(END_SESSION, (lost.pid, lost.started)):
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"The store {self.address} lost a connection, and its process {lost.pid} on the server does not end. "
                    "End it there with `SELECT pg_terminate_backend(pid)`."
                )
            await asyncio.sleep(0.02)

    async def _opened(self) -> AsyncConnectionPool[Connection]:
        if self._pool is None:
            self._pool = AsyncConnectionPool(
                self.address.conninfo, kwargs={"autocommit": True}, min_size=1, max_size=CONNECTIONS, open=False, configure=self._configure,
                max_idle=60, reconnect_timeout=PATIENCE, name=POOL,
            )  # fmt: skip
            await self._pool.open()
        return self._pool

    async def _configure(self, connection: Connection) -> None:
        """Set up a new connection, and remember its session."""
        await connection.execute(session(self.address.schema))
        cursor = await connection.execute("SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        row = await cursor.fetchone()
        if row is not None:
            self._sessions[connection] = Session(*row)

    async def _listen(self) -> None:
        deadline, pause = time.monotonic() + PATIENCE, 0.02
        while True:
            try:
                return await self._feed.start()
            except psycopg.Error as error:
                if time.monotonic() + pause > deadline:
                    raise self._late(error) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _unreachable(self, error: PoolTimeout) -> StoreError:
        """The error for a pool that got no connection, with the reason that a direct one gives."""
        try:
            await (await psycopg.AsyncConnection.connect(self.address.conninfo)).close()
        except psycopg.Error as reason:
            return self._late(reason)
        return self._late(error)

    def _late(self, error: psycopg.Error) -> StoreError:
        return StoreUnavailable(f"{translated(error, self.address)} It was tried for {PATIENCE:.0f} seconds.")

    async def close(self) -> None:
        """Finish running operations, then close every connection. Waiters wake."""
        await self._thread.close(self._disconnect())
        self._changes.notify()

    async def _disconnect(self) -> None:
        await self._feed.close()
        if self._pool is not None:
            await self._pool.close()
