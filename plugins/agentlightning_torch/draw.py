"""Draws one token per row of logits, with its log-probability. Rows are independent, so a reply does not depend on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agentlightning.types import Sampling, is_greedy

CHUNK = 1 << 20
"""Maximum number of logits worked on at once. They stay in the processor's cache."""
BLOCK = 512
"""Tokens per block of the cumulative distribution."""
BELOW_ONE = 1 - 2.0**-53
"""The largest float64 below 1."""


def draw(logits: Tensor, samplings: Sequence[Sampling], noise: Sequence[np.random.Generator]) -> tuple[list[int], list[float]]:
    """Sample ids (rows,) from logits (rows, vocabulary), and log-softmax(logits / temperature) at them.

    Each row takes one number from its own generator and inverts the cumulative distribution, summed in float64. The noise is NumPy's, so a
    seed means the same on every device. A temperature below 1e-5 is greedy, with the log-probabilities of temperature 1.
    """
    ids: list[int] = []
    logprobs: list[float] = []
    count = max(1, CHUNK // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), count):
        rows = slice(start, start + count)
        some_ids, some_logprobs = _draw(logits[rows], samplings[rows], noise[rows])
        ids += some_ids
        logprobs += some_logprobs
    return ids, logprobs


def _draw(logits: Tensor, samplings: Sequence[Sampling], noise: Sequence[np.random.Generator]) -> tuple[list[int], list[float]]:
    temperature = torch.tensor([1.0 if is_greedy(s.temperature) else s.temperature for s in samplings], device=logits.device)[:, None]
    highest, ids = logits.max(-1, keepdim=True)
    weights = (logits.float() - highest.float()).div_(temperature).exp_()
    sums = _block_sums(weights)
    total = sums.sum(-1, keepdim=True)
    hot = [i for i, s in enumerate(samplings) if not is_greedy(s.temperature)]
    if hot:
        for i in hot:
            if samplings[i].truncated:
                row = weights[i].double()
                _truncate(row, samplings[i])
                weights[i] = row
                sums[i] = _block_sums(weights[i][None])[0]
        uniform = torch.tensor([[noise[i].random()] for i in hot], dtype=torch.float64, device=logits.device)
        ids[hot] = _invert(weights, sums, uniform, torch.tensor(hot, device=logits.device))
    chosen = (logits.gather(1, ids).float() - highest.float()) / temperature - total.log()
    return ids[:, 0].tolist(), chosen[:, 0].tolist()


def _block_sums(weights: Tensor) -> Tensor:
    """Return the sum of each block, (rows, blocks). The last block may be shorter."""
    rows, vocabulary = weights.shape
    even = vocabulary // BLOCK * BLOCK
    sums = weights[:, :even].reshape(rows, even // BLOCK, BLOCK).sum(-1)
    if even < vocabulary:
        sums = torch.cat([sums, weights[:, even:].sum(-1, keepdim=True)], -1)
    return sums.double()


def _invert(weights: Tensor, sums: Tensor, uniform: Tensor, rows: Tensor) -> Tensor:
    """Return the first token of these rows, (rows, 1), whose cumulative share exceeds `uniform` (rows, 1): never one of weight zero.

    Only the sums of blocks are cumulated over the whole vocabulary, then the tokens of one block.
    """
    block, rest = _first_above(sums[rows], uniform)
    index = block * BLOCK + torch.arange(BLOCK, device=weights.device)
    inside = index < weights.shape[-1]
    within = weights[rows[:, None], index.clamp(max=weights.shape[-1] - 1)].double().masked_fill_(~inside, 0)
    token, _ = _first_above(within, rest)
    return (block * BLOCK + token).clamp_(max=weights.shape[-1] - 1)  # only NaN gets there


def _first_above(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index (rows, 1) with a cumulative share above `uniform`, and the place of `uniform` in its share, in [0, 1)."""
    cumulative = weights.cumsum(-1)
    point = uniform.clamp(max=BELOW_ONE) * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, point, right=True).clamp_(max=weights.shape[-1] - 1)
    own = weights.gather(1, index)
    return index, ((point - (cumulative.gather(1, index) - own)) / own).clamp(0, BELOW_ONE)


def _truncate(row: Tensor, sampling: Sampling) -> None:
    """Zero the tokens outside `top_k`, then outside `top_p`, in place; (vocabulary,). The most likely token always stays."""
    ordered, index = row.sort(descending=True, stable=True)
    if sampling.top_k:
        ordered[sampling.top_k :] = 0
    if sampling.top_p < 1:
        before = ordered.cumsum(-1) - ordered
        ordered[1:][before[1:] >= sampling.top_p * ordered.sum()] = 0
    row[index] = ordered
