"""The critic's loss."""

from __future__ import annotations

import torch


def value_term(value: torch.Tensor, before: torch.Tensor, target: torch.Tensor, clip: float | None) -> torch.Tensor:
    """(tokens,) max((V - R)^2, (V_clipped - R)^2) / 2, with V_clipped at most `clip` away from the value before the step; without `clip`
    the first alone. Source: arXiv 1707.06347's implementation; verl."""
    error = (value - target).square()
    if clip is not None:
        error = torch.maximum(error, (before + (value - before).clamp(-clip, clip) - target).square())
    return error / 2
