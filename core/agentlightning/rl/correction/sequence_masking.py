"""Whole replies, or attempts, on which engine and trainer disagree are left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from agentlightning.rl.correction import BOUND, Correction, Doubles, Level, sums
from agentlightning.rl.correction.icepop import check_band


@dataclass(frozen=True, kw_only=True)
class SequenceMasking(Correction):
    """weight = 1 where low <= r <= high, else 0, with r of the sequence the geometric mean over its tokens, or with `mean = false` the
    product. Source: verl, `rollout_corr_helper` (`seq_mean_k1`, `seq_sum_k1`)."""

    name: str = "sequence_masking"
    low: float = 0.5
    high: float = 2.0
    level: Literal["turn", "attempt"] = "turn"
    mean: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_band(self.low, self.high)

    @property
    def over(self) -> Level:
        return self.level

    def weights(self, log_ratio: Doubles, sequence: NDArray[np.int64]) -> Doubles:
        found = sums(np.clip(log_ratio, -BOUND, BOUND), sequence, mean=self.mean)
        return ((found >= np.log(self.low)) & (found <= np.log(self.high))).astype(np.float64)
