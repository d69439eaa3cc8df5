"""The store's operations on the queue. Each may run again after it took effect, because its answer can be lost."""

# ruff: noqa: S608  # statements are put together from names and placeholders of this package; values are always parameters

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agentlightning.contracts.store import RolloutState
from agentlightning.stores.common import (
    check_finish,
    check_policy,
    closed_attempt,
    may_retry,
    new_attempt,
    next_status,
    not_found,
    printable,
    rollout_exists,
)
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, AttemptStatus, Policy, Rollout, RolloutStatus
from agentlightning_postgres.reading import ATTEMPT, ATTEMPTS, NOW, Reading, attempt_of, states, states_of
from agentlightning_postgres.text import from_column, to_column
from agentlightning_postgres.transaction import Row, Statement

Claims = list[tuple[Rollout, Attempt]]

COUNTER = """
UPDATE store SET seq = seq + %s RETURNING seq, pg_notify(current_schema(), concat_ws(' ', seq, %s::text, %s::double precision))
"""
CHANGE = f"""
WITH counter AS ({COUNTER})
UPDATE rollouts SET status = new.status, changed = counter.seq - %s + new.nth,
    attempts = attempts + (new.status = 'running')::integer
FROM counter, unnest(%s::bigint[], %s::text[]) WITH ORDINALITY AS new (added, status, nth) WHERE rollouts.added = new.added
"""
ADD = """
INSERT INTO rollouts (added, id, changed, status, mode, step, grp, queueable, max_attempts, attempts, value)
SELECT %s + nth, id, %s + nth, %s, mode, step, grp, %s, max_attempts, %s, value
FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %b::bytea[]) WITH ORDINALITY
    AS new (id, mode, step, grp, max_attempts, value, nth)
"""
START = """
INSERT INTO attempts (id, rollout, number, key, worker, status, started, expires)
SELECT id, rollout, number, key, worker, 'running', %s, expires
FROM unnest(%s::text[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::double precision[])
    AS new (id, rollout, number, key, worker, expires)
"""
NAME = """
INSERT INTO claims SELECT place, request FROM attempts, unnest(%s::text[], %s::text[]) AS new (id, request) WHERE attempts.id = new.id
"""
FORGET = "DELETE FROM claims USING attempts WHERE attempt = place AND status <> 'running'"
END = """
UPDATE attempts SET status = %s, finished = %s, error = new.error FROM unnest(%s::text[], %s::text[]) AS new (id, error)
WHERE attempts.id = new.id
"""
SPENT = "(SELECT count(*) FROM attempts AS other WHERE other.rollout = rollouts.added AND other.status NOT IN ('running', 'cancelled'))"
EXPIRED = f"attempts.status = 'running' AND expires <= {NOW}"
LAPSES = 500
"""Maximum number of expired leases that one transaction collects."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The arguments of a claim."""

    worker: str
    lease: float
    limit: int
    request: str | None = None


class Ledger(Reading):
    """The operations that change the queue, in one transaction."""

    async def add(self, rollouts: Sequence[tuple[Rollout, bytes]]) -> None:
        new = {to_column(rollout.id): (rollout, value) for rollout, value in reversed(rollouts)}
        new = dict(reversed(new.items()))  # in order of their first appearance
        ((seq,),), stored = await self.sql.begin(
            ("SELECT seq FROM store FOR NO KEY UPDATE", ()), ("SELECT id FROM rollouts WHERE id = ANY(%s)", (list(new),))
        )
        for (id,) in stored:
            del new[id]
        if new:
            await self.sql.commit(_entered(seq, new, "queued"), counted(len(new), ["queued"]))

    async def claimable(self, modes: Collection[str]) -> bool:
        """Whether `claim` may have something to do. It is cheaper than a claim that finds nothing."""
        condition, values = _of_modes(modes)
        ((answer,),) = await self.sql.query(
            f"SELECT EXISTS (SELECT FROM rollouts WHERE status = 'queued' {condition}) OR EXISTS (SELECT FROM attempts WHERE {EXPIRED})",
            values,
        )
        return answer

    async def started(self, requests: Collection[str]) -> dict[str, Claims]:
        """The running attempts of claims by their names, oldest first."""
        rows = await self.sql.query(
            f"SELECT request, rollouts.value, {ATTEMPT} FROM {ATTEMPTS} JOIN claims ON claims.attempt = place "
            "WHERE request = ANY(%s) AND attempts.status = 'running' ORDER BY added",
            ([to_column(request) for request in requests],),
        )
        claims: dict[str, Claims] = {}
        for request, value, *columns in rows:
            claims.setdefault(from_column(request), []).append((decode(value, Rollout), attempt_of(columns)))
        return claims

    async def claim(self, callers: Sequence[Caller], modes: Collection[str], earlier: Claims) -> Claims:
        """Claim for each caller in turn. `earlier` holds the claims of a run whose answer was lost, and is filled."""
        if earlier and await self.sql.query("SELECT 1 FROM attempts WHERE id = %s", (earlier[0][1].id,)):
            return earlier
        earlier.clear()
        turns = [caller for caller in callers for _ in range(caller.limit)]
        if not turns or not modes:
            return earlier
        heads, now = await self._lock_heads(modes, len(turns))
        for (_, number, value), caller in zip(heads, turns, strict=False):
            rollout = decode(value, Rollout)
            earlier.append((rollout, new_attempt(rollout, number + 1, caller.worker, now)))
        if heads:
            leases = [caller.lease for _, caller in zip(heads, turns, strict=False)]
            places = [added for added, _, _ in heads]
            start = _started(places, [attempt for _, attempt in earlier], leases, now)
            names = {attempt.id: caller.request for (_, attempt), caller in zip(earlier, turns, strict=False) if caller.request}
            named = [_named(names), (FORGET, ())] if names else []
            await self.sql.commit(start, *named, _changed(dict.fromkeys(places, "running"), min(leases)))
        return earlier

    async def _lock_heads(self, modes: Collection[str], limit: int) -> tuple[list[Row], float]:
        """Collect expired leases, then lock queued rollouts. Return their rows and the server's clock.

        Locked rows are skipped, and rows that were added after the statement began are not seen. So no rows prove that nothing is queued
        only if the sequence did not move meanwhile.
        """
        state = f"SELECT seq, EXISTS (SELECT FROM attempts WHERE {EXPIRED}), {NOW} FROM store"
        collected = False
        while True:
            ((before, expired, _),), heads, ((after, _, now),) = await self.sql.begin((state, ()), _heads(modes, limit), (state, ()))
            if not (expired and not collected) and (heads or before == after):
                return heads, now
            await self.sql.rollback()
            if expired and not collected:
                collected = True
                await self.collect()

    async def begin(self, rollout: Rollout, value: bytes, worker: str, lease: float) -> Attempt:
        id = to_column(rollout.id)
        ((seq, now),), stored = await self.sql.begin(
            (f"SELECT seq, {NOW} FROM store FOR NO KEY UPDATE", ()),
            (
                f"SELECT queueable, {ATTEMPT} FROM rollouts LEFT JOIN attempts ON attempts.rollout = rollouts.added WHERE rollouts.id = %s "
                "ORDER BY number DESC LIMIT 1",
                (id,),
            ),
        )
        for queueable, *row in stored:
            if not queueable and row[0] is not None:
                last = attempt_of(row)
                if last.worker == worker and last.status == "running":
                    return last  # a repeated call from a worker that lost the answer
            raise rollout_exists(rollout.id, self.name)
        attempt = new_attempt(rollout, 1, worker, now)
        entered = _entered(seq, {id: (rollout, value)}, "running")
        await self.sql.commit(entered, _started([seq + 1], [attempt], [lease], now), counted(1, ["running"], lease))
        return attempt

    async def heartbeat(self, attempt_id: str, lease: float) -> None:
        extend = f"UPDATE attempts SET expires = {NOW} + %s WHERE id = %s AND status = 'running' RETURNING id"
        if not await self.sql.query(extend, (lease, to_column(attempt_id))):
            raise closed_attempt(await self.attempt(attempt_id))

    async def finish(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> RolloutState:
        id = to_column(attempt_id)
        lock = f"SELECT added, queueable, max_attempts, {SPENT}, {NOW}, {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.id = %s FOR NO KEY UPDATE"
        (rows,) = await self.sql.begin((lock, (id,)))
        if not rows:
            raise not_found("attempt", attempt_id, self.name)
        added, queueable, most, spent, now, *columns = rows[0]
        attempt = attempt_of(columns)
        statements: list[Statement] = []
        if check_finish(attempt, status, retry):
            following = next_status(status, again=bool(retry and queueable and may_retry(status, spent, most)))
            statements = [_ended(status, now, {id: printable(error)}), _changed({added: following})]
        (state,) = states_of((await self.sql.commit(*statements, states("added = %s", (added,))))[-1])
        return state

    async def cancel(self, rollout_ids: Sequence[str], earlier: set[int]) -> int:
        """`earlier` holds the places that a run whose answer was lost wanted to cancel, and is filled."""
        ids = {to_column(id): id for id in rollout_ids}
        (rows,) = await self.sql.begin(
            (
                f"SELECT added, id, status, {NOW} FROM rollouts WHERE id = ANY(%s) ORDER BY added FOR NO KEY UPDATE",
                (list(ids),),
            )
        )
        for id in ids.keys() - {row[1] for row in rows}:
            raise not_found("rollout", ids[id], self.name)
        cancelled = {added for added, _, status, _ in rows if status == "cancelled"} & earlier
        active = {added: status for added, _, status, _ in rows if status in ("queued", "running")}
        earlier.clear()
        earlier |= cancelled | active.keys()
        if active:
            end = "UPDATE attempts SET status = 'cancelled', finished = %s WHERE rollout = ANY(%s) AND status = 'running'"
            await self.sql.commit((end, (rows[0][3], list(active))), _changed(dict.fromkeys(active, "cancelled")))
        return len(earlier)

    async def collect(self) -> None:
        """Close attempts whose lease expired, unless another store is at it."""
        statement = (
            f"SELECT added, queueable, max_attempts, {SPENT}, attempts.id, worker, {NOW} FROM {ATTEMPTS} WHERE {EXPIRED} ORDER BY expires "
            f"LIMIT {LAPSES} FOR NO KEY UPDATE SKIP LOCKED"
        )
        while True:
            (rows,) = await self.sql.begin((statement, ()))
            if not rows:
                return await self.sql.rollback()
            errors = {id: f"the lease of worker {from_column(worker)!r} expired" for _, _, _, _, id, worker, _ in rows}
            changes: dict[int, RolloutStatus] = {
                added: next_status("lost", again=queueable and may_retry("lost", spent, most)) for added, queueable, most, spent, *_ in rows
            }
            await self.sql.commit(_ended("lost", rows[0][-1], errors), _changed(changes))

    async def look(self) -> tuple[int, float | None]:
        """Collect expired leases. Return the newest sequence number, and the seconds until the next lease expires."""
        statement = f"SELECT seq, (SELECT min(expires) FROM attempts WHERE status = 'running') - {NOW} FROM store"
        ((seq, expiry),) = await self.sql.query(statement)
        if expiry is not None and expiry <= 0:
            await self.collect()
            ((seq, expiry),) = await self.sql.query(statement)
        return seq, None if expiry is None else max(0.05, expiry)

    async def publish(self, policy: Policy) -> None:
        key = (to_column(policy.name), policy.version)
        await self.sql.query("INSERT INTO policies VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", (*key, encode(policy)))
        ((value,),) = await self.sql.query("SELECT value FROM policies WHERE name = %s AND version = %s", key)
        check_policy(decode(value, Policy), policy)


def _of_modes(modes: Collection[str]) -> Statement:
    """The condition for rollouts of these modes. One mode has an index of its own."""
    if set(modes) >= {"train", "eval", "production"}:
        return "", ()
    return ("AND mode = %s", tuple(modes)) if len(modes) == 1 else ("AND mode = ANY(%s)", (list(modes),))


def _heads(modes: Collection[str], limit: int) -> Statement:
    """Lock the oldest queued rollouts that nobody else locks: place, number of attempts, value."""
    condition, values = _of_modes(modes)
    return (
        f"SELECT added, attempts, value FROM rollouts WHERE status = 'queued' {condition} ORDER BY added LIMIT %s "
        "FOR NO KEY UPDATE SKIP LOCKED",
        (*values, limit),
    )


def _entered(seq: int, rollouts: dict[str, tuple[Rollout, bytes]], status: RolloutStatus) -> Statement:
    """Insert rollouts with the numbers after `seq`. Those that are not queued have an attempt."""
    queued = status == "queued"
    columns = [
        (id, rollout.mode, rollout.step, None if rollout.group is None else to_column(rollout.group), rollout.max_attempts, value)
        for id, (rollout, value) in rollouts.items()
    ]
    return ADD, (seq, seq, status, queued, 0 if queued else 1, *(list(column) for column in zip(*columns, strict=True)))


def _started(places: list[int], attempts: Sequence[Attempt], leases: Sequence[float], now: float) -> Statement:
    columns = [
        (attempt.id, place, attempt.number, attempt.key, to_column(attempt.worker), now + lease)
        for attempt, place, lease in zip(attempts, places, leases, strict=True)
    ]
    return START, (now, *(list(column) for column in zip(*columns, strict=True)))


def _named(names: Mapping[str, str]) -> Statement:
    """Keep the name of the call that started each attempt, by its id."""
    return NAME, (list(names), [to_column(request) for request in names.values()])


def _ended(status: AttemptStatus, now: float, errors: Mapping[str, str | None]) -> Statement:
    """Close attempts, given as their ids with the errors that ended them."""
    return END, (status, now, list(errors), [None if error is None else to_column(error) for error in errors.values()])


def counted(numbers: int, statuses: Collection[str], lease: float | None = None) -> Statement:
    """Take sequence numbers, and tell the feed of the statuses that rollouts took and of a lease. The last statement before the commit,
    because it locks the counter."""
    return COUNTER, (numbers, ",".join(sorted({*statuses})), lease)


def _changed(changes: Mapping[int, RolloutStatus], lease: float | None = None) -> Statement:
    """Give rollouts a status and the next sequence numbers, like `counted`."""
    _, told = counted(len(changes), changes.values(), lease)
    return CHANGE, (*told, len(changes), list(changes), list(changes.values()))
