"""What every store shares: opening by address, the change feed, and the checks of the contract."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import NamedTuple, TypeAlias

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import LeaseLost, NotFound, StoreError
from agentlightning.registry.registry import registry
from agentlightning.types import Attempt, AttemptStatus, Policy, Rollout, RolloutStatus, Task, new_id


def open_store(address: str) -> LightningStore:
    """Open the store at `scheme:rest`, or at a path, which is a SQLite file.

    A path has no colon, starts with `.`, `/` or `~`, or names an existing file. Raises `ConfigError` for an unknown scheme.
    """
    scheme, colon, _ = address.partition(":")
    is_path = not colon or address.startswith((".", "/", "~")) or Path(address).is_file()
    if is_path and scheme not in registry().names("stores"):
        scheme = "sqlite"
    return registry().load("stores", scheme)(address)


# --- the change feed ---------------------------------------------------------------------------------------------------------------

Statuses: TypeAlias = "frozenset[RolloutStatus] | None"
"""Those that a waiter waits for; None for any change."""


class Changes:
    """Wakes coroutines that wait for a sequence number, on any thread's event loop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiters: dict[asyncio.Future[int], tuple[int, Statuses]] = {}

    @contextmanager
    def waiter(self, after: int, status: Statuses = None) -> Generator[asyncio.Future[int]]:
        """A future of the running loop that completes with the first change above `after`: with its number, or with 0 if its number is
        not known."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiters[future] = after, status
        try:
            yield future
        finally:
            with self._lock:
                self._waiters.pop(future, None)
            future.cancel()

    def notify(self, seq: int | None = None, statuses: Collection[RolloutStatus] = ()) -> None:
        """Wake the waiters for less than `seq` and for one of the statuses that rollouts took. None wakes all, so that they look for
        themselves. Safe from any thread."""
        with self._lock:
            due = [
                future
                for future, (after, wanted) in self._waiters.items()
                if seq is None or (after < seq and (wanted is None or not wanted.isdisjoint(statuses)))
            ]
            for future in due:
                del self._waiters[future]
        for future in due:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future, seq or 0)


def _resolve(future: asyncio.Future[int], seq: int) -> None:
    if not future.done():
        future.set_result(seq)


class Look(NamedTuple):
    """What a waiter finds in the store."""

    seq: int
    """The newest sequence number."""
    changed: bool
    """Whether a change that the waiter waits for is there."""
    again: float | None
    """Seconds until the next look that nothing announces: the next lease expires."""


async def wait_for_change(
    changes: Changes, look: Callable[[int], Awaitable[Look]], after: int, timeout: float | None, status: Statuses
) -> int:
    """Implement `LightningStore.wait`. `look` collects expired leases, and finds the changes above its argument."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with changes.waiter(after, status) as woken:  # registered before the look, so no change is missed
            state = await look(after)
            left = None if deadline is None else deadline - time.monotonic()
            if state.changed or (left is not None and left <= 0):
                return state.seq
            after = max(after, state.seq)
            due = [seconds for seconds in (left, state.again) if seconds is not None]
            await asyncio.wait([woken], timeout=min(due, default=None))
            if woken.done() and (seq := woken.result()):
                return seq


ATTEMPT_KEY = "agl-"
"""Begins the key of every attempt."""

# --- copies -----------------------------------------------------------------------------------------------------------------------

ENDED: tuple[RolloutStatus, ...] = ("succeeded", "failed", "cancelled")
"""Statuses that never change again."""
COPIED_LEASE = 60.0
"""Seconds of the lease of a running attempt that arrives by `put`."""


# --- checks ------------------------------------------------------------------------------------------------------------------------


def new_attempt(rollout: Rollout, number: int, worker: str, now: float) -> Attempt:
    """A running attempt with a new key. `now` is the store's clock, in seconds since the epoch."""
    return Attempt(
        id=new_id(), rollout_id=rollout.id, number=number, key=f"{ATTEMPT_KEY}{secrets.token_urlsafe(24)}", worker=worker, status="running",
        started=now,
    )  # fmt: skip


def next_status(ended: AttemptStatus, *, again: bool) -> RolloutStatus:
    """The status of a rollout whose attempt ended as `ended`; `again` queues it for another attempt unless it succeeded."""
    if ended == "succeeded":
        return "succeeded"
    if again:
        return "queued"
    return "cancelled" if ended == "cancelled" else "failed"


def may_retry(ended: AttemptStatus, spent: int, most: int) -> bool:
    """Whether a rollout has attempts left. `spent` of its earlier ones count towards `most`; cancelled ones do not."""
    return spent + (ended != "cancelled") < most


def check_finish(attempt: Attempt, status: AttemptStatus, retry: bool) -> bool:
    """Whether `finish` changes anything. Raises `StoreError` for an impossible end, `LeaseLost` if the attempt ended otherwise."""
    if status == "running" or (retry and status == "succeeded"):
        raise StoreError(
            f"Attempt {attempt.id} cannot finish as {status!r}{' with retry' if retry else ''}. "
            "Give the status that it ended with, and retry only an attempt that did not succeed."
        )
    if attempt.status == "running":
        return True
    if attempt.status != status:
        raise closed_attempt(attempt)
    return False


def closed_attempt(attempt: Attempt) -> LeaseLost:
    """The error for an attempt that is no longer running."""
    return LeaseLost(
        f"Attempt {attempt.id} of worker {attempt.worker!r} is closed as {attempt.status!r}. Stop working on it and claim another rollout."
    )


def check_lease(lease: float) -> None:
    """Raise `StoreError` unless the lease lasts."""
    if not lease > 0:
        raise StoreError(f"A lease of {lease} seconds ends at once. Give more than 0.")


def check_policy(published: Policy, policy: Policy) -> None:
    """Raise `StoreError` for another uri under a published version."""
    if published.uri != policy.uri:
        raise StoreError(
            f"Policy {policy.name!r} version {policy.version} is already published with uri {published.uri!r}. "
            f"Give {policy.uri!r} a new version."
        )


def not_found(noun: str, id: str, store: str) -> NotFound:
    """The error for a rollout or an attempt that the store does not hold."""
    return NotFound(f"No {noun} {id!r} in the store {store}. Check the id and the address of the store.")


def unknown_key() -> NotFound:
    """The error for a key that belongs to no attempt. It does not repeat the key."""
    return NotFound("No attempt has this key. Use the key that the rollout's runner received.")


def rollout_exists(rollout_id: str, store: str) -> StoreError:
    """The error of `begin` for a rollout that another call added."""
    return StoreError(f"Rollout {rollout_id} already exists in the store {store}. Begin a new rollout.")


def closed_store(store: object) -> StoreError:
    """The error for calls after `close`."""
    return StoreError(f"The store {store} is closed. Open it again.")


async def try_out(store: LightningStore, other: LightningStore) -> None:
    """Write and claim a rollout, read it through `other`, which has the same records open, and close both. For `agl doctor`."""
    try:
        rollout = Rollout(task=Task("task", {"text": "a"}), mode="train")
        await store.add([rollout])
        await store.claim("doctor", lease=30)
        state, _ = await other.read(rollout.id)
        if state.status != "running":
            raise RuntimeError(f"A claimed rollout has the status {state.status!r}. Please report this error.")
    finally:
        await store.close()
        await other.close()


def printable(text: str | None) -> str | None:
    """The text with backslash escapes where UTF-8 cannot hold it, as in file names and foreign output."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
