"""Cross-entropy on demonstrations. `agentlightning.rl.loss.SFTLoss` has the formula."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import SFTLoss


def sft(settings: SFTLoss, logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the terms; all (tokens,)."""
    return -advantages * logprobs
