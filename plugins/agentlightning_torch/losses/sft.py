"""Cross-entropy on demonstrations. The formula stands in `agentlightning.rl.loss.SFTLoss`."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import SFTLoss


def sft(settings: SFTLoss, logprob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """(tokens,) each."""
    return -advantage * logprob
