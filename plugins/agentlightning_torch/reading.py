"""Log-probability and entropy of tokens, read off the states that predict them in chunks, whose logits are made again for the gradient: of
the size of a vocabulary for every token nothing is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token and entropy of what it was drawn from, (tokens,), of the kind of `temperature`.

    `head` makes logits (…, vocabulary) of states (…, size); `states` is (tokens, size), `chosen` the tokens, and `temperature` that of
    each. `entropy`: with its gradient.
    """

    def one(some: torch.Tensor, tokens: torch.Tensor, heat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        every = torch.log_softmax(head(some).to(heat.dtype) / heat[:, None], -1)
        with nullcontext() if entropy else torch.no_grad():
            uncertain = -(every.exp() * every).sum(-1)
        return every.gather(1, tokens[:, None])[:, 0], uncertain

    rows = max(1, CHUNK // vocabulary)
    chunks = list(zip(states.split(rows), chosen.split(rows), temperature.split(rows), strict=True))
    again = len(chunks) > 1 and torch.is_grad_enabled()
    found = [checkpoint(one, *chunk, use_reentrant=False) if again else one(*chunk) for chunk in chunks]
    logprobs, uncertain = zip(*found, strict=True)
    return torch.cat(logprobs), torch.cat(uncertain)
