"""A finished rollout as a reward function sees it, and the contract of everything that scores one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

from agentlightning.capture.recorder import checked_reward
from agentlightning.contracts.store import AttemptRecords, RolloutState
from agentlightning.stores.messages import new_messages
from agentlightning.types import JSON, Reward


@dataclass(frozen=True, slots=True)
class RecordedRollout:
    """The argument of a reward function: a rollout that succeeded, as it was recorded."""

    state: RolloutState
    records: AttemptRecords
    """Of its winning attempt: calls, completions, spans, rewards."""

    @property
    def id(self) -> str:
        return self.state.rollout.id

    @property
    def task(self) -> JSON:
        """The agent's input."""
        return self.state.rollout.task.input

    @property
    def replies(self) -> list[JSON]:
        """The model's replies in order, as messages with `content` and `tool_calls`."""
        return [completion.message for completion in self.records.completions]

    @property
    def messages(self) -> list[JSON]:
        """All messages in order: those that the model was sent, and its replies. One that a conversation repeats appears once."""
        replies: dict[str, list[JSON]] = {}
        for completion in self.records.completions:
            replies.setdefault(completion.call_id, []).append(completion.message)
        calls = sorted((call for call in self.records.calls if call.status == "completed"), key=lambda call: call.index)
        return [message for call in calls for message in (*(new_messages(call) or ()), *replies.get(call.id, ()))]

    @property
    def answer(self) -> str:
        """The text of the last reply; empty without one."""
        last: Any = self.replies[-1] if self.replies else None
        content: Any = cast(Any, last).get("content") if type(last) is dict else None
        return content if isinstance(content, str) else ""

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards of the rollout by name. Of one name the last counts."""
        return {reward.name: reward.value for reward in attempt_rewards(self.records)}


RewardFunction: TypeAlias = Callable[[RecordedRollout], "float | Awaitable[float | None] | None"]
"""Returns the reward; None: it has none to give."""


def attempt_rewards(records: AttemptRecords) -> list[Reward]:
    """Return the rewards of the attempt itself, not of its steps."""
    return [reward for reward in records.rewards if reward.span_id is None and reward.call_id is None]


async def call_reward_function(function: RewardFunction, rollout: RecordedRollout) -> float | None:
    """Call a reward function. A synchronous one runs in a thread. Raises its error, and `RewardError` for a value that is no number."""
    if inspect.iscoroutinefunction(function):
        result: Any = function(rollout)
    else:
        result = await asyncio.to_thread(function, rollout)
    value = await result if inspect.isawaitable(result) else result
    return None if value is None else checked_reward(value)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The score of one rollout."""

    value: float | None
    """None: it was not scored."""
    reason: str = ""
    """Why it got this score, or why it was not scored."""


class Scorer(Protocol):
    """Scores finished rollouts."""

    name: str
    """Of the rewards."""
    source: str
    """Who scores, for the records."""

    async def score(self, group: Sequence[RecordedRollout]) -> list[Judgement]:
        """Score the succeeded rollouts of a group, in their order. Raises an error if no rollout can be scored any more."""
        ...

    def counts(self) -> dict[str, float]:
        """Return metrics since the last call, under their names in `metrics.jsonl`."""
        ...
