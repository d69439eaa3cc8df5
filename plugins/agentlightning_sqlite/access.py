"""Two ways to reach the tables: threads for a file, or one lock for memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar
from weakref import finalize

from agentlightning.stores.common import Changes, closed_store
from agentlightning_sqlite.ledger import Ledger
from agentlightning_sqlite.schema import MEMORY, compact, connect, create_tables, prepare, translated
from agentlightning_sqlite.threads import Readers, Watcher, Writer

T = TypeVar("T")


class Access(Protocol):
    """Runs operations on the tables, from any thread's event loop."""

    async def write(self, work: Callable[[Ledger], T]) -> T:
        """Run `work` in a transaction, and return once it is as durable as the database."""
        ...

    async def read(self, work: Callable[[Ledger], T]) -> T:
        """Run `work` on one unchanging view of the tables."""
        ...

    def watch(self) -> float | None:
        """Report changes from now on. Return the seconds until the caller should check again, because events may be missed until then."""
        ...

    async def compact(self) -> None:
        """Give the space of deleted rows back."""
        ...

    async def close(self) -> None: ...


class FileAccess:
    """A file that several processes share. One thread writes, several read, one watches for other processes."""

    def __init__(self, path: Path, changes: Changes) -> None:
        prepare(path)
        self._path, self._changes = path, changes
        self._writer, self._readers, self._watcher = Writer(path, changes), Readers(path), Watcher(path, changes)
        self.write, self.read, self.watch = self._writer.run, self._readers.run, self._watcher.start

    async def compact(self) -> None:
        await asyncio.to_thread(compact, self._path)

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        self._writer.close()
        self._readers.close()
        self._changes.notify()
        self._watcher.close()


class MemoryAccess:
    """A private database in this process. Each operation runs in its caller's thread, under one lock."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._lock = Lock()
        self._closed = False
        connection = connect(MEMORY)
        create_tables(connection)
        self._ledger = Ledger(connection, MEMORY)
        finalize(self, connection.close)

    async def write(self, work: Callable[[Ledger], T]) -> T:
        with self._lock:
            before = self._ledger.seq
            self._ledger.statuses.clear()
            result = self._do(partial(self._ledger.atomically, work))
            after = self._ledger.seq
            if after > before:
                self._changes.notify(after, self._ledger.statuses)
        return result

    async def read(self, work: Callable[[Ledger], T]) -> T:
        with self._lock:
            return self._do(partial(work, self._ledger))

    def _do(self, operation: Callable[[], T]) -> T:
        if self._closed:
            raise closed_store(MEMORY)
        try:
            return operation()
        except sqlite3.Error as error:
            raise translated(error, MEMORY) from error

    def watch(self) -> None:
        """Do nothing. Every change passes through `write`."""

    async def compact(self) -> None:
        """Do nothing. Freed memory is used again, and it ends with the process."""

    async def close(self) -> None:
        with self._lock:
            self._closed = True
        self._changes.notify()
