"""The trainer's log-probabilities of the tokens of a step, beside the batch in the run folder: `batches/step-00012.npz`.

The store has the engine's. The difference of the two is the mismatch of a token.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agentlightning.contracts.batch import Batch
from agentlightning.errors import RunError
from agentlightning.files import disk_errors, write_file
from agentlightning.types import Doubles, FloatArray, floats


@dataclass(frozen=True, slots=True, eq=False)
class StepLogprobs:
    """Of one step."""

    version: int
    """Of the trainer's policy before the step: its log-probabilities are under these weights."""
    by_completion: Mapping[str, FloatArray]
    """(response,) of each trained reply, by the id of its completion."""
    versions: Mapping[str, int] = field(default_factory=dict[str, int])
    """The version by completion, in a step of several policies: each counts its own."""

    @classmethod
    def of(cls, version: int, batch: Batch, logprobs: Doubles) -> StepLogprobs:
        """From (tokens,) of a batch."""
        return cls(version, {name: floats(values) for name, values in batch.by_transition(logprobs).items()})

    def joined(self, other: StepLogprobs) -> StepLogprobs:
        """Those of two policies in one step."""
        versions = {name: part.version_of(name) for part in (self, other) for name in part.by_completion}
        return StepLogprobs(self.version, {**self.by_completion, **other.by_completion}, versions)

    def version_of(self, completion_id: str) -> int:
        """The version of the weights behind the log-probabilities of a reply."""
        return self.versions.get(completion_id, self.version)


def write_step_logprobs(file: Path, step: StepLogprobs) -> None:
    """Write the file of a step."""
    arrays = list(step.by_completion.values())
    data = io.BytesIO()
    content: dict[str, Any] = {
        "version": np.int64(step.version),
        "completions": np.array(list(step.by_completion), dtype=np.str_),
        "ends": np.cumsum([len(array) for array in arrays], dtype=np.int64),
        "logprobs": np.concatenate(arrays) if arrays else floats([]),
    }
    if step.versions:
        content["versions"] = np.array([step.version_of(name) for name in step.by_completion], np.int64)
    np.savez(data, **content)
    write_file(file, data.getvalue())


def read_step_logprobs(file: Path) -> StepLogprobs | None:
    """Read the file of a step. None: the trainer kept no log-probabilities."""
    if not file.is_file():
        return None
    with disk_errors("read", file):
        content = file.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as data:
            parts, names = np.split(data["logprobs"], data["ends"][:-1]), data["completions"].tolist()
            versions = dict(zip(names, data["versions"].tolist(), strict=True)) if "versions" in data else {}
            return StepLogprobs(int(data["version"]), dict(zip(names, parts, strict=True)), versions)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{file} is damaged: {error}. Remove it: the run does not need it.") from error
