"""Normalisation to mean 0 and variance 1 over the tokens of a step."""

from __future__ import annotations

import numpy as np

from agentlightning.types import Bools, Doubles, Ints

EPS = 1e-8


def whiten(values: Doubles, tokens: Ints, chosen: Bools, tolerance: float) -> Doubles:
    """(v - mean) / sqrt(variance + 1e-8), each value weighted by its tokens; the variance has Bessel's correction, as in verl's
    `masked_whiten`. All arrays are (values,); mean and variance are over the chosen ones. 0 if these are equal within the tolerance."""
    sample, weight = values[chosen], tokens[chosen].astype(np.float64)
    count = float(weight.sum())
    if count < 2 or float(np.ptp(sample)) <= tolerance:
        return np.where(np.isnan(values), np.nan, 0.0)
    mean = float((weight * sample).sum()) / count
    variance = float((weight * (sample - mean) ** 2).sum()) / (count - 1)
    return (values - mean) / np.sqrt(variance + EPS)
