"""A store with every call measured. It changes no argument, no result, and no error."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING, TypeVar

from agentlightning.contracts.store import AttemptRecords, LightningStore, ListOrder, RolloutState, StoreCounts, StoredRollout
from agentlightning.errors import LeaseLost, NotFound
from agentlightning.types import Attempt, AttemptStatus, Call, Completion, Mode, Policy, Record, Rollout, RolloutStatus

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

T = TypeVar("T")
STORE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
ATTEMPT_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)


class StoreMetrics:
    """What the calls of a store tell. Every value is counted when the store has acknowledged it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self.seconds = Histogram(
            "agl_store_operation_duration_seconds", "Time of the store's operations.", ["operation"], buckets=STORE_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.errors = counter("agl_store_errors_total", "Failed operations of the store.", "operation")
        self.added = counter("agl_rollouts_added_total", "New rollouts.", "mode")
        self.rollouts_ended = counter("agl_rollouts_ended_total", "Rollouts that ended, by status.", "status")
        self.started = counter("agl_attempts_started_total", "Claimed attempts.", "mode")
        self.retries = counter("agl_attempt_retries_total", "Claimed attempts after the first of their rollouts.", "mode")
        self.ended = counter("agl_attempts_ended_total", "Attempts that their runner closed, by status.", "status")
        self.attempt_seconds = Histogram(
            "agl_attempt_duration_seconds", "Time of the attempts that their runner closed.", buckets=ATTEMPT_SECONDS, registry=registry
        )
        self.records = counter("agl_records_total", "Acknowledged records.", "kind")
        self.calls = counter("agl_model_calls_total", "Recorded model calls, by status.", "status")
        self.call_retries = counter("agl_model_call_retries_total", "Recorded model calls that repeat an earlier one.")
        self.prompt_tokens = counter("agl_prompt_tokens_total", "Tokens of recorded prompts, cached or not.")
        self.sampled_tokens = counter("agl_sampled_tokens_total", "Recorded tokens that an engine sampled.")
        self._registry, self._gauge = registry, Gauge
        self._version: Gauge | None = None
        self._histograms: dict[str, Histogram] = {}

    def time(self, operation: str, seconds: float) -> None:
        """Note the time of an operation."""
        histogram = self._histograms.get(operation)
        if histogram is None:  # labels are slow to look up
            histogram = self._histograms[operation] = self.seconds.labels(operation)
        histogram.observe(seconds)

    def publish(self, policy: Policy) -> None:
        """Note the version of a published policy."""
        if self._version is None:
            self._version = self._gauge(
                "agl_policy_version", "Newest published version of the policy.", ["policy"], registry=self._registry
            )
        self._version.labels(policy.name).set(policy.version)

    def start(self, rollout: Rollout, attempt: Attempt) -> None:
        """Count a claimed attempt."""
        self.started.labels(rollout.mode).inc()
        if attempt.number > 1:
            self.retries.labels(rollout.mode).inc()

    def end(self, attempt_id: str, status: AttemptStatus, state: RolloutState) -> None:
        """Count an attempt that its runner closed."""
        self.ended.labels(status).inc()
        if state.status not in ("queued", "running"):
            self.rollouts_ended.labels(state.status).inc()
        for attempt in state.attempts:
            if attempt.id == attempt_id and attempt.finished is not None:
                self.attempt_seconds.observe(max(0.0, attempt.finished - attempt.started))

    def record(self, records: Sequence[Record]) -> None:
        """Count acknowledged records."""
        for record in records:
            self.records.labels(type(record).__name__.lower()).inc()
            if isinstance(record, Call):
                self.calls.labels(record.status).inc()
                self.call_retries.inc(record.supersedes is not None)
            elif isinstance(record, Completion):
                self.prompt_tokens.inc(len(record.prompt_ids))
                self.sampled_tokens.inc(0 if record.demonstrated else len(record.response_ids))


class MeasuredStore:
    """A `LightningStore` that measures another one. `finished` is called with each rollout that a runner or the gateway ended."""

    def __init__(self, store: LightningStore, metrics: StoreMetrics) -> None:
        self._store, self._metrics = store, metrics
        self.finished: Callable[[RolloutState], None] | None = None

    def __repr__(self) -> str:
        return repr(self._store)

    async def _timed(self, operation: str, call: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await call
        except (NotFound, LeaseLost):  # answers
            raise
        except Exception:
            self._metrics.errors.labels(operation).inc()
            raise
        finally:
            self._metrics.time(operation, time.perf_counter() - began)

    async def add(self, rollouts: Sequence[Rollout]) -> None:
        await self._timed("add", self._store.add(rollouts))
        for rollout in rollouts:
            self._metrics.added.labels(rollout.mode).inc()

    async def claim(
        self, worker: str, *, lease: float, limit: int = 1, modes: Collection[Mode] | None = None, request: str | None = None
    ) -> list[tuple[Rollout, Attempt]]:
        claimed = await self._timed("claim", self._store.claim(worker, lease=lease, limit=limit, modes=modes, request=request))
        for rollout, attempt in claimed:
            self._metrics.start(rollout, attempt)
        return claimed

    async def begin(self, rollout: Rollout, worker: str, *, lease: float) -> Attempt:
        attempt = await self._timed("begin", self._store.begin(rollout, worker, lease=lease))
        self._metrics.added.labels(rollout.mode).inc()
        self._metrics.start(rollout, attempt)
        return attempt

    async def heartbeat(self, attempt_id: str, *, lease: float) -> None:
        await self._timed("heartbeat", self._store.heartbeat(attempt_id, lease=lease))

    async def record(self, records: Sequence[Record]) -> None:
        await self._timed("record", self._store.record(records))
        self._metrics.record(records)

    async def finish(self, attempt_id: str, status: AttemptStatus, *, error: str | None = None, retry: bool = False) -> RolloutState:
        state = await self._timed("finish", self._store.finish(attempt_id, status, error=error, retry=retry))
        self._metrics.end(attempt_id, status, state)
        if self.finished is not None and state.status not in ("queued", "running"):
            self.finished(state)
        return state

    async def cancel(self, rollout_ids: Sequence[str]) -> int:
        count = await self._timed("cancel", self._store.cancel(rollout_ids))
        self._metrics.rollouts_ended.labels("cancelled").inc(count)
        return count

    async def attempt(self, *, id: str | None = None, key: str | None = None) -> tuple[Rollout, Attempt]:
        return await self._timed("attempt", self._store.attempt(id=id, key=key))

    async def read(self, rollout_id: str) -> tuple[RolloutState, tuple[AttemptRecords, ...]]:
        return await self._timed("read", self._store.read(rollout_id))

    async def records(self, attempt_id: str) -> AttemptRecords:
        return await self._timed("records", self._store.records(attempt_id))

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
        page = self._store.list(after=after, limit=limit, status=status, mode=mode, step=step, group=group, order=order)
        return await self._timed("list", page)

    async def counts(self) -> StoreCounts:
        return await self._store.counts()

    async def wait(self, after: int, *, timeout: float | None = None, status: Collection[RolloutStatus] | None = None) -> int:
        return await self._store.wait(after, timeout=timeout, status=status)

    async def put(self, rollouts: Sequence[StoredRollout]) -> None:
        await self._timed("put", self._store.put(rollouts))

    async def delete(self, rollout_ids: Sequence[str]) -> int:
        return await self._timed("delete", self._store.delete(rollout_ids))

    async def compact(self) -> None:
        await self._store.compact()

    async def publish(self, policy: Policy) -> None:
        await self._timed("publish", self._store.publish(policy))
        self._metrics.publish(policy)

    async def policies(self, name: str | None = None) -> list[Policy]:
        return await self._timed("policies", self._store.policies(name))

    async def close(self) -> None:
        await self._store.close()
