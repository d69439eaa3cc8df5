"""Truncated importance sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from agentlightning.contracts.loss import Correction, Level
from agentlightning.rl.correction import ratio, sums
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class TruncatedImportanceSampling(Correction):
    """weight = min(r, clip); for a turn or an attempt r is the product over its tokens. Source: verl, `rollout_corr_helper`."""

    name: str = "tis"
    clip: Annotated[float, Meta(gt=0, description="2.0 is usual")] = 2.0
    """Highest weight of a token."""
    level: Level = "token"
    """What has a ratio: a token, a reply, or all replies of an attempt."""

    @property
    def over(self) -> Level:
        return self.level

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        if self.level != "token":
            log_ratio = sums(log_ratio, sequence, mean=False)
        return np.minimum(ratio(log_ratio), self.clip)
