"""The run's initial policy, for the KL divergence: the model without its LoRA adapter, or a second copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoModelForCausalLM

from agentlightning_torch.weights import Weights, no_bars


class Reference:
    """Loaded on first use and never changed."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._copy: Any = None

    @contextmanager
    def model(self) -> Iterator[Any]:
        """Provide the reference within the block. The caller holds the weights' lock."""
        weights = self._weights
        if hasattr(weights.model, "disable_adapter"):
            with weights.model.disable_adapter():
                yield weights.model
            return
        if self._copy is None:
            with no_bars():
                model: Any = AutoModelForCausalLM.from_pretrained(weights.files.path, dtype=weights.dtype)
            self._copy = model.to(weights.device).eval().requires_grad_(False)
        yield self._copy
