"""Scores given tokens under served weights, as a teacher does. A shared context is computed once, as in a training step."""

from __future__ import annotations

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.errors import EngineError
from agentlightning.types import Doubles
from agentlightning_torch.scoring import Scoring, find_scoring
from agentlightning_torch.weights import Weights

TOKENS_PER_PACK = 4096
"""Tokens computed at once, unless one conversation has more."""


class GivenTokens:
    """Scores batches under some weights. Finds the exact way for the model at the first batch."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._scoring: dict[int, Scoring] = {}
        """By the tokens of a pack."""

    def score(self, batch: Batch) -> Doubles:
        """(tokens,) log-probabilities of the sampled tokens; NaN on context (blocking)."""
        logprobs = np.full(len(batch), np.nan)
        if not batch.trained_tokens:
            return logprobs
        weights = self._weights
        name, vocabulary = weights.files.name, weights.model.config.get_text_config().vocab_size
        if batch.token_ids.max() >= vocabulary:
            raise EngineError(
                f"The batch has token {int(batch.token_ids.max())}, but {name!r} has tokens 0 to {vocabulary - 1}. Use a model with the "
                "same tokenizer."
            )
        tokens = TOKENS_PER_PACK
        while tokens < int(batch.position.max()) + 1:
            tokens *= 2
        with weights.lock, torch.no_grad():
            try:
                if tokens not in self._scoring:
                    self._scoring[tokens] = find_scoring(weights.model, name, tokens)
                for scores, _ in self._scoring[tokens].scores(weights.model, batch, tokens):
                    logprobs[scores.index] = scores.logprob.double().cpu().numpy()
            except torch.OutOfMemoryError as error:
                raise EngineError(f"{name!r} is out of memory: {error}. Use another device, or a smaller model.") from error
        return logprobs
