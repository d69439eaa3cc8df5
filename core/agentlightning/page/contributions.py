"""What each rollout contributed to a training step, read one step at a time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from agentlightning.training.recorded import finished_step
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned
from agentlightning.training.step_logprobs import read_step_logprobs
from agentlightning.types import FloatArray, Rollout

KEPT = 64
"""Steps in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class TrainerLogprobs:
    """The trainer's log-probabilities of one reply."""

    version: int
    """Of the weights that they are under."""
    logprobs: FloatArray
    """(response,)"""


class Contributions:
    """Finds the contribution of a rollout in `batches/`. A step's file never changes, except that a resumed run makes it again."""

    def __init__(self, run: RunFolder | None, lookahead: int) -> None:
        """`lookahead`: steps by which a rollout may be trained later than it was started for (`max_staleness`)."""
        self._run, self._lookahead = run, lookahead
        self._steps: OrderedDict[tuple[int, int], dict[str, Learned]] = OrderedDict()
        self._replayed: tuple[frozenset[tuple[str, int]], dict[str, int]] = frozenset(), {}

    def of(self, rollout: Rollout) -> Learned | None:
        """Return the contribution of a rollout; None: no finished step took it."""
        part = self._find(rollout)
        return None if part is None else part[1]

    def trainer_logprobs(self, rollout: Rollout, completion_id: str) -> TrainerLogprobs | None:
        """Return what the trainer computed for a reply of a rollout; None: it is not recorded."""
        part = self._find(rollout)
        if part is None or self._run is None:
            return None
        step = read_step_logprobs(self._run.logprobs(part[0]))
        if step is None or completion_id not in step.by_completion:
            return None
        return TrainerLogprobs(step.version_of(completion_id), step.by_completion[completion_id])

    def steps_of(self) -> dict[str, int]:
        """Return the step that trained on each rollout, by id, the latest first. It reads every step."""
        assert self._run is not None
        files = [file for file in self._run.batches.glob("*.json") if file.is_file()]
        stamp = frozenset((file.name, file.stat().st_mtime_ns) for file in files)
        if self._replayed[0] != stamp:
            steps = self._run.steps_of()
            self._replayed = stamp, dict(sorted(steps.items(), key=lambda item: -item[1]))
        return self._replayed[1]

    def _find(self, rollout: Rollout) -> tuple[int, Learned] | None:
        """The step that trained on a rollout, and its part in it."""
        step = finished_step(rollout)
        if self._run is None or rollout.mode == "eval" or step is None:
            return None
        for number in range(step, step + self._lookahead + 1):
            learned = self._step(number).get(rollout.id)
            if learned is not None:
                return number, learned
        return None

    def _step(self, number: int) -> dict[str, Learned]:
        assert self._run is not None
        written = _written(self._run.batches / f"step-{number:05d}.json")
        if written is None:
            return {}
        key = number, written
        if key not in self._steps:
            self._steps[key] = self._run.read_batch(number)
            while len(self._steps) > KEPT:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        return self._steps[key]


def _written(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
