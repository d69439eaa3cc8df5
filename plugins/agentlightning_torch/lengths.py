"""The lengths at which a model changes.

Sliding windows, chunks, and rope of the kinds `longrope` and `dynamic` behave alike up to some number of tokens, and differently beyond. A
model that is right on short sequences says nothing about longer ones, so probes reach just beyond these lengths. Rope of kind `longrope`
picks its factors by the length of the whole sequence. `imposed_length` makes that length an argument, so that sequences of several lengths
go through the model at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

CHANGES = re.compile(r"window|chunk|local|block_size|extent|floor|distance|index_topk|original")
"""Fields of a configuration that name a number of tokens beyond which a model may change."""
NOT_TOKENS = re.compile(r"pattern|feed_forward|lm_head|mamba|experts|layers|num_|blocks")
"""Fields that match `CHANGES` and count something else."""
SELECTS = re.compile(r"index_topk|indexer_budget|keep_window")
"""Fields that name how many tokens attention sees, picked by their values."""
STATIC_ROPE = frozenset({"default", "linear", "yarn", "llama3", "proportional", "mrope"})
"""Kinds of rope that are the same at every length."""
BEYOND = 12
"""Tokens of a probe beyond the length at which the model changes."""
SHORT = 24
"""Tokens of a probe without such a length."""


def boundaries(config: Any) -> list[int]:
    """The numbers of tokens beyond which a model may change, ascending."""
    numbers = _numbers(config.get_text_config().to_dict())
    return sorted({value for name, value in numbers if value > 1 and CHANGES.search(name) and not NOT_TOKENS.search(name)})


def _numbers(fields: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration, with those of its parts."""
    for name, value in fields.items():
        if isinstance(value, dict):
            if value.get("rope_type") not in STATIC_ROPE:
                yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value


def selects(config: Any, limit: int) -> str | None:
    """Why the attention of a token depends on which tokens lie beside it, on sequences up to `limit`; None: it does not."""
    fields = [name for name, value in _numbers(config.get_text_config().to_dict()) if SELECTS.search(name) and value < limit]
    return f"its attention picks tokens by their values ({fields[0]})" if fields else None


def probe_length(config: Any, limit: int) -> int:
    """Tokens of a probe that crosses every boundary below `limit`."""
    reached = [boundary for boundary in boundaries(config) if boundary < limit]
    return min(limit, max([SHORT, *(boundary + BEYOND for boundary in reached)]))


def switches(config: Any) -> tuple[int, ...]:
    """The lengths beyond which a model takes other rope factors for all tokens, ascending. Empty: none."""
    return tuple(sorted({int(rope["original_max_position_embeddings"]) for rope in ropes(config) if rope.get("rope_type") == "longrope"}))


def longest(config: Any) -> int | None:
    """Tokens of the longest sequence for which the model is defined; None: any. Rope of kind `dynamic` depends on the exact length beyond
    the context, and on the sequences before. Learned positions end there."""
    config = config.get_text_config()
    kinds = [rope.get("rope_type") for rope in ropes(config)]
    return getattr(config, "max_position_embeddings", None) if "dynamic" in kinds or not kinds else None


def ropes(config: Any) -> list[dict[str, Any]]:
    """The rope settings of a model, one or one for each kind of layer."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]


def regime(length: int, switched: tuple[int, ...]) -> int:
    """The number of switches that a sequence of this length is beyond."""
    return sum(length > switch for switch in switched)


def length_of(number: int, switched: tuple[int, ...]) -> int:
    """A length in a regime, for `imposed_length`; 0 in the first one, where every sequence is short."""
    return switched[number - 1] + 1 if number else 0


@contextmanager
def imposed_length(model: Any, length: int) -> Iterator[None]:
    """Have the model's rope take the sequences to be at least this long inside the block; 0: leave it alone.

    The rope takes the largest position for the length. It sees one more position, and its result for that one is dropped.
    """
    hooks: list[Any] = []
    for module in model.modules() if length else ():
        if "longrope" in _kinds(module):
            hooks.append(module.register_forward_pre_hook(lambda _, args, kwargs: _longer(args, kwargs, length - 1), with_kwargs=True))
            hooks.append(module.register_forward_hook(lambda *call: tuple(table[..., :-1, :] for table in call[2])))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _kinds(module: Any) -> set[str]:
    kinds = getattr(module, "rope_type", None) or ()
    return {kinds} if isinstance(kinds, str) else set(kinds.values()) if isinstance(kinds, dict) else set()


def _longer(args: tuple[Any, ...], kwargs: dict[str, Any], position: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    places = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    longer = torch.cat([places, places.new_full((*places.shape[:-1], 1), position)], -1)
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": longer}
    return (args[0], longer, *args[2:]), kwargs
