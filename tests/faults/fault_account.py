"""What a store must hold after a fault, and the table of what the tests found."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from agentlightning.contracts.store import LightningStore, RolloutState
from agentlightning.stores.common import ENDED, open_store


@dataclass(frozen=True, kw_only=True)
class Account:
    """One row of the table."""

    fault: str
    times: int
    """How often the fault happened."""
    acknowledged: int
    """Records whose answer a client got."""
    found: int
    missing: int
    double: int
    """Records that are in the store twice."""
    rollouts: int
    finished: int
    claimable: int
    """Rollouts that another runner got, at the latest when the lease had ended."""
    training: str
    """How training went on."""

    def check(self) -> dict[str, object]:
        """The row, if nothing was lost."""
        assert self.acknowledged > 0, self
        assert (self.found, self.missing, self.double) == (self.acknowledged, 0, 0), self
        assert self.finished + self.claimable == self.rollouts > 0, self
        return asdict(self)


def table(rows: Sequence[dict[str, object]]) -> str:
    """The rows as a Markdown table."""
    head = {name: name for name in Account.__annotations__}
    widths = {name: max(len(str(row[name])) for row in [head, *rows]) for name in head}
    lines = [" | ".join(str(row[name]).ljust(width) for name, width in widths.items()).rstrip() for row in [head, *rows]]
    return "\n".join([lines[0], " | ".join("-" * width for width in widths.values()), *lines[1:]])


async def _account(address: str, answers: Sequence[tuple[str, str]], patience: float) -> dict[str, int]:
    store = open_store(address)
    states = await all_states(store)
    held, twice = Counter[tuple[str, str]](), 0
    for attempt in (attempt for state in states for attempt in state.attempts):
        records = await store.records(attempt.id)
        ids = [record.call_id for record in records.completions] + [reward.id for reward in records.rewards]
        held.update((attempt.key, id) for id in ids)
        twice += sum(count - 1 for count in Counter(call.id for call in records.calls).values())
        twice += sum(count - 1 for count in Counter(reward.name for reward in records.rewards).values())
    twice += sum(max(0, sum(attempt.status == "succeeded" for attempt in state.attempts) - 1) for state in states)
    open_ones = {state.rollout.id for state in states if state.status not in ENDED}
    claimed = await _claim(store, open_ones, patience)
    await store.close()
    return {
        "acknowledged": len(answers), "found": sum(held[answer] >= 1 for answer in answers),
        "missing": sum(held[answer] == 0 for answer in answers), "double": twice + sum(count - 1 for count in held.values()),
        "rollouts": len(states), "finished": len(states) - len(open_ones), "claimable": len(claimed),
    }  # fmt: skip


async def all_states(store: LightningStore) -> list[RolloutState]:
    states, after = list[RolloutState](), 0
    while True:
        page, after = await store.list(after=after, limit=1000)
        states += page
        if not page:
            return states


async def _claim(store: LightningStore, wanted: set[str], patience: float) -> set[str]:
    """Claim these rollouts, as another runner does, until all are claimed or leases that are left must have ended."""
    claimed, deadline = set[str](), time.monotonic() + patience
    while not wanted <= claimed and time.monotonic() < deadline:
        claimed |= {rollout.id for rollout, _ in await store.claim("heir", lease=600, limit=1000)}
        await asyncio.sleep(0.2)
    return claimed & wanted


def account(
    fault: str, times: int, address: str, answers: Sequence[tuple[str, str]], *, training: str = "-", lease: float = 60.0
) -> dict[str, object]:
    """Compare a store with what was acknowledged. All processes have ended; leases last at most `lease` seconds. Fails if anything is
    wrong."""
    counts = asyncio.run(_account(address, answers, lease + 10))
    return Account(fault=fault, times=times, training=training, **counts).check()
