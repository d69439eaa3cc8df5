"""Weight sync: the trainer's new weights reach the engine.

In one process the engine serves the trainer's own memory (`memory:`). Elsewhere the weights pass through a folder (`file:`), a new one for
each version; the last two stay. Each folder has a weight check: the log-probabilities of a few tokens under the trainer's weights. The
engine compares them with its own after loading, so stale, damaged or foreign weights are an error at once.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.trainer import Trainer
from agentlightning.errors import EngineError, UnsupportedSetting
from agentlightning.types import FloatArray, IntArray, Policy, floats, ints

WEIGHT_CHECK = "weight_check.json"
VERSIONS = 2
"""Versions that stay: the served one, and the one before it, because an engine may still be reading it."""
TOKENS = 64
EXACT, ROUNDED = 0.005, 0.15
"""Limits of a weight check in nats per token: engine and trainer in float32, and with fewer bits or unknown ones."""
DISTINCT = 4.0
"""Two versions are distinct if they differ by more than this many times the difference of engine and trainer."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightCheck:
    """The log-probabilities of a few tokens under the trainer's weights."""

    ids: IntArray
    """(tokens,)"""
    logprobs: FloatArray
    """(tokens - 1,) of each token but the first, given those before it, at temperature 1."""
    dtype: str = "float32"
    """Number type of the trainer's weights."""

    def write(self, folder: Path) -> None:
        """Write the check into a folder of weights."""
        text = json.dumps({"ids": self.ids.tolist(), "logprobs": self.logprobs.tolist(), "dtype": self.dtype})
        (folder / WEIGHT_CHECK).write_text(text, "utf-8")

    @classmethod
    def read(cls, folder: Path) -> WeightCheck | None:
        """Return the weight check in a folder of weights; None: there is none. Raises `EngineError` if it is damaged."""
        try:
            content = json.loads((folder / WEIGHT_CHECK).read_text("utf-8"))
            return cls(ints(content["ids"]), floats(content["logprobs"]), content["dtype"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"The weight check {folder / WEIGHT_CHECK} cannot be read: {error}. Export the weights again, or remove it for no check."
            ) from error

    @classmethod
    def of(cls, policy: Policy) -> WeightCheck | None:
        """Return the weight check of a policy. None if its weights are in no folder, or without a check."""
        return cls.read(folder_of(policy)) if policy.uri.startswith("file:") else None

    def difference(self, served: FloatArray) -> float:
        """Return the mean |served - trained| in nats a token. `served`: (tokens - 1,). Raises `EngineError` for another length."""
        if len(served) != len(self.logprobs):
            raise EngineError(
                f"The engine scored {len(served)} tokens of a weight check of {len(self.logprobs)}. Score every token but the first."
            )
        return float(np.abs(np.asarray(served, np.float64) - np.asarray(self.logprobs, np.float64)).mean())


def weight_check_ids(vocabulary: int) -> IntArray:
    """Return the tokens of a weight check, the same for every version of a model."""
    return ints(np.random.default_rng(0).integers(0, vocabulary, TOKENS))


def compare_weights(check: WeightCheck, served: FloatArray, *, limit: float, before: WeightCheck | None = None) -> tuple[float, str | None]:
    """Return the mean difference between the served and the trained log-probabilities, and the fault (None: the weights agree).

    It is a fault if the difference exceeds `limit`. It is also a fault if the version `before` is closer, and the two versions differ by
    clearly more than engine and trainer do; otherwise the comparison cannot tell.
    """
    difference = check.difference(served)
    if not difference <= limit:  # also for NaN
        return difference, f"its log-probabilities differ from the trainer's by {difference:.3g} nats a token (limit {limit:g})"
    if before is not None and np.array_equal(before.ids, check.ids):
        stale, step = before.difference(served), before.difference(check.logprobs)
        if stale < difference and step > DISTINCT * stale:
            return difference, (
                f"it still serves the version before: its log-probabilities differ by {stale:.2g} nats a token from that version, and by "
                f"{difference:.2g} from the new one"
            )
    return difference, None


def folder_of(policy: Policy) -> Path:
    """Return the folder of a `file:` uri."""
    return Path(unquote(policy.uri.removeprefix("file:").removeprefix("//")))


class WeightSync:
    """Has the engine serve the trainer's weights, during one run."""

    def __init__(self, trainer: Trainer, engine: Engine, folder: Path) -> None:
        """`folder`: of weights for another process. Raises `UnsupportedSetting` if trainer and engine share no way to pass weights."""
        self._trainer, self._engine, self._folder = trainer, engine, folder
        self._exported: dict[int, Policy] = {}
        """By version, the oldest first."""
        gives, takes = trainer.capabilities.uris, engine.info.uris
        here = trainer.policy.uri.partition(":")[0]
        self.direct = here in takes
        """Whether the engine serves the trainer's own memory."""
        if not self.direct and "file" not in gives & takes:
            raise UnsupportedSetting(
                f"The trainer provides weights as {', '.join(sorted(gives | {here}))}, but the engine takes "
                f"{', '.join(sorted(takes)) or 'none'}. Use an engine and a trainer that share one of these."
            )
        self.clear()  # of a run that was killed

    async def serve(self, policy: Policy) -> dict[str, float]:
        """Have the engine serve the trainer's policy; return its metrics. Raises the errors of `Trainer.export` and `Engine.load`."""
        if self.direct:
            return await self._engine.load(policy)
        if policy.version not in self._exported:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._exported[policy.version] = await self._trainer.export(self._folder / f"version-{policy.version:05d}")
        metrics = await self._engine.load(self._exported[policy.version])
        for version in list(self._exported)[:-VERSIONS]:
            shutil.rmtree(folder_of(self._exported.pop(version)), ignore_errors=True)
        return metrics

    async def reload(self, policy: Policy) -> None:
        """Have the engine load the version that it serves again. A new folder holds it, because an engine skips one that it has loaded."""
        lost = self._exported.pop(policy.version, None)
        if lost is not None:
            folder = folder_of(lost)
            self._exported[policy.version] = await self._trainer.export(folder.with_name(f"{folder.name}-again"))
        await self.serve(policy)
        if lost is not None:
            shutil.rmtree(folder_of(lost), ignore_errors=True)

    def clear(self) -> None:
        """Remove the exported weights. Checkpoints have the weights that stay."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._exported.clear()
