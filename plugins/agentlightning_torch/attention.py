"""Attention over a forest: token `i` sees token `j` exactly when `j <= i < end[j]`.

On a CPU, the forest is cut into blocks, runs of tokens below one segment. A block attends to itself. The descendants of a segment follow it
contiguously, so all of them attend to it at once, without a mask. The log-sum-exp joins the parts. Each pair of tokens is computed once,
branches do not affect each other, and nothing is gathered.

On a GPU, FlexAttention evaluates the comparison directly. A layer's own mask, such as a sliding window, narrows each part by the positions
of its tokens. The model has this attention only during a pass, so an engine never runs it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad, scaled_dot_product_attention

from agentlightning.rl.batch.packs import Pack, runs
from agentlightning_torch.masks import PositionMask, check_mask, register, using_attention

NAME = "agentlightning_forest"
BLOCK = 64
"""Tokens per block with branches. On a CPU, 16 to 64 were fastest from 1280 to 6500 tokens."""
FLEX_MULTIPLE = 128
"""FlexAttention's block size. Packs are padded to it, so that fewer shapes are compiled."""

Part = tuple[slice, slice, torch.Tensor | None, bool]
"""Queries, keys, the mask added to their products, and whether the part is causal."""


HAS_KERNEL = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")
"""Whether torch has the CPU kernel that returns the log-sum-exp. It is private to torch, and all versions since 2.6 have it."""
LONGEST = 256
"""Tokens of a block without branches under a layer's own mask, so that a short window skips most of a long segment."""


class Visible:
    """Visibility among the tokens of a pack. Built once, used by every layer."""

    def __init__(self, pack: Pack, device: torch.device, *, block: int = BLOCK, flex: bool | None = None, parts: bool = HAS_KERNEL) -> None:
        """`parts`: whether a CPU computes the attention in parts, instead of under one dense mask."""
        self.pack, self.device, self._block = pack, device, block
        self._way = "flex" if (device.type == "cuda" if flex is None else flex) else "parts" if device.type == "cpu" and parts else "dense"
        self._relations: dict[PositionMask | None, Relation] = {}

    def under(self, mask: PositionMask | None) -> Relation:
        """The relation in a layer with this mask (None: plain causal)."""
        if mask not in self._relations:
            self._relations[mask] = self._relation(mask)
        return self._relations[mask]

    def _relation(self, mask: PositionMask | None) -> Relation:
        pack = self.pack
        if self._way == "flex":
            return Relation(flex=_block_mask(pack, mask, self.device))
        position = torch.from_numpy(pack.position.astype(np.int64))
        if self._way == "dense":
            sees = torch.from_numpy(_sees(pack, 0, len(pack)))
            return Relation(dense=(sees if mask is None else sees & mask(position[:, None], position)).to(self.device))
        return Relation(parts=_plain_parts(pack, self._block) if mask is None else _masked_parts(pack, self._block, mask, position))


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """Which tokens see which in one kind of layer, in one of three forms."""

    flex: Any = None
    """FlexAttention's block mask."""
    dense: torch.Tensor | None = None
    """(tokens, tokens)"""
    parts: list[Part] = field(default_factory=list)
    """First each block with itself, which covers all queries; then each block with its descendants."""


def _plain_parts(pack: Pack, block: int) -> list[Part]:
    parts: list[Part] = []
    above: list[Part] = []
    for first, stop, end in _blocks(pack, block, len(pack)):
        own = slice(first, stop)
        if (pack.parent[first + 1 : stop] == np.arange(first, stop - 1)).all():
            parts.append((own, own, None, True))
        else:
            parts.append((own, own, _added(torch.from_numpy(_sees(pack, first, stop))), False))
        if end > stop:
            above.append((slice(stop, end), own, None, False))
    return parts + above


def _masked_parts(pack: Pack, block: int, mask: PositionMask, position: torch.Tensor) -> list[Part]:
    parts: list[Part] = []
    above: list[Part] = []
    for first, stop, end in _blocks(pack, block, LONGEST):
        own = slice(first, stop)
        sees = torch.from_numpy(_sees(pack, first, stop)) & mask(position[own, None], position[own])
        if not sees.diagonal().all():
            raise NotImplementedError("it has tokens that do not see themselves")
        parts.append((own, own, _added(sees), False))
        sees = mask(position[stop:end, None], position[own])
        for run in _runs(sees.any(1)):
            reached = sees[run]
            above.append((slice(stop + run.start, stop + run.stop), own, None if reached.all() else _added(reached), False))
    return parts + above


def _runs(flags: torch.Tensor) -> list[slice]:
    """The runs of true values."""
    edges = np.flatnonzero(np.diff(flags.numpy().astype(np.int8), prepend=0, append=0))
    return [slice(int(first), int(stop)) for first, stop in edges.reshape(-1, 2)]


def _added(sees: torch.Tensor) -> torch.Tensor:
    """The mask that is added to products: 0 where a query sees a key, else minus infinity."""
    return torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)


def _sees(pack: Pack, first: int, stop: int) -> NDArray[np.bool_]:
    """Return a (stop - first, stop - first) mask, true if the row's token sees the column's."""
    tokens = np.arange(first, stop)
    return (tokens <= tokens[:, None]) & (tokens[:, None] < pack.end[first:stop])


def _blocks(pack: Pack, block: int, longest: int) -> Iterator[tuple[int, int, int]]:
    """Return blocks in order, as (first token, end, end of the descendants).

    A block is several subtrees below one segment if they fit, else one segment, or `longest` tokens of it.
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
            stop = first + int(tree.length[segment])
            for start in range(first, stop, longest):
                yield start, min(start + longest, stop), end
            segment += 1
    if run >= 0:
        yield run, len(pack), len(pack)


def _block_mask(pack: Pack, mask: PositionMask | None, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    end, position = (torch.from_numpy(array.astype(np.int64)).to(device) for array in (pack.end, pack.position))

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        below = (j <= i) & (i < end[j])
        return below if mask is None else below & mask(position[i], position[j])

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
    """Compute attention for transformers' models, within `forest_pass`.

    `query` is (1, heads, tokens, size); `key` and `value` are (1, kv heads, tokens, size). `options` may have `scaling`. Raises
    `NotImplementedError` for layers with anything but plain attention under a mask of positions.
    """
    unusual = sorted(name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None)
    if unusual or options.get("dropout"):
        raise NotImplementedError(f"it has attention with {', '.join(unusual) or 'dropout'}")
    forest = _forest.get()
    if forest is None:
        raise RuntimeError("The model has the attention of a forest outside of a pass. Run it within forest_pass().")
    relation = forest.under(check_mask(module, attention_mask))
    scaling = options.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    size = value.shape[-1]
    if size < key.shape[-1]:  # the kernels want one size, and columns of zeros change nothing
        value = pad(value, (0, key.shape[-1] - size))
    if relation.parts:
        out = _Parts.apply(query, key, value, relation.parts, scaling)
    elif relation.flex is not None:
        attend = _flex_attention(query.device.type == "cuda")
        out = attend(query, key, value, block_mask=relation.flex, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    else:
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(query, key, value, relation.dense, scale=scaling, enable_gqa=grouped)
    return out[..., :size].transpose(1, 2).contiguous(), None


class _Parts(torch.autograd.Function):
    """Attention in parts.

    Let P_ij = exp(s_ij - L_i), with L the log-sum-exp over all parts. Output and gradients are then sums over the parts. torch's CPU kernel
    returns L of a part, and accepts any L for the gradients. Source: arXiv 2205.14135, 2310.01889.

    16-bit inputs are computed in float32. The sums then do not round at each part, and without matrix units the kernel is faster so.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: list[Part], scale: float | None
    ) -> torch.Tensor:
        """Compute the output. `query` is (1, heads, tokens, size). `key` and `value` may have fewer heads, each for several query heads."""
        q, k, v = _widened(query, key, value)
        out, total = torch.empty_like(q), q.new_empty(q.shape[:-1])
        for queries, keys, hidden, causal in parts:
            part, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, causal, attn_mask=_as(hidden, q), scale=scale
            )
            place, sofar = out[:, :, queries], total[:, :, queries]
            if queries == keys:
                place.copy_(part)
                sofar.copy_(lse)
            else:
                place.lerp_(part, (lse - sofar).sigmoid_()[..., None])
                sofar.copy_(torch.logaddexp(sofar, lse))
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of query, key, and value."""
        query, key, value, out, total = ctx.saved_tensors
        q, k, v = _widened(query, key, value)
        of_out, out = grads[0].to(q.dtype), out.to(q.dtype)
        gradients = [torch.zeros_like(x) for x in (q, k, v)]
        for queries, keys, hidden, causal in ctx.parts:
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                of_out[:, :, queries],
                q[:, :, queries],
                k[:, :, keys],
                v[:, :, keys],
                out[:, :, queries],
                total[:, :, queries],
                0.0,
                causal,
                attn_mask=_as(hidden, q),
                scale=ctx.scale,
            )
            for gradient, part, where in zip(gradients, parts, (queries, keys, keys), strict=True):
                gradient[:, :, where] += part
        of_key, of_value = (x.unflatten(1, (key.shape[1], -1)).sum(2) for x in gradients[1:])
        return gradients[0].to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype), None, None


def _widened(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return all three in at least float32, with keys and values for every query head."""
    q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key, value))
    groups = q.shape[1] // k.shape[1]
    return q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)


def _as(hidden: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    return None if hidden is None else hidden.to(like.dtype)


_forest: ContextVar[Visible | None] = ContextVar("forest", default=None)
"""The forest of the pass. Some layers hand no options to their attention, so it is no argument."""


@contextmanager
def forest_pass(forest: Visible) -> Iterator[None]:
    """Have `forest_attention` use this forest inside the block."""
    token = _forest.set(forest)
    try:
        yield
    finally:
        _forest.reset(token)


@contextmanager
def using_forest(model: Any, forest: Visible) -> Iterator[None]:
    """Switch a transformers model to the attention of a forest inside the block."""
    with forest_pass(forest), using_attention(model, NAME):
        yield


register(NAME, forest_attention)
