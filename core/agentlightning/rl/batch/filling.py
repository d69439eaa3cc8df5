"""Writes the tokens of a forest, and what belongs to their transitions, into the arrays of a batch, depth first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentlightning.rl.batch.forest import Forest, structure
from agentlightning.types import Doubles, Transition

Advantage: TypeAlias = float | Doubles
"""One number for all tokens of a transition, or (response,)."""


@dataclass(slots=True, eq=False)
class Row:
    """A transition on its way into the batch."""

    transition: Transition
    advantage: Advantage
    value: Doubles | None
    """(response,) the critic's value before each token; None without a critic."""
    returns: Doubles | None
    """(response,) the critic's target."""
    reason: str | None = None
    """Why it is not trained; None: it is."""
    weight: float = 0.0
    """Factor of each of its tokens in the loss."""

    @property
    def unscored(self) -> bool:
        """Whether its advantage is NaN."""
        return math.isnan(self.advantage) if isinstance(self.advantage, float) else bool(np.isnan(self.advantage).any())

    @property
    def teaches(self) -> bool:
        """Whether its advantage is not 0."""
        return bool(self.advantage.any()) if isinstance(self.advantage, np.ndarray) else self.advantage != 0


def token_arrays(forest: Forest, rows: Sequence[Row], *, critic: bool) -> dict[str, Any]:
    """The arrays (tokens,) of `Batch`, read-only. `rows` are the transitions in the order in which they went into the forest."""
    segments = forest.segments()
    lengths = np.array([len(s.tokens) for s in segments], np.int64)
    owner = np.array([s.transition for s in segments], np.int64)
    sampled = np.repeat(owner >= 0, lengths)  # (tokens,)
    replies = [(s.transition, slice(s.offset, s.offset + len(s.tokens))) for s in segments if s.transition >= 0]
    token_owner = np.repeat(owner[owner >= 0], lengths[owner >= 0])  # (sampled tokens,)

    def fill(array: NDArray[Any], values: NDArray[Any], context: float) -> None:
        """Write (sampled tokens,), and `context` everywhere else."""
        array[:] = context
        array[sampled] = values

    def spread(array: NDArray[Any], numbers: list[Any], context: float) -> None:
        """Write one number for each row."""
        fill(array, np.array(numbers, array.dtype)[token_owner], context)

    def place(array: NDArray[Any], responses: list[NDArray[Any]], context: float) -> None:
        """Write (response,) for each row."""
        fill(array, np.concatenate([responses[row][part] for row, part in replies]) if replies else np.empty(0), context)

    # One block for each type: the system maps a large block in large pages, and small pages cost more than to fill them.
    size = len(sampled)
    advantage, weight = np.empty((2, size), np.float64)
    token_ids, parent, position, end, transition, version = np.empty((6, size), np.int32)
    rollout_logprobs, temperature = np.empty((2, size), np.float32)
    arrays: dict[str, NDArray[Any]] = {
        "token_ids": token_ids,
        "parent": parent,
        "position": position,
        "end": end,
        "transition": transition,
        "rollout_logprobs": rollout_logprobs,
        "version": version,
        "temperature": temperature,
        "advantage": advantage,
        "weight": weight,
    }
    transitions = [row.transition for row in rows]
    if segments:
        np.concatenate([s.tokens for s in segments], out=token_ids)
    structure(segments, parent, position, end)
    spread(transition, list(range(len(rows))), -1)
    place(rollout_logprobs, [np.full(len(t.response_ids), np.nan) if t.logprobs is None else t.logprobs for t in transitions], np.nan)
    place(version, [t.versions for t in transitions], -1)
    spread(temperature, [t.temperature for t in transitions], np.nan)
    spread(weight, [row.weight for row in rows], 0.0)
    if all(isinstance(row.advantage, float) for row in rows):
        spread(advantage, [row.advantage for row in rows], 0.0)
    else:
        place(advantage, [np.broadcast_to(row.advantage, len(row.transition.response_ids)) for row in rows], 0.0)
    if critic:
        arrays["value"], arrays["returns"] = value, returns = np.empty((2, size), np.float64)
        place(value, [row.value for row in rows if row.value is not None], np.nan)
        place(returns, [row.returns for row in rows if row.returns is not None], np.nan)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
