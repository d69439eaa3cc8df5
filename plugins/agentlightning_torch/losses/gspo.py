"""GSPO's clipped ratio. The formula stands in `agentlightning.rl.loss.GSPO`; the trainer gives every token the ratio of its sequence."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import GSPO


def gspo(settings: GSPO, logprob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """(tokens,) each."""
    ratio = torch.exp(logprob - old)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    return -torch.minimum(ratio * advantage, clipped * advantage)
