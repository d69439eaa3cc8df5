"""No correction, also where a trainer has one by default."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agentlightning.contracts.loss import Correction
from agentlightning.types import Doubles, Ints


@dataclass(frozen=True, kw_only=True)
class NoCorrection(Correction):
    """weight = 1."""

    name: str = "none"

    def weights(self, log_ratio: Doubles, sequence: Ints) -> Doubles:
        return np.ones(len(log_ratio))
