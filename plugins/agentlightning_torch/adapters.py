"""LoRA adapters of several policies over one model, each for its own tokens of a pass. `own_layers` has policies with full weights.

A pass computes the base once for all tokens, and adds each policy's low-rank product to the rows of that policy's tokens. So replies of
several policies share a batch, and nothing is switched between them. With one policy in a pass, the numbers are those of peft itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agentlightning.errors import EngineError

PLAIN = {"peft_type": "LORA", "bias": "none", "use_dora": False, "modules_to_save": None, "trainable_token_indices": None}
"""What the settings of an adapter must be, if they are there."""


def plain(model: Any) -> Any:
    """Return the transformers model itself, also from inside peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def adapter_name(policy: str) -> str:
    """The name of a policy's adapter in peft, which may be no part of its prefix `lora_`."""
    return f"policy_{policy}"


class Adapters:
    """Which adapters and own layers the tokens of a pass have. All layers of a model share one. Use it under the weights' lock."""

    def __init__(self) -> None:
        self.named = False
        """Whether the model's policies have names, each with its adapter, layers of its own, or neither."""
        self.own: dict[str, dict[str, torch.nn.Module]] = {}
        """The own layers of policies, by the name of an adapter and that of the layer in the model."""
        self._parts: list[tuple[str, Tensor | None]] = []
        """Adapters of this pass, with the places of their tokens; None: all tokens."""
        self.tokens = 0
        """Number of tokens in this pass, if it has several parts."""

    @contextmanager
    def over(self, policies: Sequence[str], device: torch.device, counts: Sequence[int] | None = None) -> Iterator[None]:
        """Within the block, a pass has tokens of these policies, in order, in a batch of one. `counts`: tokens of each; None: one."""
        if not self.named:
            yield
            return
        names, owners = list(dict.fromkeys(policies)), np.repeat(policies, 1 if counts is None else counts)
        if len(names) == 1:
            parts: list[tuple[str, Tensor | None]] = [(adapter_name(names[0]), None)]
        else:
            parts = [(adapter_name(name), torch.from_numpy(np.flatnonzero(owners == name)).to(device)) for name in names]
        with self._having(parts, len(owners)):
            yield

    @contextmanager
    def all(self, policy: str | None) -> Iterator[None]:
        """Within the block, all tokens are of one policy; None: they have no adapter."""
        with self._having([] if policy is None else [(adapter_name(policy), None)], 0):
            yield

    @contextmanager
    def _having(self, parts: list[tuple[str, Tensor | None]], tokens: int) -> Iterator[None]:
        before = self._parts, self.tokens
        self._parts, self.tokens = parts, tokens
        try:
            yield
        finally:
            self._parts, self.tokens = before

    def install(self, model: Any) -> None:
        """Have every adapted layer of a peft model ask this object for its adapters."""
        self.named = True
        for layer in adapted_layers(model):
            if "forward" not in vars(layer):
                layer.forward = partial(_forward, layer, self)

    def parts(self, layer: str) -> list[tuple[torch.nn.Module | None, Any]]:
        """The layers that compute a pass in place of one of the model, with the places of their tokens; None: the model's own."""
        return [(self.own.get(name, {}).get(layer), places) for name, places in self._parts]

    def adapts(self, layer: Any) -> bool:
        """Whether a layer of peft has an adapter of this pass."""
        return any(name in layer.lora_A for name, _ in self._parts)

    def rows(self, layer: Any, x: Tensor) -> Iterator[tuple[str, Tensor | None]]:
        """The adapters that a layer has for a pass over `x`."""
        for name, places in self._parts:
            if name not in layer.lora_A:
                continue
            if places is not None and x.shape[:-1] != (1, self.tokens):
                raise NotImplementedError(f"a layer gets its tokens in the shape {tuple(x.shape[:-1])}, so their policies are unknown")
            yield name, places


def _forward(layer: Any, adapters: Adapters, x: Tensor) -> Tensor:
    """The output of a layer with the adapters of each token. The same as peft's own where all tokens have one."""
    base = layer.base_layer(x)
    result = base
    for name, places in adapters.rows(layer, x):
        a, b = layer.lora_A[name], layer.lora_B[name]
        own = x if places is None else x[:, places]
        added = b(a(own.to(a.weight.dtype))) * layer.scaling[name]
        result = result + added if places is None else result.index_add(1, places, added.to(result.dtype))
    return result.to(base.dtype)


def adapted_layers(model: Any) -> list[Any]:
    """The layers of a peft model with LoRA adapters."""
    return [module for module in model.modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")]


def add_adapter(model: Any, policy: str, settings: Any) -> Any:
    """Return a peft model with another adapter for a policy, on a copy of no weights. `settings`: peft's."""
    import peft  # slow to import, so only for adapters

    name = adapter_name(policy)
    if not isinstance(model, peft.PeftModel):
        return peft.get_peft_model(model, settings, adapter_name=name).eval()
    model.add_adapter(name, settings)
    return model.eval()


def named_parameters(model: Any, policy: str) -> dict[str, torch.nn.Parameter]:
    """Mark the parameters of a policy's adapter as trained, and return them by name. Those of other policies stay as they are."""
    chosen = {name: p for name, p in model.named_parameters() if ".lora_" in name and f".{adapter_name(policy)}." in name}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    return chosen


def adapter_settings(folder: Path) -> Any:
    """Return peft's settings of an adapter in a folder. Raises `EngineError` for one that cannot be computed for some tokens alone."""
    import peft

    settings = peft.PeftConfig.from_pretrained(str(folder))
    for key, expected in PLAIN.items():
        value = getattr(settings, key, expected)
        if (value or None) != (expected or None):
            raise EngineError(
                f"The adapter in {str(folder)!r} has {key} = {value!r}, which several policies in one batch cannot have. Use a plain LoRA "
                "adapter of linear layers."
            )
    settings.inference_mode = True
    return settings


def check_layers(model: Any, policy: str) -> None:
    """Raise `EngineError` unless a policy's adapter lies on linear layers alone."""
    from peft.tuners.lora.layer import Linear

    name = adapter_name(policy)
    for layer in model.modules():
        own = name in getattr(layer, "lora_A", ()) or name in getattr(layer, "lora_embedding_A", ())
        if own and (type(layer) is not Linear or name in layer.lora_variant):
            raise EngineError(
                f"The adapter of policy {policy!r} has a layer {type(layer).__name__}, which several policies in one batch cannot have. "
                "Use a plain LoRA adapter of linear layers."
            )


def compare_adapter(folder: Path, state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise `EngineError` unless an adapter has exactly these weights."""
    wrong = sorted(state.keys() ^ expected.keys()) or [name for name in state if state[name].shape != expected[name].shape]
    if wrong:
        raise EngineError(f"The adapter in {str(folder)!r} does not fit the model: {wrong[0]} differs. Load an adapter of the same layers.")


@contextmanager
def undone_on_error(model: Any) -> Iterator[None]:
    """Give a model its own layers back if the block fails, because peft replaces them before it looks at an adapter's weights."""
    modules, trained = dict(model.named_modules()), {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        yield
    except BaseException:
        for name, module in modules.items():
            if name:
                parent, _, child = name.rpartition(".")
                setattr(modules[parent], child, module)
        for parameter, requires_grad in trained.items():
            parameter.requires_grad_(requires_grad)
        vars(model).pop("peft_config", None)
        raise
