"""A value head on the policy's last hidden state.

It passes no gradient back, so the critic does not change the policy, and the policy's weights stay shared with the engine. It has its own
optimizer and float32 weights. The last layer starts at zero, so a fresh critic predicts 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from agentlightning_torch.adapters import plain


class ValueHead(nn.Module):
    """Maps hidden states (tokens, hidden) to values (tokens,)."""

    def __init__(self, hidden: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.inner = nn.Linear(hidden, hidden)
            self.outer = nn.Linear(hidden, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.outer(torch.tanh(self.inner(hidden.detach().float())))[..., 0]


def hidden_size(model: Any) -> int:
    """Return the size of the hidden state before the model's head."""
    return int(plain(model).get_output_embeddings().weight.shape[1])
