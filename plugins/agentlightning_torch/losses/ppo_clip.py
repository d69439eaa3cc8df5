"""PPO's clipped ratio, with clip-higher and dual clip. The formula and its sources stand in `agentlightning.rl.loss.PPOClip`."""

from __future__ import annotations

import torch

from agentlightning.rl.loss import PPOClip


def ppo_clip(settings: PPOClip, logprob: torch.Tensor, old: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """(tokens,) each."""
    ratio = torch.exp(logprob - old)
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    term = -torch.minimum(ratio * advantage, clipped * advantage)
    if settings.dual_clip is not None:
        bound = -settings.dual_clip * advantage
        term = torch.where(advantage < 0, torch.minimum(term, bound), term)
    return term
