"""Truncated importance sampling."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.contracts.loss import Correction, Level
from agentlightning.errors import ConfigError
from agentlightning.rl.correction import ratio, sums
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class TruncatedImportanceSampling(Correction):
    """weight = min(r, clip); for a turn or an attempt r is the product over its tokens. Source: verl, `rollout_corr_helper`."""

    name: str = "tis"
    clip: float = 2.0
    level: Level = "token"

    def __post_init__(self) -> None:
        if not self.clip > 0:
            raise ConfigError(f"loss.correction.clip is {self.clip}. Set it above 0 (2.0 is usual).")
        if self.level not in ("token", "turn", "attempt"):
            raise ConfigError(f"loss.correction.level is {self.level!r}. Use 'token', 'turn' or 'attempt'.")

    @property
    def over(self) -> Level:
        return self.level

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        if self.level != "token":
            log_ratio = sums(log_ratio, sequence, mean=False)
        return np.minimum(ratio(log_ratio), self.clip)
