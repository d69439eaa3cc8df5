"""`LightningStore` on SQLite: in a file, or in memory.

A file uses a write-ahead log, flushes to disk before it acknowledges, and serves several processes at once. After `kill -9`, it holds every
acknowledged operation, and perhaps some whose acknowledgement was in flight.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import get_args

from agentlightning.contracts.store import AttemptRecords, ListOrder, RolloutState, StoreCounts, StoredRollout
from agentlightning.errors import StoreError
from agentlightning.stores.common import Changes, Look, check_lease, unknown_key, wait_for_change
from agentlightning.stores.records import Arriving, Row
from agentlightning.stores.serialization import encode
from agentlightning.types import Attempt, AttemptStatus, Mode, Policy, Record, Rollout, RolloutStatus
from agentlightning_sqlite.access import Access, FileAccess, MemoryAccess
from agentlightning_sqlite.clock import Clock
from agentlightning_sqlite.ledger import Ledger
from agentlightning_sqlite.moving import delete, put
from agentlightning_sqlite.schema import MEMORY

LOOK_ANYWAY = 5.0
"""Seconds after which a waiter looks without a signal: a writer may have been killed before it gave one, or the wall clock went back, so
that the next lease ends sooner than it seemed."""


class SQLiteStore:
    """Open a store in the file `path`, created if missing. Without a path, create an empty store in this process's memory."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._changes, self._clock = Changes(), Clock()
        self._access: Access = MemoryAccess(self._changes) if path is None else FileAccess(path, self._changes)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path or MEMORY)!r})"

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        values = [(rollout, encode(rollout)) for rollout in rollouts]
        await self._access.write(lambda ledger: ledger.add(values))

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None, request: str | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        check_lease(lease)
        chosen: Collection[Mode] = get_args(Mode) if modes is None else modes
        return await self._access.write(lambda ledger: ledger.claim(worker, lease, limit, chosen, request))

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        check_lease(lease)
        value = encode(rollout)
        return await self._access.write(lambda ledger: ledger.begin(rollout, value, worker, lease))

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        check_lease(lease)
        await self._access.write(lambda ledger: ledger.heartbeat(attempt_id, lease))

    async def record(self, records: Sequence[Record]) -> None:
        rows = [Row.of(record) for record in records]
        await self._access.write(lambda ledger: ledger.record(rows))

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        return await self._access.write(lambda ledger: ledger.finish(attempt_id, status, error, retry))

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        ids = list(rollout_ids)
        return await self._access.write(lambda ledger: ledger.cancel(ids))

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        column, value = ("id", id) if id is not None else ("key", key)
        if value is None:
            raise unknown_key()
        return await self._access.read(lambda ledger: ledger.attempt_and_rollout(column, value))

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        def look(ledger: Ledger) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
            state = ledger.state(rollout_id)
            return state, tuple(ledger.records(attempt) for attempt in state.attempts)

        return await self._access.read(look)

    async def records(self, attempt_id: str) -> AttemptRecords:
        return await self._access.read(lambda ledger: ledger.records(ledger.attempt(attempt_id)))

    async def list(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        status: Collection[RolloutStatus] | None = None,
        mode: Mode | None = None,
        step: int | None = None,
        group: str | None = None,
        order: ListOrder = "added",
    ) -> tuple[list[RolloutState], int]:
        where = {name: value for name, value in (("mode", mode), ("step", step), ("grp", group)) if value is not None}
        return await self._access.read(lambda ledger: ledger.page(after, limit, order, where, status))

    async def counts(self) -> StoreCounts:
        return await self._access.read(Ledger.counts)

    async def wait(self, after: int, *, timeout: float | None = None, status: Collection[RolloutStatus] | None = None) -> int:
        wanted = None if status is None else frozenset(status)

        def changes(ledger: Ledger, after: int) -> tuple[int, bool, float | None]:
            seq = ledger.look()
            changed = seq > after and (wanted is None or not wanted.isdisjoint(ledger.statuses_after(after)))
            return seq, changed, ledger.expiry()

        async def look(after: int) -> Look:
            again = self._access.watch()
            seq, changed, expiry = await self._access.read(lambda ledger: changes(ledger, after))
            now, jump = self._clock.read()
            if expiry is not None and (jump or expiry <= now):
                await self._access.write(Ledger.collect)
                seq, changed, expiry = await self._access.read(lambda ledger: changes(ledger, after))
            due = (LOOK_ANYWAY, again, None if expiry is None else max(0.0, expiry - now))
            return Look(seq, changed, min(seconds for seconds in due if seconds is not None))

        return await wait_for_change(self._changes, look, after, timeout, wanted)

    async def put(self, rollouts: Sequence[StoredRollout]) -> None:
        arriving = [Arriving.of(stored) for stored in rollouts]
        await self._access.write(lambda ledger: put(ledger, arriving))

    async def delete(self, rollout_ids: Sequence[str]) -> int:
        ids = list(rollout_ids)
        return await self._access.write(lambda ledger: delete(ledger, ids))

    async def compact(self) -> None:
        await self._access.compact()

    async def publish(self, policy: Policy) -> None:
        await self._access.write(lambda ledger: ledger.publish(policy))

    async def policies(self, name: str | None = None) -> list[Policy]:
        return await self._access.read(lambda ledger: ledger.policies(name))

    async def close(self) -> None:
        """Finish pending writes, then release the database. Wakes every waiter."""
        await self._access.close()


def open_sqlite(address: str) -> SQLiteStore:
    """Open the store at `sqlite:path` or a plain path.

    A missing file is created. `sqlite::memory:` equals `memory:`. Raises `StoreVersionError` for a store of another version, and
    `StoreError` for any other file or an unusable path.
    """
    path = address.removeprefix("sqlite:")
    return SQLiteStore(None if path == MEMORY else Path(path).expanduser().absolute())


def open_memory(address: str) -> SQLiteStore:
    """Open a new, empty store in this process. `address` is `memory:`."""
    if address not in ("memory:", "memory", "memory://", MEMORY):
        raise StoreError(f"The address {address!r} names a store in memory, and each of those is separate. Write 'memory:'.")
    return SQLiteStore()
