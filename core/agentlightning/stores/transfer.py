"""Copies rollouts and policies from a store, or an export, into another store.

The first pass announces every rollout, in the order of `add`. The second pass fills them in the order in which they changed. So both orders
of `list` arrive, and readers that follow the target see each rollout end. A repeated copy adds what is missing and what came later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from msgspec.structs import replace

from agentlightning.contracts.store import LightningStore, RolloutState, StoredRollout
from agentlightning.stores.common import ENDED
from agentlightning.types import Policy

PAGE = 256
"""Rollouts listed at once."""
READS = 8
"""Rollouts read at once."""
RECORDS = 200
"""Records after which a batch is written. One rollout is never split."""


class Source(Protocol):
    """What can be copied."""

    async def page(self, after: int, limit: int, order: Literal["added", "changed"]) -> tuple[list[RolloutState], int]:
        """Return a page of `LightningStore.list`."""
        ...

    async def read(self, state: RolloutState) -> StoredRollout: ...

    async def policies(self) -> list[Policy]: ...


@dataclass(frozen=True, slots=True)
class StoreSource:
    """A store as a source."""

    store: LightningStore

    async def page(self, after: int, limit: int, order: Literal["added", "changed"]) -> tuple[list[RolloutState], int]:
        return await self.store.list(after=after, limit=limit, order=order)

    async def read(self, state: RolloutState) -> StoredRollout:
        return await self.store.read(state.rollout.id)

    async def policies(self) -> list[Policy]:
        return await self.store.policies()


@dataclass(slots=True)
class Copied:
    """How far a copy is."""

    announced: int = 0
    filled: int = 0
    skipped: int = 0
    """Rollouts that the target had already, counted in `filled` as well."""


async def copy(
    source: Source, target: LightningStore, *, resume: bool = False, report: Callable[[Copied], None] = lambda copied: None
) -> Copied:
    """Copy everything of a source into a store, with ids, order, attempts, records and policies.

    `resume` skips the rollouts that an interrupted copy has written, without a look at their records. `report` hears the progress. Raises
    `StoreError` if a rollout continued in both stores.
    """
    copied = Copied()
    for policy in await source.policies():
        await target.publish(policy)
    await _announce(source, target, copied, report)
    await _fill(source, target, copied, report, resume=resume)
    return copied


async def _announce(source: Source, target: LightningStore, copied: Copied, report: Callable[[Copied], None]) -> None:
    cursor = 0
    while True:
        states, cursor = await source.page(cursor, PAGE, "added")
        if not states:
            return
        await target.put([(RolloutState(rollout=state.rollout, status="running"), ()) for state in states])
        copied.announced += len(states)
        report(copied)


async def _fill(source: Source, target: LightningStore, copied: Copied, report: Callable[[Copied], None], *, resume: bool) -> None:
    earlier = _EarlierCopy(target) if resume else None
    cursor = 0
    while True:
        states, cursor = await source.page(cursor, PAGE, "changed")
        missing = [state for state in states if earlier is None or not await earlier.has(state)]
        batch: list[StoredRollout] = []
        for start in range(0, len(missing), READS):
            batch += await asyncio.gather(*(source.read(state) for state in missing[start : start + READS]))
            if sum(map(_records, batch)) >= RECORDS:
                await target.put(batch)
                batch.clear()
        await target.put(batch)
        copied.filled += len(states)
        copied.skipped += len(states) - len(missing)
        report(copied)
        if len(states) < PAGE:  # a source in use never stays at its end
            return


def _records(stored: StoredRollout) -> int:
    return 1 + sum(len(kind) for attempt in stored[1] for kind in (attempt.calls, attempt.completions, attempt.spans, attempt.rewards))


class _EarlierCopy:
    """The ended rollouts in a target, which an interrupted copy wrote in the order of the source."""

    def __init__(self, target: LightningStore) -> None:
        self._target = target
        self._page: deque[RolloutState] = deque()
        self._cursor = 0

    async def has(self, state: RolloutState) -> bool:
        """Return whether the next rollout of the target is this one, with the same attempts."""
        if state.status not in ENDED:
            return False
        if not self._page:
            states, self._cursor = await self._target.list(after=self._cursor, limit=PAGE, status=ENDED, order="changed")
            self._page.extend(states)
        if not self._page or replace(self._page[0], seq=state.seq) != state:
            return False
        self._page.popleft()
        return True
