"""Direct preference optimisation, per token. `agentlightning.rl.loss.DPOLoss` has the formula and its source."""

from __future__ import annotations

import numpy as np
import torch

from agentlightning.contracts.batch import Batch
from agentlightning.rl.loss import DPOLoss
from agentlightning.types import Doubles, IntArray


def dpo(settings: DPOLoss, logprobs: torch.Tensor, pair_margins: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """Return the terms; all (tokens,). `pair_margins` is z of the token's pair. The gradient is the loss's, but the value is 0, because
    only a pair has a loss."""
    return -settings.beta * torch.sigmoid(-pair_margins) * advantages * (logprobs - logprobs.detach())


def margins(batch: Batch, pairs: IntArray, beta: float, gain: Doubles) -> tuple[Doubles, Doubles]:
    """Return z of each pair (pairs,), and of each token's pair (tokens,). `gain` is (tokens,) logprobs - reference_logprobs, NaN where
    unknown."""
    trained = batch.trained
    rollout = batch.transition_rollout[batch.transition[trained]]
    total = np.bincount(rollout, gain[trained], minlength=len(batch.rollout_ids))
    z = np.asarray(beta * (total[pairs[:, 0]] - total[pairs[:, 1]]), np.float64)
    of_rollout, of_token = np.zeros(len(total)), np.zeros(len(batch))
    of_rollout[pairs] = z[:, None]
    of_token[trained] = of_rollout[rollout]
    return z, of_token
