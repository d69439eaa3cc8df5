"""Keeps the output of the frozen layers for all passes over one batch.

With `train = "top:N"`, the layers below the first trained one never change. A step that passes over its tokens several times (old
log-probabilities, reference, epochs, minibatches) computes these layers once per token. A token's state depends on its ancestors alone, so
it is the same in every pack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from agentlightning_torch.own_layers import layer_of_pass

REPLAYS = "_agentlightning_replays"
"""Model attribute with the number of layers for which `_replays` was true."""


class FrozenStates:
    """The states that leave the last frozen layer, by token of a batch. Computed once, then given in place of the layers below."""

    def __init__(self, model: Any, tokens: int) -> None:
        """`model` is transformers' own. The batch has `tokens` tokens."""
        self._layers = frozen_layers(model)
        self._tokens = tokens
        self._states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @contextmanager
    def over(self, index: torch.Tensor, length: int) -> Iterator[None]:
        """Within the block, passes over the tokens `index` of the batch keep the states, or use those kept.

        Sequences with another imposed `length` have other states.
        """
        if not self._layers:
            yield
            return
        kept = self._states.get(length)
        if kept is not None and bool(kept[1][index].all()):
            with _in_place_of(self._layers, kept[0][index][None]):
                yield
            return
        with _output_of(self._layers[-1]) as outputs:
            yield
        (output,) = outputs
        if kept is None:
            kept = output.new_empty(self._tokens, output.shape[-1]), torch.zeros(self._tokens, dtype=torch.bool, device=output.device)
            self._states[length] = kept
        kept[0][index], kept[1][index] = output[0], True


def frozen_layers(model: Any) -> Sequence[Any]:
    """Return the layers below the first trained one, if a pass may go without them. Tested once for each number of layers."""
    layers = getattr(model.get_decoder(), "layers", ())
    below = next((number for number, layer in enumerate(layers) if _trains(layer)), 0)
    if not below or _trains(model.get_input_embeddings()):
        return ()
    tested: dict[int, bool] = model.__dict__.setdefault(REPLAYS, {})
    if below not in tested:
        tested[below] = _replays(model, layers[:below])
    return layers[:below] if tested[below] else ()


def _trains(module: Any) -> bool:
    parts = (layer_of_pass(part) for part in module.modules())
    return any(parameter.requires_grad for part in parts for parameter in part.parameters(recurse=False))


@torch.no_grad()
def _replays(model: Any, layers: Sequence[Any]) -> bool:
    """Return True if the last states follow from the output of `layers` alone. Some models hand keys from layer to layer."""
    decoder = model.get_decoder()
    inputs = {"input_ids": torch.arange(4, device=next(model.parameters()).device)[None], "use_cache": False}
    if any("forward" in vars(layer) for layer in layers):  # a library has put its own there
        return False
    try:
        with _output_of(layers[-1]) as outputs:
            expected = decoder(**inputs).last_hidden_state
        with _in_place_of(layers, outputs[0]):
            again = decoder(**inputs).last_hidden_state
        return outputs[0].shape == expected.shape and torch.equal(again, expected)
    except Exception:  # a model may need anything of its lower layers
        return False


@contextmanager
def _output_of(layer: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the outputs of a layer within the block."""
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        hook.remove()


@contextmanager
def _in_place_of(layers: Sequence[Any], states: torch.Tensor) -> Iterator[None]:
    """Have the layers return `states` within the block, and compute nothing."""
    for layer in layers:
        layer.forward = lambda *_arguments, **_options: states
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
