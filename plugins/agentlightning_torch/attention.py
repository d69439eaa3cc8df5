"""Attention over a forest: token `i` sees token `j` exactly when `j <= i < end[j]`.

On a CPU, the forest is cut into blocks, runs of tokens below one segment. A block attends to itself. The descendants of a segment follow it
contiguously, so all of them attend to it at once, without a mask. The log-sum-exp joins the parts. Each pair of tokens is computed once,
branches do not affect each other, and nothing is gathered.

On a GPU, FlexAttention evaluates the comparison directly. The model has this attention only during a pass, so an engine never runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentlightning.rl.batch.packs import Pack, runs

NAME = "agentlightning_forest"
BLOCK = 64
"""Tokens per block with branches. On a CPU, 16 to 64 were fastest from 1280 to 6500 tokens."""
FLEX_MULTIPLE = 128
"""FlexAttention's block size. Packs are padded to it, so that fewer shapes are compiled."""

Part = tuple[slice, slice, torch.Tensor | None, bool]
"""Queries, keys, the mask added to their products, and whether the part is causal."""


class Visible:
    """Visibility among the tokens of a pack. Built once, used by every layer."""

    def __init__(self, pack: Pack, device: torch.device, *, block: int = BLOCK, flex: bool | None = None) -> None:
        self.flex: Any = None
        self.mask: torch.Tensor | None = None
        """(tokens, tokens) mask, on devices without FlexAttention and parts."""
        self.parts: list[Part] = []
        """First every block with itself, which covers all queries, then every block with its descendants."""
        if device.type == "cuda" if flex is None else flex:
            self.flex = _block_mask(torch.from_numpy(pack.end.copy()).to(device), device)
        elif device.type != "cpu":
            self.mask = torch.from_numpy(_sees(pack, 0, len(pack))).to(device)
        else:
            above: list[Part] = []
            for first, stop, end in _blocks(pack, block):
                own = slice(first, stop)
                if (pack.parent[first + 1 : stop] == np.arange(first, stop - 1)).all():
                    self.parts.append((own, own, None, True))
                else:
                    hidden = torch.from_numpy(~_sees(pack, first, stop))
                    self.parts.append((own, own, torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf), False))
                if end > stop:
                    above.append((slice(stop, end), own, None, False))
            self.parts += above


def _sees(pack: Pack, first: int, stop: int) -> NDArray[np.bool_]:
    """Return a (stop - first, stop - first) mask, true if the row's token sees the column's."""
    tokens = np.arange(first, stop)
    return (tokens <= tokens[:, None]) & (tokens[:, None] < pack.end[first:stop])


def _blocks(pack: Pack, block: int) -> Iterator[tuple[int, int, int]]:
    """Return blocks in order, as (first token, end, end of the descendants).

    A block is several subtrees below one segment if they fit, else one segment.
    """
    tree = runs(pack.parent, pack.position)
    ends = pack.end[tree.first + tree.length - 1].astype(np.int64)
    segment, run, above = 0, -1, -1
    while segment < len(tree.first):
        first, end = int(tree.first[segment]), int(ends[segment])
        joins = run >= 0 and above == int(tree.parent[segment]) and end - run <= block
        if run >= 0 and not joins:
            yield run, first, first
            run = -1
        if end - first <= block:
            if not joins:
                run, above = first, int(tree.parent[segment])
            segment = int(np.searchsorted(tree.first, end))
        else:
            yield first, first + int(tree.length[segment]), end
            segment += 1
    if run >= 0:
        yield run, len(pack), len(pack)


def _block_mask(end: torch.Tensor, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        return (j <= i) & (i < end[j])

    return create_block_mask(visible, None, None, len(end), len(end), device=device)


@cache
def _flex_attention(compiled: bool) -> Any:
    """Compile FlexAttention once. The cache holds the kernel, not a result."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def forest_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention for transformers' models.

    `query` is (1, heads, tokens, size); `key` and `value` are (1, kv heads, tokens, size). `options` must have `forest`, a `Visible`, and
    may have `scaling`. Raises `NotImplementedError` for layers without plain attention.
    """
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    if options.get("dropout"):
        raise NotImplementedError("attention with dropout")
    forest: Visible = options["forest"]
    scaling: float | None = options.get("scaling")
    if forest.parts:
        return _Parts.apply(query, key, value, forest.parts, scaling).transpose(1, 2).contiguous(), None
    grouped = query.shape[1] != key.shape[1]
    if forest.flex is not None:
        attend = _flex_attention(query.device.type == "cuda")
        out = attend(query, key, value, block_mask=forest.flex, scale=scaling, enable_gqa=grouped)
    else:
        out = scaled_dot_product_attention(query, key, value, forest.mask, scale=scaling, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None


class _Parts(torch.autograd.Function):
    """Attention in parts.

    Let P_ij = exp(s_ij - L_i), with L the log-sum-exp over all parts. Output and gradients are then sums over the parts. torch's CPU kernel
    returns L of a part, and accepts any L for the gradients. Source: arXiv 2205.14135, 2310.01889.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: list[Part], scale: float | None
    ) -> torch.Tensor:
        """Compute the output. `query` is (1, heads, tokens, size). `key` and `value` may have fewer heads, each for several query heads."""
        out, total = torch.empty_like(query), query.new_empty(query.shape[:-1], dtype=torch.promote_types(query.dtype, torch.float32))
        k, v = _for_all_heads(query, key), _for_all_heads(query, value)
        for queries, keys, hidden, causal in parts:
            part, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, causal, attn_mask=_as(hidden, query), scale=scale
            )
            place, sofar = out[:, :, queries], total[:, :, queries]
            if queries == keys:
                place.copy_(part)
                sofar.copy_(lse)
            else:
                both = torch.logaddexp(sofar, lse)
                place.mul_((sofar - both).exp_()[..., None]).add_(part.mul_((lse - both).exp_()[..., None]))
                sofar.copy_(both)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key, and value."""
        query, key, value, out, total = ctx.saved_tensors
        k, v = _for_all_heads(query, key), _for_all_heads(query, value)
        gradients = [torch.zeros_like(x) for x in (query, k, v)]
        for queries, keys, hidden, causal in ctx.parts:
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grads[0][:, :, queries],
                query[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                total[:, :, queries],
                0.0,
                causal,
                attn_mask=_as(hidden, query),
                scale=ctx.scale,
            )
            for gradient, part, where in zip(gradients, parts, (queries, keys, keys), strict=True):
                gradient[:, :, where] += part
        of_key, of_value = (x.unflatten(1, (key.shape[1], -1)).sum(2) for x in gradients[1:])
        return gradients[0], of_key, of_value, None, None


def _for_all_heads(query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(query.shape[1] // x.shape[1], 1)


def _as(hidden: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if hidden is None else hidden.to(like.dtype)


@contextmanager
def using_forest(model: Any) -> Iterator[None]:
    """Switch a transformers model to forest attention within the block."""
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, forest_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
