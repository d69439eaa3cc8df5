"""Corrections of the mismatch between the policy that sampled and the one that trains; one a file.

The ratio r of a token is exp(old_logprobs - rollout_logprobs). Numerical differences between engine and trainer move it away from 1, and so
do the versions between them. Weights multiply the policy's term and carry no gradient. Demonstrated tokens have weight 1. Denominators stay
those of the full batch.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta

from agentlightning.types import Doubles, Ints

BOUND = 20.0
"""Log-ratios are clipped here before exp, as in verl."""
BandLow: TypeAlias = Annotated[float, Meta(gt=0, le=1, description="0.5 is usual")]
BandHigh: TypeAlias = Annotated[float, Meta(ge=1, description="2.0 is usual")]
"""The bounds of a band of ratios, with 1 in it."""


def sums(log_ratio: Doubles, sequence: Ints, *, mean: bool) -> Doubles:
    """(tokens,) the sum, or mean, of the log-ratios of each token's sequence."""
    total = np.bincount(sequence, log_ratio).astype(np.float64)
    return (total / np.maximum(np.bincount(sequence), 1) if mean else total)[sequence]


def ratio(log_ratio: Doubles) -> Doubles:
    """exp of the clipped log-ratios."""
    return np.exp(np.clip(log_ratio, -BOUND, BOUND))
