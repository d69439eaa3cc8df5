"""The trackers of a run. `metrics.jsonl` is the record of the run; the others may fail without harm."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from agentlightning.contracts.tracker import EvaluatedTask, RunEnd, TrackedRollout, TrackedRun, Tracker
from agentlightning.files import write_file
from agentlightning.telemetry.logs import hide_secrets
from agentlightning.training.metrics import JSONLines, plain_metrics
from agentlightning.types import JSON

log = logging.getLogger("agentlightning")
ChosenTracker: TypeAlias = tuple[str, type[Tracker], Any]
"""Name, class and settings."""
ServedMetrics: TypeAlias = Callable[[Mapping[str, JSON]], None]
"""Takes the row of a step in this process, at once: `/metrics`."""
JSONL = "jsonl"
CLOSE_SECONDS = 60.0
"""Seconds that the trackers may take together to write the rest when a run ends."""
WAITING = 1000
"""Calls that may wait for a tracker. One that is further behind misses the calls after them."""


class Trackers:
    """Logs a run to `metrics.jsonl` and to every tracker that its config names. Only an error of the first one ends the run.

    Use it with `async with`. `end` is how the run ends, unless an exception ends it.
    """

    def __init__(self, chosen: Sequence[ChosenTracker], run: TrackedRun, served: ServedMetrics | None = None) -> None:
        self.end: RunEnd = "finished"
        self._lines, self._served = JSONLines(run.folder), served
        steps = LoggedSteps(run.folder)
        self._others = [TrackerThread(name, tracker, run, settings, steps) for name, tracker, settings in chosen if name != JSONL]
        self.rollouts = max((thread.rollouts for thread in self._others), default=0)
        """Rollouts of a step that the trackers show, at most."""

    def log(self, metrics: Mapping[str, JSON]) -> None:
        """Log the row of a step. It is in `metrics.jsonl` when this returns."""
        self._lines.log(metrics)
        row, step = plain_metrics(metrics), int(metrics["step"])
        if self._served is not None:
            self._served(row)
        for thread in self._others:
            thread.call(step, lambda tracker: tracker.log(row), last=True)

    def log_evaluation(self, step: int, tasks: Sequence[EvaluatedTask]) -> None:
        """Log an evaluation task by task."""
        for thread in self._others:
            thread.call(step, lambda tracker: tracker.log_evaluation(step, tasks))

    def log_rollouts(self, step: int, rollouts: Sequence[TrackedRollout]) -> None:
        """Log training rollouts of a step. Each tracker shows as many as its settings say."""
        for thread in self._others:
            sample = rollouts[: thread.rollouts]
            if sample:
                thread.call(step, lambda tracker, sample=sample: tracker.log_rollouts(step, sample))

    async def __aenter__(self) -> Trackers:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        end: RunEnd = self.end if kind is None else "failed"
        self._lines.close(end)
        for thread in self._others:
            thread.close(end)
        await asyncio.to_thread(self._join)

    def _join(self) -> None:
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._others:
            thread.join(max(0.0, deadline - time.monotonic()))


class TrackerCall(NamedTuple):
    """A call that waits for its tracker."""

    step: int
    method: Callable[[Tracker], None]
    last: bool
    """Whether it completes the step."""


class LoggedSteps:
    """The last step that each tracker took, by name, in `trackers.json` of the run folder."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / "trackers.json", threading.Lock()
        try:
            self._steps: dict[str, int] = msgspec.json.decode(self._path.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):  # a new run, or a file that only repeated steps depend on
            self._steps = {}

    def last(self, name: str) -> int:
        """Return the last step of a tracker; -1: it has none."""
        return self._steps.get(name, -1)

    def set_last(self, name: str, step: int) -> None:
        """Keep the last step of a tracker. Any thread may call it."""
        with self._lock:
            self._steps[name] = step
            write_file(self._path, msgspec.json.encode(self._steps))


class TrackerThread:
    """Calls a tracker in a thread of its own, so that a slow server delays no step. Its first error is a warning."""

    def __init__(self, name: str, tracker: type[Tracker], run: TrackedRun, settings: Any, steps: LoggedSteps) -> None:
        self.rollouts: int = settings.rollouts
        self._name, self._class, self._steps, self._warned = name, tracker, steps, False
        self._earlier = -1 if tracker.replaces_steps else steps.last(name)
        self._calls: queue.Queue[TrackerCall | RunEnd] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, args=(run, settings), name=f"tracker {name}", daemon=True)
        self._thread.start()

    def call(self, step: int, method: Callable[[Tracker], None], *, last: bool = False) -> None:
        """Call the tracker soon, unless it has this step from an earlier session. `last`: the call completes the step."""
        if step <= self._earlier or not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(TrackerCall(step, method, last))
        except queue.Full:
            self._warn(f"is {WAITING} calls behind and misses step {step}.")

    def close(self, end: RunEnd) -> None:
        """Close the tracker after the calls that wait."""
        try:
            self._calls.put_nowait(end)
        except queue.Full:
            self._warn(f"is {WAITING} calls behind at the end of the run.")

    def join(self, seconds: float) -> None:
        """Wait for the tracker to close."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn("has not written everything at the end of the run.")

    def _work(self, run: TrackedRun, settings: Any) -> None:
        try:
            tracker = self._class.create(run, settings)
        except BaseException as error:  # mlflow and wandb raise SystemExit and errors of their own
            self._warn(f"did not start: {_text(error)}. The run continues without it.")
            return
        while True:
            call = self._calls.get()
            try:
                if isinstance(call, str):
                    return tracker.close(call)
                call.method(tracker)
                if call.last:
                    self._steps.set_last(self._name, call.step)
            except BaseException as error:
                if isinstance(call, str):
                    return self._warn(f"could not be closed: {_text(error)}.")
                self._warn(f"failed at step {call.step}: {_text(error)}. The run continues.")

    def _warn(self, problem: str) -> None:
        """Report the first problem."""
        if not self._warned:
            self._warned = True
            log.warning("Tracker %r %s %s", self._name, hide_secrets(problem), self._class.advice)


def _text(error: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
