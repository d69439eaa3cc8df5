"""The run's initial policy, for the KL divergence: the model without its LoRA adapter, or with its initial weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from agentlightning_torch.weights import Weights, no_bars


class Reference:
    """The initial values of the trained weights. Loaded on first use and never changed. Frozen weights are the policy's own."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._initial: dict[str, torch.Tensor] | None = None

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Make the model the reference within the block, for passes without gradient. The caller holds the weights' lock."""
        weights = self._weights
        if weights.adapters.named:
            with weights.adapters.all(None):
                yield
            return
        if hasattr(weights.model, "disable_adapter"):
            with weights.model.disable_adapter():
                yield
            return
        trained = {name: parameter for name, parameter in weights.model.named_parameters() if parameter.requires_grad}
        if self._initial is None:
            self._initial = self._load(trained)
        current = {name: parameter.data for name, parameter in trained.items()}
        try:
            for name, parameter in trained.items():
                parameter.data = self._initial[name]
            yield
        finally:
            for name, parameter in trained.items():
                parameter.data = current[name]

    def _load(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        with no_bars():
            model: Any = AutoModelForCausalLM.from_pretrained(self._weights.files.path, dtype=self._weights.dtype)
        parameters = dict(model.named_parameters())
        return {name: parameters[name].detach().to(self._weights.device).clone() for name in names}
