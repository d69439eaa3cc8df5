"""Pairs of rollouts, of which one is preferred to the other: a rollout stands in at most one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from agentlightning.errors import TrainerError

UNPAIRED = "in no pair: no rollout was left in its group whose reward differs enough"


def in_order(pairs: Sequence[tuple[int, int]], order: Sequence[int]) -> list[tuple[int, int]]:
    """Pairs of indices, chosen and rejected, as places in `order`, a permutation of the indices; sorted. `TrainerError` for an index that
    is none, or that comes twice."""
    place = {index: place for place, index in enumerate(order)}
    for index, times in Counter(index for pair in pairs for index in pair).items():
        if index not in place or times > 1:
            raise TrainerError(
                f"trajectory {index} of {len(order)} stands in {times} places of the pairs; expected pairs of indices, each index in at "
                "most one of them"
            )
    return sorted((place[chosen], place[rejected]) for chosen, rejected in pairs)
