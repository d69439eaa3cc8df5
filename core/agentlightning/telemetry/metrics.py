"""What a server measures for Prometheus. Only what was measured is exposed, and labels have few values.

Counters start at 0 with the server and count what passes through it. The gauges `agl_store_*` describe the store itself, at the time of
the scrape.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from agentlightning.contracts.store import LightningStore, StoreCounts
from agentlightning.telemetry.measured_store import MeasuredStore, StoreMetrics

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

        self.registry = registry = CollectorRegistry()
        self.requests = Counter("agl_requests_total", "HTTP requests. 499: the client left.", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "agl_request_duration_seconds", "Time to the last byte of the answer.", ["path"], buckets=REQUEST_SECONDS, registry=registry
        )
        self.in_flight = Gauge("agl_requests_in_flight", "HTTP requests without their last byte.", ["path"], registry=registry)
        self.exported = Counter(
            "agl_exported_rollouts_total", "Rollouts for the OpenTelemetry receiver: sent, or dropped.", ["result"], registry=registry
        )
        self.of_store = StoreMetrics(registry)
        self.snapshot = StoreSnapshot()
        registry.register(self.snapshot)
        ProcessCollector(registry=registry)
        Info("agl_build", "The version of agentlightning.", registry=registry).info({"version": version("agentlightning")})

    def store(self, store: LightningStore) -> MeasuredStore:
        """Return the store with every call measured."""
        return MeasuredStore(store, self.of_store)


class StoreSnapshot:
    """The store at the time of the scrape."""

    def __init__(self) -> None:
        self.counts: StoreCounts | None = None
        """None: the store did not answer."""

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See `prometheus_client.registry.Collector`."""
        from prometheus_client.core import GaugeMetricFamily

        counts = self.counts
        yield GaugeMetricFamily("agl_store_up", "Whether the store answers.", value=float(counts is not None))
        if counts is None:
            return
        rollouts = GaugeMetricFamily("agl_store_rollouts", "Queued and running rollouts.", labels=["status", "mode"])
        for status, modes in (("queued", counts.queued), ("running", counts.running)):
            for mode in ("train", "eval", "production"):
                rollouts.add_metric([status, mode], modes.get(mode, 0))
        yield rollouts
        yield GaugeMetricFamily("agl_store_lost_attempts", "Stored attempts whose lease expired.", value=counts.lost)


class TrainingMetrics:
    """Exposes the rows of `metrics.jsonl`."""

    GAUGES: Mapping[str, tuple[str, str]] = {
        "step": ("agl_training_step", "Finished training steps."),
        "reward": ("agl_training_reward", "Mean reward of the last step's training rollouts."),
        "eval.sampled": ("agl_training_eval_sampled_reward", "Mean reward of the last sampled evaluation."),
        "eval.greedy": ("agl_training_eval_greedy_reward", "Mean reward of the last greedy evaluation."),
        "mismatch_abs": ("agl_training_mismatch_abs", "Mean difference in log-probability between engine and trainer."),
        "seconds": ("agl_training_step_duration_seconds", "Time of the last step."),
    }
    """Name and help of a gauge, by key of the row. A key that no row had is absent."""
    PHASE = "seconds."

    def __init__(self, metrics: Metrics, steps: int) -> None:
        from prometheus_client import Counter, Gauge

        self._registry = registry = metrics.registry
        self._gauges: dict[str, Gauge] = {}
        Gauge("agl_training_steps", "Steps of the complete run.", registry=registry).set(steps)
        self._phases = Counter("agl_training_phase_seconds_total", "Time in each phase of the steps.", ["phase"], registry=registry)
        self._tokens = Counter("agl_training_tokens_total", "Trained tokens.", registry=registry)
        self._excluded = Counter("agl_training_excluded_rollouts_total", "Rollouts without a part in training.", registry=registry)
        self._alarms = Counter("agl_training_alarms_total", "Steps with an alarm.", registry=registry)

    def log(self, metrics: Mapping[str, Any]) -> None:
        """Take the row of a step."""
        for key, (name, text) in self.GAUGES.items():
            if _is_number(metrics.get(key)):
                self._set(name, text, metrics[key])
        for key, value in metrics.items():
            if key.startswith(self.PHASE) and _is_number(value):
                self._phases.labels(key.removeprefix(self.PHASE)).inc(value)
        self._tokens.inc(metrics.get("trained_tokens", 0))
        self._excluded.inc(metrics.get("excluded_rollouts", 0))
        self._alarms.inc("alarm" in metrics)
        self._time()

    def _set(self, name: str, text: str, value: float) -> None:
        from prometheus_client import Gauge

        if name not in self._gauges:
            self._gauges[name] = Gauge(name, text, registry=self._registry)
        self._gauges[name].set(value)

    def _time(self) -> None:
        import time

        self._set("agl_training_last_step_timestamp_seconds", "When the last step ended, in seconds since the epoch.", time.time())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
