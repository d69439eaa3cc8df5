"""Sequence-level masking: replies or attempts outside a band of ratios are masked as a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from agentlightning.contracts.loss import Correction, Level
from agentlightning.rl.correction import BOUND, BandHigh, BandLow, sums
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class SequenceMasking(Correction):
    """weight = 1 where low <= r <= high, else 0, with r of the sequence the geometric mean over its tokens, or with `mean = false` the
    product. Source: verl, `rollout_corr_helper` (`seq_mean_k1`, `seq_sum_k1`)."""

    name: str = "sequence_masking"
    low: BandLow = 0.5
    """Lowest ratio that is trained."""
    high: BandHigh = 2.0
    """Highest ratio that is trained."""
    level: Literal["turn", "attempt"] = "turn"
    """The sequence: a reply, or all replies of an attempt."""
    mean: bool = True
    """Geometric mean of the ratios instead of their product."""

    @property
    def over(self) -> Level:
        return self.level

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        log_ratios = sums(np.clip(log_ratio, -BOUND, BOUND), sequence, mean=self.mean)
        return ((log_ratios >= np.log(self.low)) & (log_ratios <= np.log(self.high))).astype(np.float64)
