"""The KV cache of the live sequences, one row each, and the attention that reads it.

Tokens of all rows pass through the model as one sequence in a batch of one. Only attention knows each token's row. transformers'
`AttentionInterface` plugs it in by name, so every model with plain attention layers works, with or without adapters, and without a `Cache`
class.

Rows are dense: live sequences are rows 0 to n - 1, so a decode step reads a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

from agentlightning.errors import UnsupportedSetting

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
        self.keys, self.values = self._new(0, 0)

    def _new(self, rows: int, capacity: int) -> tuple[Tensor, Tensor]:
        # Zeros, because values after a row's end are multiplied by probability zero and must not be NaN.
        s = self.shape
        sizes = (s.layers, rows, s.heads, capacity)
        return torch.zeros(*sizes, s.key, dtype=s.dtype, device=s.device), torch.zeros(*sizes, s.value, dtype=s.dtype, device=s.device)

    @property
    def bytes(self) -> int:
        return self.keys.shape[1] * self.keys.shape[3] * self.shape.token_bytes

    def cost(self, rows: int, length: int) -> int:
        """The minimum bytes for `fit`."""
        return rows * -(-length // PAGE) * PAGE * self.shape.token_bytes

    def fit(self, rows: int, length: int, *, keep: int, hoped: int) -> bool:
        """Make room for `rows` rows of `length` tokens, keeping the first `keep` rows.

        Return True if this needed a copy. The room is then for `hoped` rows.
        """
        old_rows, old_capacity = self.keys.shape[1], self.keys.shape[3]
        if rows <= old_rows and length <= old_capacity:
            return False
        capacity = -(-length // PAGE) * PAGE
        kept = min(old_capacity, capacity)
        keys, values = self._new(max(rows, hoped), capacity)
        keys[:, :keep, :, :kept] = self.keys[:, :keep, :, :kept]
        values[:, :keep, :, :kept] = self.values[:, :keep, :, :kept]
        self.keys, self.values = keys, values
        return True

    def read(self, row: int, length: int) -> tuple[Tensor, Tensor]:
        """Return views of a row's keys and values, (layers, heads, length, dim)."""
        return self.keys[:, row, :, :length], self.values[:, row, :, :length]

    def write(self, row: int, keys: Tensor, values: Tensor) -> None:
        """Start a row with these keys and values, (layers, heads, length, dim)."""
        length = keys.shape[2]
        self.keys[:, row, :, :length] = keys
        self.values[:, row, :, :length] = values


class Prefill:
    """Attend in a forward pass over several pieces (row, start, count), one after the other."""

    def __init__(self, slots: Slots, pieces: Sequence[tuple[int, int, int]]) -> None:
        self.slots, self.pieces = slots, pieces
        device = slots.shape.device
        self.masks = [_causal(start, count, device) if start else None for _, start, count in pieces]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, _: dict[str, Any]) -> Tensor:
        # q (1, query heads, tokens, dim), k and v (1, heads, tokens, dim) -> (1, tokens, query heads, dim)
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        group = q.shape[1] // k.shape[1]
        out: list[Tensor] = []
        at = 0
        for (row, start, count), mask in zip(self.pieces, self.masks, strict=True):
            end = start + count
            keys[row, :, start:end] = k[0, :, at : at + count]
            values[row, :, start:end] = v[0, :, at : at + count]
            past_k = keys[row, :, :end].repeat_interleave(group, 0)[None]
            past_v = values[row, :, :end].repeat_interleave(group, 0)[None]
            piece = q[:, :, at : at + count]
            out.append(functional.scaled_dot_product_attention(piece, past_k, past_v, mask, is_causal=mask is None, scale=scale))
            at += count
        return torch.cat(out, 2).transpose(1, 2)


class Decode:
    """Attend in a forward pass over one token in each of the first n rows, at these positions."""

    def __init__(self, slots: Slots, positions: Tensor, longest: int) -> None:
        device = slots.shape.device
        self.slots, self.positions, self.longest = slots, positions, longest
        self.rows = torch.arange(len(positions), device=device)
        # (rows, 1, 1, longest) true on visible tokens
        self.mask = (torch.arange(longest, device=device) <= positions[:, None])[:, None, None] if len(positions) > 1 else None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, _: dict[str, Any]) -> Tensor:
        rows, heads = len(self.rows), k.shape[1]
        keys, values = self.slots.keys[layer], self.slots.values[layer]
        keys[self.rows, :, self.positions] = k[0].transpose(0, 1)
        values[self.rows, :, self.positions] = v[0].transpose(0, 1)
        # Query heads of one key head take the place of query tokens, so nothing is copied.
        grouped = q[0].transpose(0, 1).reshape(rows, heads, -1, q.shape[-1])  # (rows, heads, group, dim)
        past_k, past_v = keys[:rows, :, : self.longest], values[:rows, :, : self.longest]
        out = functional.scaled_dot_product_attention(grouped, past_k, past_v, self.mask, scale=scale)
        return out.reshape(1, rows, q.shape[1], -1)


def forward(model: Any, ids: np.ndarray, positions: np.ndarray, attend: Any, *, last_only: bool) -> Tensor:
    """Return logits (tokens, vocabulary), or (1, vocabulary) of the last token. The caller holds the weights' lock."""
    device = model.device
    config = model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        with torch.no_grad():
            return model(
                input_ids=torch.from_numpy(ids.astype(np.int64))[None].to(device),
                position_ids=torch.from_numpy(positions.astype(np.int64))[None].to(device),
                use_cache=False,
                logits_to_keep=1 if last_only else 0,
                agl_attend=attend,
            ).logits[0]
    finally:
        config._attn_implementation = before


def probe(model: Any, name: str) -> KVShape:
    """Return a model's KV shape, from a trial run. Raises `UnsupportedSetting` unless all layers are plain attention."""
    seen: list[tuple[int, Tensor, Tensor, dict[str, Any]]] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, more: dict[str, Any]) -> Tensor:
        seen.append((layer, k, v, more))
        return torch.zeros(1, q.shape[2], q.shape[1], v.shape[-1], dtype=q.dtype, device=q.device)

    config = model.config.get_text_config()
    try:
        forward(model, np.zeros(2, np.int64), np.arange(2), attend, last_only=True)
    except (TypeError, ValueError) as error:
        raise _unsupported(name, f"it cannot be run with another attention ({error})") from error
    special = {
        key for _, _, _, more in seen for key in ("sliding_window", "softcap", "s_aux", "position_bias") if more.get(key) is not None
    }
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if special or kinds:
        raise _unsupported(name, f"it uses {', '.join(sorted(special | kinds))}")
    if [layer for layer, *_ in seen] != list(range(config.num_hidden_layers)):
        raise _unsupported(name, f"{len(seen)} of its {config.num_hidden_layers} layers are attention")
    shapes = {(k.shape[1], k.shape[-1], v.shape[-1], k.dtype, k.device) for _, k, v, _ in seen}
    if len(shapes) != 1:
        raise _unsupported(name, "its layers differ in heads or dimension")
    return KVShape(len(seen), *shapes.pop())


def _unsupported(name: str, why: str) -> UnsupportedSetting:
    return UnsupportedSetting(
        f"The torch engine serves decoder models with plain full attention (Llama, Qwen, SmolLM). {name!r} is not one: {why}. "
        "Use another model or another engine."
    )


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None = None, **more: Any
) -> tuple[Tensor, None]:
    attend = more.pop("agl_attend", None)
    if attend is None:
        raise RuntimeError("Another thread ran the model while the engine did. Hold `Weights.lock` to run it.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(module.layer_idx, query, key, value, scale, more), None


def _causal(start: int, count: int, device: torch.device) -> Tensor:
    """Return a (count, start + count) mask, true on visible tokens."""
    return torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)


AttentionInterface.register(ATTENTION, _attention)
