"""Deletes old rollouts from a store, and never what a step in progress needs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.stores.common import ENDED
from agentlightning.types import Mode, RolloutStatus

PAGE = 256


@dataclass(slots=True)
class Pruned:
    """The rollouts that a `prune` found."""

    expired: Counter[tuple[Mode, RolloutStatus]] = field(default_factory=Counter[tuple[Mode, RolloutStatus]])
    """Rollouts old enough to be deleted, by mode and status."""
    in_progress: int = 0
    """Old rollouts that stay, because their group or step has queued or running rollouts."""
    deleted: int = 0
    kept: int = 0
    """All other rollouts."""


async def prune(
    store: LightningStore,
    *,
    older_than: float,
    mode: Mode | None = None,
    status: Collection[RolloutStatus] = ENDED,
    delete: bool = False,
    report: Callable[[int], None] = lambda count: None,
) -> Pruned:
    """Find the rollouts that ended over `older_than` seconds ago, and delete them if `delete` is true.

    `mode` and `status` limit them. `report` hears how many rollouts were looked at. Call `store.compact()` afterwards.
    """
    pruned, before, cursor, count = Pruned(), time.time() - older_than, 0, 0
    groups, steps = await _in_progress(store)
    while True:
        states, cursor = await store.list(after=cursor, limit=PAGE)
        if not states:
            return pruned
        old = [state for state in states if state.status in ENDED and state.status in status and ended(state) < before]
        old = [state for state in old if mode in (None, state.rollout.mode)]
        free = [state for state in old if state.rollout.group not in groups and state.rollout.step not in steps]
        pruned.in_progress += len(old) - len(free)
        pruned.kept += len(states) - len(old)
        pruned.expired.update((state.rollout.mode, state.status) for state in free)
        if delete and free:
            pruned.deleted += await store.delete([state.rollout.id for state in free])
        count += len(states)
        report(count)


def ended(state: RolloutState) -> float:
    """Return when a rollout ended, in seconds since the epoch; its creation, if it has no attempt."""
    return max((attempt.finished or attempt.started for attempt in state.attempts), default=state.rollout.created)


async def _in_progress(store: LightningStore) -> tuple[set[str], set[int]]:
    """Return the groups and the steps that have queued or running rollouts."""
    groups, steps, cursor = set[str](), set[int](), 0
    while True:
        states, cursor = await store.list(after=cursor, limit=PAGE, status=("queued", "running"))
        if not states:
            return groups, steps
        groups |= {state.rollout.group for state in states if state.rollout.group is not None}
        steps |= {state.rollout.step for state in states if state.rollout.step is not None}
