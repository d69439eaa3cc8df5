"""Computes log-probability and entropy of tokens from the hidden states that predict them, in chunks.

Nothing of vocabulary size is kept for all tokens. The backward pass recomputes the logits. With a frozen head, the forward pass computes
the gradient's direction instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 24
"""Maximum number of logits in memory."""


def read(
    head: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    vocabulary: int,
    chosen: torch.Tensor,
    temperature: torch.Tensor,
    entropy: bool,
    frozen: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's log-probability and its distribution's entropy, both (tokens,) with the dtype of `temperature`.

    `head` maps states (…, size) to logits (…, vocabulary). `states` is (tokens, size); `chosen` and `temperature` are (tokens,). With
    `entropy`, the entropy has a gradient. With `frozen`, `head` has no trained parameters.
    """

    def one(rows: torch.Tensor, tokens: torch.Tensor, heat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(head(rows).to(heat.dtype) / heat[:, None], -1)
        with nullcontext() if entropy else torch.no_grad():
            uncertain = -(every.exp() * every).sum(-1)
        return every.gather(1, tokens[:, None])[:, 0], uncertain

    size = max(1, CHUNK // vocabulary)
    chunks = list(zip(states.split(size), chosen.split(size), temperature.split(size), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        results = [one(*chunk) for chunk in chunks]
    elif frozen and not entropy:
        results = [_AtOnce.apply(one, *chunk) for chunk in chunks]
    else:
        results = [checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks]
    logprobs, uncertain = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(uncertain)


class _AtOnce(torch.autograd.Function):
    """Log-probabilities that save the gradient's direction of each state, (tokens, size), instead of the logits."""

    @staticmethod
    def forward(ctx: Any, one: Any, states: torch.Tensor, chosen: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.enable_grad():
            own = states.detach().requires_grad_()
            logprob, uncertain = one(own, chosen, temperature)
            (direction,) = torch.autograd.grad(logprob.sum(), own)
        ctx.save_for_backward(direction)
        uncertain = uncertain.detach()
        ctx.mark_non_differentiable(uncertain)
        return logprob.detach(), uncertain

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the states."""
        (direction,) = ctx.saved_tensors
        return None, (grads[0][:, None] * direction).to(direction.dtype), None, None
