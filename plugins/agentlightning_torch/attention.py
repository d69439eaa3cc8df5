"""Attention over a forest: token `j` is visible to token `i` exactly when `j <= i < end[j]`.

On a CPU the forest is cut into blocks, runs of tokens that share their ancestors; a block attends to those and to itself, so that
branches cost nothing to one another. A forest that fits one block is the dense mask. On a GPU FlexAttention does the same from the
comparison itself. The model is switched to this attention for the time of a pass and back, so that an engine never meets it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from agentlightning.rl.packs import Pack, segments

NAME = "agentlightning_forest"
BLOCK = 128
"""Tokens that one block holds where it has branches; 128 to 256 were fastest on a CPU, from 640 to 3400 tokens."""
FLEX_MULTIPLE = 128
"""FlexAttention's block; packs are padded to it, so that fewer shapes are compiled."""


class Visible:
    """Which token of a pack sees which; made once, used by every layer."""

    def __init__(self, pack: Pack, device: torch.device, *, block: int = BLOCK, flex: bool | None = None) -> None:
        self.flex: Any = None
        self.blocks: list[tuple[int, int, torch.Tensor | None, torch.Tensor | None]] = []
        """First token, one past the last, the keys (None: the block itself), and the mask (None: causal)."""
        if device.type == "cuda" if flex is None else flex:
            self.flex = _block_mask(torch.from_numpy(pack.end.copy()).to(device), device)
            return
        tree = segments(pack.parent, pack.position)
        for first, stop, above in _blocks(pack, block):
            keys = np.arange(first, stop)
            if above >= 0:
                keys = np.concatenate([tree.tokens(tree.path(above)), keys])
            mask = None
            if above >= 0 or _branches(pack, first, stop):
                rows = np.arange(first, stop)[:, None]
                mask = torch.from_numpy((keys <= rows) & (rows < pack.end[keys])).to(device)
            self.blocks.append((first, stop, torch.from_numpy(keys).to(device) if above >= 0 else None, mask))


def _branches(pack: Pack, first: int, stop: int) -> bool:
    return bool((pack.parent[first + 1 : stop] != np.arange(first, stop - 1)).any())


def _blocks(pack: Pack, block: int) -> Iterator[tuple[int, int, int]]:
    """Runs of tokens below one segment (-1: none), in order: whole subtrees while they fit a block, else one segment and what is below."""
    tree = segments(pack.parent, pack.position)
    stops = pack.end[tree.first + tree.length - 1].astype(np.int64)
    segment, run, above = 0, -1, -1
    while segment < len(tree.first):
        first, stop = int(tree.first[segment]), int(stops[segment])
        joins = run >= 0 and above == int(tree.parent[segment]) and stop - run <= block
        if run >= 0 and not joins:
            yield run, first, above
            run = -1
        if stop - first <= block:
            if not joins:
                run, above = first, int(tree.parent[segment])
            segment = int(np.searchsorted(tree.first, stop))
        else:
            yield first, first + int(tree.length[segment]), int(tree.parent[segment])
            segment += 1
    if run >= 0:
        yield run, len(pack), above


def _block_mask(end: torch.Tensor, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        return (j <= i) & (i < end[j])

    return create_block_mask(visible, None, None, len(end), len(end), device=device)


@cache
def _flex_attention(compiled: bool) -> Any:
    """FlexAttention; compiled once for all (it is the kernel that is cached, not a result)."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if compiled else flex_attention


def forest_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    *,
    forest: Visible,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in the form that transformers' models call. `query` is (1, heads, tokens, size), keys and values (1, kv heads, ...).

    Raises `NotImplementedError` where a layer asks for more than plain attention.
    """
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name}")
    if dropout:
        raise NotImplementedError("attention with dropout")
    grouped = query.shape[1] != key.shape[1]
    if forest.flex is not None:
        attend = _flex_attention(query.device.type == "cuda")
        out = attend(query, key, value, block_mask=forest.flex, scale=scaling, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    parts: list[torch.Tensor] = []
    for first, stop, keys, mask in forest.blocks:
        k, v = (x[:, :, first:stop] if keys is None else x.index_select(2, keys) for x in (key, value))
        q = query[:, :, first:stop]
        parts.append(scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped))
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


@contextmanager
def using_forest(model: Any) -> Iterator[None]:
    """Let a transformers model attend over a forest within the block."""
    if NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(NAME, forest_attention)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
