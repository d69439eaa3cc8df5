"""The parent of worker processes follows their attempts at the cost of what changed, however much is stored."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.contracts.store import RolloutState
from agentlightning.runner.worker_pool import WorkerAttempts
from agentlightning.testing.store import ended_rollout, rollouts
from agentlightning_sqlite.store import SQLiteStore

LEASE = 600.0


class CountingStore(SQLiteStore):
    """Counts the rollouts that it lists."""

    listed = 0

    async def list(self, **arguments: Any) -> tuple[list[RolloutState], int]:
        page = await super().list(**arguments)
        self.listed += len(page[0])
        return page


async def test_a_look_reads_what_changed_and_nothing_of_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkerAttempts, "PAGE", 2)
    store = CountingStore()
    await store.put([ended_rollout() for _ in range(50)])
    await store.add(rollouts(56))
    await store.claim("elsewhere", lease=LEASE, limit=50)
    attempts = WorkerAttempts(store, "mine-")
    await attempts.start()
    assert await attempts.running("mine-0.1") == []
    assert not await attempts.has_claimed("mine-0.1")
    assert store.listed == 0

    (_, one), (_, two) = await store.claim("mine-0.1", lease=LEASE, limit=2)
    ((_, other),) = await store.claim("mine-1.1", lease=LEASE)
    await store.claim("elsewhere", lease=LEASE)
    assert {attempt.id for attempt in await attempts.running("mine-0.1")} == {one.id, two.id}
    assert store.listed == 4

    await store.finish(one.id, "failed", retry=True)
    await store.finish(other.id, "succeeded")
    ((_, again),) = await store.claim("elsewhere", lease=LEASE)  # the rollout that was given back
    assert (again.rollout_id, again.number) == (one.rollout_id, 2)
    assert await attempts.running("mine-0.1") == [two]
    assert await attempts.running("mine-1.1") == []
    assert [await attempts.has_claimed(worker) for worker in ("mine-0.1", "mine-1.1", "mine-2.1", "elsewhere")] == [
        True,
        True,
        False,
        False,
    ]
    assert store.listed == 6
    attempts.drop(two)
    assert await attempts.running("mine-0.1") == []
