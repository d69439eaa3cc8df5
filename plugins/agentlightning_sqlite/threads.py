"""The threads between event loops and the file: one writes, several read, one watches for other processes' commits.

Operations that arrive during a commit share the next one, so they share one disk flush. Each is acknowledged after the commit, and each
fails alone.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import watchfiles

from agentlightning.stores.common import Changes, closed_store
from agentlightning_sqlite.ledger import Ledger
from agentlightning_sqlite.schema import connect, translated

T = TypeVar("T")
TOGETHER = 256
"""Maximum number of operations in one commit."""


@dataclass(slots=True, eq=False)
class _Operation:
    work: Callable[[Ledger], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class Writer:
    """This process's only writing thread."""

    def __init__(self, path: Path, changes: Changes) -> None:
        self.path, self._changes = path, changes
        self._wal = f"{path}-wal"
        self._queue: SimpleQueue[_Operation | None] = SimpleQueue()
        self._connection = connect(path)
        self._ledger = Ledger(self._connection, str(path))
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="agl-sqlite-writer", daemon=True)
        self._thread.start()

    async def run(self, work: Callable[[Ledger], T]) -> T:
        """Run `work` in a transaction, and return once it is on disk."""
        operation = _Operation(work, asyncio.get_running_loop().create_future())
        with self._lock:
            if self._closed:
                raise closed_store(self.path)
            self._queue.put(operation)
        return await operation.future

    def _serve(self) -> None:
        while batch := self._gather():
            self._commit(batch)
            self._answer(batch)
        self._connection.close()

    def _gather(self) -> list[_Operation]:
        """Wait for an operation, and take all others in the queue. Returns an empty list at the end."""
        first = self._queue.get()
        if first is None:
            return []
        batch = [first]
        while len(batch) < TOGETHER:
            try:
                operation = self._queue.get_nowait()
            except Empty:
                break
            if operation is None:
                self._queue.put(None)  # the end comes after these
                break
            batch.append(operation)
        return batch

    def _commit(self, batch: list[_Operation]) -> None:
        ledger, sql = self._ledger, self._connection
        try:
            sql.execute("BEGIN IMMEDIATE")
            ledger.renew()
            if len(batch) == 1:  # its failure undoes the transaction
                batch[0].result = batch[0].work(ledger)
            else:
                for operation in batch:
                    self._do(operation)
            sql.execute("COMMIT")
        except Exception as error:  # after any failure, no caller may hear that its data is stored
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            ledger.forget()
            reason = translated(error, self.path) if isinstance(error, sqlite3.Error) else error
            for operation in batch:
                operation.error = operation.error or reason
            return
        if ledger.advanced:
            self._changes.notify(ledger.seq, ledger.statuses)
            with suppress(OSError):  # without the signal, other processes notice later
                os.utime(self._wal)  # other processes watch this file

    def _do(self, operation: _Operation) -> None:
        """Run one operation and keep its result or its error."""
        try:
            operation.result = self._ledger.atomically(operation.work)
        except Exception as error:
            if not self._connection.in_transaction:
                raise  # SQLite gave up the whole transaction
            operation.error = translated(error, self.path) if isinstance(error, sqlite3.Error) else error

    def _answer(self, batch: list[_Operation]) -> None:
        """Wake the callers, each event loop once."""
        loops: dict[asyncio.AbstractEventLoop, list[_Operation]] = {}
        for operation in batch:
            loops.setdefault(operation.future.get_loop(), []).append(operation)
        for loop, operations in loops.items():
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_resolve, operations)

    def close(self) -> None:
        """Finish the queue, then stop."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()


def _resolve(operations: list[_Operation]) -> None:
    for operation in operations:
        if operation.future.done():  # cancelled
            continue
        if operation.error is not None:
            operation.future.set_exception(operation.error)
        else:
            operation.future.set_result(operation.result)


class Readers:
    """Threads that read during writes, each through its own connection."""

    THREADS = 4

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._pool = ThreadPoolExecutor(self.THREADS, thread_name_prefix="agl-sqlite-reader")

    async def run(self, work: Callable[[Ledger], T]) -> T:
        """Run `work` on one unchanging view of the store."""
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, self._do, work)
        except RuntimeError as error:
            raise closed_store(self.path) from error
        return await future

    def _do(self, work: Callable[[Ledger], T]) -> T:
        try:
            ledger: Ledger | None = getattr(self._local, "ledger", None)
            if ledger is None:
                connection = connect(self.path)
                self._connections.append(connection)
                ledger = self._local.ledger = Ledger(connection, str(self.path))
            ledger.sql.execute("BEGIN")
            try:
                return work(ledger)
            finally:
                ledger.sql.execute("COMMIT")
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def close(self) -> None:
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()


class Watcher:
    """Notices other processes' commits through file events of the log file. Its thread starts with the first waiter."""

    PAUSE = 10
    """Milliseconds in which events are batched."""
    SETTLING = 0.25
    """Seconds until the system reports events reliably."""

    def __init__(self, path: Path, changes: Changes) -> None:
        self.path, self._changes = path, changes
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._settled = 0.0

    def start(self) -> float | None:
        """Start watching. Return the seconds until events are reliable, so that the caller can check again then. Return None once they
        are."""
        with self._lock:
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._watch, name="agl-sqlite-watcher", daemon=True)
                self._settled = time.monotonic() + self.SETTLING
                self._thread.start()
        left = self._settled - time.monotonic()
        return left if left > 0 else None

    def _watch(self) -> None:
        connection = connect(self.path)
        ledger = Ledger(connection, str(self.path))
        try:
            seen = ledger.look()  # it also makes the log file
            for _ in watchfiles.watch(
                f"{self.path}-wal", watch_filter=None, debounce=self.PAUSE, step=self.PAUSE, stop_event=self._stop, raise_interrupt=False,
                rust_timeout=0,  # it would count on the wall clock
            ):  # fmt: skip
                try:
                    if ledger.look() > seen:
                        statuses, seen = ledger.statuses_after(seen), ledger.seq
                        self._changes.notify(seen, statuses)
                except sqlite3.Error:
                    self._changes.notify()  # waiters check for themselves and get the error
        finally:
            connection.close()

    def close(self) -> None:
        with self._lock:
            self._stop.set()
        if self._thread is not None:
            self._thread.join()
