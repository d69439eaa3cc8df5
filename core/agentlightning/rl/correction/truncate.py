"""Truncated importance sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentlightning.errors import ConfigError
from agentlightning.rl.correction import Correction, Doubles, Level, ratio, sums


@dataclass(frozen=True, kw_only=True)
class Truncate(Correction):
    """weight = min(r, cap); for a turn or an attempt r is the product over its tokens. Source: verl, `rollout_corr_helper`."""

    name: str = "truncate"
    cap: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not self.cap > 0:
            raise ConfigError(f"loss.correction.cap is {self.cap}; it must be above 0 (2.0 is usual)")
        if self.level not in ("token", "turn", "attempt"):
            raise ConfigError(f"loss.correction.level is {self.level!r}; expected 'token', 'turn' or 'attempt'")

    @property
    def over(self) -> Level:
        return self.level

    def weights(self, log_ratio: Doubles, sequence: NDArray[np.int64]) -> Doubles:
        if self.level != "token":
            log_ratio = sums(log_ratio, sequence, mean=False)
        return np.minimum(ratio(log_ratio), self.cap)
