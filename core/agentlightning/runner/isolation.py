"""Which rollouts run alone in their process, because one of them may end it.

A rollout that shared a dead worker runs alone next, and that attempt does not count. After a runner was lost, its rollouts keep company
until their last attempt, because machines fail more often than agents kill their process.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import LeaseLost, StoreError
from agentlightning.types import Attempt, Rollout

NOTE = " It shared the process with other rollouts, so it runs alone next time."
"""Ends the error of an attempt that was in a worker with others when the worker died."""
GIVEN_BACK = "This rollout runs alone, and the runner had others."
STOPPED = "the runner was stopped"
LAST_ANSWER = 5.0
"""Seconds that a stopped runner waits for the answer to its last claim."""


async def runs_alone(store: LightningStore, rollout: Rollout, attempt: Attempt) -> bool:
    """Whether a claimed attempt must not share its process."""
    if attempt.number == 1:
        return False
    state, _ = await store.read(rollout.id)
    earlier = [other for other in state.attempts if other.number < attempt.number and other.error != GIVEN_BACK]
    if not earlier:
        return False
    spent = sum(other.status != "cancelled" for other in earlier)
    last = earlier[-1]
    return (last.error or "").endswith(NOTE) or (last.status == "lost" and spent + 1 >= rollout.max_attempts)


class Claims:
    """Claims the next rollouts of a runner. A rollout that runs alone waits in the queue until the runner has no other."""

    def __init__(self, store: LightningStore, worker: str, *, lease: float, concurrency: int) -> None:
        self._store, self._worker, self._lease, self._concurrency = store, worker, lease, concurrency
        self._alone = False
        """Whether the oldest queued rollout, or the running one, runs alone."""

    async def next(self, running: int) -> list[tuple[Rollout, Attempt]]:
        """Claim as many rollouts as may start beside the `running` ones."""
        free = (1 if self._alone else self._concurrency) - running
        if free <= 0:
            return []
        claim = asyncio.ensure_future(self._store.claim(self._worker, lease=self._lease, limit=free))
        try:
            return await self._fitting(await asyncio.shield(claim), running)
        except asyncio.CancelledError:  # the store may have claimed rollouts whose answer nobody else awaits
            with suppress(StoreError, TimeoutError):
                for _, attempt in await asyncio.wait_for(claim, LAST_ANSWER):
                    await self._give_back(attempt, STOPPED)
            raise

    async def _fitting(self, claimed: list[tuple[Rollout, Attempt]], running: int) -> list[tuple[Rollout, Attempt]]:
        """Give back the rollouts that may not start now, and return the others."""
        alone = [attempt for rollout, attempt in claimed if await runs_alone(self._store, rollout, attempt)]
        self._alone = bool(alone)
        if not alone or (len(claimed) == 1 and not running):
            return claimed
        for attempt in alone:
            await self._give_back(attempt, GIVEN_BACK)
        return [pair for pair in claimed if pair[1] not in alone]

    async def _give_back(self, attempt: Attempt, reason: str) -> None:
        with suppress(LeaseLost):
            await self._store.finish(attempt.id, "cancelled", error=reason, retry=True)
