"""The number type of weights, and the choice of `auto`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from agentlightning.errors import ConfigError
from agentlightning_torch.workers import ending_workers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
HALVES = (torch.bfloat16, torch.float16)
WORTH = 1.5
"""`auto` takes bfloat16 on a CPU if a product is at least this many times faster than in float32."""
NARROW = 256
"""Models with a smaller hidden size stay in float32: their products take little of the time."""
ROWS = 32
"""Tokens of the timed product, as in a decode step."""


def number_type(name: str, device: torch.device, width: int) -> torch.dtype:
    """Return the dtype of a setting. `width` is the model's hidden size. Raises `ConfigError`."""
    if name != "auto":
        if name not in DTYPES:
            raise ConfigError(f"dtype {name!r} is unknown. Expected 'auto' or one of {', '.join(DTYPES)}.")
        return DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = device.type == "cpu" and width >= NARROW and bfloat16_speedup(width) >= WORTH
    return torch.bfloat16 if fast else torch.float32


@cache
def bfloat16_speedup(width: int) -> float:
    """Return how many times faster this CPU multiplies in bfloat16 than in float32. Old CPUs are several times slower, so it is measured.

    The product is that of a decode step with an MLP's weights.
    """
    runs = list[Callable[[], Tensor]]()
    for dtype in (torch.float32, torch.bfloat16):
        tokens, weight = torch.ones(ROWS, width, dtype=dtype), torch.ones(4 * width, width, dtype=dtype)
        runs.append(partial(torch.nn.functional.linear, tokens, weight))
    return speedup(*runs)


@ending_workers()
def speedup(reference: Callable[[], Tensor], other: Callable[[], Tensor]) -> float:
    """Return how many times faster another product is. Both take turns, and the fastest runs count."""
    best = [float("inf")] * 2
    with torch.no_grad():
        for _ in range(8):
            for number, multiply in enumerate((reference, other)):
                started = time.perf_counter()
                multiply()
                best[number] = min(best[number], time.perf_counter() - started)
    return best[0] / best[1]
