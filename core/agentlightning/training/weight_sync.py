"""Brings what a trainer made to the engine that shall serve it.

Where both are in one process the weights stay where they are (`memory:`). Elsewhere they go through a folder (`file:`), a new one for each
version, of which the last two are kept; beside the weights lies a probe: what the trainer's weights make of a few tokens. An engine
that has loaded them compares what it serves with it, so weights that are stale, damaged or of another model are found at once.
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
KEPT = 2
"""Versions that stay: the one that is served, and the one before it, which an engine may still be reading."""
TOKENS = 64
SHARP = 4.0
"""Two versions can be told apart where they differ by so many times what engine and trainer differ by."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightCheck:
    """What some weights make of a few tokens."""

    ids: IntArray
    """(tokens,)"""
    logprobs: FloatArray
    """(tokens - 1,) of each token but the first after those before it, at temperature 1."""

    def write(self, folder: Path) -> None:
        text = json.dumps({"ids": self.ids.tolist(), "logprobs": [float(each) for each in self.logprobs]})
        (folder / WEIGHT_CHECK).write_text(text, "utf-8")

    @classmethod
    def read(cls, folder: Path) -> WeightCheck | None:
        """The probe in a folder of weights; None where nobody made one. `EngineError` when it cannot be read."""
        try:
            found = json.loads((folder / WEIGHT_CHECK).read_text("utf-8"))
            return cls(ints(found["ids"]), floats(found["logprobs"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(f"the probe {folder / WEIGHT_CHECK} cannot be read: {error}") from error

    def difference(self, served: FloatArray) -> float:
        """Mean |served - ours| over the tokens, nats. Both (tokens - 1,). `EngineError` where the lengths differ."""
        if len(served) != len(self.logprobs):
            raise EngineError(f"the engine scored {len(served)} tokens of a probe of {len(self.logprobs)}")
        return float(np.abs(np.asarray(served, np.float64) - np.asarray(self.logprobs, np.float64)).mean())


def weight_check_ids(vocabulary: int) -> IntArray:
    """The tokens of a probe, the same for every version of a model."""
    return ints(np.random.default_rng(0).integers(0, vocabulary, TOKENS))


def judge(probe: WeightCheck, served: FloatArray, *, limit: float, before: WeightCheck | None = None) -> tuple[float, str | None]:
    """Whether what is served are the weights of the probe: the mean difference, and what is wrong (None: nothing).

    Wrong is a difference above `limit`, and one that is smaller to the version before, where the versions differ by more than engine and
    trainer do: half a step away from both would be neither.
    """
    difference = probe.difference(served)
    if not difference <= limit:  # NaN is no agreement
        return difference, f"its log-probabilities differ from the trainer's by {difference:.3g} nats a token (limit {limit:g})"
    if before is not None and np.array_equal(before.ids, probe.ids):
        stale, step = before.difference(served), before.difference(probe.logprobs)
        if stale < difference and step > SHARP * stale:
            return difference, (
                f"it still serves the version before: its log-probabilities differ from that one's by {stale:.2g} nats a token, and from "
                f"the new one's by {difference:.2g}"
            )
    return difference, None


def folder_of(policy: Policy) -> Path:
    """The folder of a `file:` uri."""
    return Path(unquote(policy.uri.removeprefix("file:").removeprefix("//")))


class WeightSync:
    """One for each run."""

    def __init__(self, trainer: Trainer, engine: Engine, folder: Path) -> None:
        """`UnsupportedSetting` where trainer and engine have no way in common."""
        self._trainer, self._engine, self._folder = trainer, engine, folder
        self._made: dict[int, Policy] = {}
        """By version, the oldest first."""
        gives, takes = trainer.capabilities.uris, engine.info.uris
        here = trainer.policy.uri.partition(":")[0]
        self.direct = here in takes
        """Whether the engine serves what lies in the trainer's memory."""
        if not self.direct and "file" not in gives & takes:
            raise UnsupportedSetting(
                f"the trainer hands weights over as {', '.join(sorted(gives | {here}))}, and the engine takes "
                f"{', '.join(sorted(takes)) or 'none'}; use an engine and a trainer that fit"
            )
        self.clear()  # of a run that was killed

    async def serve(self, policy: Policy) -> dict[str, float]:
        """Have the engine serve what the trainer has; what it measured. Raises what `Trainer.export` and `Engine.load` raise."""
        if self.direct:
            return await self._engine.load(policy)
        if policy.version not in self._made:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._made[policy.version] = await self._trainer.export(self._folder / f"version-{policy.version:05d}")
        measured = await self._engine.load(self._made[policy.version])
        for version in list(self._made)[:-KEPT]:
            shutil.rmtree(folder_of(self._made.pop(version)), ignore_errors=True)
        return measured

    def clear(self) -> None:
        """Remove what was written: a checkpoint has the weights that are to stay."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._made.clear()
