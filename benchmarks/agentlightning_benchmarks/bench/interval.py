"""How sure a change is: a bootstrap interval of the mean difference, paired over test tasks and seeds.

Tasks and seeds are drawn anew, each with replacement and independently, because both are samples of what could have been asked: a task
that is hard is hard in every seed, and a seed that went well went well on every task.

Three seeds say little of how much seeds differ: simulated, 95% intervals of three seeds and 64 tasks hold the true mean in 95 to 99 of 100
cases where tasks and sampling make the noise, in 88 where the seeds spread as much as the tasks, and in 75 where the seeds make all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Of the mean of some paired differences."""

    mean: float
    low: float
    high: float
    pairs: int
    """Differences that were measured."""
    unpaired: int
    """Those left out, for one of the two was never scored."""

    @property
    def rises(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.low > 0


def bootstrap(differences: NDArray[np.float64], *, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Interval | None:
    """The percentile interval of the mean of `differences` (seeds, tasks), NaN where there is no pair. None: there is not one pair."""
    paired = np.isfinite(differences)
    if not paired.any():
        return None
    values = np.where(paired, differences, 0.0)
    rng = np.random.default_rng(seed)
    seeds, tasks = differences.shape
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples).astype(np.float64)  # (resamples, seeds)
    columns = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=resamples).astype(np.float64)  # (resamples, tasks)
    count = ((rows @ paired) * columns).sum(1)
    total = ((rows @ values) * columns).sum(1)
    drawn = count > 0
    means = total[drawn] / count[drawn]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        mean=float(values.sum() / paired.sum()),
        low=float(low),
        high=float(high),
        pairs=int(paired.sum()),
        unpaired=int((~paired).sum()),
    )
