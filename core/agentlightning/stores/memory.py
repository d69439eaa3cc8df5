"""The reference store: in this process, gone with it. Every method is one step under one lock, so any thread's event loop may call.

`Changes`, `wait_for_change` and `next_status` are what every store needs; a plugin may use them.
"""

from __future__ import annotations

import asyncio
import heapq
import secrets
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Literal

from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.errors import LeaseLost, NotFound, StoreError
from agentlightning.stores.serialization import portable
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
    new_id,
)  # fmt: skip


class Changes:
    """Wakes whoever waits for a sequence number, on any thread's event loop."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiters: dict[asyncio.Future[None], int] = {}

    @contextmanager
    def waiter(self, after: int) -> Generator[asyncio.Future[None]]:
        """A future of the running loop that is done once a change above `after` is known."""
        future = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiters[future] = after
        try:
            yield future
        finally:
            with self._lock:
                self._waiters.pop(future, None)
            future.cancel()

    def notify(self, seq: int | None = None) -> None:
        """Wake those who wait for less than `seq`; with None, everybody. Safe from any thread."""
        with self._lock:
            due = [future for future, after in self._waiters.items() if seq is None or after < seq]
            for future in due:
                del self._waiters[future]
        for future in due:
            loop = future.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def wait_for_change(
    changes: Changes, look: Callable[[], Awaitable[tuple[int, float | None]]], after: int, timeout: float | None
) -> int:
    """`LightningStore.wait`. `look` collects expired leases; it tells the sequence number, and the seconds after which to look
    again without being told (the next lease expires)."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        with changes.waiter(after) as woken:  # registered before the look, so that no change falls between
            seq, expiry = await look()
            left = None if deadline is None else deadline - time.monotonic()
            if seq > after or (left is not None and left <= 0):
                return seq
            await asyncio.wait([woken], timeout=min((each for each in (left, expiry) if each is not None), default=None))


def next_status(ended: AttemptStatus, *, again: bool) -> RolloutStatus:
    """Where a rollout goes when its attempt ends as `ended`; `again`: it may be and shall be tried again."""
    if ended == "succeeded":
        return "succeeded"
    if again:
        return "queued"
    return "cancelled" if ended == "cancelled" else "failed"


def check_finish(attempt: Attempt, status: AttemptStatus, retry: bool) -> bool:
    """Whether `finish` has something to do; raises when it must not be done."""
    if status == "running" or (retry and status == "succeeded"):
        raise StoreError(f"attempt {attempt.id} cannot be finished as {status!r}{' with retry' if retry else ''}")
    if attempt.status == "running":
        return True
    if attempt.status != status:
        raise LeaseLost(f"attempt {attempt.id} of worker {attempt.worker!r} is closed as {attempt.status!r}; it cannot end as {status!r}")
    return False


def printable(text: str | None) -> str | None:
    """Text that UTF-8 can hold; file names and foreign output may hold what it cannot."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()


def check_lease(lease: float) -> None:
    if not lease > 0:
        raise StoreError(f"a lease of {lease} seconds; expected more than 0")


def check_policy(known: Policy, policy: Policy) -> None:
    """Refuse another uri under a version that is known."""
    if known.uri != policy.uri:
        raise StoreError(
            f"policy {policy.name!r} version {policy.version} is published with uri {known.uri!r}; give {policy.uri!r} a new version"
        )


def new_attempt(rollout: Rollout, number: int, worker: str) -> Attempt:
    """A running attempt with a key of its own."""
    return Attempt(
        id=new_id(), rollout_id=rollout.id, number=number, key=f"agl-{secrets.token_urlsafe(24)}", worker=worker, status="running",
        started=time.time(),
    )  # fmt: skip


@dataclass(slots=True, eq=False)
class _Entry:
    """A rollout in the store."""

    rollout: Rollout
    added: int
    status: RolloutStatus = "queued"
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    changed: int = 0
    queueable: bool = True
    """False: made by `begin`."""

    @property
    def state(self) -> RolloutState:
        return RolloutState(rollout=self.rollout, status=self.status, attempts=tuple(self.attempts), seq=self.changed)


@dataclass(slots=True, eq=False)
class _Written:
    """What an attempt wrote, in order."""

    calls: list[Call] = field(default_factory=list[Call])
    completions: list[Completion] = field(default_factory=list[Completion])
    spans: list[Span] = field(default_factory=list[Span])
    rewards: list[Reward] = field(default_factory=list[Reward])

    def append(self, record: Record) -> None:
        match record:
            case Call():
                self.calls.append(record)
            case Completion():
                self.completions.append(record)
            case Span():
                self.spans.append(record)
            case Reward():
                self.rewards.append(record)


class MemoryStore:
    """A `LightningStore` in this process."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._changes = Changes()
        self._closed = False
        self._seq = 0
        self._entries: dict[str, _Entry] = {}
        self._added: list[_Entry] = []  # in the order of `added`
        self._recent: dict[str, _Entry] = {}  # in the order of `changed`
        self._queues: dict[Mode, list[tuple[int, str]]] = {"train": [], "eval": [], "production": []}  # heaps of (added, rollout id)
        self._attempts: dict[str, tuple[_Entry, int]] = {}  # by id: the rollout, and the position in its attempts
        self._keys: dict[str, str] = {}
        self._leases: dict[str, float] = {}  # of running attempts: expiry, monotonic
        self._expiries: list[tuple[float, str]] = []  # heap; entries that no longer agree with `_leases` are stale
        self._written: dict[str, _Written] = {}
        self._ids: set[tuple[type, str]] = set()
        self._policies: dict[tuple[str, int], Policy] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._entries)} rollouts)"

    @contextmanager
    def _step(self) -> Generator[None]:
        """One step: under the lock, and whoever waits is told of what changed."""
        with self._lock:
            if self._closed:
                raise StoreError("the memory store is closed; open another one")
            before = self._seq
            try:
                yield
            finally:
                after = self._seq
        if after > before:
            self._changes.notify(after)

    # --- the queue -----------------------------------------------------------------------------------------------------------------

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        kept = [portable(rollout) for rollout in rollouts]
        with self._step():
            for rollout in kept:
                if rollout.id not in self._entries:
                    self._change(self._enter(rollout), "queued")

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        check_lease(lease)
        with self._step():
            self._collect()
            claimed: list[tuple[Rollout, Attempt]] = []
            while len(claimed) < limit and (entry := self._next(self._queues if modes is None else modes)) is not None:
                claimed.append((entry.rollout, self._start(entry, worker, lease)))
            return claimed

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        check_lease(lease)
        kept = portable(rollout)
        with self._step():
            known = self._entries.get(kept.id)
            if known is not None:
                last = known.attempts[-1] if known.attempts else None
                if not known.queueable and last is not None and last.worker == worker and last.status == "running":
                    return last  # the same again, by a worker that did not hear the answer
                raise StoreError(f"rollout {kept.id} is in the store already; `begin` needs a new one")
            entry = self._enter(kept)
            entry.queueable = False
            return self._start(entry, worker, lease)

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        check_lease(lease)
        with self._step():
            attempt = self._attempt(attempt_id)
            if attempt.status != "running":
                raise LeaseLost(f"attempt {attempt_id} of worker {attempt.worker!r} is closed as {attempt.status!r}")
            self._hold(attempt_id, lease)

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        with self._step():
            if check_finish(self._attempt(attempt_id), status, retry):
                self._end(attempt_id, status, error, retry)
            return self._attempts[attempt_id][0].state

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        with self._step():
            entries = [self._entry(rollout_id) for rollout_id in rollout_ids]
            count = 0
            for entry in entries:
                if entry.status == "running":
                    self._end(entry.attempts[-1].id, "cancelled", None, retry=False)
                elif entry.status == "queued":
                    self._change(entry, "cancelled")
                else:
                    continue
                count += 1
            return count

    # --- records -------------------------------------------------------------------------------------------------------------------

    async def record(self, records: Sequence[Record]) -> None:
        kept = [portable(record) for record in records]
        with self._step():
            for record in kept:
                self._attempt(record.attempt_id)
            for record in kept:
                if (type(record), record.id) not in self._ids:
                    self._ids.add((type(record), record.id))
                    self._written[record.attempt_id].append(record)

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        with self._step():
            if id is None:
                id = self._keys.get(key or "")
                if id is None:
                    raise NotFound("no attempt has this key")
            return self._attempts[self._attempt(id).id][0].rollout, self._attempt(id)

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        with self._step():
            state = self._entry(rollout_id).state
            return state, tuple(self._records(attempt) for attempt in state.attempts)

    async def records(self, attempt_id: str) -> AttemptRecords:
        with self._step():
            return self._records(self._attempt(attempt_id))

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
        with self._step():
            page: list[RolloutState] = []
            for entry in self._since(after, order):
                if len(page) >= limit:
                    break
                rollout = entry.rollout
                if (
                    (status is None or entry.status in status)
                    and (mode is None or rollout.mode == mode)
                    and (step is None or rollout.step == step)
                    and (group is None or rollout.group == group)
                ):
                    page.append(entry.state)
                    after = entry.added if order == "added" else entry.changed
            return page, after

    async def wait(self, after: int, *, timeout: float | None = None) -> int:
        async def look() -> tuple[int, float | None]:
            with self._step():
                self._collect()
                return self._seq, self._expiries[0][0] - time.monotonic() if self._expiries else None

        return await wait_for_change(self._changes, look, after, timeout)

    # --- policies ------------------------------------------------------------------------------------------------------------------

    async def publish(self, policy: Policy) -> None:
        with self._step():
            check_policy(self._policies.setdefault((policy.name, policy.version), policy), policy)

    async def policies(self, name: str | None = None) -> list[Policy]:
        with self._step():
            return [policy for _, policy in sorted(self._policies.items()) if name is None or policy.name == name]

    async def close(self) -> None:
        with self._lock:
            self._closed = True
        self._changes.notify()

    # --- steps; the lock is held ---------------------------------------------------------------------------------------------------

    def _entry(self, rollout_id: str) -> _Entry:
        if rollout_id not in self._entries:
            raise NotFound(f"no rollout {rollout_id!r} in the memory store")
        return self._entries[rollout_id]

    def _attempt(self, attempt_id: str) -> Attempt:
        if attempt_id not in self._attempts:
            raise NotFound(f"no attempt {attempt_id!r} in the memory store")
        entry, position = self._attempts[attempt_id]
        return entry.attempts[position]

    def _records(self, attempt: Attempt) -> AttemptRecords:
        written = self._written[attempt.id]
        return AttemptRecords(
            attempt=attempt, calls=tuple(written.calls), completions=tuple(written.completions), spans=tuple(written.spans),
            rewards=tuple(written.rewards),
        )  # fmt: skip

    def _enter(self, rollout: Rollout) -> _Entry:
        entry = _Entry(rollout, self._seq + 1)
        self._entries[rollout.id] = entry
        self._added.append(entry)
        return entry

    def _change(self, entry: _Entry, status: RolloutStatus) -> None:
        self._seq += 1
        entry.status, entry.changed = status, self._seq
        self._recent.pop(entry.rollout.id, None)
        self._recent[entry.rollout.id] = entry
        if status == "queued":
            heapq.heappush(self._queues[entry.rollout.mode], (entry.added, entry.rollout.id))

    def _since(self, after: int, order: str) -> Iterator[_Entry]:
        if order == "added":
            yield from self._added[bisect_right(self._added, after, key=lambda entry: entry.added) :]
            return
        newest_first: list[_Entry] = []
        for entry in reversed(self._recent.values()):
            if entry.changed <= after:
                break
            newest_first.append(entry)
        yield from reversed(newest_first)

    def _next(self, modes: Collection[Mode]) -> _Entry | None:
        """Take the oldest queued rollout of these modes."""
        heads: list[tuple[int, str, Mode]] = []
        for mode in modes:
            queue = self._queues[mode]
            while queue and self._entries[queue[0][1]].status != "queued":
                heapq.heappop(queue)
            if queue:
                heads.append((*queue[0], mode))
        if not heads:
            return None
        _, rollout_id, mode = min(heads)
        heapq.heappop(self._queues[mode])
        return self._entries[rollout_id]

    def _start(self, entry: _Entry, worker: str, lease: float) -> Attempt:
        attempt = new_attempt(entry.rollout, len(entry.attempts) + 1, worker)
        entry.attempts.append(attempt)
        self._attempts[attempt.id] = (entry, len(entry.attempts) - 1)
        self._keys[attempt.key] = attempt.id
        self._written[attempt.id] = _Written()
        self._hold(attempt.id, lease)
        self._change(entry, "running")
        return attempt

    def _hold(self, attempt_id: str, lease: float) -> None:
        self._leases[attempt_id] = time.monotonic() + lease
        heapq.heappush(self._expiries, (self._leases[attempt_id], attempt_id))

    def _end(self, attempt_id: str, status: AttemptStatus, error: str | None, retry: bool) -> None:
        entry, position = self._attempts[attempt_id]
        entry.attempts[position] = replace(entry.attempts[position], status=status, finished=time.time(), error=printable(error))
        del self._leases[attempt_id]
        again = retry and entry.queueable and len(entry.attempts) < entry.rollout.max_attempts
        self._change(entry, next_status(status, again=again))

    def _collect(self) -> None:
        """Close attempts whose lease expired; afterwards the head of `_expiries` is the next to expire."""
        while self._expiries:
            expiry, attempt_id = self._expiries[0]
            if self._leases.get(attempt_id) == expiry:
                if expiry > time.monotonic():
                    return
                worker = self._attempt(attempt_id).worker
                self._end(attempt_id, "lost", f"the lease of worker {worker!r} expired", retry=True)
            heapq.heappop(self._expiries)


def open_memory(address: str) -> MemoryStore:
    """A new, empty store; `address` is `memory:`."""
    if address not in ("memory:", "memory", "memory://"):
        raise StoreError(f"the address {address!r} names a memory store; expected 'memory:' (it is never shared between processes)")
    return MemoryStore()
