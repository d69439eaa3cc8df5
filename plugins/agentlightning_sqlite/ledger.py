"""The store's steps on one connection, synchronous. Who calls them begins and commits the transaction.

Conversations repeat their history: a completion that continues another one of its attempt is kept as the other's place and the tail of
its prompt, so that bytes grow with new tokens; reading gives back the whole prompt.
"""

# ruff: noqa: S608  # statements are put together from names and placeholders of this file; values are always parameters

from __future__ import annotations

import sqlite3
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import LeaseLost, NotFound, StoreError
from agentlightning.stores.memory import check_finish, check_policy, new_attempt, next_status, printable
from agentlightning.stores.serialization import decode, encode
from agentlightning.types import (
    Attempt,
    AttemptStatus,
    Call,
    Completion,
    IntArray,
    Mode,
    Policy,
    Record,
    Reward,
    Rollout,
    RolloutStatus,
    Span,
)  # fmt: skip

ATTEMPT = "attempts.id, rollouts.id, number, key, worker, attempts.status, started, finished, error"
ATTEMPTS = "attempts JOIN rollouts ON rollouts.added = attempts.rollout"
KINDS = {"Call": Call, "Completion": Completion, "Span": Span, "Reward": Reward}
CACHED_TOKENS = 4_000_000
"""Tokens of conversations under way that a writer remembers, at most (16 MB)."""


class Ledger:
    """Reads and writes the tables through one connection."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self.sql, self.name = connection, name
        self.seq = 0
        """The newest sequence number, once `look` was called in the transaction."""
        self._tokens: OrderedDict[int, IntArray] = OrderedDict()  # prompt and response by `records.seq`

    def look(self) -> int:
        """Read the newest sequence number."""
        self.seq = self.sql.execute("SELECT coalesce(max(changed), 0) FROM rollouts").fetchone()[0]
        return self.seq

    def forget(self) -> None:
        """Drop what was remembered: the transaction that wrote it was rolled back."""
        self._tokens.clear()

    # --- the queue -----------------------------------------------------------------------------------------------------------------

    def add(self, rollouts: Iterable[tuple[Rollout, bytes]]) -> None:
        for rollout, value in rollouts:
            self._enter(rollout, value, "queued")

    def claim(self, worker: str, lease: float, limit: int, modes: Collection[Mode]) -> list[tuple[Rollout, Attempt]]:
        self.collect()
        heads: list[tuple[int, bytes]] = []
        for mode in set(modes):
            heads += self.sql.execute(
                "SELECT added, value FROM rollouts WHERE status = 'queued' AND mode = ? ORDER BY added LIMIT ?", (mode, max(limit, 0))
            )
        claimed: list[tuple[Rollout, Attempt]] = []
        for added, value in sorted(heads)[: max(limit, 0)]:
            rollout = decode(value, Rollout)
            claimed.append((rollout, self._start(added, rollout, worker, lease)))
            self._change(added, "running")
        return claimed

    def begin(self, rollout: Rollout, value: bytes, worker: str, lease: float) -> Attempt:
        known = self.sql.execute("SELECT added, queueable FROM rollouts WHERE id = ?", (rollout.id,)).fetchone()
        if known is not None:
            attempts = self._attempts([known[0]]).get(known[0], ())
            if not known[1] and attempts and attempts[-1].worker == worker and attempts[-1].status == "running":
                return attempts[-1]  # the same again, by a worker that did not hear the answer
            raise StoreError(f"rollout {rollout.id} is in the store {self.name} already; `begin` needs a new one")
        return self._start(self._enter(rollout, value, "running"), rollout, worker, lease)

    def heartbeat(self, attempt_id: str, lease: float) -> None:
        held = self.sql.execute(
            "UPDATE attempts SET expires = ? WHERE id = ? AND status = 'running'", (time.time() + lease, attempt_id)
        ).rowcount
        if not held:
            attempt = self.attempt(attempt_id)
            raise LeaseLost(f"attempt {attempt_id} of worker {attempt.worker!r} is closed as {attempt.status!r}")

    def finish(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> RolloutState:
        attempt = self.attempt(attempt_id)
        if check_finish(attempt, status, retry):
            self._end(attempt_id, status, error, retry)
        return self.state(attempt.rollout_id)

    def cancel(self, rollout_ids: Sequence[str]) -> int:
        count = 0
        for rollout_id in rollout_ids:
            added, status = self._rollout(rollout_id)
            if status == "queued":
                self._change(added, "cancelled")
            elif status == "running":
                self._end(self._attempts([added])[added][-1].id, "cancelled", None, retry=False)
            else:
                continue
            count += 1
        return count

    def collect(self) -> None:
        """Close attempts whose lease expired."""
        expired = self.sql.execute(
            "SELECT id, worker FROM attempts WHERE status = 'running' AND expires <= ? ORDER BY expires", (time.time(),)
        ).fetchall()
        for attempt_id, worker in expired:
            self._end(attempt_id, "lost", f"the lease of worker {worker!r} expired", retry=True)

    def expiry(self) -> float | None:
        """When the next lease ends, seconds since the epoch."""
        return self.sql.execute("SELECT min(expires) FROM attempts WHERE status = 'running'").fetchone()[0]

    def _enter(self, rollout: Rollout, value: bytes, status: RolloutStatus) -> int:
        row = (
            self.seq + 1, rollout.id, self.seq + 1, status, rollout.mode, rollout.step, rollout.group, status == "queued",
            rollout.max_attempts, value,
        )  # fmt: skip
        self.seq += self.sql.execute("INSERT INTO rollouts VALUES (?,?,?,?,?,?,?,?,?,?) ON CONFLICT (id) DO NOTHING", row).rowcount
        return self.seq

    def _change(self, added: int, status: RolloutStatus) -> None:
        self.seq += 1
        self.sql.execute("UPDATE rollouts SET status = ?, changed = ? WHERE added = ?", (status, self.seq, added))

    def _start(self, added: int, rollout: Rollout, worker: str, lease: float) -> Attempt:
        (earlier,) = self.sql.execute("SELECT count(*) FROM attempts WHERE rollout = ?", (added,)).fetchone()
        new = new_attempt(rollout, earlier + 1, worker)
        self.sql.execute(
            "INSERT INTO attempts (id, rollout, number, key, worker, status, started, expires) VALUES (?,?,?,?,?,?,?,?)",
            (new.id, added, new.number, new.key, worker, new.status, new.started, time.time() + lease),
        )
        return new

    def _end(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> None:
        added, number, queueable, most = self.sql.execute(
            f"SELECT added, number, queueable, max_attempts FROM {ATTEMPTS} WHERE attempts.id = ?", (attempt_id,)
        ).fetchone()
        ended = (status, time.time(), printable(error), attempt_id)
        self.sql.execute("UPDATE attempts SET status = ?, finished = ?, error = ? WHERE id = ?", ended)
        self._change(added, next_status(status, again=bool(retry and queueable and number < most)))

    # --- records -------------------------------------------------------------------------------------------------------------------

    def record(self, records: Sequence[Record]) -> None:
        places: dict[str, int] = {}
        for record in records:
            if record.attempt_id not in places:
                places[record.attempt_id] = self._place(record.attempt_id)
        for record in records:
            attempt, base, kept = places[record.attempt_id], None, record
            if isinstance(record, Completion) and record.continues is not None:
                base, kept = self._shortened(record, attempt)
            self.sql.execute(
                "INSERT INTO records (attempt, kind, id, base, value) VALUES (?,?,?,?,?) ON CONFLICT (id, kind) DO NOTHING",
                (attempt, type(record).__name__, record.id, base, encode(kept)),
            )

    def _shortened(self, completion: Completion, attempt: int) -> tuple[int | None, Completion]:
        """The place of the completion whose tokens the prompt starts with, and the rest of the prompt; (None, all) where it does not."""
        place = self.sql.execute(
            "SELECT seq FROM records WHERE id = ? AND kind = 'Completion' AND attempt = ?", (completion.continues, attempt)
        ).fetchone()
        if place is None or completion.continues == completion.id:
            return None, completion
        before = self._all_tokens(place[0])
        if not np.array_equal(before, completion.prompt_ids[: len(before)]):
            return None, completion
        return place[0], replace(completion, prompt_ids=completion.prompt_ids[len(before) :])

    def _all_tokens(self, seq: int) -> IntArray:
        """Prompt and response of a completion."""
        missing: list[tuple[int, Completion]] = []
        place: int | None = seq
        while place is not None and place not in self._tokens:
            base, value = self.sql.execute("SELECT base, value FROM records WHERE seq = ?", (place,)).fetchone()
            missing.append((place, decode(value, Completion)))
            place = base
        tokens = self._tokens[place] if place is not None else np.empty(0, np.int32)
        for place, completion in reversed(missing):
            tokens = np.concatenate([tokens, completion.prompt_ids, completion.response_ids])
            self._tokens[place] = tokens
        self._tokens.move_to_end(seq)
        total = sum(map(len, self._tokens.values()))
        while total > CACHED_TOKENS and len(self._tokens) > 1:
            total -= len(self._tokens.popitem(last=False)[1])
        return tokens

    def written(self, attempt: Attempt) -> AttemptRecords:
        """All that an attempt wrote."""
        found: dict[str, list[Record]] = {kind: [] for kind in KINDS}
        tokens: dict[int, IntArray] = {}
        rows = self.sql.execute(
            "SELECT seq, kind, base, value FROM records WHERE attempt = ? ORDER BY seq", (self._place(attempt.id),)
        ).fetchall()
        bases = {base for _, _, base, _ in rows}
        for seq, kind, base, value in rows:
            record = decode(value, KINDS[kind])
            if isinstance(record, Completion):
                if base is not None:
                    record = replace(record, prompt_ids=np.concatenate([tokens[base], record.prompt_ids]))
                if seq in bases:
                    tokens[seq] = np.concatenate([record.prompt_ids, record.response_ids])
            found[kind].append(record)
        return AttemptRecords(
            attempt=attempt, calls=tuple(found["Call"]), completions=tuple(found["Completion"]), spans=tuple(found["Span"]),
            rewards=tuple(found["Reward"]),
        )  # type: ignore[arg-type]  # fmt: skip

    def _place(self, attempt_id: str) -> int:
        row = self.sql.execute("SELECT number_in_file FROM attempts WHERE id = ?", (attempt_id,)).fetchone()
        if row is None:
            raise NotFound(f"no attempt {attempt_id!r} in the store {self.name}")
        return row[0]

    # --- reading -------------------------------------------------------------------------------------------------------------------

    def attempt(self, attempt_id: str) -> Attempt:
        row = self.sql.execute(f"SELECT {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.id = ?", (attempt_id,)).fetchone()
        if row is None:
            raise NotFound(f"no attempt {attempt_id!r} in the store {self.name}")
        return _attempt(row)

    def attempt_and_rollout(self, column: str, value: str) -> tuple[Rollout, Attempt]:
        row = self.sql.execute(f"SELECT rollouts.value, {ATTEMPT} FROM {ATTEMPTS} WHERE attempts.{column} = ?", (value,)).fetchone()
        if row is None:
            raise NotFound(f"no attempt {value!r} in the store {self.name}" if column == "id" else "no attempt has this key")
        return decode(row[0], Rollout), _attempt(row[1:])

    def state(self, rollout_id: str) -> RolloutState:
        self._rollout(rollout_id)
        return self._states(self.sql.execute("SELECT added, changed, status, value FROM rollouts WHERE id = ?", (rollout_id,)).fetchall())[
            0
        ]

    def page(self, after: int, limit: int, order: str, where: Mapping[str, object], status: Collection[str] | None) -> tuple[
        list[RolloutState], int
    ]:  # fmt: skip
        """A page of `list`; `where` holds columns and the values that they must have."""
        column = "added" if order == "added" else "changed"
        conditions, values = [f"{column} > ?", *(f"{name} = ?" for name in where)], [after, *where.values()]
        if status is not None:
            conditions.append(f"status IN ({','.join('?' * len(status))})")
            values += status
        rows = self.sql.execute(
            f"SELECT added, changed, status, value FROM rollouts WHERE {' AND '.join(conditions)} ORDER BY {column} LIMIT ?",
            (*values, max(limit, 0)),
        ).fetchall()
        if rows:
            after = rows[-1][0 if order == "added" else 1]
        return self._states(rows), after

    def _rollout(self, rollout_id: str) -> tuple[int, str]:
        row = self.sql.execute("SELECT added, status FROM rollouts WHERE id = ?", (rollout_id,)).fetchone()
        if row is None:
            raise NotFound(f"no rollout {rollout_id!r} in the store {self.name}")
        return row

    def _states(self, rows: list[tuple[int, int, RolloutStatus, bytes]]) -> list[RolloutState]:
        attempts = self._attempts([added for added, _, _, _ in rows])
        return [
            RolloutState(rollout=decode(value, Rollout), status=status, attempts=attempts.get(added, ()), seq=changed)
            for added, changed, status, value in rows
        ]

    def _attempts(self, places: list[int]) -> dict[int, tuple[Attempt, ...]]:
        """The attempts of rollouts, by `rollouts.added`, in order of their number."""
        found: dict[int, tuple[Attempt, ...]] = {}
        for start in range(0, len(places), 500):  # SQLite limits the parameters of a statement
            part = places[start : start + 500]
            query = f"SELECT rollout, {ATTEMPT} FROM {ATTEMPTS} WHERE rollout IN ({','.join('?' * len(part))}) ORDER BY rollout, number"
            for place, *row in self.sql.execute(query, part):
                found[place] = (*found.get(place, ()), _attempt(row))
        return found

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


def _attempt(row: Sequence[object]) -> Attempt:
    id, rollout_id, number, key, worker, status, started, finished, error = row
    return Attempt(
        id=id, rollout_id=rollout_id, number=number, key=key, worker=worker, status=status, started=started, finished=finished, error=error
    )  # type: ignore[arg-type]  # fmt: skip
