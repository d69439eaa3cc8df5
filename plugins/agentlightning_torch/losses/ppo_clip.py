"""PPO's clipped ratio, with clip-higher and dual clip. `agentlightning.rl.loss.PPOClip` has the formula and its sources."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import PPOClip


def ppo_clip(settings: PPOClip, logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the terms; all (tokens,)."""
    ratio = torch.exp(logprobs - old_logprobs)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    term = -torch.minimum(ratio * advantages, clipped * advantages)
    if settings.dual_clip is not None:
        bound = -settings.dual_clip * advantages
        term = torch.where(advantages < 0, torch.minimum(term, bound), term)
    return term
