"""The losses that the trainer knows, by the name of their settings (`agentlightning.rl.loss`), one file each.

A loss of one's own needs no change here: a subclass of `LossSettings` that has the method `term(logprob, old, advantage)` brings it along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from agentlightning.errors import UnsupportedSetting
from agentlightning.contracts.loss import LossSettings
from agentlightning_torch.losses.cispo import cispo
from agentlightning_torch.losses.dpo import dpo
from agentlightning_torch.losses.gspo import gspo
from agentlightning_torch.losses.ppo_clip import ppo_clip
from agentlightning_torch.losses.sft import sft

Term = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""`(settings, logprob, old, advantage) -> term`, each (tokens,); the loss is the sum of weight * term."""

LOSSES: Mapping[str, Term] = MappingProxyType({"ppo_clip": ppo_clip, "cispo": cispo, "gspo": gspo, "sft": sft, "dpo": dpo})


def term_of(settings: LossSettings) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The loss's term as a function of `(logprob, old, advantage)`. `UnsupportedSetting` when nobody knows it."""
    own = getattr(settings, "term", None)
    if own is not None:
        return own
    if settings.name not in LOSSES:
        raise UnsupportedSetting(
            f"loss {settings.name!r} is unknown to trainer 'torch'; it knows {', '.join(sorted(LOSSES))}, and any settings class "
            "with a method `term(logprob, old, advantage)`"
        )
    return lambda logprob, old, advantage: LOSSES[settings.name](settings, logprob, old, advantage)
