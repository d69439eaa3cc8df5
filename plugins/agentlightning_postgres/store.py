"""`LightningStore` on PostgreSQL.

The server flushes to disk before it acknowledges. Stores on any number of machines may have the same database open. A restart of the server
delays operations and loses nothing that was acknowledged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from itertools import accumulate
from typing import get_args

from agentlightning.contracts.store import AttemptRecords, ListOrder, RolloutState, StoreCounts, StoredRollout
from agentlightning.stores.common import Changes, Look, check_lease, unknown_key, wait_for_change
from agentlightning.stores.records import Arriving, Row
from agentlightning.stores.serialization import encode
from agentlightning.types import Attempt, AttemptStatus, Mode, Policy, Record, Rollout, RolloutStatus
from agentlightning_postgres.access import Access
from agentlightning_postgres.address import Address
from agentlightning_postgres.combiner import Combiner
from agentlightning_postgres.ledger import Caller, Claims, Ledger
from agentlightning_postgres.moving import Moving
from agentlightning_postgres.records import RecordWriter
from agentlightning_postgres.schema import prepare
from agentlightning_postgres.text import to_column
from agentlightning_postgres.transaction import Transaction


class PostgresStore:
    """Open the store in a database, with its tables created or migrated."""

    def __init__(self, address: Address) -> None:
        self.address = address
        prepare(address)
        self._changes = Changes()
        self._access = Access(address, self._changes, self._look)
        self._records = RecordWriter(address.name)
        self._recording = Combiner(self._record)
        self._claims: dict[frozenset[Mode], Combiner[Caller, Claims]] = {}
        self._idle = set[frozenset[Mode]]()  # modes whose last claim was empty

    def __repr__(self) -> str:
        return f"PostgresStore({self.address.name!r})"

    def _ledger(self, transaction: Transaction) -> Ledger:
        return Ledger(transaction, self.address.name)

    async def _look(self, transaction: Transaction) -> tuple[int, float | None]:
        return await self._ledger(transaction).look()

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        values = [(rollout, encode(rollout)) for rollout in rollouts]
        if values:
            await self._access.run(lambda sql: self._ledger(sql).add(values))

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None, request: str | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        check_lease(lease)
        if request is not None and (started := await self._access.run(lambda sql: self._ledger(sql).started([request]))):
            return started[request]
        chosen = frozenset[Mode](get_args(Mode) if modes is None else modes)
        claims = self._claims.setdefault(chosen, Combiner(partial(self._claim, chosen)))
        return await self._access.call(claims, Caller(worker, lease, limit, request))

    async def _claim(self, modes: frozenset[Mode], callers: list[Caller]) -> list[Claims]:
        """Claim for several callers in one transaction."""
        earlier: Claims = []

        async def work(sql: Transaction) -> Claims:
            ledger = self._ledger(sql)
            if modes in self._idle and not earlier and not await ledger.claimable(modes):
                return []
            return await ledger.claim(callers, modes, earlier)

        claims = await self._access.persist(work)
        if claims:
            self._idle.discard(modes)
        else:
            self._idle.add(modes)  # a runner that waits hears of many changes that are nothing to claim
        ends = [*accumulate(max(caller.limit, 0) for caller in callers)]
        return [claims[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        check_lease(lease)
        value = encode(rollout)
        return await self._access.run(lambda sql: self._ledger(sql).begin(rollout, value, worker, lease))

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        check_lease(lease)
        await self._access.run(lambda sql: self._ledger(sql).heartbeat(attempt_id, lease))

    async def record(self, records: Sequence[Record]) -> None:
        rows = [Row.of(record) for record in records]
        if rows:
            await self._access.call(self._recording, rows)

    async def _record(self, calls: list[list[Row]]) -> list[None]:
        """Record the rows of several calls in one transaction."""
        rows = [row for call in calls for row in call]
        await self._access.persist(lambda sql: self._records.insert(sql, rows))
        return [None] * len(calls)

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        return await self._access.run(lambda sql: self._ledger(sql).finish(attempt_id, status, error, retry))

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        ids, earlier = list(rollout_ids), set[int]()
        return await self._access.run(lambda sql: self._ledger(sql).cancel(ids, earlier))

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        column, value = ("id", id) if id is not None else ("key", key)
        if value is None:
            raise unknown_key()
        return await self._access.run(lambda sql: self._ledger(sql).attempt_and_rollout(column, value))

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        return await self._access.run(lambda sql: self._ledger(sql).rollout(rollout_id))

    async def records(self, attempt_id: str) -> AttemptRecords:
        return await self._access.run(lambda sql: self._ledger(sql).records(attempt_id))

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
        grp = None if group is None else to_column(group)
        where = {name: value for name, value in (("mode", mode), ("step", step), ("grp", grp)) if value is not None}
        return await self._access.run(lambda sql: self._ledger(sql).page(after, limit, order, where, status))

    async def counts(self) -> StoreCounts:
        return await self._access.run(lambda sql: self._ledger(sql).counts())

    async def wait(self, after: int, *, timeout: float | None = None, status: Collection[RolloutStatus] | None = None) -> int:
        if timeout == 0:
            return (await self._access.run(self._look))[0]

        wanted = None if status is None else frozenset(status)

        async def look(after: int) -> Look:
            await self._access.listen()
            changed = (seq := self._access.newest) > after
            if changed and (statuses := wanted) is not None:
                changed = await self._access.run(lambda sql: self._ledger(sql).took(statuses, after))
            return Look(seq, changed, None)

        return await wait_for_change(self._changes, look, after, timeout, wanted)

    async def put(self, rollouts: Sequence[StoredRollout]) -> None:
        arriving = [Arriving.of(stored) for stored in rollouts]
        if arriving:
            await self._access.run(lambda sql: Moving(sql, self.address.name, self._records).put(arriving))

    async def delete(self, rollout_ids: Sequence[str]) -> int:
        ids, earlier = list(rollout_ids), set[int]()
        return await self._access.run(lambda sql: Moving(sql, self.address.name, self._records).delete(ids, earlier))

    async def compact(self) -> None:
        """Let new rows use the space of deleted ones. Only `VACUUM FULL`, which stops all writers, shortens the server's files."""
        await self._access.run(lambda sql: sql.query("VACUUM (ANALYZE) rollouts, attempts, records"))

    async def publish(self, policy: Policy) -> None:
        await self._access.run(lambda sql: self._ledger(sql).publish(policy))

    async def policies(self, name: str | None = None) -> list[Policy]:
        return await self._access.run(lambda sql: self._ledger(sql).policies(name))

    async def close(self) -> None:
        """Finish running operations, then release the connections. Wakes every waiter."""
        await self._access.close()


def open_postgres(address: str) -> PostgresStore:
    """Open the store at `postgresql://user@host:port/database`. Missing tables are created.

    The tables lie in the schema `agentlightning`, or in the one of `?schema=NAME`. The password comes from PGPASSWORD or ~/.pgpass; the
    address may hold it, too. Raises `StoreVersionError` for a newer store, and `StoreError` if the database cannot be used.
    """
    return PostgresStore(Address.parse(address))
