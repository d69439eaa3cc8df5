"""The reward of a rollout: one number from the rewards of its attempt, or None if it was never scored.

A reward is counted once, and a missing one is never a zero (laws 3 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agentlightning.errors import RewardError
from agentlightning.types import AttemptStatus, Reward

RETURN = "return"
"""Name of the number that the agent returned."""
EMITTED = "reward"
"""Name of a reward that was emitted without one."""


def check_finite(rewards: Sequence[Reward]) -> None:
    """Raise `RewardError` for the first reward that is not a finite number, because a client may have recorded anything."""
    for reward in rewards:
        if not math.isfinite(reward.value):
            name = f"Attempt {reward.attempt_id}: the reward {reward.name!r} from {reward.source!r}"
            raise RewardError(f"{name} is {reward.value}. Use a finite number.")


def rollout_reward(
    rewards: Sequence[Reward], *, status: AttemptStatus, weights: Mapping[str, float] | None = None
) -> tuple[float | None, list[str]]:
    """Return the reward of a rollout, and diagnostics.

    `rewards` are those of the attempt itself, in the store's order; of one name the last counts. A returned number is the reward. If the
    agent emitted one under the default name as well, the two must be equal (`RewardError`). Otherwise the reward is the weighted sum of the
    named rewards. A name without a weight weighs 1. A name with a weight other than 0 must have been emitted, or the attempt is not scored
    yet; a returned number then counts as the name `return`.

    An attempt that did not succeed has no reward but the penalty of the runner's failure policy.
    """
    if status != "succeeded":
        penalties = [r.value for r in rewards if r.source == "runner"]
        if penalties:
            return penalties[-1], []
        note = f"not scored: the attempt is {status!r}"
        return None, [note + (f", so its {len(rewards)} rewards do not count" if rewards else "")]
    last = {r.name: r.value for r in rewards}
    if RETURN in last and EMITTED in last:
        if not math.isclose(last[RETURN], last[EMITTED], rel_tol=1e-9, abs_tol=1e-12):
            raise RewardError(
                f"Attempt {rewards[0].attempt_id}: the agent returned {last[RETURN]} and emitted the reward {last[EMITTED]}. "
                "Return None, or emit it under another name."
            )
        del last[EMITTED]
    weights = weights or {}
    missing = [name for name, weight in weights.items() if weight and name not in last]
    if EMITTED in missing and RETURN in last:
        missing.remove(EMITTED)
    if missing and last:
        return None, [f"not scored: {', '.join(map(repr, missing))} has a weight and was not emitted. If that means 0, emit 0"]
    if not last:
        return None, ["not scored: no reward was returned or emitted for the attempt"]
    if RETURN in last:
        last = {name: value for name, value in last.items() if name == RETURN or name in weights}
        if EMITTED in weights and RETURN not in weights:
            weights = {**weights, RETURN: weights[EMITTED]}  # the same number under its other name
    return math.fsum(weights.get(name, 1.0) * value for name, value in last.items()), []
