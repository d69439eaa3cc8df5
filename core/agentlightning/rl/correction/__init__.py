"""Corrections between who sampled and who trains: what each token weighs where the two differ; one a file.

The ratio r of a token is the trainer's probability before the first optimiser step over the recorded one: it differs from 1 by what engine
and trainer compute differently, and by the versions between them. Weights multiply the policy's term and carry no gradient; a token that
was not sampled (a demonstration) has weight 1. Denominators stay those of the full batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agentlightning.settings import BaseSettings

Level = Literal["token", "turn", "attempt"]
Doubles = NDArray[np.float64]
BOUND = 20.0
"""Log-ratios are cut here before they are raised, as in verl."""


@dataclass(frozen=True, kw_only=True)
class Correction(BaseSettings):
    """Settings of a correction; a subclass of one's own has `weights`."""

    table = "loss.correction"
    name: str

    @property
    def over(self) -> Level:
        """What has one weight: a token, a reply, or all replies of an attempt."""
        return "token"

    def weights(self, log_ratio: Doubles, sequence: NDArray[np.int64]) -> Doubles:
        """(tokens,) from the log-ratios (tokens,) and the number of the sequence that each token belongs to, from 0."""
        raise NotImplementedError


def sums(log_ratio: Doubles, sequence: NDArray[np.int64], *, mean: bool) -> Doubles:
    """(tokens,) the sum, or mean, of the log-ratios of each token's sequence."""
    total = np.bincount(sequence, log_ratio).astype(np.float64)
    return (total / np.maximum(np.bincount(sequence), 1) if mean else total)[sequence]


def ratio(log_ratio: Doubles) -> Doubles:
    return np.exp(np.clip(log_ratio, -BOUND, BOUND))
