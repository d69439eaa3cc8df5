"""Whether the engine can serve a model: the shape of its keys and values, and a comparison with plain passes.

The comparison computes a prompt in two pieces, beside a short one, and then a token of each, as the sampler does. The longer prompt crosses
every length at which the model changes within its context.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentlightning.errors import UnsupportedSetting
from agentlightning_torch.adapters import plain
from agentlightning_torch.forward import keeping
from agentlightning_torch.lengths import SHORT, length_of, probe_length, regime, selects, switches
from agentlightning_torch.scoring import disagreement, reason_of
from agentlightning_torch.slots import Decode, KVShape, Layer, Prefill, Slots, forward


def check_served(model: Any, name: str) -> KVShape:
    """Return the shape of a model's keys and values. Raises `UnsupportedSetting` for a model that the engine does not serve exactly."""
    config = plain(model).config
    try:
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        if context is not None and (picked := selects(config, context)) is not None:
            raise NotImplementedError(picked)
        shape = kv_shape(model)
        if context is None:
            raise NotImplementedError("its configuration sets no maximum context length")
        for length in sorted({min(SHORT, context), probe_length(config, context)}):
            fault = _compare(model, shape, length)
            if fault is not None:
                raise NotImplementedError(fault)
    except UnsupportedSetting:
        raise
    except Exception as error:  # a model may refuse in any way
        raise UnsupportedSetting(
            f"The torch engine cannot serve {name!r} ({config.model_type}): {reason_of(error)}. Use another model, or engine 'vllm'."
        ) from error
    return shape


def kv_shape(model: Any) -> KVShape:
    """The shape of keys and values, from a trial run. Raises `NotImplementedError` unless each layer has attention of one shape."""
    calls: list[tuple[int, Tensor, Tensor]] = []

    def attend(layer: Layer, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        calls.append((layer.index, k, v))
        return torch.zeros(1, q.shape[2], q.shape[1], v.shape[-1], dtype=q.dtype, device=q.device)

    forward(model, np.zeros(2, np.int64), np.arange(2), attend, last_only=True)
    layers = plain(model).config.get_text_config().num_hidden_layers
    if [layer for layer, *_ in calls] != list(range(layers)):
        if len(calls) < layers:
            raise NotImplementedError(f"only {len(calls)} of its {layers} layers have attention that can be replaced")
        raise NotImplementedError(f"its {layers} layers call attention {len(calls)} times")
    shapes = {(k.shape[1], k.shape[-1], v.shape[-1], k.dtype, k.device) for _, k, v in calls}
    if len(shapes) != 1:
        raise NotImplementedError("its layers differ in the number or the size of heads")
    return KVShape(len(calls), *shapes.pop())


def _compare(model: Any, shape: KVShape, length: int) -> str | None:
    """What is wrong with the engine's log-probabilities after `length - 1` and after a few tokens; None: nothing."""
    inner = plain(model)
    vocabulary, switched = inner.config.get_text_config().vocab_size, switches(inner.config)
    random = np.random.default_rng(0)
    rows = [random.integers(0, vocabulary, size) for size in (length, max(2, min(9, length // 2)))]
    numbers = [regime(len(row), switched) for row in rows]
    served: list[Tensor] = []
    for number in sorted(set(numbers)):
        served += _served(model, shape, [row for row, own in zip(rows, numbers, strict=True) if own == number], length_of(number, switched))
    rows = [row for number in sorted(set(numbers)) for row, own in zip(rows, numbers, strict=True) if own == number]
    values, expected = (
        torch.cat([logits.log_softmax(-1) for logits in both]).double().cpu().numpy()
        for both in ([s.float() for s in served], [_plain(model, row) for row in rows])
    )
    # The tail is never sampled. A token as likely as the average is no tail, or a large vocabulary without preference had none to compare.
    likely = expected > min(np.log(1e-4), -np.log(vocabulary) - 1e-3)
    return disagreement(values[likely], expected[likely], shape.dtype, length)


def _served(model: Any, shape: KVShape, rows: list[np.ndarray], length: int) -> list[Tensor]:
    """The logits (vocabulary,) after each row, computed as the sampler does."""
    slots = Slots(shape)
    slots.fit(len(rows), max(map(len, rows)), keep=0)
    for half in (0, 1):
        pieces = [_piece(number, row, half) for number, row in enumerate(rows)]
        pieces = [piece for piece in pieces if piece[2]]
        ids = np.concatenate([rows[row][start : start + count] for row, start, count in pieces])
        positions = np.concatenate([np.arange(start, start + count) for _, start, count in pieces])
        forward(model, ids, positions, Prefill(slots, pieces), last_only=True, length=length)
    last = np.array([len(row) - 1 for row in rows])
    attend = Decode(slots, torch.from_numpy(last).to(shape.device), int(last.max()) + 1)
    return list(forward(model, np.array([row[-1] for row in rows]), last, attend, last_only=False, length=length))


def _piece(number: int, row: np.ndarray, half: int) -> tuple[int, int, int]:
    """The first or second half of all tokens of a row but the last, as (row, start, count)."""
    middle = len(row) // 2
    return (number, middle, len(row) - 1 - middle) if half else (number, 0, middle)


def _plain(model: Any, row: np.ndarray) -> Tensor:
    """The logits (vocabulary,) after a row, from one plain pass."""
    with torch.no_grad():
        ids = torch.from_numpy(row.astype(np.int64))[None].to(model.device)
        return model(input_ids=ids, use_cache=False, **keeping(model, 1)).logits[0, -1].float()
