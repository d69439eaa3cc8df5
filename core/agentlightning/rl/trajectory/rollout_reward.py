"""The outcome of an attempt: one number from the rewards of the attempt as a whole, or None where it was never scored.

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
    """`RewardError` names the first reward that is not a finite number (a client may have recorded anything)."""
    for reward in rewards:
        if not math.isfinite(reward.value):
            raise RewardError(
                f"attempt {reward.attempt_id}: the reward {reward.name!r} from {reward.source!r} is {reward.value}; "
                "expected a finite number"
            )


def rollout_reward(
    rewards: Sequence[Reward], *, status: AttemptStatus, weights: Mapping[str, float] | None = None
) -> tuple[float | None, list[str]]:
    """The outcome, and what is to be said about it.

    `rewards` are those of the attempt as a whole, in the store's order; of one name the last counts. A returned number is the
    outcome; emitted under the default name as well, it must be the same (`RewardError`). Without one the outcome is the weighted sum
    of the named rewards. A name that `weights` lacks weighs 1; one that it has must have been emitted (unless it weighs 0), or the
    attempt counts as not scored yet; a returned number is then one of the names, `return`.

    An attempt that did not succeed has no outcome but the penalty that the runner's failure policy gave it.
    """
    if status != "succeeded":
        penalties = [r.value for r in rewards if r.source == "runner"]
        if penalties:
            return penalties[-1], []
        note = f"not scored: the attempt is {status!r}"
        return None, [note + (f", so its {len(rewards)} rewards are no outcome" if rewards else "")]
    last = {r.name: r.value for r in rewards}
    if RETURN in last and EMITTED in last:
        if not math.isclose(last[RETURN], last[EMITTED], rel_tol=1e-9, abs_tol=1e-12):
            raise RewardError(
                f"attempt {rewards[0].attempt_id}: the agent returned {last[RETURN]} and emitted the reward {last[EMITTED]}; return None, "
                "or emit it under a name of its own"
            )
        del last[EMITTED]
    weights = weights or {}
    missing = [name for name, weight in weights.items() if weight and name not in last]
    if EMITTED in missing and RETURN in last:
        missing.remove(EMITTED)
    if missing and last:
        return None, [f"not scored: {', '.join(map(repr, missing))} has a weight and was not emitted; where that means 0, emit 0"]
    if not last:
        return None, ["not scored: no reward was returned or emitted for the attempt"]
    if RETURN in last:
        last = {name: value for name, value in last.items() if name == RETURN or name in weights}
        if EMITTED in weights and RETURN not in weights:
            weights = {**weights, RETURN: weights[EMITTED]}  # the same number under its other name
    return math.fsum(weights.get(name, 1.0) * value for name, value in last.items()), []
