"""A clipped importance weight on the policy gradient. `agentlightning.rl.loss.CISPO` has the formula and its source."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import CISPO


def cispo(settings: CISPO, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the terms; all (tokens,)."""
    weight = torch.exp(logprobs.detach() - old_logprobs).clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return -weight * advantages * logprobs
