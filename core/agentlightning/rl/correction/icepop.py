"""Tokens on which engine and trainer disagree are left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentlightning.errors import ConfigError
from agentlightning.rl.correction import Correction, Doubles, ratio


@dataclass(frozen=True, kw_only=True)
class IcePop(Correction):
    """weight = r where low <= r <= high, else 0. Source: verl, `rollout_corr_helper`."""

    name: str = "icepop"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_band(self.low, self.high)

    def weights(self, log_ratio: Doubles, sequence: NDArray[np.int64]) -> Doubles:
        found = ratio(log_ratio)
        return np.where((found >= self.low) & (found <= self.high), found, 0.0)


def check_band(low: float, high: float) -> None:
    """`ConfigError` for a band that does not hold 1."""
    if not 0 < low <= 1 <= high:
        raise ConfigError(f"loss.correction.low and high are {low} and {high}; expected 0 < low <= 1 <= high (0.5 and 2.0)")
