"""Computes log-probability and entropy of tokens from the hidden states that predict them, in chunks.

Nothing of vocabulary size is kept for all tokens. The backward pass recomputes the logits. With a frozen head, the forward pass computes
the gradient's direction instead.

A product in 16 bits accumulates in float32 and rounds its result by a part of its size. So the logits are taken relative to that of the
token itself: the probable tokens have small ones, which round little.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from agentlightning_torch.products import PLAIN

CHUNK = 1 << 24
"""Maximum number of logits in memory."""
CACHED = 1 << 19
"""Number of logits that go through the softmax at once. Its passes over them stay in the cache."""

Head = Callable[[torch.Tensor], torch.Tensor]
"""Maps states (…, size) to logits (…, vocabulary)."""


def read(
    head: Head,
    states: torch.Tensor,
    vocabulary: int,
    chosen: torch.Tensor,
    temperature: torch.Tensor,
    entropy: bool,
    frozen: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each token's log-probability and its distribution's entropy, both (tokens,) with the dtype of `temperature`.

    `states` is (tokens, size); `chosen` and `temperature` are (tokens,). With `entropy`, the entropy has a gradient. With `frozen`, `head`
    has no trained parameters.
    """

    def one(rows: torch.Tensor, tokens: torch.Tensor, heat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(_logits(head, rows, tokens).to(heat.dtype) / heat[:, None], -1)
        with nullcontext() if entropy else torch.no_grad():
            uncertain = -(every.exp() * every).sum(-1)
        return every.gather(1, tokens[:, None])[:, 0], uncertain

    size = max(1, CHUNK // vocabulary)
    chunks = list(zip(states.split(size), chosen.split(size), temperature.split(size), strict=True))
    if not torch.is_grad_enabled():
        results = [_softmax(_logits(head, rows, tokens), tokens, heat) for rows, tokens, heat in chunks]
    elif frozen and not entropy:
        results = [_AtOnce.apply(head, *chunk) for chunk in chunks]
    elif len(chunks) == 1:
        results = [one(*chunks[0])]
    else:
        results = [checkpoint(one, *chunk, use_reentrant=False) for chunk in chunks]
    logprobs, uncertain = zip(*results, strict=True)
    return torch.cat(logprobs), torch.cat(uncertain)


def _logits(head: Head, rows: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return the logits of states, of a plain head relative to that of the chosen token, up to its rounding."""
    if type(head) not in PLAIN or head.bias is not None:
        return head(rows)
    with torch.no_grad():
        own = (rows * head.weight[chosen]).sum(-1, keepdim=True)
    return torch.addmm(own, rows, head.weight.t(), beta=-1)


def _softmax(
    logits: torch.Tensor, chosen: torch.Tensor, temperature: torch.Tensor, slope: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and entropies, both (tokens,), without gradient. Write d logprob / d logits into `slope`."""
    logprobs, entropies = torch.empty_like(temperature), torch.empty_like(temperature)
    size = max(1, CACHED // logits.shape[-1])
    for first in range(0, len(logits), size):
        few = slice(first, first + size)
        heat, tokens = temperature[few, None], chosen[few, None]
        every = torch.log_softmax(logits[few].to(heat.dtype) / heat, -1)
        probability = every.exp()
        logprobs[few] = every.gather(1, tokens)[:, 0]
        entropies[few] = -torch.linalg.vecdot(probability, every)
        if slope is not None:
            slope[few] = probability.neg_().scatter_add_(1, tokens, torch.ones_like(heat)).div_(heat)
    return logprobs, entropies


class _AtOnce(torch.autograd.Function):
    """Log-probabilities that save the gradient's direction of each state, (tokens, size), instead of the logits."""

    @staticmethod
    def forward(ctx: Any, head: Head, states: torch.Tensor, chosen: torch.Tensor, temperature: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = states.detach().requires_grad_()
        with torch.enable_grad():
            logits = _logits(head, own, chosen)
        slope = torch.empty_like(logits)
        logprob, uncertain = _softmax(logits.detach(), chosen, temperature, slope)
        (direction,) = torch.autograd.grad(logits, own, slope)
        ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(uncertain)
        return logprob, uncertain

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the states."""
        (direction,) = ctx.saved_tensors
        return None, (grads[0][:, None] * direction).to(direction.dtype), None, None
