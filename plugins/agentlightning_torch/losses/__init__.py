"""The trainer's losses, one file each, by the name of their settings (`agentlightning.rl.loss`).

A custom loss needs no change here. Subclass `agentlightning.contracts.loss.CustomLoss`, which has its own `term`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from agentlightning.config.parts import call
from agentlightning.contracts.loss import CustomLoss, LossSettings
from agentlightning.errors import TrainerError, UnsupportedSetting
from agentlightning_torch.losses.cispo import cispo
from agentlightning_torch.losses.dpo import dpo
from agentlightning_torch.losses.gspo import gspo
from agentlightning_torch.losses.ppo_clip import ppo_clip
from agentlightning_torch.losses.sft import sft


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TermInputs:
    """Inputs of a loss for a pack's trained tokens. Only `logprobs` carries a gradient."""

    logprobs: torch.Tensor
    """(tokens,) log-probabilities under the current weights."""
    old_logprobs: torch.Tensor
    """(tokens,) log-probabilities under the weights before the first optimizer step."""
    advantages: torch.Tensor
    """(tokens,)"""
    sequence_log_ratios: torch.Tensor | None = None
    """(tokens,) mean of logprobs - old_logprobs over the token's sequence; None unless the loss has `ratio_over` a sequence."""
    pair_margins: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    """(tokens,) z of the token's pair; (0,) unless the loss is `over_pairs`."""

    @property
    def log_ratios(self) -> torch.Tensor:
        """Return (tokens,) log rho of the token or of its sequence."""
        return self.logprobs.detach() - self.old_logprobs if self.sequence_log_ratios is None else self.sequence_log_ratios


Term = Callable[[Any, TermInputs], torch.Tensor]
"""`(settings, inputs) -> (tokens,)`. The loss is the sum of weight * term."""

LOSSES: Mapping[str, Term] = MappingProxyType(
    {
        "ppo_clip": lambda settings, inputs: ppo_clip(settings, inputs.logprobs, inputs.old_logprobs, inputs.advantages),
        "cispo": lambda settings, inputs: cispo(settings, inputs.logprobs, inputs.old_logprobs, inputs.advantages),
        "gspo": lambda settings, inputs: gspo(settings, inputs.logprobs, inputs.log_ratios, inputs.advantages),
        "sft": lambda settings, inputs: sft(settings, inputs.logprobs, inputs.advantages),
        "dpo": lambda settings, inputs: dpo(settings, inputs.logprobs, inputs.pair_margins, inputs.advantages),
    }
)


def term(loss: LossSettings, inputs: TermInputs) -> torch.Tensor:
    """Return each token's term, (tokens,).

    Raises `UnsupportedSetting` for an unknown loss, `PluginError` for a custom loss that fails, and `TrainerError` for one with another
    shape or without a gradient.
    """
    if isinstance(loss, CustomLoss):
        result = call("algorithm.loss", loss.name, loss.term, inputs.logprobs, inputs.old_logprobs, inputs.advantages)
        if not isinstance(result, torch.Tensor) or result.shape != inputs.logprobs.shape:
            shown = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, torch.Tensor) else repr(result)[:80]
            raise TrainerError(f"loss {loss.name!r} returned {shown} for {len(inputs.logprobs)} tokens. Return the term of each token.")
        if inputs.logprobs.requires_grad and not result.requires_grad:
            raise TrainerError(
                f"loss {loss.name!r} returned a term without a gradient, so it trains nothing. Compute it from logprobs, without detach."
            )
        return result
    if loss.name not in LOSSES:
        raise UnsupportedSetting(
            f"loss {loss.name!r} is unknown to trainer 'torch'. Use one of {', '.join(sorted(LOSSES))}, or derive your own from CustomLoss."
        )
    return LOSSES[loss.name](loss, inputs)
