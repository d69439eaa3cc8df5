"""The model of a run, as engines and trainers get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Share = dict[str, object]
"""One for each run, passed to its engine and its trainer: those of one plugin share weights through it."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that `from_pretrained` loads."""

    name: str
    path: str
    """A folder, or a hub id."""
    policy: str = "main"
    """Name of the policy that a trainer makes of it. Policies with other names than `main` share one model, in one share."""


@dataclass(frozen=True, slots=True)
class Fit:
    """Whether an engine or a trainer takes a model."""

    takes: Literal["yes", "no", "unknown"]
    note: str = ""
    """How it takes the model, or why it does not and the way out."""
