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

    def __init__(self, layer: nn.Module, name: str, adapters: Adapters, head: bool) -> None:
        """`head`: the layer computes the logits, of a prefill those of the last token alone."""
        self.layer, self.name, self.adapters, self.head = layer, name, adapters, head
        self.dim = 1
        """The dimension of the tokens: 2 where heads come before them."""

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """The output of the layer. A pass with tokens of several policies is one row of them."""
        parts, tokens = self.adapters.parts(self.name), self.adapters.tokens
        if all(own is None for own, _ in parts) or len(parts) == 1:
            return self._output(parts[0][0] if parts else None, *arguments, **options)
        x = arguments[0] if len(arguments) == 1 and not options else None
        if self.head and x is not None and x.shape[:2] == (1, 1):
            return self._output(next(own for own, places in parts if int(places[-1]) == tokens - 1), x)
        dim = self._find_tokens(x)
        outputs = torch.cat([self._output(own, arguments[0].index_select(dim, places)) for own, places in parts], dim)
        return torch.empty_like(outputs).index_copy(dim, torch.cat([places for _, places in parts]), outputs)

    def _find_tokens(self, x: Any) -> int:
        """Return the dimension of the tokens. Where two have as many places, it is that of an earlier pass: `check_rows` makes one."""
        sizes = [] if x is None or x.shape[0] != 1 else list(x.shape[: max(2, x.ndim - 1)])
        dims = [dim for dim in (1, 2) if sizes[dim : dim + 1] == [self.adapters.tokens]]
        if len(dims) == 1:
            self.dim = dims[0]
        if self.dim not in dims:
            shape = "no tensor" if x is None else f"the shape {tuple(x.shape)}"
            raise NotImplementedError(f"layer {self.name!r} gets {shape}, so the policies of its tokens are unknown")
        return self.dim

    def _output(self, own: nn.Module | None, *arguments: Any, **options: Any) -> Tensor:
        return type(self.layer).forward(self.layer, *arguments, **options) if own is None else own(*arguments, **options)

    def of_pass(self) -> nn.Module:
        """The layer that computes a pass of one policy."""
        (own, _), *_ = self.adapters.parts(self.name) or [(None, None)]
        return self.layer if own is None else own


def layer_of_pass(layer: Any) -> Any:
    """Return the layer that computes a pass of one policy in place of the model's."""
    inner = getattr(layer, "base_layer", layer)  # peft puts a layer with adapters into another one
    dispatch = vars(inner).get("forward")
    if not isinstance(dispatch, Dispatch) or (inner is not layer and dispatch.adapters.adapts(layer)):
        return layer
    return dispatch.of_pass()


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
    model, head = plain(model), plain(model).get_output_embeddings()
    mine = {id(parameter) for name, parameter in named_base(model) if name in chosen}
    own, memo = dict[str, nn.Module](), dict[int, Any]()  # one memo for all, so that tied layers stay tied
    layers = dict[str, nn.Module]()
    for name, layer in model.named_modules():
        if any(id(parameter) in mine for parameter in vars(layer)["_parameters"].values()):
            if not isinstance(layer, BY_TOKEN) and not type(layer).__name__.endswith("Norm"):
                raise UnsupportedSetting(
                    f"Policy {policy!r} cannot have weights of its own in layer {name!r} ({type(layer).__name__}), which may not compute "
                    "each token alone. Use LoRA adapters, or one policy."
                )
            with _without_dispatch(layer):
                own[base_name(name)] = copy.deepcopy(layer, memo).requires_grad_(False)
            layers[base_name(name)] = layer
    for name, layer in layers.items():
        if "forward" not in vars(layer):
            layer.forward = Dispatch(layer, name, adapters, layer is getattr(head, "base_layer", head))
    adapters.own[adapter_name(policy)] = own


def own_state(model: Any, adapters: Adapters, policy: str) -> dict[str, Tensor]:
    """Return the state of the model with a policy's own layers, under the names of the model."""
    state = base_state(model)
    for name, layer in adapters.own[adapter_name(policy)].items():
        state |= {f"{name}.{kind}": value for kind, value in layer.state_dict().items()}
    return state


@torch.no_grad()
def set_own_state(model: Any, adapters: Adapters, policy: str, state: dict[str, Tensor]) -> None:
    """Set the weights of a policy's own layers, and add those that it needs. `state` has the names and shapes of the model."""
    base, own = base_state(model), adapters.own.get(adapter_name(policy), {})
    differing = {name for name, value in state.items() if not torch.equal(value.to(base[name]), base[name])}
    if not {name.rpartition(".")[0] for name in differing} <= own.keys():  # else in place: a trainer may hold their parameters
        add_own_layers(model, adapters, policy, differing)
    for name, layer in adapters.own.get(adapter_name(policy), {}).items():
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
