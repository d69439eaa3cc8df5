"""Which keys a layer may see by position: a function instead of a tensor.

transformers builds the mask of a layer from a function of positions: causal, a sliding window, chunks. A forest and an engine's rows lay
tokens out in another order, so a tensor over their order would be wrong. Our attention asks transformers for the function itself and
applies it to positions. A model that builds its own tensor is refused, because nothing tells what the tensor means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function

CONFIGS = "_agentlightning_configs"
"""Attribute of a model: what `_configs` found."""


class OwnMask(NotImplementedError):
    """A model builds its own mask tensor, perhaps from the values of tokens."""


class PositionMask:
    """A mask as a function of positions."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Whether a token at position `queries` may see one at position `keys`; both broadcast. Says nothing of other sequences."""
        zero = queries.new_zeros(())
        return self._function(zero, zero, queries, keys)


def _position_mask(*, mask_function: Callable[..., Any], **_: Any) -> PositionMask | None:
    """The mask that transformers hands to the layers in place of a tensor. None: plain causal."""
    return None if mask_function is causal_mask_function else PositionMask(mask_function)


def register(name: str, attention: Callable[..., Any]) -> None:
    """Give transformers an attention that takes position masks."""
    AttentionInterface.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, _position_mask)


def one_sequence(ids: Tensor) -> Tensor:
    """The attention mask (1, tokens) of tokens without padding. With it, transformers does not guess sequences from positions."""
    return torch.ones_like(ids)


def check_mask(module: Any, mask: Any) -> PositionMask | None:
    """Return a layer's mask. Raises `NotImplementedError` if it is no function of positions, `OwnMask` if it is a tensor."""
    if getattr(module, "is_causal", True) is False:
        raise NotImplementedError("it has attention that is not causal")
    if mask is not None and not isinstance(mask, PositionMask):
        raise OwnMask("it builds an attention mask of its own")
    return mask


@contextmanager
def using_attention(model: Any, name: str) -> Iterator[None]:
    """Give a model and all its parts a registered attention inside the block."""
    before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        for config, _ in before:
            config._attn_implementation = name
        yield
    finally:
        for config, own in before:
            config._attn_implementation = own


def _configs(model: Any) -> list[PreTrainedConfig]:
    """The configurations of a model and its parts; found out once."""
    if not hasattr(model, CONFIGS):
        configs = [getattr(module, "config", None) for module in model.modules()]
        setattr(model, CONFIGS, list({id(config): config for config in configs if isinstance(config, PreTrainedConfig)}.values()))
    return getattr(model, CONFIGS)
