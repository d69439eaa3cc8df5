"""Statements that read the tables, and the values in their rows."""

# ruff: noqa: S608  # statements are put together from names and placeholders of this package; values are always parameters

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from agentlightning.contracts.store import AttemptRecords, RolloutState, StoreCounts
from agentlightning.stores.common import not_found, unknown_key
from agentlightning.stores.records import attempt_records
from agentlightning.stores.serialization import decode
from agentlightning.types import Attempt, Mode, Policy, Rollout, RolloutStatus
from agentlightning_postgres.text import from_column, to_column
from agentlightning_postgres.transaction import Row, Statement, Transaction

NOW = "extract(epoch FROM statement_timestamp())::double precision"
ATTEMPT = "attempts.id, rollouts.id, number, key, worker, attempts.status, started, finished, error"
ATTEMPTS = "rollouts JOIN attempts ON attempts.rollout = rollouts.added"
NEWEST = 2**63 - 1
"""The largest bigint, above every sequence number."""
RECORD = "records.id, kind, base, prompt, records.value"


def states(where: str, values: Sequence[object], order_by: str = "added", limit: int | None = None) -> Statement:
    """The statement for rollouts with their attempts, one row for each attempt. `states_of` reads its rows."""
    page = f"SELECT * FROM rollouts WHERE {where} ORDER BY {order_by} LIMIT %s"
    return (
        f"SELECT rollouts.added, changed, rollouts.status, rollouts.value, {ATTEMPT} FROM ({page}) rollouts "
        f"LEFT JOIN attempts ON attempts.rollout = rollouts.added ORDER BY rollouts.{order_by}, number",
        (*values, limit),
    )


def states_of(rows: Sequence[Row]) -> list[RolloutState]:
    """The rollouts in rows of `states`."""
    rollouts: dict[int, tuple[Row, list[Attempt]]] = {}
    for row in rows:
        _, attempts = rollouts.setdefault(row[0], (row, []))
        if row[4] is not None:
            attempts.append(attempt_of(row[4:]))
    return [
        RolloutState(rollout=decode(value, Rollout), status=status, attempts=tuple(attempts), seq=changed)
        for (_, changed, status, value, *_), attempts in rollouts.values()
    ]


def attempt_of(row: Sequence[Any]) -> Attempt:
    """The attempt in the columns of `ATTEMPT`."""
    id, rollout_id, number, key, worker, status, started, finished, error = row
    return Attempt(
        id=id, rollout_id=from_column(rollout_id), number=number, key=key, worker=from_column(worker), status=status, started=started,
        finished=finished, error=None if error is None else from_column(error),
    )  # fmt: skip


class Reading:
    """The store's operations that change nothing, in one transaction. `name` is the store's, for errors."""

    def __init__(self, transaction: Transaction, name: str) -> None:
        self.sql, self.name = transaction, name

    async def attempt_and_rollout(self, column: str, value: str) -> tuple[Rollout, Attempt]:
        rows = await self.sql.query(f"SELECT rollouts.value, {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.{column} = %s", (to_column(value),))
        if not rows:
            raise not_found("attempt", value, self.name) if column == "id" else unknown_key()
        return decode(rows[0][0], Rollout), attempt_of(rows[0][1:])

    async def attempt(self, attempt_id: str) -> Attempt:
        return (await self.attempt_and_rollout("id", attempt_id))[1]

    async def rollout(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        id = to_column(rollout_id)
        rows, records = await self.sql.snapshot(
            states("id = %s", (id,)),
            (f"SELECT attempts.id, {RECORD} FROM {ATTEMPTS} JOIN records ON attempt = place WHERE rollouts.id = %s ORDER BY seq", (id,)),
        )
        if not rows:
            raise not_found("rollout", rollout_id, self.name)
        (state,) = states_of(rows)
        by_attempt: dict[str, list[Row]] = {attempt.id: [] for attempt in state.attempts}
        for attempt_id, *record in records:
            by_attempt[attempt_id].append(tuple(record))
        return state, tuple(attempt_records(attempt, by_attempt[attempt.id]) for attempt in state.attempts)

    async def records(self, attempt_id: str) -> AttemptRecords:
        id = to_column(attempt_id)
        attempts, records = await self.sql.snapshot(
            (f"SELECT {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.id = %s", (id,)),
            (f"SELECT {RECORD} FROM attempts JOIN records ON attempt = place WHERE attempts.id = %s ORDER BY seq", (id,)),
        )
        if not attempts:
            raise not_found("attempt", attempt_id, self.name)
        return attempt_records(attempt_of(attempts[0]), records)

    async def page(
        self, after: int, limit: int, order: str, where: Mapping[str, Any], status: Collection[str] | None
    ) -> tuple[list[RolloutState], int]:
        """Return a page of `list`. `where` holds columns and their required values."""
        column, newest = "changed" if order == "changed" else "added", order == "newest"
        start = after or NEWEST if newest else after
        conditions, values = [f"{column} {'<' if newest else '>'} %s", *(f"{name} = %s" for name in where)], [start, *where.values()]
        if status is not None:
            conditions.append("status = ANY(%s)")
            values.append(list(status))
        order_by = f"{column} DESC" if newest else column
        rows = await self.sql.query(*states(" AND ".join(conditions), values, order_by, max(limit, 0)))
        return states_of(rows), rows[-1][0 if column == "added" else 1] if rows else after

    async def took(self, statuses: Collection[RolloutStatus], after: int) -> bool:
        """Whether a rollout that changed after a sequence number has one of the statuses."""
        query = "SELECT EXISTS (SELECT FROM rollouts WHERE changed > %s AND status = ANY(%s))"
        ((answer,),) = await self.sql.query(query, (after, list(statuses)))
        return answer

    async def counts(self) -> StoreCounts:
        """Return the work of the store: queued and running rollouts, and lost attempts."""
        rollouts, ((lost,),) = await self.sql.snapshot(
            ("SELECT status, mode, count(*) FROM rollouts WHERE status IN ('queued', 'running') GROUP BY status, mode", ()),
            ("SELECT count(*) FROM attempts WHERE status = 'lost'", ()),
        )
        work: dict[str, dict[Mode, int]] = {"queued": {}, "running": {}}
        for status, mode, count in rollouts:
            work[status][mode] = count
        return StoreCounts(**work, lost=lost)

    async def policies(self, name: str | None) -> list[Policy]:
        where, values = ("", ()) if name is None else ("WHERE name = %s", (to_column(name),))
        rows = await self.sql.query(f"SELECT value FROM policies {where} ORDER BY name, version", values)
        return [decode(value, Policy) for (value,) in rows]
