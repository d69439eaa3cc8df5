"""Exports finished rollouts to an OpenTelemetry receiver, without a word to the run: `offer` neither waits nor raises.

One thread reads the rollouts from the store and sends them. Its queue is bounded. A rollout that does not fit, or that the receiver does
not take, is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import MissingExtra, NotFound, RewardError
from agentlightning.rl.trajectory.rollout_reward import rollout_reward
from agentlightning.telemetry.genai import Scores, genai_spans, trace_id
from agentlightning.telemetry.metrics import Metrics
from agentlightning.telemetry.otlp_sender import OTLPSender, captures_content, environment_endpoint
from agentlightning.training.run_state import Learned
from agentlightning.types import Trajectory

QUEUE = 1000
"""Rollouts that wait, at most."""
BATCH = 32
"""Rollouts of one request, at most."""
PATIENCE = 5.0
"""Seconds for the rest at the end of a run."""
log = logging.getLogger("agentlightning.traces")


@dataclass(frozen=True, slots=True)
class _Item:
    rollout_id: str
    scores: Scores | None
    """None: the recorded rewards tell."""


class TraceExport:
    """Sends rollouts from a thread of its own."""

    def __init__(self, store: LightningStore, sender: OTLPSender, model: str, metrics: Metrics) -> None:
        self._store, self._sender, self._model = store, sender, model
        self._sent, self._dropped = (metrics.exported.labels(result) for result in ("sent", "dropped"))
        self._queue: queue.Queue[_Item | None] = queue.Queue(QUEUE)
        self._stopped = threading.Event()
        self.sent = self.dropped = 0
        self._refused = False
        """Whether the log says that the receiver does not take spans."""
        self._thread = threading.Thread(target=self._work, name="agentlightning-traces", daemon=True)
        self._thread.start()

    def finished(self, state: RolloutState) -> None:
        """Offer a rollout that has ended, with the rewards that are recorded by then."""
        self._offer(_Item(state.rollout.id, None))

    def step(self, trajectories: Sequence[Trajectory], learned: Mapping[str, Learned] | None = None) -> None:
        """Offer the rollouts of a step. `learned`: their contributions, by id; None: of an evaluation."""
        for trajectory in trajectories:
            values = learned[trajectory.rollout_id].advantages if learned and trajectory.rollout_id in learned else ()
            pairs = zip(trajectory.transitions, values, strict=False)
            advantages = {transition.completion_id: value for transition, value in pairs if value is not None}
            self._offer(_Item(trajectory.rollout_id, Scores(reward=trajectory.reward, advantages=advantages)))

    def _offer(self, item: _Item) -> None:
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._drop(1)

    async def close(self) -> None:
        """Send the rest for a few seconds, then drop it. Say how many rollouts were dropped."""
        await asyncio.to_thread(self._end)
        if self.dropped:
            log.warning("%d of %d rollouts did not reach the OpenTelemetry receiver.", self.dropped, self.dropped + self.sent)

    def _end(self) -> None:
        deadline = time.monotonic() + PATIENCE
        with suppress(queue.Full):
            self._queue.put(None, timeout=PATIENCE)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._stopped.set()
        self._sender.close()
        while not self._queue.empty():
            if self._queue.get_nowait() is not None:
                self._drop(1)
        self._queue.put_nowait(None)
        self._thread.join(1.0)

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._dropped.inc(count)

    # --- in the thread ---

    def _work(self) -> None:
        with asyncio.Runner() as runner:
            while (item := self._queue.get()) is not None and not self._stopped.is_set():
                batch = [item]
                while len(batch) < BATCH and (more := self._more()) is not None:
                    batch.append(more)
                traces = [trace for one in batch if (trace := self._read(runner, one))]
                self._export([span for trace in traces for span in trace], len(traces))

    def _more(self) -> _Item | None:
        try:
            item = self._queue.get_nowait()
        except queue.Empty:
            return None
        if item is None:  # the end, for `_work`
            self._queue.put_nowait(None)
        return item

    def _read(self, runner: asyncio.Runner, item: _Item) -> list[Any]:
        """Return the spans of a rollout; none if another run has it, or if the store failed."""
        try:
            state, attempts = runner.run(self._store.read(item.rollout_id))
            records = next((records for records in attempts if records.attempt == state.winner), None)
            if records is None:
                return []
            scores = item.scores or Scores(reward=_reward(records))
            spans = genai_spans(state, records, scores, model=self._model, content=captures_content())
            return self._sender.trace(trace_id(records.attempt.id), spans)
        except NotFound:
            return []
        except Exception as error:
            self._drop(1)
            log.warning("Rollout %s was not exported. %s: %s", item.rollout_id, type(error).__name__, error)
            return []

    def _export(self, spans: list[Any], rollouts: int) -> None:
        if not spans:
            return
        try:
            taken = self._sender.export(spans)
        except Exception as error:
            taken = False
            log.debug("The export failed.", exc_info=error)
        if taken:
            self.sent += rollouts
            self._sent.inc(rollouts)
        else:
            self._drop(rollouts)
        if not taken and not self._refused and not self._stopped.is_set():
            log.warning("The OpenTelemetry receiver takes no spans, so rollouts are dropped. Check that it runs at its address.")
        elif taken and self._refused:
            log.warning("The OpenTelemetry receiver takes spans again.")
        self._refused = not taken


def _reward(records: AttemptRecords) -> float | None:
    own = [reward for reward in records.rewards if reward.call_id is None and reward.span_id is None]
    try:
        return rollout_reward(own, status=records.attempt.status)[0]
    except RewardError:
        return None


@asynccontextmanager
async def open_export(store: LightningStore, endpoint: str | None, model: str, metrics: Metrics) -> AsyncGenerator[TraceExport | None]:
    """Open the export to `endpoint`, else to that of the environment; None if neither names one."""
    export = _export_to(store, endpoint, model, metrics)
    try:
        yield export
    finally:
        if export is not None:
            await export.close()


def _export_to(store: LightningStore, endpoint: str | None, model: str, metrics: Metrics) -> TraceExport | None:
    if endpoint is None and environment_endpoint() is None:
        return None
    try:
        sender = OTLPSender(endpoint)
    except MissingExtra as error:
        if endpoint is not None:
            raise
        log.warning("%s Or unset OTEL_EXPORTER_OTLP_ENDPOINT.", error)  # it may be meant for the agent alone
        return None
    return TraceExport(store, sender, model, metrics)
