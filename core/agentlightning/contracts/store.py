"""The LightningStore contract: where everything lives, and the queue that runners claim from.

Invariants, held by `agentlightning.testing.store_contract` for every implementation:

- At least once, one winning attempt: an attempt is handed to one claimer; a rollout ends with at most one `succeeded` attempt.
- What was acknowledged is durable, as far as the implementation promises durability at all.
- Order is the store's own sequence (order of acknowledgement), never ids or client clocks.
- Leases use the store's clock. An attempt whose lease expired is `lost`; its rollout is queued again (until `max_attempts`, then
  `failed`); what it wrote stays readable.
- Methods may be called from any thread's event loop, many at a time (the gateway has a loop of its own).
- Recording is idempotent by id: the first value under an id stays; the same again is accepted in silence.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, Protocol

from agentlightning.types import (
    Attempt,
    AttemptStatus,
    Call,
    Completion,
    Mode,
    Policy,
    Record,
    Reward,
    Rollout,
    RolloutStatus,
    Span,
    WireValue,
)


class RolloutState(WireValue, frozen=True, kw_only=True):
    """A rollout and where it stands."""

    rollout: Rollout
    status: RolloutStatus
    attempts: tuple[Attempt, ...] = ()
    """In order of their number."""
    seq: int = 0
    """The store's sequence number of its last change of status."""

    @property
    def winner(self) -> Attempt | None:
        """The attempt that counts: the succeeded one, else the last one once the rollout has ended."""
        for attempt in self.attempts:
            if attempt.status == "succeeded":
                return attempt
        ended = self.status in ("failed", "cancelled") and self.attempts
        return self.attempts[-1] if ended else None


class AttemptRecords(WireValue, frozen=True, kw_only=True):
    """Everything that one attempt wrote, each kind in the store's sequence."""

    attempt: Attempt
    calls: tuple[Call, ...] = ()
    completions: tuple[Completion, ...] = ()
    spans: tuple[Span, ...] = ()
    rewards: tuple[Reward, ...] = ()


class LightningStore(Protocol):
    """See the module for the invariants. Methods raise `NotFound`, `LeaseLost`, or another `StoreError`."""

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        """Queue rollouts, in order. Idempotent by id."""
        ...

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        """Take up to `limit` queued rollouts, oldest first, each as a new running attempt with its own key, for `lease` seconds.
        Returns at once, with an empty list when nothing is queued. Expired leases are collected first."""
        ...

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        """Add a rollout and claim it in one step; it is never queued (how `agl.rollout` records outside a run)."""
        ...

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        """Extend the lease to `lease` seconds from now. `LeaseLost` when the attempt is not running."""
        ...

    async def record(self, records: Sequence[Record]) -> None:
        """Append; all or none. Idempotent by id. Rewards are accepted for closed attempts, as is whatever comes late:
        nothing recorded is lost."""
        ...

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        """Close a running attempt. With `retry` (never with `succeeded`) the rollout is queued again while attempts are left.
        The same status again is accepted; `LeaseLost` when it is closed with another."""
        ...

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        """Cancel queued and running rollouts, close their attempts; returns how many. Ended ones are left alone."""
        ...

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        """One attempt with its rollout, by id or by its key."""
        ...

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        """One rollout and all that its attempts wrote."""
        ...

    async def records(self, attempt_id: str) -> AttemptRecords:
        """All that one attempt wrote."""
        ...

    async def list(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        status: Collection[RolloutStatus] | None = None,
        mode: Mode | None = None,
        step: int | None = None,
        group: str | None = None,
        order: Literal["added", "changed"] = "added",
    ) -> tuple[list[RolloutState], int]:
        """A page of rollouts that match, and the cursor for `after` of the next page. `added`: in the order of `add`. `changed`: by
        `RolloutState.seq`, so that a reader who keeps the cursor sees every change of status at least once."""
        ...

    async def wait(self, after: int, *, timeout: float | None = None) -> int:
        """Return the store's sequence number as soon as it is above `after` (a rollout was added or changed status), or the
        unchanged one at the timeout. Notified, not polled."""
        ...

    async def publish(self, policy: Policy) -> None:
        """Make a policy known. Idempotent by (name, version); another uri under the same version is a `StoreError`."""
        ...

    async def policies(self, name: str | None = None) -> list[Policy]:
        """Every published policy, oldest version first."""
        ...

    async def close(self) -> None: ...
