"""The LightningStore contract: where everything lives, and the queue that runners claim from.

Invariants, held by `agentlightning.testing.store_contract` for every implementation:

- An attempt goes to one claimer. A rollout ends with at most one `succeeded` attempt.
- Acknowledged data is durable, as far as the implementation promises durability.
- Order is the store's own sequence (order of acknowledgement), never ids or client clocks.
- Leases use the store's clock. An attempt whose lease expired is `lost`, and its records stay readable. Its rollout is queued again;
  after `max_attempts` it is `failed`. Cancelled attempts do not count.
- Any thread's event loop may call any method concurrently (the gateway has its own loop).
- Recording is idempotent by id: the first value under an id stays.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from msgspec.structs import force_setattr, replace

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
    """A rollout with its status and attempts."""

    rollout: Rollout
    status: RolloutStatus
    attempts: tuple[Attempt, ...] = ()
    """In order of their number."""
    seq: int = 0
    """The store's sequence number of its last change of status."""

    @property
    def winner(self) -> Attempt | None:
        """The succeeded attempt; in an ended rollout without one, the last attempt."""
        for attempt in self.attempts:
            if attempt.status == "succeeded":
                return attempt
        ended = self.status in ("failed", "cancelled") and self.attempts
        return self.attempts[-1] if ended else None


class AttemptRecords(WireValue, frozen=True, kw_only=True):
    """All records of one attempt, by kind, in the store's sequence."""

    attempt: Attempt
    calls: tuple[Call, ...] = ()
    completions: tuple[Completion, ...] = ()
    spans: tuple[Span, ...] = ()
    """Without links: a span below one is below that link's parent."""
    rewards: tuple[Reward, ...] = ()

    def __post_init__(self) -> None:
        if links := {span.id: span.parent_id for span in self.spans if span.kind == "link"}:
            force_setattr(self, "spans", tuple(_attached(span, links) for span in self.spans if span.id not in links))


def _attached(span: Span, links: Mapping[str, str | None]) -> Span:
    """The span below its nearest ancestor that is no link."""
    parent, passed = span.parent_id, set[str]()
    while parent is not None and parent in links:
        if parent in passed:  # a cycle: clients make the ids
            parent = None
            break
        passed.add(parent)
        parent = links[parent]
    return span if parent == span.parent_id else replace(span, parent_id=parent)


class StoreCounts(WireValue, frozen=True, kw_only=True):
    """How much work a store has, for monitoring."""

    queued: dict[Mode, int]
    """Queued rollouts by mode. A mode without any is absent."""
    running: dict[Mode, int]
    """Running rollouts by mode."""
    lost: int
    """Stored attempts whose lease expired."""


ListOrder: TypeAlias = Literal["added", "newest", "changed"]
"""The order of `LightningStore.list`."""
StoredRollout: TypeAlias = tuple[RolloutState, tuple[AttemptRecords, ...]]
"""Everything about a rollout, as `LightningStore.read` returns it."""


@runtime_checkable
class LightningStore(Protocol):
    """The module lists the invariants. Methods raise `NotFound`, `LeaseLost`, or another `StoreError`."""

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        """Queue rollouts, in order. Idempotent by id."""
        ...

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None, request: str | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        """Start a running attempt, with its own key and a lease in seconds, of up to `limit` queued rollouts, oldest first.
        Collects expired leases first. Returns at once; the list is empty if no rollout is queued.

        `request` names the call for a client that may lose the answer. While attempts of that call run, a repeated one returns them and
        starts no others."""
        ...

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        """Add a rollout and claim it in one step, without queueing it. `agl.rollout` uses this outside a run."""
        ...

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        """Extend the lease to `lease` seconds from now. `LeaseLost` when the attempt is not running."""
        ...

    async def record(self, records: Sequence[Record]) -> None:
        """Append all records or none. Idempotent by id. Closed attempts accept late records and rewards."""
        ...

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        """Close a running attempt. `retry` queues the rollout again while attempts are left; `succeeded` excludes it.
        Accepts the same status twice. Raises `LeaseLost` if the attempt is closed with another status."""
        ...

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        """Cancel queued and running rollouts, close their attempts, and return their number. Ended rollouts stay as they are."""
        ...

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        """One attempt with its rollout, by id or by its key."""
        ...

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        """One rollout and the records of all its attempts."""
        ...

    async def records(self, attempt_id: str) -> AttemptRecords:
        """The records of one attempt."""
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
        order: ListOrder = "added",
    ) -> tuple[list[RolloutState], int]:
        """A page of matching rollouts, and the cursor for `after` of the next page. `added` uses the order of `add`. `newest` is its
        reverse, and 0 begins at the newest rollout. `changed` uses `RolloutState.seq`, so a reader that keeps the cursor sees every
        change of status at least once."""
        ...

    async def counts(self) -> StoreCounts:
        """The queued and running rollouts, and the lost attempts. Takes the time to count these, however many rollouts have ended."""
        ...

    async def wait(self, after: int, *, timeout: float | None = None, status: Collection[RolloutStatus] | None = None) -> int:
        """Return the store's sequence number once it exceeds `after` (a rollout was added or changed status), or at the timeout.
        Implementations notify; they do not poll.

        `status` waits for a rollout that took one of these statuses after `after`, so that others do not wake the caller. It may have
        changed again since, and a client over HTTP may return early."""
        ...

    async def put(self, rollouts: Sequence[StoredRollout]) -> None:
        """Merge rollouts of another store, in order, all or none. Adds what is missing by id, and keeps ids, keys, statuses and times.

        An attempt's end replaces `running` and `lost`, and the status of a rollout follows. An ended attempt, an ended rollout, and a
        record stay. A running attempt arrives with a lease of `COPIED_LEASE` seconds. A rollout that arrives as `running` without an
        attempt is announced: it has its place in the order of `add`, and cannot be claimed. Raises `StoreError` if a rollout has another
        attempt of the same number here."""
        ...

    async def delete(self, rollout_ids: Sequence[str]) -> int:
        """Delete rollouts with their attempts and records, and return their number. Those stay that are queued or running, or that share
        a group or a step with one that is. Unknown ids are ignored. Sequence numbers never repeat."""
        ...

    async def compact(self) -> None:
        """Give the space of deleted rollouts back to the disk, as far as the implementation can."""
        ...

    async def publish(self, policy: Policy) -> None:
        """Publish a policy. Idempotent by (name, version); another uri under the same version raises `StoreError`."""
        ...

    async def policies(self, name: str | None = None) -> list[Policy]:
        """Every published policy, oldest version first."""
        ...

    async def close(self) -> None: ...
