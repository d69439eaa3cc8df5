"""`reward = "module:function"`: a function of the recorded rollout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from agentlightning.training.rewards.recorded_rollout import Judgement, RecordedRollout, RewardFunction, call_reward_function

log = logging.getLogger("agentlightning")


class FunctionReward:
    """Scores each rollout with a function. An error of the function leaves that rollout without a reward."""

    def __init__(self, function: RewardFunction, reference: str) -> None:
        self._function = function
        self.source = reference
        self.name = reference.rpartition(":")[2].rpartition(".")[2]

    async def score(self, group: Sequence[RecordedRollout]) -> list[Judgement]:
        return list(await asyncio.gather(*(self._score(rollout) for rollout in group)))

    async def _score(self, rollout: RecordedRollout) -> Judgement:
        try:
            value = await call_reward_function(self._function, rollout)
        except Exception as error:
            log.warning("%s failed for rollout %s.", self.source, rollout.id, exc_info=error)
            return Judgement(None, f"{self.source} raised {type(error).__name__}: {error}")
        return Judgement(value, "" if value is not None else f"{self.source} returned None")

    def counts(self) -> dict[str, float]:
        return {}
