"""What each rollout contributed to a training step, read one step at a time."""

from __future__ import annotations

from collections import OrderedDict

from agentlightning.training.recorded import finished_step
from agentlightning.training.run_folder import RunFolder
from agentlightning.training.run_state import Learned
from agentlightning.types import Rollout

KEPT = 64
"""Steps in memory."""


class Contributions:
    """Finds the contribution of a rollout in `batches/`. A step's file never changes, except that a resumed run makes it again."""

    def __init__(self, run: RunFolder | None, lookahead: int) -> None:
        """`lookahead`: steps by which a rollout may be trained later than it was started for (`max_staleness`)."""
        self._run, self._lookahead = run, lookahead
        self._steps: OrderedDict[tuple[int, int], dict[str, Learned]] = OrderedDict()

    def of(self, rollout: Rollout) -> Learned | None:
        """Return the contribution of a rollout; None: no finished step took it."""
        step = finished_step(rollout)
        if self._run is None or rollout.mode != "train" or step is None:
            return None
        for number in range(step, step + self._lookahead + 1):
            learned = self._step(number).get(rollout.id)
            if learned is not None:
                return learned
        return None

    def _step(self, number: int) -> dict[str, Learned]:
        assert self._run is not None
        try:
            written = (self._run.batches / f"step-{number:05d}.json").stat().st_mtime_ns
        except OSError:
            return {}
        key = number, written
        if key not in self._steps:
            self._steps[key] = self._run.read_batch(number)
            while len(self._steps) > KEPT:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        return self._steps[key]
