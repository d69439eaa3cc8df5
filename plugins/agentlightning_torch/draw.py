"""Draws one token per row of logits, with its log-probability. Rows are independent, so a reply does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agentlightning.types import Sampling


def draw(logits: Tensor, samplings: Sequence[Sampling], noise: Sequence[np.random.Generator]) -> tuple[list[int], list[float]]:
    """Sample ids (rows,) from logits (rows, vocabulary), and log-softmax(logits / temperature) at them.

    Each row takes one number from its own generator and inverts the cumulative distribution, in float64. The noise is NumPy's, so a
    seed means the same on every device. Temperature 0 is greedy, with the log-probabilities of temperature 1.
    """
    temperature = [s.temperature or 1.0 for s in samplings]
    logprobs = (logits.float() / torch.tensor(temperature, device=logits.device)[:, None]).log_softmax(-1)
    ids = logprobs.argmax(-1)
    hot = [i for i, s in enumerate(samplings) if s.temperature > 0]
    if hot:
        probabilities = logprobs[hot].double().exp_()
        for j, i in enumerate(hot):
            if samplings[i].truncated:
                _truncate(probabilities[j], samplings[i])
        cumulative = probabilities.cumsum_(-1)
        uniform = torch.tensor([[noise[i].random()] for i in hot], dtype=torch.float64, device=logits.device)
        # The first token with a cumulative sum above the point: never one of probability zero.
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0]
        ids[hot] = drawn.clamp_(max=logits.shape[-1] - 1)
    chosen = logprobs.gather(1, ids[:, None])[:, 0]
    return ids.tolist(), chosen.tolist()


def _truncate(row: Tensor, sampling: Sampling) -> None:
    """Zero the tokens outside `top_k`, then outside `top_p`, in place; (vocabulary,). The most likely token always stays."""
    ordered, index = row.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered[sampling.top_k :] = 0
    if sampling.top_p < 1:
        before = ordered.cumsum(-1) - ordered
        ordered[1:][before[1:] >= sampling.top_p * ordered.sum()] = 0
    row[index] = ordered
