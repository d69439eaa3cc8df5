"""`LightningStore` in one SQLite file: WAL, flushed to the disk before it acknowledges, several processes at once.

What `kill -9` leaves is what was acknowledged, and perhaps the operations whose acknowledgement was under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import NotFound
from agentlightning.stores.memory import Changes, check_lease, wait_for_change
from agentlightning.stores.serialization import encode, portable
from agentlightning.types import Attempt, AttemptStatus, Mode, Policy, Record, Rollout, RolloutStatus
from agentlightning_sqlite.ledger import Ledger
from agentlightning_sqlite.schema import prepare
from agentlightning_sqlite.threads import Readers, Watcher, Writer


class SQLiteStore:
    """A store in the file `path`, made if there is none. See `open_sqlite`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        prepare(path)
        self._changes = Changes()
        self._writer = Writer(path, self._changes)
        self._readers = Readers(path)
        self._watcher = Watcher(path, self._changes)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        values = [(rollout, encode(rollout)) for rollout in rollouts]
        await self._writer.run(lambda ledger: ledger.add(values))

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        check_lease(lease)
        chosen: Collection[Mode] = get_args(Mode) if modes is None else modes
        return await self._writer.run(lambda ledger: ledger.claim(worker, lease, limit, chosen))

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        check_lease(lease)
        value = encode(rollout)
        return await self._writer.run(lambda ledger: ledger.begin(rollout, value, worker, lease))

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        check_lease(lease)
        await self._writer.run(lambda ledger: ledger.heartbeat(attempt_id, lease))

    async def record(self, records: Sequence[Record]) -> None:
        kept = [portable(record) for record in records]  # the writer reads them later, when the caller may have gone on
        await self._writer.run(lambda ledger: ledger.record(kept))

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        return await self._writer.run(lambda ledger: ledger.finish(attempt_id, status, error, retry))

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        ids = list(rollout_ids)
        return await self._writer.run(lambda ledger: ledger.cancel(ids))

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        column, value = ("id", id) if id is not None else ("key", key)
        if value is None:
            raise NotFound("no attempt has this key")
        return await self._readers.run(lambda ledger: ledger.attempt_and_rollout(column, value))

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        def look(ledger: Ledger) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
            state = ledger.state(rollout_id)
            return state, tuple(ledger.written(attempt) for attempt in state.attempts)

        return await self._readers.run(look)

    async def records(self, attempt_id: str) -> AttemptRecords:
        return await self._readers.run(lambda ledger: ledger.written(ledger.attempt(attempt_id)))

    async def list(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        status: Collection[RolloutStatus] | None = None,
        mode: Mode | None = None,
        step: int | None = None,
        group: str | None = None,
        order: Literal["added", "changed"] = "added",
    ) -> tuple[list[RolloutState], int]:
        where = {name: value for name, value in (("mode", mode), ("step", step), ("grp", group)) if value is not None}
        return await self._readers.run(lambda ledger: ledger.page(after, limit, order, where, status))

    async def wait(self, after: int, *, timeout: float | None = None) -> int:
        async def look() -> tuple[int, float | None]:
            again = self._watcher.start()
            seq, expiry = await self._readers.run(lambda ledger: (ledger.look(), ledger.expiry()))
            if expiry is not None and expiry <= time.time():
                await self._writer.run(Ledger.collect)
                seq, expiry = await self._readers.run(lambda ledger: (ledger.look(), ledger.expiry()))
            due = (again, None if expiry is None else max(0.0, expiry - time.time()))
            return seq, min((each for each in due if each is not None), default=None)

        return await wait_for_change(self._changes, look, after, timeout)

    async def publish(self, policy: Policy) -> None:
        await self._writer.run(lambda ledger: ledger.publish(policy))

    async def policies(self, name: str | None = None) -> list[Policy]:
        return await self._readers.run(lambda ledger: ledger.policies(name))

    async def close(self) -> None:
        """Write what was asked for, then let go of the file. Whoever waits is told."""

        def stop() -> None:
            self._writer.close()
            self._readers.close()
            self._changes.notify()
            self._watcher.close()

        await asyncio.to_thread(stop)


def open_sqlite(address: str) -> SQLiteStore:
    """The store at `sqlite:path` or a plain path; a new file is made where there is none.

    Raises `StoreVersionError` for a store of another version, and `StoreError` when the file is something else or cannot be used.
    """
    return SQLiteStore(Path(address.removeprefix("sqlite:")).expanduser().absolute())
