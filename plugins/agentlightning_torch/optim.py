"""Selects the trained parameters, and takes AdamW steps on them.

A step either changes weights and moments, or raises `NonFinite` and changes neither. If it fails midway, for want of memory, it raises
`HalfStep`. For 16-bit weights, steps update a float32 master copy.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch

from agentlightning.errors import ConfigError, HalfStep, NonFinite
from agentlightning_torch.adapters import plain
from agentlightning_torch.number_type import HALVES


def trained_parameters(model: Any, train: str) -> dict[str, torch.nn.Parameter]:
    """Mark the trained parameters and return them by name.

    `full` means all. `top:N` means the last N blocks and the final norm, without embeddings or a head tied to them. `lora` means the
    model's adapter.
    """
    chosen = {name for name, _ in model.named_parameters() if ".lora_" in name} if train == "lora" else chosen_names(model, train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return {name: parameter for name, parameter in model.named_parameters() if name in chosen}


def chosen_names(model: Any, train: str) -> set[str]:
    """Return the names of the parameters that `full` or `top:N` trains. Raises `ConfigError` for layers that the model does not have."""
    return set(dict(model.named_parameters())) if train == "full" else _top(model, int(train.removeprefix("top:")))


def _top(model: Any, count: int) -> set[str]:
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ConfigError(f"train is 'top:{count}', but {type(model).__name__} has no list of layers. Use 'full' or 'lora'.")
    if count > len(layers):
        raise ConfigError(f"train is 'top:{count}', but the model has {len(layers)} layers. Use 'full' for all of them.")
    modules = [*layers[-count:], *([decoder.norm] if hasattr(decoder, "norm") else [])]
    mine = {id(p) for module in modules for p in module.parameters()}
    return {name for name, p in model.named_parameters() if id(p) in mine}


def add_lora(model: Any, rank: int, alpha: float, seed: int) -> Any:
    """Wrap the model in peft, with a fresh adapter on every linear layer except the head."""
    import peft  # slow to import, so only for adapters

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, lora_settings(rank, alpha)).eval()


def lora_settings(rank: int, alpha: float, base: str | None = None) -> Any:
    """Return peft's settings of a fresh adapter on every linear layer except the head. `base`: the model's folder, if peft does not find
    it out."""
    import peft

    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}  # peft declares an int alpha and takes a float
    return peft.LoraConfig(**options, target_modules="all-linear", task_type="CAUSAL_LM", base_model_name_or_path=base)


class Optimizer:
    """AdamW with gradient norm clipping."""

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        clip_norm: float,
    ) -> None:
        self.parameters = parameters
        self.clip_norm = clip_norm
        self.masters = {n: p.detach().float().clone() if p.dtype in HALVES else p for n, p in parameters.items()}
        for name, p in parameters.items():
            if self.masters[name] is not p:
                p.register_post_accumulate_grad_hook(partial(_to_master, self.masters[name]))
        groups = [
            {"params": [p for p in self.masters.values() if p.ndim >= 2], "weight_decay": weight_decay},
            {"params": [p for p in self.masters.values() if p.ndim < 2], "weight_decay": 0.0},  # norms and biases
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=betas)

    def zero(self) -> None:
        for p in (*self.parameters.values(), *self.masters.values()):
            p.grad = None

    def step(self, lr: float) -> float:
        """Take a step with the current gradients. Return their norm before clipping. Without any gradient, nothing changes."""
        grads = [master.grad for master in self.masters.values() if master.grad is not None]
        if not grads:
            return 0.0
        norm = float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in grads])))
        if not math.isfinite(norm):
            self.zero()
            raise NonFinite(f"The norm of the gradient is {norm}. The weights are unchanged. Try a lower lr or clip_norm.")
        scale = min(1.0, self.clip_norm / (norm + 1e-6))
        for grad in grads:
            grad.mul_(scale)
        for group in self.adam.param_groups:
            group["lr"] = lr
        try:
            self.adam.step()
            with torch.no_grad():
                for name, p in self.parameters.items():
                    if self.masters[name] is not p:
                        p.copy_(self.masters[name])
        except RuntimeError as error:
            raise HalfStep(f"AdamW's step failed: {error}. Some weights may have changed. Resume from the checkpoint.") from error
        self.zero()
        return norm

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights (in full precision) and moments, by name, without a copy. The next step changes them."""
        tensors: dict[str, torch.Tensor] = {}
        for name, master in self.masters.items():
            tensors[f"weight.{name}"] = master.detach()
            for kind, value in self.adam.state.get(master, {}).items():
                tensors[f"{kind}.{name}"] = value.detach()
        return tensors

    def state(self) -> dict[str, torch.Tensor]:
        """Return copies of `tensors`."""
        return {name: value.clone() for name, value in self.tensors().items()}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore `tensors` or `state`. Raises `KeyError` before any change if its parameters differ."""
        weights = {name: state[f"weight.{name}"] for name in self.masters}
        for name, master in self.masters.items():
            if weights[name].shape != master.shape:
                raise KeyError(f"{name} has shape {tuple(weights[name].shape)} in the checkpoint and {tuple(master.shape)} in this model")
        self.adam.state.clear()
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(weights[name])
                if master is not self.parameters[name]:
                    self.parameters[name].copy_(master)
                moments = {kind: state[f"{kind}.{name}"] for kind in ("step", "exp_avg", "exp_avg_sq") if f"{kind}.{name}" in state}
                if moments:
                    self.adam.state[master] = {
                        kind: v.clone() if kind == "step" else v.to(master.device, master.dtype, copy=True) for kind, v in moments.items()
                    }


def _to_master(master: torch.Tensor, p: torch.Tensor) -> None:
    """Add the gradient of a 16-bit parameter to its master copy's, so that a sum over packs keeps float32."""
    assert p.grad is not None
    master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
    p.grad = None


@torch.no_grad()
def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the state of the plain model with its LoRA adapter merged in. The model itself stays bit-identical. Merged layers are on the
    CPU, so that a GPU holds one of them at a time."""
    inner = plain(model)
    if inner is model:
        return dict(model.state_dict())
    merged: dict[str, torch.Tensor] = {}
    layers = {name: module for name, module in inner.named_modules() if hasattr(module, "get_delta_weight")}
    for name, value in inner.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, kind = name.rpartition(".base_layer.")
        if owner in layers and kind == "weight":
            value = (value + layers[owner].get_delta_weight(model.active_adapter).to(value.dtype)).cpu()
        merged[f"{owner}.{kind}" if owner else name] = value
    return merged
