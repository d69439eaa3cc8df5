"""Estimates the divergence from the reference, per token. `agentlightning.rl.loss.LossSettings` has the formulas."""

from __future__ import annotations

import torch

BOUND = 20.0
"""d is clipped here before exp, as in verl."""


def kl_term(estimator: str, logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """Return the estimates; all (tokens,)."""
    d = logprobs - reference_logprobs
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    d = d.clamp(-BOUND, BOUND)
    return torch.exp(-d) - 1 + d
