"""Named policies of an engine: each is the engine's model as it is, with a LoRA adapter, or with layers of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from agentlightning.errors import EngineError
from agentlightning.types import Policy
from agentlightning_torch.adapters import adapter_name, adapter_settings, add_adapter, check_layers, compare_adapter, undone_on_error
from agentlightning_torch.own_layers import set_own_state
from agentlightning_torch.weights import Weights, read_full

PROBED = 17
"""Tokens of a pass that tests whether layers keep the order of tokens: a prime, so that no other dimension has this size."""


def load_policy(weights: Weights, policy: Policy, folder: Path) -> None:
    """Load a named policy from a folder: a LoRA adapter, or a full model like the engine's. Of that, only layers that differ take memory.

    The caller holds the lock, and adds the policy. Raises `EngineError` without any change for other weights.
    """
    served = weights.policies.get(policy.name)
    if served is not None and served.kind != policy.kind:
        raise EngineError(f"Policy {policy.name!r} is served as {served.kind!r} and cannot become {policy.kind!r}. Start a new engine.")
    what = "adapter" if policy.kind == "lora" else "model"
    try:
        if policy.kind == "lora":
            _load_adapter(weights, policy.name, folder)
        elif folder == Path(weights.files.path):
            weights.adapters.own.pop(adapter_name(policy.name), None)
        else:
            set_own_state(weights.model, weights.adapters, policy.name, read_full(weights, folder))
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"The {what} in {str(folder)!r} cannot be loaded into {weights.files.name!r}: {error}") from error


def _load_adapter(weights: Weights, policy: str, folder: Path) -> None:
    import peft  # slow to import, so only for adapters

    settings, state = adapter_settings(folder), peft.load_peft_weights(str(folder), device=str(weights.device))
    name, model = adapter_name(policy), weights.model
    present = name in getattr(model, "peft_config", {})
    undone = undone_on_error(model) if isinstance(model, PreTrainedModel) else _removed_on_error(model, None if present else name)
    with undone:
        adapted = model if present else add_adapter(model, policy, settings)
        check_layers(adapted, policy)
        compare_adapter(folder, state, peft.get_peft_model_state_dict(adapted, adapter_name=name))
        peft.set_peft_model_state_dict(adapted, state, adapter_name=name)
    weights.model = adapted
    weights.adapters.install(adapted)


@contextlib.contextmanager
def _removed_on_error(model: Any, name: str | None) -> Iterator[None]:
    """Remove a new adapter again if the block fails."""
    try:
        yield
    except BaseException:
        if name is not None and name in model.peft_config:
            model.delete_adapter(name)
        raise


def check_rows(weights: Weights, added: str) -> None:
    """Raise `EngineError` for a model whose layers lose the order of tokens, so that no row can have an adapter of its own. Then the
    policy `added` is gone. The caller holds the lock."""
    names = list(weights.policies)
    count = max(PROBED, len(names))
    ids = torch.arange(1, count + 1, device=weights.device)[None] % weights.model.config.get_text_config().vocab_size
    try:
        with torch.no_grad(), weights.adapters.over([names[place % len(names)] for place in range(count)], weights.device):
            weights.model(input_ids=ids, use_cache=False)
    except NotImplementedError as error:
        del weights.policies[added]
        advice = "Use LoRA adapters" if weights.adapters.own.pop(adapter_name(added), None) else "Use a model without experts"
        raise EngineError(
            f"Model {weights.files.name!r} cannot serve several policies in one batch: {error}. {advice}, or one policy."
        ) from error
