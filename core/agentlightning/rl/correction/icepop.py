"""IcePop: tokens outside a band of ratios are masked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.contracts.loss import Correction
from agentlightning.errors import ConfigError
from agentlightning.rl.correction import ratio
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class IcePop(Correction):
    """weight = r where low <= r <= high, else 0. Source: verl, `rollout_corr_helper`."""

    name: str = "icepop"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_band(self.low, self.high)

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        ratios = ratio(log_ratio)
        return np.where((ratios >= self.low) & (ratios <= self.high), ratios, 0.0)


def check_band(low: float, high: float) -> None:
    """Raise `ConfigError` for a band without 1 in it."""
    if not 0 < low <= 1 <= high:
        raise ConfigError(f"loss.correction.low and high are {low} and {high}. Set 0 < low <= 1 <= high (0.5 and 2.0 are usual).")
