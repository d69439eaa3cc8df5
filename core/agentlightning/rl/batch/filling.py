"""Writes the tokens of a forest, and what their transitions say about them, into the arrays of a batch, depth first."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agentlightning.rl.batch.forest import Forest, structure
from agentlightning.types import Transition

DoubleArray = NDArray[np.float64]
Advantage: TypeAlias = float | DoubleArray
"""Of a transition: of all its tokens, or (response,) of each."""

_CRITIC: dict[str, type[np.generic]] = {"value": np.float64, "returns": np.float64}
_KINDS: dict[str, type[np.generic]] = {
    "advantage": np.float64,
    "weight": np.float64,
    **dict.fromkeys(("token_ids", "parent", "position", "end", "transition", "version"), np.int32),
    "logprob": np.float32,
    "temperature": np.float32,
}
"""Of the arrays of a batch, the wide ones first."""


def token_arrays(
    forest: Forest, trained: list[tuple[Transition, Advantage, float]], critic: list[tuple[DoubleArray, DoubleArray]] | None
) -> dict[str, NDArray[Any]]:
    """(tokens,) each, by their names in `Batch`, read-only. `trained` has the transitions in the order in which they went into the forest,
    with the advantage and the weight of their tokens; `critic` value and return of each token of them."""
    segments = forest.segments()
    lengths = np.array([len(s.tokens) for s in segments], np.int64)
    owner = np.array([s.transition for s in segments], np.int64)
    arrays = _side_by_side(int(lengths.sum()), _KINDS if critic is None else {**_CRITIC, **_KINDS})
    sampled = np.repeat(owner >= 0, lengths)
    runs = [(s.transition, slice(s.offset, s.offset + len(s.tokens))) for s in segments if s.transition >= 0]

    def spread(name: str, values: list[Any], context: float) -> None:
        """Write (tokens,) from one number for each transition."""
        write(name, np.repeat(np.array(values, arrays[name].dtype)[owner[owner >= 0]], lengths[owner >= 0]), context)

    def place(name: str, values: list[NDArray[Any]], context: float) -> None:
        """Write (tokens,) from (response,) of each transition."""
        write(name, np.concatenate([values[transition][part] for transition, part in runs]) if runs else np.empty(0), context)

    def write(name: str, values: NDArray[Any], context: float) -> None:
        arrays[name][:] = context
        arrays[name][sampled] = values

    if segments:
        np.concatenate([s.tokens for s in segments], out=arrays["token_ids"])
    structure(segments, arrays["parent"], arrays["position"], arrays["end"])
    spread("transition", list(range(len(trained))), -1)
    place("logprob", [np.full(len(t.response_ids), np.nan) if t.logprobs is None else t.logprobs for t, _, _ in trained], np.nan)
    place("version", [t.versions for t, _, _ in trained], -1)
    spread("temperature", [t.temperature for t, _, _ in trained], np.nan)
    spread("weight", [weight for _, _, weight in trained], 0.0)
    if all(isinstance(value, float) for _, value, _ in trained):
        spread("advantage", [value for _, value, _ in trained], 0.0)
    else:
        place("advantage", [np.broadcast_to(value, len(t.response_ids)) for t, value, _ in trained], 0.0)
    if critic is not None:
        place("value", [value for value, _ in critic], np.nan)
        place("returns", [returns for _, returns in critic], np.nan)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def _side_by_side(size: int, kinds: dict[str, type[np.generic]]) -> dict[str, NDArray[Any]]:
    """Arrays in one block: a large block comes in large pages, many smaller ones in small pages, which cost more than to fill them."""
    widths = [size * np.dtype(kind).itemsize for kind in kinds.values()]
    block = np.empty(sum(widths), np.uint8)
    parts = np.split(block, np.cumsum(widths)[:-1])
    return {name: part.view(kind) for (name, kind), part in zip(kinds.items(), parts, strict=True)}
