"""Weight checks of the torch engine and trainer. `agentlightning.training.weight_sync` says what they are for."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from agentlightning.errors import EngineError
from agentlightning.training.weight_sync import EXACT, ROUNDED, WeightCheck, compare_weights, weight_check_ids
from agentlightning.types import IntArray, Policy
from agentlightning_torch.adapters import plain
from agentlightning_torch.number_type import HALVES


def weight_check_of(model: Any, ids: IntArray | None = None) -> WeightCheck:
    """Return the model's log-probabilities of `ids` (tokens,) at temperature 1. None: the tokens that every check of the model has."""
    ids = weight_check_ids(plain(model).config.get_text_config().vocab_size) if ids is None else ids
    with torch.no_grad():
        first = next(model.parameters())
        tokens = torch.from_numpy(ids.astype(np.int64)).to(first.device)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(1, tokens[1:, None].to(logits.device))[:, 0]
    return WeightCheck(ids, chosen.double().cpu().numpy(), str(first.dtype).removeprefix("torch."))


def compare_with_check(model: Any, policy: Policy, before: WeightCheck | None) -> tuple[dict[str, float], WeightCheck | None]:
    """Compare loaded weights with the trainer's weight check, if the policy's folder has one. `before` is the check of the last version.

    Return measurements by name, and the check. Raises `EngineError` if the weights are not the trainer's.
    """
    check = WeightCheck.of(policy)
    if check is None:
        return {}, None
    served = weight_check_of(model, check.ids)
    rounded = {check.dtype, served.dtype} & {str(dtype).removeprefix("torch.") for dtype in HALVES}
    difference, fault = compare_weights(check, served.logprobs, limit=ROUNDED if rounded else EXACT, before=before)
    if fault is not None:
        raise EngineError(
            f"The torch engine loaded version {policy.version} from {policy.uri}, and {fault}. Use the same model and dtype for engine and "
            "trainer, and let nothing else write into the folder."
        )
    return {"weight_check_diff": difference}, check
