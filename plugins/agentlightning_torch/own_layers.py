"""Layers that a policy has to itself: copies with weights of their own, each computed for its policy's tokens of a pass.

With `train = "full"` or `"top:N"`, each of several policies has its own copy of every trained layer. The model keeps its weights, and the
layers that no policy trains are computed once for all tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from agentlightning.errors import UnsupportedSetting
from agentlightning_torch.adapters import Adapters, adapter_name, plain

BY_TOKEN = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, Conv1D)
"""Layers that compute each token alone, as do those with a name that ends in `Norm`."""


class Dispatch:
    """The forward of a layer of which some policies have a copy. It sends each token to the layer of its policy."""

    def __init__(self, layer: nn.Module, name: str, adapters: Adapters) -> None:
        self.layer, self.name, self.adapters = layer, name, adapters

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """The output of the layer. A pass with tokens of several policies has the shape (1, tokens, ...)."""
        parts, tokens = self.adapters.parts(self.name), self.adapters.tokens
        if all(own is None for own, _ in parts) or len(parts) == 1:
            return self._output(parts[0][0] if parts else None, *arguments, **options)
        x = arguments[0] if len(arguments) == 1 and not options else None
        if x is None or x.shape[:2] not in ((1, 1), (1, tokens)):
            raise NotImplementedError(f"layer {self.name!r} does not get the shape (1, tokens), so their policies are unknown")
        if x.shape[1] == 1:  # the head, which computes the last token alone
            return self._output(next(own for own, places in parts if int(places[-1]) == tokens - 1), x)
        outputs = torch.cat([self._output(own, x[:, places]) for own, places in parts], 1)
        return torch.empty_like(outputs).index_copy(1, torch.cat([places for _, places in parts]), outputs)

    def _output(self, own: nn.Module | None, *arguments: Any, **options: Any) -> Tensor:
        return type(self.layer).forward(self.layer, *arguments, **options) if own is None else own(*arguments, **options)

    def of_pass(self) -> nn.Module:
        """The layer that computes a pass of one policy."""
        (own, _), *_ = self.adapters.parts(self.name) or [(None, None)]
        return self.layer if own is None else own


def layer_of_pass(layer: Any) -> Any:
    """Return the layer that computes a pass of one policy in place of the model's."""
    dispatch = vars(layer).get("forward")
    return dispatch.of_pass() if isinstance(dispatch, Dispatch) else layer


def own_parameters(adapters: Adapters, policy: str) -> dict[str, nn.Parameter]:
    """Return the parameters of a policy's own layers, each once, by their names in the model."""
    named = dict[str, nn.Parameter]()
    places = set[int]()
    for name, layer in adapters.own.get(adapter_name(policy), {}).items():
        for kind, parameter in layer.named_parameters():
            if id(parameter) not in places:  # a head that is tied to the embeddings
                places.add(id(parameter))
                named[f"{name}.{kind}"] = parameter
    return named


def add_own_layers(model: Any, adapters: Adapters, policy: str, chosen: Collection[str]) -> None:
    """Give a policy copies of all layers that have one of the `chosen` parameters of the model, in place of those that it had.

    Raises `UnsupportedSetting` without any change for a layer that does not compute each token alone.
    """
    model = plain(model)
    mine = {id(parameter) for name, parameter in named_base(model) if name in chosen}
    layers = dict[str, nn.Module]()
    for name, layer in model.named_modules():
        if any(id(parameter) in mine for parameter in vars(layer)["_parameters"].values()):
            if not isinstance(layer, BY_TOKEN) and not type(layer).__name__.endswith("Norm"):
                raise UnsupportedSetting(
                    f"Policy {policy!r} cannot have weights of its own in layer {name!r} ({type(layer).__name__}), which does not compute "
                    "each token alone. Set trainer.train = 'lora', or use one policy."
                )
            layers[base_name(name)] = layer
    own = adapters.own.setdefault(adapter_name(policy), {})
    own.clear()
    memo = dict[int, Any]()  # shared, so that tied layers stay tied
    for name, layer in layers.items():
        with _without_dispatch(layer):
            own[name] = copy.deepcopy(layer, memo).requires_grad_(False)
        layer.forward = Dispatch(layer, name, adapters)


def own_state(model: Any, adapters: Adapters, policy: str) -> dict[str, Tensor]:
    """Return the state of the model with a policy's own layers, under the names of the model."""
    state = base_state(model)
    for name, layer in adapters.own[adapter_name(policy)].items():
        state |= {f"{name}.{kind}": value for kind, value in layer.state_dict().items()}
    return state


@torch.no_grad()
def set_own_state(model: Any, adapters: Adapters, policy: str, state: dict[str, Tensor]) -> None:
    """Give a policy own layers where `state` differs from the model, and none elsewhere. `state` has the names and shapes of the model."""
    base = base_state(model)
    differing = {name for name, value in state.items() if not torch.equal(value.to(base[name]), base[name])}
    add_own_layers(model, adapters, policy, differing)
    for name, layer in adapters.own[adapter_name(policy)].items():
        for kind, value in layer.state_dict().items():
            value.copy_(state[f"{name}.{kind}"])


def base_state(model: Any) -> dict[str, Tensor]:
    """Return the state of the model without its adapters, under its own names."""
    return {base_name(name): value for name, value in plain(model).state_dict().items() if ".lora_" not in name}


def named_base(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the model without its adapters, each once, under its own names."""
    return ((base_name(name), parameter) for name, parameter in plain(model).named_parameters() if ".lora_" not in name)


def base_names(names: Iterable[str]) -> set[str]:
    """Return the names of parameters as they are in a model without adapters, and without those of adapters."""
    return {base_name(name) for name in names if ".lora_" not in name}


def base_name(name: str) -> str:
    """Return a name as it is in a model without adapters: peft puts each adapted layer into another one."""
    return name.replace(".base_layer", "")


@contextmanager
def _without_dispatch(layer: nn.Module) -> Iterator[None]:
    """Within the block, a layer is the model's own, as it was before any policy had a copy."""
    dispatch = vars(layer).pop("forward", None)
    try:
        yield
    finally:
        if dispatch is not None:
            layer.forward = dispatch
