"""Cross-entropy on demonstrations. The formula stands in `agentlightning.rl.loss.SFTLoss`."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import SFTLoss


def sft(settings: SFTLoss, logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """(tokens,) each."""
    return -advantages * logprobs
