"""Direct preference optimisation, token by token. The formula and its source stand in `agentlightning.rl.loss.DPOLoss`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.rl.loss import DPOLoss

Doubles = NDArray[np.float64]


def dpo(settings: DPOLoss, logprob: torch.Tensor, margin: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """(tokens,) each; `margin` is z of the token's pair. It has the gradient of the loss, and the value 0: a loss is that of a pair."""
    return -settings.beta * torch.sigmoid(-margin) * advantage * (logprob - logprob.detach())


def margins(batch: Batch, beta: float, gain: Doubles) -> tuple[Doubles, Doubles]:
    """(pairs,) z of each pair, and (tokens,) of each token's; `gain` is (tokens,) lp - ref, NaN where it is not known."""
    assert batch.pairs is not None
    trained = batch.trained
    rollout = batch.transition_rollout[batch.transition[trained]]
    total = np.bincount(rollout, gain[trained], minlength=len(batch.rollout_ids))
    z = beta * (total[batch.pairs[:, 0]] - total[batch.pairs[:, 1]])
    of_rollout, of_token = np.zeros(len(total)), np.zeros(len(batch))
    of_rollout[batch.pairs] = z[:, None]
    of_token[trained] = of_rollout[rollout]
    return z, of_token
