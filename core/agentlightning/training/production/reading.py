"""One production rollout read as a trajectory of another policy: its versions are none of ours, and foreign tokens are excluded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.errors import RewardError
from agentlightning.training.no_calls import NO_CALL
from agentlightning.training.rollouts import ReadTrajectory
from agentlightning.types import Completion, Trajectory, Transition, ints

CONTRADICTED = "with rewards that contradict each other, or are no finite numbers"
OTHER_TOKENIZER = "recorded with another tokenizer than that of the model that is trained"
UNKNOWN_TOKENIZER = "recorded without saying with which tokenizer"


@dataclass(frozen=True, slots=True)
class ReplayReader:
    """Reads production rollouts from a store."""

    store: LightningStore
    read_trajectory: ReadTrajectory
    tokenizer: str
    """Hash of the trained model's tokenizer."""

    async def read(self, rollout_id: str) -> tuple[Trajectory | None, bool]:
        """Return the trajectory (None: its rewards contradict each other), and whether its policy has the trained model's tokenizer.

        A rollout without a completion has no other tokenizer.
        """
        state, records = await self.store.read(rollout_id)
        try:
            trajectory = self.read_trajectory(state, records)
        except RewardError:
            return None, False
        tokenizers = {completion.tokenizer for attempt in records for completion in attempt.completions}
        return self._foreign(trajectory, records), not tokenizers or self.tokenizer in tokenizers

    def _foreign(self, trajectory: Trajectory, records: Sequence[AttemptRecords]) -> Trajectory:
        completions = {completion.id: completion for attempt in records for completion in attempt.completions}
        transitions = (self._transition(transition, completions[transition.completion_id]) for transition in trajectory.transitions)
        return replace(trajectory, transitions=tuple(transitions))

    def _transition(self, transition: Transition, completion: Completion) -> Transition:
        foreign = replace(transition, versions=ints(np.full(len(transition.response_ids), -1)))
        if not transition.trained or completion.tokenizer == self.tokenizer:
            return foreign
        return replace(foreign, trained=False, reason=OTHER_TOKENIZER if completion.tokenizer else UNKNOWN_TOKENIZER)


def has_trained_tokens(trajectory: Trajectory) -> bool:
    """Return whether a trajectory has tokens to train on."""
    return any(transition.trained and len(transition.response_ids) for transition in trajectory.transitions)


def exclusion_reason(trajectory: Trajectory) -> str:
    """Return why nothing of a scored trajectory is trained: the reason of most of its tokens."""
    reasons: Counter[str] = Counter()
    for transition in trajectory.transitions:
        reasons[transition.reason or "no token was sampled"] += max(1, len(transition.response_ids))
    return f"not to be trained ({reasons.most_common(1)[0][0]})" if reasons else NO_CALL
