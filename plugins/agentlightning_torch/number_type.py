"""The number type of weights, and the choice of `auto`."""

from __future__ import annotations

import time
from functools import cache

import torch

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
@ending_workers()
def bfloat16_speedup(width: int) -> float:
    """Return how many times faster this CPU multiplies in bfloat16 than in float32. Old CPUs are several times slower, so it is measured.

    The product is that of a decode step with an MLP's weights. The runs take turns, and the fastest count.
    """
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.ones(4 * width, width, dtype=dtype)
        products.append((torch.ones(ROWS, width, dtype=dtype), weight))
    best = [float("inf")] * 2
    with torch.no_grad():
        for _ in range(8):
            for kind, (tokens, weight) in enumerate(products):
                started = time.perf_counter()
                torch.nn.functional.linear(tokens, weight)
                best[kind] = min(best[kind], time.perf_counter() - started)
    return best[0] / best[1]
