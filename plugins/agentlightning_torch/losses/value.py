"""The critic's loss."""

from __future__ import annotations

import torch


def value_term(value: torch.Tensor, before: torch.Tensor, target: torch.Tensor, clip: float | None) -> torch.Tensor:
    """Return (tokens,) max((V - R)^2, (V_clipped - R)^2) / 2.

    V_clipped differs from the value before the step by at most `clip`. Without `clip`, only the first term counts. Source: arXiv
    1707.06347's implementation; verl.
    """
    error = (value - target).square()
    if clip is not None:
        error = torch.maximum(error, (before + (value - before).clamp(-clip, clip) - target).square())
    return error / 2
