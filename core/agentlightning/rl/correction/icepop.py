"""IcePop: tokens outside a band of ratios are masked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.contracts.loss import Correction
from agentlightning.rl.correction import BandHigh, BandLow, ratio
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class IcePop(Correction):
    """weight = r where low <= r <= high, else 0. Source: verl, `rollout_corr_helper`."""

    name: str = "icepop"
    low: BandLow = 0.5
    """Lowest ratio that is trained."""
    high: BandHigh = 2.0
    """Highest ratio that is trained."""

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        ratios = ratio(log_ratio)
        return np.where((ratios >= self.low) & (ratios <= self.high), ratios, 0.0)
