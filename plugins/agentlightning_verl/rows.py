"""A forest batch as root-to-leaf rows for verl. Each sampled token is trained in exactly one row.

At each place, verl's model gives the log-probability of the next token. So every array holds a token's value one place earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agentlightning.contracts.batch import Batch
from agentlightning.errors import UnsupportedSetting
from agentlightning.rl.batch.packs import leaf_rows


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Concatenated rows. Arrays are (places,) unless noted."""

    lengths: NDArray[np.int64]
    """(rows,)"""
    temperature: NDArray[np.float32]
    """(rows,)"""
    ids: NDArray[np.int64]
    token: NDArray[np.int64]
    """Batch index of the token predicted here, or -1 without a trained one."""

    def arrays(self, batch: Batch, scale: float, old_logprobs: NDArray[np.float64] | None, version: int) -> dict[str, NDArray[np.generic]]:
        """Return each place's values for a step of policy version `version`; 0 without a trained token."""
        trained = self.token >= 0

        def of(values: NDArray[np.generic]) -> NDArray[np.float64]:
            return np.where(trained, np.asarray(values, np.float64)[self.token], 0.0)

        rollout_logprobs = of(batch.rollout_logprobs)
        return {
            "lengths": self.lengths,
            "temperature": self.temperature,
            "ids": self.ids,
            "mask": trained,
            "advantage": of(batch.advantage),
            "weight": of(batch.weight) * scale,
            "sampled": trained & np.isfinite(rollout_logprobs),
            "fresh": trained & (of(batch.version) == version),
            "rollout_logprobs": np.nan_to_num(rollout_logprobs),
            **({} if old_logprobs is None else {"old_logprobs": of(old_logprobs)}),
        }


def rows_of(batch: Batch, rollouts: Sequence[int] | None = None) -> Rows:
    """Return the rows of these rollouts (None: all) that have a trained token."""
    packs = [pack for pack in leaf_rows(batch, rollouts) if pack.trained.any()]
    lengths = np.array([len(pack) for pack in packs], np.int64)
    index = np.concatenate([pack.index for pack in packs]).astype(np.int64)
    trained = np.concatenate([pack.trained for pack in packs])
    token = np.full(len(index), -1, np.int64)
    token[:-1] = np.where(trained[1:], index[1:], -1)
    token[np.cumsum(lengths) - 1] = -1  # no token follows a row's last one
    owner = np.repeat(np.arange(len(packs)), lengths)
    temperature = np.ones(len(packs), np.float32)
    for row in range(len(packs)):
        temperatures = np.unique(batch.temperature[token[(owner == row) & (token >= 0)]])
        if len(temperatures) > 1:
            raise UnsupportedSetting(
                f"trainer 'verl' takes one temperature for each conversation, and one of this batch has "
                f"{', '.join(map(str, temperatures))}. Use trainer 'torch'."
            )
        temperature[row] = temperatures[0]
    return Rows(lengths, temperature, batch.token_ids[index].astype(np.int64), token)
