"""Rollouts that arrive from other stores, and rollouts that leave: operations on a `Ledger`, in the caller's transaction."""

# ruff: noqa: S608  # statements are put together from names and placeholders of this file; values are always parameters

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentlightning.errors import StoreError
from agentlightning.stores.common import COPIED_LEASE, ENDED
from agentlightning.stores.records import Arriving
from agentlightning.types import Attempt
from agentlightning_sqlite.ledger import Ledger


def put(ledger: Ledger, rollouts: Iterable[Arriving]) -> None:
    """Merge rollouts of another store into this one (`LightningStore.put`)."""
    for arriving in rollouts:
        state = arriving.state
        queueable = state.status == "queued" or state.rollout.mode != "production"  # others were begun, and no runner has their agent
        ledger.enter(state.rollout, arriving.value, state.status, queueable=queueable)
        added, status = ledger.rollout(state.rollout.id)
        announced = status == "running" and not ledger.attempts([added])
        news = [_put_attempt(ledger, added, attempt) for attempt, _ in arriving.attempts]
        for _, rows in arriving.attempts:
            ledger.record(rows)
        ends = state.status in ENDED and status not in ENDED
        if any(news) or (state.status != status and (announced or ends)):
            ledger.change(added, state.status)


def _put_attempt(ledger: Ledger, added: int, attempt: Attempt) -> bool:
    """Insert an attempt, or give it its end. Return whether anything changed."""
    row = ledger.sql.execute("SELECT id, status FROM attempts WHERE rollout = ? AND number = ?", (added, attempt.number)).fetchone()
    if row is None:
        ledger.insert_attempt(added, attempt, COPIED_LEASE)
        return True
    attempt_id, status = row
    if attempt_id != attempt.id:
        raise StoreError(
            f"Rollout {attempt.rollout_id} has another attempt {attempt.number} in the store {ledger.name}: it continued in both stores. "
            "Stop the runners of one store before you copy it."
        )
    if status not in ("running", "lost") or attempt.status in ("running", status):
        return False
    end = (attempt.status, attempt.finished, attempt.error, attempt_id)
    ledger.sql.execute("UPDATE attempts SET status = ?, finished = ?, error = ? WHERE id = ?", end)
    return True


def delete(ledger: Ledger, rollout_ids: Sequence[str]) -> int:
    """Delete rollouts that have ended and that no step in progress needs. Return their number (`LightningStore.delete`)."""
    ledger.sql.execute("UPDATE sequence SET newest = ?", (ledger.look(),))
    active = ledger.sql.execute("SELECT DISTINCT grp, step FROM rollouts WHERE status IN ('queued', 'running')").fetchall()
    groups, steps = {group for group, _ in active} - {None}, {step for _, step in active} - {None}
    count = 0
    for rollout_id in rollout_ids:
        row = ledger.sql.execute("SELECT added, status, grp, step FROM rollouts WHERE id = ?", (rollout_id,)).fetchone()
        if row is None or row[1] not in ENDED or row[2] in groups or row[3] in steps:
            continue
        attempts = "SELECT number_in_file FROM attempts WHERE rollout = ?"
        ledger.sql.execute(f"DELETE FROM records WHERE attempt IN ({attempts})", row[:1])
        ledger.sql.execute("DELETE FROM attempts WHERE rollout = ?", row[:1])
        ledger.sql.execute("DELETE FROM rollouts WHERE added = ?", row[:1])
        count += 1
    ledger.forget()
    return count
