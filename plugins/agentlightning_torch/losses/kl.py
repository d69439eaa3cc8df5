"""Estimates of the divergence from the reference, token by token. The formulas stand in `agentlightning.rl.loss.LossSettings`."""

from __future__ import annotations

import torch

BOUND = 20.0
"""At which d is cut before it is raised, as in verl."""


def kl_term(estimator: str, logprob: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(tokens,) each."""
    d = logprob - reference
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    d = d.clamp(-BOUND, BOUND)
    return torch.exp(-d) - 1 + d
