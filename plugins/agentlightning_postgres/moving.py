"""Rollouts that arrive from other stores, and rollouts that leave. Both lock the order of the store for their whole transaction."""

# ruff: noqa: S608  # statements are put together from texts of this package; values are always parameters

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentlightning.errors import StoreError
from agentlightning.stores.common import COPIED_LEASE, ENDED
from agentlightning.stores.records import Arriving
from agentlightning.types import Attempt
from agentlightning_postgres.ledger import counted
from agentlightning_postgres.reading import NOW
from agentlightning_postgres.records import RecordWriter
from agentlightning_postgres.text import to_column
from agentlightning_postgres.transaction import Statement, Transaction

LOCK = "SELECT id, added, changed, status, attempts FROM rollouts WHERE id = ANY(%s) ORDER BY added FOR NO KEY UPDATE"
SEQUENCE = f"SELECT seq, {NOW} FROM store FOR NO KEY UPDATE"
PRESENT = """
SELECT rollouts.id, number, attempts.id, attempts.status
FROM rollouts LEFT JOIN attempts ON attempts.rollout = added WHERE rollouts.id = ANY(%s)
"""
ADD = """
INSERT INTO rollouts (id, added, changed, status, attempts, mode, step, grp, queueable, max_attempts, value)
SELECT * FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::boolean[],
    %s::bigint[], %b::bytea[])
"""
CHANGE = """
UPDATE rollouts SET changed = new.changed, status = new.status, attempts = new.attempts
FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[]) AS new (added, changed, status, attempts)
WHERE rollouts.added = new.added
"""
START = """
INSERT INTO attempts (id, rollout, number, key, worker, status, started, finished, error, expires)
SELECT *, %s FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::double precision[],
    %s::double precision[], %s::text[])
"""
END = """
UPDATE attempts SET status = new.status, finished = new.finished, error = new.error
FROM unnest(%s::text[], %s::text[], %s::double precision[], %s::text[]) AS new (id, status, finished, error) WHERE attempts.id = new.id
"""
DELETABLE = """
SELECT id, added FROM rollouts old WHERE id = ANY(%s) AND status = ANY(%s) AND NOT EXISTS (
    SELECT FROM rollouts WHERE status IN ('queued', 'running') AND (grp = old.grp OR step = old.step)
) ORDER BY added FOR UPDATE
"""
DELETIONS = (
    "DELETE FROM records USING attempts WHERE attempt = place AND rollout = ANY(%s)",
    "DELETE FROM attempts WHERE rollout = ANY(%s)",
    "DELETE FROM rollouts WHERE added = ANY(%s)",
)


@dataclass(slots=True)
class _Place:
    """A rollout here, as it will be."""

    added: int
    changed: int
    status: str
    attempts: dict[int, tuple[str, str]]
    """Id and status of each attempt, by number."""


@dataclass(slots=True)
class _Merge:
    """What a batch of arriving rollouts changes."""

    seq: int
    places: dict[str, _Place]
    new: dict[str, Arriving] = field(default_factory=dict[str, Arriving])
    changed: set[str] = field(default_factory=set[str])
    started: list[tuple[int, Attempt]] = field(default_factory=list[tuple[int, Attempt]])
    ended: list[Attempt] = field(default_factory=list[Attempt])

    def add(self, arriving: Arriving, store: str) -> None:
        """Merge one rollout (`LightningStore.put`)."""
        state, id = arriving.state, to_column(arriving.state.rollout.id)
        place = self.places.get(id)
        if place is None:
            self.seq += 1
            self.new[id] = arriving
            place = self.places[id] = _Place(self.seq, self.seq, state.status, {})
        announced = place.status == "running" and not place.attempts
        news = [self._add_attempt(place, attempt, store) for attempt, _ in arriving.attempts]
        ends = state.status in ENDED and place.status not in ENDED
        if any(news) or (state.status != place.status and (announced or ends)):
            self.seq += 1
            place.changed, place.status = self.seq, state.status
            self.changed.add(id)

    def _add_attempt(self, place: _Place, attempt: Attempt, store: str) -> bool:
        """Insert an attempt, or give it its end. Return whether anything changes."""
        stored = place.attempts.get(attempt.number)
        if stored is not None and stored[0] != attempt.id:
            raise StoreError(
                f"Rollout {attempt.rollout_id} has another attempt {attempt.number} in the store {store}: it continued in both stores. "
                "Stop the runners of one store before you copy it."
            )
        if stored is None:
            self.started.append((place.added, attempt))
        elif stored[1] in ("running", "lost") and attempt.status not in ("running", stored[1]):
            self.ended.append(attempt)
        else:
            return False
        place.attempts[attempt.number] = (attempt.id, attempt.status)
        return True

    def statements(self, now: float) -> list[Statement]:
        """The changes, except those of records and of the counter."""
        changed = [self.places[id] for id in self.changed - self.new.keys()]
        changes = [(place.added, place.changed, place.status, max(place.attempts, default=0)) for place in changed]
        starts = [(attempt.id, added, attempt.number, attempt.key, *_ending(attempt)) for added, attempt in self.started]
        ends = [(attempt.id, attempt.status, attempt.finished, _error(attempt)) for attempt in self.ended]
        return [
            *_many(ADD, [_columns(id, self.places[id], arriving) for id, arriving in self.new.items()]),
            *_many(START, starts, now + COPIED_LEASE),
            *_many(END, ends),
            *_many(CHANGE, changes),
        ]


def _ending(attempt: Attempt) -> tuple[Any, ...]:
    return (to_column(attempt.worker), attempt.status, attempt.started, attempt.finished, _error(attempt))


def _error(attempt: Attempt) -> str | None:
    return None if attempt.error is None else to_column(attempt.error)


def _columns(id: str, place: _Place, arriving: Arriving) -> tuple[Any, ...]:
    rollout = arriving.state.rollout
    queueable = arriving.state.status == "queued" or rollout.mode != "production"  # others were begun, and no runner has their agent
    group = None if rollout.group is None else to_column(rollout.group)
    attempts = max(place.attempts, default=0)
    return (
        id, place.added, place.changed, place.status, attempts, rollout.mode, rollout.step, group, queueable, rollout.max_attempts,
        arriving.value,
    )  # fmt: skip


def _many(statement: str, rows: Sequence[Sequence[Any]], *first: Any) -> list[Statement]:
    """The statement with its rows as columns, after other values; nothing without rows."""
    return [(statement, (*first, *(list(column) for column in zip(*rows, strict=True))))] if rows else []


class Moving:
    """Operations in one transaction. `name` is the store's, for errors."""

    def __init__(self, transaction: Transaction, name: str, records: RecordWriter) -> None:
        self.sql, self.name, self._records = transaction, name, records

    async def put(self, rollouts: Sequence[Arriving]) -> None:
        while not await self._put(rollouts):
            await self.sql.rollback()
            self._records.forget()

    async def _put(self, rollouts: Sequence[Arriving]) -> bool:
        """Merge, or return False if another writer was faster."""
        ids = list({to_column(arriving.state.rollout.id) for arriving in rollouts})
        locked, ((seq, now),), present = await self.sql.begin((LOCK, (ids,)), (SEQUENCE, ()), (PRESENT, (ids,)))
        places = {id: _Place(added, changed, status, {}) for id, added, changed, status, _ in locked}
        for id, number, attempt_id, status in present:
            if id not in places:
                return False  # it was added after the others were locked
            if number is not None:
                places[id].attempts[number] = (attempt_id, status)
        merge = _Merge(seq, places)
        for arriving in rollouts:
            merge.add(arriving, self.name)
        for statement in merge.statements(now):
            await self.sql.query(*statement)
        rows = [row for arriving in rollouts for _, records in arriving.attempts for row in records]
        if not await self._records.insert_within(self.sql, rows):
            return False
        lease = COPIED_LEASE if any(attempt.status == "running" for _, attempt in merge.started) else None
        statuses = [merge.places[id].status for id in merge.new.keys() | merge.changed]
        await self.sql.commit(*([counted(merge.seq - seq, statuses, lease)] if merge.seq > seq else []))
        return True

    async def delete(self, rollout_ids: Sequence[str], earlier: set[int]) -> int:
        """`earlier` holds the places that a run whose answer was lost wanted to delete, and is filled."""
        ids = [to_column(id) for id in rollout_ids]
        _, rows = await self.sql.begin((SEQUENCE, ()), (DELETABLE, (ids, list(ENDED))))
        remaining = {added for (added,) in await self.sql.query("SELECT added FROM rollouts WHERE added = ANY(%s)", (list(earlier),))}
        earlier -= remaining
        earlier |= {added for _, added in rows}
        self._records.forget()
        places = [added for _, added in rows]
        await self.sql.commit(*((statement, (places,)) for statement in DELETIONS))
        return len(earlier)
