"""The result of `agl.train`: a run that has ended, for programs and notebooks."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from agentlightning.training.frame import frame, rollout_row
from agentlightning.training.metrics import read_metrics
from agentlightning.training.recorded import RunRollout, read_rollouts
from agentlightning.training.run_folder import RunFolder

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """A training run that has ended. Notebooks show its curve and its evaluations."""

    folder: Path
    result: dict[str, Any]
    """The content of `result.json`."""
    stopped: bool = False
    """Whether it was stopped before its last step; `resume` continues it."""

    @property
    def checkpoint(self) -> Path:
        """The folder of the best weights, which may be the model before training (`policy_reason` in the result says why).
        `AutoModelForCausalLM.from_pretrained` loads it. With several policies it has a folder for each (`policies` in the result)."""
        return self.folder / str(self.result["checkpoint"])

    def frame(self, of: Literal["metrics", "rollouts"] = "metrics") -> Any:
        """Return a DataFrame with a row for each step, or for each rollout. It is from pandas, or from polars if pandas is not installed.
        Raises `MissingExtra` without both."""
        if of == "metrics":
            return frame(read_metrics(self.folder))

        async def rows() -> list[dict[str, Any]]:
            return [rollout_row(recorded) async for recorded in read_rollouts(RunFolder(self.folder))]

        return frame(_in_thread(rows()))

    def rollout(self, id: str) -> RunRollout:
        """Return one rollout with all its records. `id` may be the start or the end of its id, as `agl show` prints it."""

        async def read() -> RunRollout:
            [recorded] = [recorded async for recorded in read_rollouts(RunFolder(self.folder), id)]
            return recorded

        return _in_thread(read())

    def _repr_html_(self) -> str:
        from agentlightning.training.notebook import run_html

        return run_html(self.folder, self.result, read_metrics(self.folder))


def _in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine where an event loop may run already, as in notebooks."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
