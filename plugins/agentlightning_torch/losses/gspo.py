"""GSPO's clipped sequence ratio. `agentlightning.rl.loss.GSPO` has the formula."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import GSPO


def gspo(settings: GSPO, logprobs: torch.Tensor, sequence_log_ratios: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the terms; all (tokens,). The value of the ratio is the sequence's, and its gradient is the token's."""
    ratio = torch.exp(logprobs - logprobs.detach() + sequence_log_ratios)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)
