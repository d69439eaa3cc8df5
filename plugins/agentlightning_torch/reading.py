"""Log-probability and entropy of tokens, read off the states that predict them in chunks: of the size of a vocabulary for every token
nothing is kept. For the gradient the logits are made again; where only the states learn from it, its direction is found at once instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 24
"""Logits that are there at once."""


def read(
    head: Callable[[torch.Tensor], torch.Tensor],
    states: torch.Tensor,
    vocabulary: int,
    chosen: torch.Tensor,
    temperature: torch.Tensor,
    entropy: bool,
    frozen: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token and entropy of what it was drawn from, (tokens,), of the kind of `temperature`.

    `head` makes logits (…, vocabulary) of states (…, size); `states` is (tokens, size), `chosen` the tokens, and `temperature` that of
    each. `entropy`: with its gradient. `frozen`: `head` has nothing to learn.
    """

    def one(some: torch.Tensor, tokens: torch.Tensor, heat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(head(some).to(heat.dtype) / heat[:, None], -1)
        with nullcontext() if entropy else torch.no_grad():
            uncertain = -(every.exp() * every).sum(-1)
        return every.gather(1, tokens[:, None])[:, 0], uncertain

    rows = max(1, CHUNK // vocabulary)
    chunks = list(zip(states.split(rows), chosen.split(rows), temperature.split(rows), strict=True))
    if len(chunks) == 1 or not torch.is_grad_enabled():
        found = [one(*chunk) for chunk in chunks]
    elif frozen and not entropy:
        found = [_AtOnce.apply(one, *chunk) for chunk in chunks]
    else:
        found = [checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks]
    logprobs, uncertain = zip(*found, strict=True)
    return torch.cat(logprobs), torch.cat(uncertain)


class _AtOnce(torch.autograd.Function):
    """Log-probabilities whose gradient has one direction for each state, (tokens, size): it is kept in place of the logits."""

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
        """The gradient of the states."""
        (direction,) = ctx.saved_tensors
        return None, (grads[0][:, None] * direction).to(direction.dtype), None, None
