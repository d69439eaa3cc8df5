"""The store's synchronous operations on one connection. The caller begins and commits the transaction."""

# ruff: noqa: S608  # statements are put together from names and placeholders of this file; values are always parameters

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeVar, get_args

from agentlightning.contracts.store import AttemptRecords, RolloutState, StoreCounts
from agentlightning.errors import NotFound
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
    unknown_key,
)
from agentlightning.stores.records import Row
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import Attempt, AttemptStatus, Mode, Policy, Rollout, RolloutStatus
from agentlightning_sqlite.clock import Clock
from agentlightning_sqlite.records import RecordTable

T = TypeVar("T")


class _By(NamedTuple):
    """An order of `page`, in SQL."""

    column: str
    sign: str
    """Compares a row with the cursor."""
    direction: str


ORDERS = {"added": _By("added", ">", "ASC"), "newest": _By("added", "<", "DESC"), "changed": _By("changed", ">", "ASC")}
NEWEST = 2**63 - 1
"""SQLite's largest integer, above every sequence number."""
ATTEMPT = "attempts.id, rollouts.id, number, key, worker, attempts.status, started, finished, error"
ROLLOUT = "added, changed, status, value"
ATTEMPTS = "attempts JOIN rollouts ON rollouts.added = attempts.rollout"
SPENT = "(SELECT count(*) FROM attempts AS other WHERE other.rollout = rollouts.added AND other.status NOT IN ('running', 'cancelled'))"


class Ledger:
    """Reads and writes the tables through one connection."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.sql, self.name = connection, name
        self.advanced = False
        """Whether sequence numbers were given since `renew`."""
        self.statuses: set[RolloutStatus] = set()
        """Those that rollouts took since `renew`, also in operations that were undone."""
        self._seq: int | None = None
        self._clock = Clock()
        self.record_table = RecordTable(connection)

    @property
    def seq(self) -> int:
        """The newest sequence number, which is read at the first use in a transaction."""
        return self.look() if self._seq is None else self._seq

    def look(self) -> int:
        """Read the newest sequence number."""
        (self._seq,) = self.sql.execute(
            "SELECT max(coalesce((SELECT max(changed) FROM rollouts), 0), (SELECT newest FROM sequence))"
        ).fetchone()
        return self.seq

    def statuses_after(self, after: int) -> set[RolloutStatus]:
        """The statuses of rollouts that changed after a sequence number."""
        return {status for (status,) in self.sql.execute("SELECT DISTINCT status FROM rollouts WHERE changed > ?", (after,))}

    def renew(self) -> None:
        """Begin a transaction: other processes may have given sequence numbers."""
        self._seq, self.advanced = None, False
        self.statuses.clear()

    def forget(self) -> None:
        """Drop cached rows after a rollback."""
        self.record_table.forget()

    def atomically(self, work: Callable[[Ledger], T]) -> T:
        """Run one operation. If it fails, undo only this one and raise its error. Without an open transaction, it gets its own."""
        seq = self._seq
        self.sql.execute("SAVEPOINT operation")
        try:
            result = work(self)
        except BaseException:
            if self.sql.in_transaction:  # else SQLite gave up the whole transaction
                self.sql.execute("ROLLBACK TO operation")
                self.sql.execute("RELEASE operation")
            self._seq = seq
            self.forget()
            raise
        self.sql.execute("RELEASE operation")
        return result

    # --- the queue -----------------------------------------------------------------------------------------------------------------

    def add(self, rollouts: Iterable[tuple[Rollout, bytes]]) -> None:
        for rollout, value in rollouts:
            self.enter(rollout, value, "queued", queueable=True)

    def claim(self, worker: str, lease: float, limit: int, modes: Collection[Mode], request: str | None) -> list[tuple[Rollout, Attempt]]:
        self.collect()
        if request is not None and (earlier := self._claimed(request)):
            return earlier
        heads: list[tuple[int, bytes]] = []
        for mode in set(modes):
            heads += self.sql.execute(
                "SELECT added, value FROM rollouts WHERE status = 'queued' AND mode = ? ORDER BY added LIMIT ?", (mode, max(limit, 0))
            )
        claimed: list[tuple[Rollout, Attempt]] = []
        for added, value in sorted(heads)[: max(limit, 0)]:
            rollout = decode(value, Rollout)
            claimed.append((rollout, self._start(added, rollout, worker, lease)))
            self.change(added, "running")
        if request is not None:
            ids = [(request, attempt.id) for _, attempt in claimed]
            self.sql.executemany("INSERT INTO claims SELECT number_in_file, ? FROM attempts WHERE id = ?", ids)
        return claimed

    def _claimed(self, request: str) -> list[tuple[Rollout, Attempt]]:
        """The running attempts of a claim by its name, oldest first."""
        rows = self.sql.execute(
            f"SELECT rollouts.value, {ATTEMPT} FROM {ATTEMPTS} JOIN claims ON claims.attempt = number_in_file "
            "WHERE request = ? AND attempts.status = 'running' ORDER BY added", (request,)
        )  # fmt: skip
        return [(decode(value, Rollout), _attempt(columns)) for value, *columns in rows]

    def begin(self, rollout: Rollout, value: bytes, worker: str, lease: float) -> Attempt:
        row = self.sql.execute("SELECT added, queueable FROM rollouts WHERE id = ?", (rollout.id,)).fetchone()
        if row is not None:
            added, queueable = row
            attempts = self.attempts([added]).get(added, ())
            if not queueable and attempts and attempts[-1].worker == worker and attempts[-1].status == "running":
                return attempts[-1]  # a repeated call from a worker that lost the answer
            raise rollout_exists(rollout.id, self.name)
        return self._start(self.enter(rollout, value, "running", queueable=False), rollout, worker, lease)

    def heartbeat(self, attempt_id: str, lease: float) -> None:
        extended = self.sql.execute(
            "UPDATE attempts SET expires = ? WHERE id = ? AND status = 'running'", (self._now() + lease, attempt_id)
        ).rowcount
        if not extended:
            raise closed_attempt(self.attempt(attempt_id))

    def finish(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> RolloutState:
        attempt = self.attempt(attempt_id)
        if check_finish(attempt, status, retry):
            self._end(attempt_id, status, error, retry)
        return self.state(attempt.rollout_id)

    def cancel(self, rollout_ids: Sequence[str]) -> int:
        count = 0
        for rollout_id in rollout_ids:
            added, status = self.rollout(rollout_id)
            attempts = self.attempts([added]).get(added, ())
            if status == "running" and attempts:
                self._end(attempts[-1].id, "cancelled", None, retry=False)
            elif status in ("queued", "running"):  # a running rollout without an attempt is being copied
                self.change(added, "cancelled")
            else:
                continue
            count += 1
        return count

    def collect(self) -> None:
        """Close attempts whose lease expired."""
        expired = self.sql.execute(
            "SELECT id, worker FROM attempts WHERE status = 'running' AND expires <= ? ORDER BY expires", (self._now(),)
        ).fetchall()
        for attempt_id, worker in expired:
            self._end(attempt_id, "lost", f"the lease of worker {worker!r} expired", retry=True)

    def _now(self) -> float:
        """Return the time that leases count from. After a jump of the clock, first move the leases that it ended or made far too long.
        Another process may have moved them already."""
        now, jump = self._clock.read()  # one reading: the time after a jump with the leases before it would keep a lease for long
        if jump:
            touched, limit = ("expires <= ?", now) if jump > 0 else ("expires > ?", now - jump / 2)
            self.sql.execute(f"UPDATE attempts SET expires = expires + ? WHERE status = 'running' AND {touched}", (jump, limit))
        return now

    def expiry(self) -> float | None:
        """Return when the next lease ends, in seconds since the epoch."""
        return self.sql.execute("SELECT min(expires) FROM attempts WHERE status = 'running'").fetchone()[0]

    def enter(self, rollout: Rollout, value: bytes, status: RolloutStatus, *, queueable: bool) -> int:
        """Add a rollout, unless it exists. Return the newest sequence number."""
        row = (
            self.seq + 1, rollout.id, self.seq + 1, status, rollout.mode, rollout.step, rollout.group, queueable,
            rollout.max_attempts, value,
        )  # fmt: skip
        if self.sql.execute("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING", row).rowcount:
            self._advance()
            self.statuses.add(status)
        return self.seq

    def change(self, added: int, status: RolloutStatus) -> None:
        """Give a rollout a status and the next sequence number."""
        self.sql.execute("UPDATE rollouts SET status = ?, changed = ? WHERE added = ?", (status, self._advance(), added))
        self.statuses.add(status)

    def _advance(self) -> int:
        """Take the next sequence number."""
        self._seq, self.advanced = self.seq + 1, True
        return self._seq

    def _start(self, added: int, rollout: Rollout, worker: str, lease: float) -> Attempt:
        (earlier,) = self.sql.execute("SELECT count(*) FROM attempts WHERE rollout = ?", (added,)).fetchone()
        new = new_attempt(rollout, earlier + 1, worker, time.time())
        self.insert_attempt(added, new, lease)
        return new

    def insert_attempt(self, added: int, attempt: Attempt, lease: float) -> None:
        """Add an attempt of the rollout that was added as `added`."""
        values = (
            attempt.id, added, attempt.number, attempt.key, attempt.worker, attempt.status, attempt.started, attempt.finished,
            attempt.error, self._now() + lease,
        )  # fmt: skip
        columns = "id, rollout, number, key, worker, status, started, finished, error, expires"
        self.sql.execute(f"INSERT INTO attempts ({columns}) VALUES (?,?,?,?,?,?,?,?,?,?)", values)

    def _end(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> None:
        place, added, queueable, most, spent = self.sql.execute(
            f"SELECT number_in_file, added, queueable, max_attempts, {SPENT} FROM {ATTEMPTS} WHERE attempts.id = ?", (attempt_id,)
        ).fetchone()
        self.sql.execute("DELETE FROM claims WHERE attempt = ?", (place,))
        ended = (status, time.time(), printable(error), attempt_id)
        self.sql.execute("UPDATE attempts SET status = ?, finished = ?, error = ? WHERE id = ?", ended)
        self.change(added, next_status(status, again=bool(retry and queueable and may_retry(status, spent, most))))

    # --- records -------------------------------------------------------------------------------------------------------------------

    def record(self, rows: Sequence[Row]) -> None:
        for has_prompt, group in groupby(rows, key=lambda row: row.prompt is not None):
            part = list(group)
            if has_prompt:
                for row in part:
                    self.record_table.insert(self._place(row.attempt_id), row)
            elif self.record_table.append(part) < len(part):  # there already, or of an unknown attempt
                for attempt_id in {row.attempt_id for row in part}:
                    self._place(attempt_id)

    def records(self, attempt: Attempt) -> AttemptRecords:
        return self.record_table.of(self._place(attempt.id), attempt)

    def _place(self, attempt_id: str) -> int:
        row = self.sql.execute("SELECT number_in_file FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
        if row is None:
            raise self._not_found("attempt", attempt_id)
        return row[0]

    # --- reading -------------------------------------------------------------------------------------------------------------------

    def attempt(self, attempt_id: str) -> Attempt:
        row = self.sql.execute(f"SELECT {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.id = ?", (attempt_id,)).fetchone()
        if row is None:
            raise self._not_found("attempt", attempt_id)
        return _attempt(row)

    def attempt_and_rollout(self, column: str, value: str) -> tuple[Rollout, Attempt]:
        row = self.sql.execute(f"SELECT rollouts.value, {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.{column} = ?", (value,)).fetchone()
        if row is None:
            raise self._not_found("attempt", value) if column == "id" else unknown_key()
        return decode(row[0], Rollout), _attempt(row[1:])

    def state(self, rollout_id: str) -> RolloutState:
        rows = self.sql.execute(f"SELECT {ROLLOUT} FROM rollouts WHERE id = ?", (rollout_id,)).fetchall()
        if not rows:
            raise self._not_found("rollout", rollout_id)
        return self._states(rows)[0]

    def page(
        self, after: int, limit: int, order: str, where: Mapping[str, object], status: Collection[str] | None
    ) -> tuple[list[RolloutState], int]:
        """Return a page of `list`. `where` holds columns and their required values."""
        by, limit = ORDERS[order], max(limit, 0)
        start = after or NEWEST if order == "newest" else after
        if status is not None and by.column == "added" and not {"step", "grp"} & where.keys():
            query, values = _by_status(by, start, limit, [where["mode"]] if "mode" in where else get_args(Mode), status)
        else:
            query, values = _by_column(by, start, where, status)
        rows = self.sql.execute(f"{query} ORDER BY {by.column} {by.direction} LIMIT ?", (*values, limit)).fetchall()
        if rows:
            after = rows[-1][0 if by.column == "added" else 1]
        return self._states(rows), after

    def counts(self) -> StoreCounts:
        work: dict[str, dict[Mode, int]] = {"queued": {}, "running": {}}
        query = "SELECT status, mode, count(*) FROM rollouts WHERE status IN ('queued', 'running') GROUP BY status, mode"
        for status, mode, count in self.sql.execute(query):
            work[status][mode] = count
        (lost,) = self.sql.execute("SELECT count(*) FROM attempts WHERE status = 'lost'").fetchone()
        return StoreCounts(**work, lost=lost)

    def rollout(self, rollout_id: str) -> tuple[int, RolloutStatus]:
        """Return `added` and the status of a rollout."""
        row = self.sql.execute("SELECT added, status FROM rollouts WHERE id = ?", (rollout_id,)).fetchone()
        if row is None:
            raise self._not_found("rollout", rollout_id)
        return row

    def _states(self, rows: list[tuple[int, int, RolloutStatus, bytes]]) -> list[RolloutState]:
        attempts = self.attempts([added for added, _, _, _ in rows])
        return [
            RolloutState(rollout=decode(value, Rollout), status=status, attempts=attempts.get(added, ()), seq=changed)
            for added, changed, status, value in rows
        ]

    def attempts(self, places: list[int]) -> dict[int, tuple[Attempt, ...]]:
        """Return the attempts of rollouts, by `rollouts.added`, ordered by number."""
        attempts: dict[int, tuple[Attempt, ...]] = {}
        for start in range(0, len(places), 500):  # SQLite limits the parameters of a statement
            part = places[start : start + 500]
            query = f"SELECT rollout, {ATTEMPT} FROM {ATTEMPTS} WHERE rollout IN ({','.join('?' * len(part))}) ORDER BY rollout, number"
            for place, *row in self.sql.execute(query, part):
                attempts[place] = (*attempts.get(place, ()), _attempt(row))
        return attempts

    def _not_found(self, noun: str, id: str) -> NotFound:
        return not_found(noun, id, self.name)

    # --- policies ------------------------------------------------------------------------------------------------------------------

    def publish(self, policy: Policy) -> None:
        row = self.sql.execute("SELECT value FROM policies WHERE name = ? AND version = ?", (policy.name, policy.version)).fetchone()
        if row is not None:
            check_policy(decode(row[0], Policy), policy)
        else:
            self.sql.execute("INSERT INTO policies VALUES (?,?,?)", (policy.name, policy.version, encode(policy)))

    def policies(self, name: str | None) -> list[Policy]:
        rows = self.sql.execute("SELECT value FROM policies WHERE ?1 IS NULL OR name = ?1 ORDER BY name, version", (name,))
        return [decode(value, Policy) for (value,) in rows]


def _by_column(by: _By, after: int, where: Mapping[str, object], status: Collection[str] | None) -> tuple[str, list[object]]:
    """A query for the rollouts after a number, in the order of its index. The `+` keeps SQLite from the index by status, which would sort
    every rollout of that status."""
    conditions, values = [f"{by.column} {by.sign} ?", *(f"{'+' * (name == 'mode')}{name} = ?" for name in where)], [after, *where.values()]
    if status is not None:
        conditions.append(f"+status IN ({','.join('?' * len(status))})")
        values += status
    return f"SELECT {ROLLOUT} FROM rollouts WHERE {' AND '.join(conditions)}", values


def _by_status(by: _By, after: int, limit: int, modes: Collection[object], status: Collection[str]) -> tuple[str, list[object]]:
    """A query for the first rollouts of each status and mode after a number: each part reads `limit` rows of the index by status."""
    where = f"status = ? AND mode = ? AND added {by.sign} ?"
    part = f"SELECT * FROM (SELECT {ROLLOUT} FROM rollouts WHERE {where} ORDER BY added {by.direction} LIMIT ?)"
    pairs = [(one, mode) for one in dict.fromkeys(status) for mode in modes]
    if not pairs:
        return f"SELECT {ROLLOUT} FROM rollouts WHERE 0", []
    return " UNION ALL ".join([part] * len(pairs)), [value for one, mode in pairs for value in (one, mode, after, limit)]


def _attempt(row: Sequence[Any]) -> Attempt:
    id, rollout_id, number, key, worker, status, started, finished, error = row
    return Attempt(
        id=id, rollout_id=rollout_id, number=number, key=key, worker=worker, status=status, started=started, finished=finished, error=error
    )
