"""The progress of a run as log records, for `--log-format json`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agentlightning.telemetry.logs import is_json
from agentlightning.training.progress import Progress, TrainingProgress

log = logging.getLogger("agentlightning.progress")


class LoggedProgress(Progress):
    """Logs the phases, steps, and messages of a run."""

    def __init__(self) -> None:
        self._steps, self._phase = 0, ""

    def begin(self, steps: int, start: int = 0) -> None:
        self._steps = steps
        log.info("%d steps, %d of them done", steps, start)

    def phase(self, name: str, part: float | None = None) -> None:
        if name != self._phase:
            self._phase = name
            log.info("%s", name)

    def step(self, metrics: Mapping[str, Any]) -> None:
        self._phase = ""
        log.info("step %s/%d", metrics.get("step"), self._steps, extra={"metrics": dict(metrics)})

    def message(self, text: str) -> None:
        log.info("%s", text)

    def diagnosis(self, text: str | None, *, changed: bool) -> None:
        if text is not None and changed:
            log.warning("%s", text)


def open_progress() -> Progress:
    """Return the progress for a command: on the terminal, or as log records."""
    return LoggedProgress() if is_json() else TrainingProgress()
