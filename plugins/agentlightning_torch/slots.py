"""The KV cache of the live sequences, one row each, and the attention that reads it.

Tokens of all rows pass through the model as one sequence in a batch of one. Only attention knows each token's row. transformers'
`AttentionInterface` plugs it in by name, so every model of attention layers works, also with sliding windows, soft caps and attention
sinks, with or without adapters, and without a `Cache` class.

Rows are dense: live sequences are rows 0 to n - 1, so a decode step reads a view.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from agentlightning_torch.attention import HAS_KERNEL
from agentlightning_torch.lengths import imposed_length
from agentlightning_torch.masks import PositionMask, check_mask, one_sequence, register, using_attention

ATTENTION = "agentlightning_slots"
PAGE = 128
"""Rows grow in steps of this many tokens."""


@dataclass(frozen=True, slots=True)
class KVShape:
    """What each layer stores per token."""

    layers: int
    heads: int
    key: int
    value: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return self.layers * self.heads * (self.key + self.value) * self.dtype.itemsize


class Slots:
    """Keys and values, (layers, rows, heads, capacity, dim). Grows on demand; keeps the live rows."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.keys, self.values = self._zeros(0, 0, shape.key), self._zeros(0, 0, shape.value)

    def _zeros(self, rows: int, capacity: int, dim: int) -> Tensor:
        # Zeros, because values after a row's end are multiplied by probability zero and must not be NaN.
        s = self.shape
        return torch.zeros(s.layers, rows, s.heads, capacity, dim, dtype=s.dtype, device=s.device)

    @property
    def bytes(self) -> int:
        return self.keys.shape[1] * self.keys.shape[3] * self.shape.token_bytes

    def cost(self, rows: int, length: int) -> int:
        """Return the bytes for which `fit` asks."""
        return rows * -(-length // PAGE) * PAGE * self.shape.token_bytes

    def holds(self, rows: int, length: int) -> bool:
        """Return True if there is room for `rows` rows of `length` tokens."""
        return rows <= self.keys.shape[1] and length <= self.keys.shape[3]

    def fit(self, rows: int, length: int, *, keep: int) -> None:
        """Make room for exactly `rows` rows of `length` tokens, with a copy of the first `keep` rows."""
        capacity = -(-length // PAGE) * PAGE
        self.keys = self._resized(self.keys, rows, capacity, keep)  # this frees the old keys before the values double
        self.values = self._resized(self.values, rows, capacity, keep)

    def _resized(self, old: Tensor, rows: int, capacity: int, keep: int) -> Tensor:
        new, kept = self._zeros(rows, capacity, old.shape[-1]), min(old.shape[3], capacity)
        new[:, :keep, :, :kept] = old[:, :keep, :, :kept]
        return new

    def read(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Return views of a row's keys and values, (layers, heads, length, dim)."""
        return self.keys[:, row, :, :length], self.values[:, row, :, :length]

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Start a row with these keys and values, (layers, heads, length, dim)."""
        length = keys.shape[2]
        self.keys[:, row, :, :length] = keys
        self.values[:, row, :, :length] = values


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer asks of its attention."""

    index: int
    scale: float
    mask: PositionMask | None
    """None: plain causal."""
    softcap: float | None
    """Products are squeezed into plus and minus this number."""
    sinks: Tensor | None
    """(query heads,) a product that takes its part of the probability and gives no value."""


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | None, layer: Layer, *, causal: bool = False) -> Tensor:
    """Attention of q (batch, heads, queries, dim) over k and v (batch, heads, keys, dim). `sees` broadcasts to (batch, heads, queries,
    keys); None: all keys, or with `causal` those before each query. Soft caps and sinks are those of transformers' eager attention."""
    if layer.softcap is None and layer.sinks is None:
        return functional.scaled_dot_product_attention(q, k, v, sees, is_causal=causal and sees is None, scale=layer.scale)
    products = q @ k.transpose(-1, -2) * layer.scale
    if layer.softcap is not None:
        products = torch.tanh(products / layer.softcap) * layer.softcap
    if causal and sees is None:
        sees = _causal(0, q.shape[-2], q.device)
    if sees is not None:
        products = products.masked_fill(~sees, -torch.inf)
    if layer.sinks is not None:
        sinks = layer.sinks.reshape(1, q.shape[1], -1, 1).expand(*products.shape[:-1], 1)  # (…, queries or the group, 1)
        products = torch.cat([products, sinks.to(products)], -1)
    probabilities = products.softmax(-1, dtype=torch.float32).to(q.dtype)
    return probabilities[..., : k.shape[-2]] @ v


class Prefill:
    """Attend in a forward pass over several pieces (row, start, count), one after the other."""

    def __init__(self, slots: Slots, pieces: Sequence[tuple[int, int, int]]) -> None:
        self.slots, self.pieces = slots, pieces
        self._masks: dict[PositionMask | None, list[Tensor | None]] = {}

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # q (1, query heads, tokens, dim), k and v (1, heads, tokens, dim) -> (1, tokens, query heads, dim)
        keys, values = self.slots.keys[layer.index], self.slots.values[layer.index]
        group = q.shape[1] // k.shape[1]
        out: list[Tensor] = []
        at = 0
        for (row, start, count), sees in zip(self.pieces, self._sees(layer.mask), strict=True):
            end = start + count
            keys[row, :, start:end] = k[0, :, at : at + count]
            values[row, :, start:end] = v[0, :, at : at + count]
            past_k = keys[row, :, :end].repeat_interleave(group, 0)[None]
            past_v = values[row, :, :end].repeat_interleave(group, 0)[None]
            out.append(attend(q[:, :, at : at + count], past_k, past_v, sees, layer, causal=True))
            at += count
        return torch.cat(out, 2).transpose(1, 2)

    def _sees(self, mask: PositionMask | None) -> list[Tensor | None]:
        """For each piece, (count, start + count) true on visible tokens; None: plain causal from the start."""
        if mask not in self._masks:
            self._masks[mask] = [self._piece_sees(mask, start, count) for _, start, count in self.pieces]
        return self._masks[mask]

    def _piece_sees(self, mask: PositionMask | None, start: int, count: int) -> Tensor | None:
        device = self.slots.shape.device
        if mask is None:
            return _causal(start, count, device) if start else None
        positions = torch.arange(start + count, device=device)
        return _causal(start, count, device) & mask(positions[start:, None], positions)


class Decode:
    """Attend in a forward pass over one token in each of the first n rows, at these positions.

    On a CPU, the rows of a group read the keys of their common prefix once (`groups`: rows, and tokens of the prefix). Each row attends to
    its other keys apart, and the log-sum-exp joins both parts. Source: arXiv 2402.05099.
    """

    def __init__(self, slots: Slots, positions: Tensor, longest: int, groups: Sequence[tuple[Sequence[int], int]] = ()) -> None:
        self.slots, self.positions, self.longest = slots, positions, longest
        self.rows = torch.arange(len(positions), device=slots.shape.device)
        self._masks: dict[PositionMask | None, Tensor | None] = {}
        if not HAS_KERNEL or slots.shape.device.type != "cpu" or slots.shape.key != slots.shape.value:
            groups = ()
        self._groups = [self._part(rows, start) for rows, start in groups]
        alone = sorted({*range(len(positions))} - {row for rows, _ in groups for row in rows})
        self._alone = self._part(alone, 0) if groups and alone else None

    def __call__(self, layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rows, heads = len(self.rows), k.shape[1]
        keys, values = self.slots.keys[layer.index], self.slots.values[layer.index]
        keys[self.rows, :, self.positions] = k[0].transpose(0, 1)
        values[self.rows, :, self.positions] = v[0].transpose(0, 1)
        # Query heads of one key head take the place of query tokens, so nothing is copied.
        grouped = q[0].transpose(0, 1).reshape(rows, heads, -1, q.shape[-1])  # (rows, heads, group, dim)
        if not self._groups or layer.mask is not None or layer.softcap is not None or layer.sinks is not None:
            past_k, past_v = keys[:rows, :, : self.longest], values[:rows, :, : self.longest]
            return attend(grouped, past_k, past_v, self._sees(layer.mask), layer).reshape(1, rows, q.shape[1], -1)
        out = torch.empty_like(grouped)
        for part in self._groups:
            own = grouped[part.rows]
            together = own.transpose(0, 1).reshape(1, heads, -1, own.shape[-1])  # (1, heads, rows of the group x group, dim)
            first, total = attend_with_lse(
                together, keys[part.first, :, : part.start][None], values[part.first, :, : part.start][None], layer
            )
            rest, lse = part.attend(own, keys, values, layer)
            first, total = (x.reshape(heads, len(own), *own.shape[2:3], *x.shape[3:]).transpose(0, 1) for x in (first, total))
            both = torch.logaddexp(total, lse)
            out[part.rows] = (first * (total - both).exp_()[..., None] + rest * (lse - both).exp_()[..., None]).to(out.dtype)
        if self._alone is not None:
            out[self._alone.rows] = self._alone.attend(grouped[self._alone.rows], keys, values, layer)[0]
        return out.reshape(1, rows, q.shape[1], -1)

    def _part(self, rows: Sequence[int], start: int) -> _Part:
        positions = self.positions[list(rows)]
        end = int(positions.max()) + 1
        sees = torch.arange(start, end) <= positions[:, None]
        added = torch.zeros(sees.shape, dtype=self.slots.shape.dtype).masked_fill_(~sees, -torch.inf)[:, None, None]
        adjacent = list(rows) == list(range(rows[0], rows[0] + len(rows)))
        return _Part(slice(rows[0], rows[0] + len(rows)) if adjacent else torch.tensor(rows), rows[0], start, end, added)

    def _sees(self, mask: PositionMask | None) -> Tensor | None:
        """(rows, 1, 1, longest) true on visible tokens; None: all."""
        if mask not in self._masks:
            places, own = torch.arange(self.longest, device=self.positions.device), self.positions[:, None]
            sees = None if mask is None and len(self.rows) == 1 else places <= own
            self._masks[mask] = None if sees is None else (sees if mask is None else sees & mask(own, places))[:, None, None]
        return self._masks[mask]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows, and their keys from `start` to `end`."""

    rows: slice | Tensor
    first: int
    """The number of one of them."""
    start: int
    end: int
    added: Tensor
    """(rows, 1, 1, end - start) 0 on visible keys, else minus infinity."""

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Attention of queries (rows, heads, group, dim), and its log-sum-exp (rows, heads, group)."""
        places = slice(self.start, self.end)
        return attend_with_lse(queries, keys[self.rows, :, places], values[self.rows, :, places], layer, self.added)


def attend_with_lse(q: Tensor, k: Tensor, v: Tensor, layer: Layer, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention of q (batch, heads, queries, dim) on a CPU, and the log-sum-exp of its products (batch, heads, queries)."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=added, scale=layer.scale)


Attend = Callable[[Layer, Tensor, Tensor, Tensor], Tensor]
_attend: ContextVar[Attend | None] = ContextVar("attend", default=None)
"""The attention of the pass. Some layers hand no options to their attention, so it is no argument."""


def forward(model: Any, ids: np.ndarray, positions: np.ndarray, attend: Attend, *, last_only: bool, length: int = 0) -> Tensor:
    """Return logits (tokens, vocabulary), or (1, vocabulary) of the last token. The caller holds the weights' lock.

    `length` goes to `imposed_length`.
    """
    tokens, places = (torch.from_numpy(array.astype(np.int64))[None].to(model.device) for array in (ids, positions))
    token = _attend.set(attend)
    try:
        with torch.no_grad(), using_attention(model, ATTENTION), imposed_length(model, length):
            return model(
                input_ids=tokens,
                position_ids=places,
                attention_mask=one_sequence(tokens),
                use_cache=False,
                logits_to_keep=1 if last_only else 0,
            ).logits[0]
    finally:
        _attend.reset(token)


def _attention(module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any) -> tuple[Tensor, None]:
    attend = _attend.get()
    if attend is None:
        raise RuntimeError("Another thread ran the model while the engine did. Hold `Weights.lock` to run it.")
    if options.get("position_bias") is not None:
        raise NotImplementedError("it has attention with position_bias")
    scale = options.get("scaling")
    scale = query.shape[-1] ** -0.5 if scale is None else float(scale)
    layer = Layer(module.layer_idx, scale, check_mask(module, attention_mask), options.get("softcap"), options.get("s_aux"))
    return attend(layer, query, key, value).contiguous(), None


def _causal(start: int, count: int, device: torch.device) -> Tensor:
    """Return a (count, start + count) mask, true on visible tokens."""
    return torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)


register(ATTENTION, _attention)
