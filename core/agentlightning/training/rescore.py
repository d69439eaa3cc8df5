"""Scores stored rollouts again with another reward function. Rewards are appended, never edited: of one name the later counts."""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from agentlightning.capture.recorder import checked_reward
from agentlightning.contracts.store import AttemptRecords, LightningStore, RolloutState
from agentlightning.errors import RewardError
from agentlightning.rl.trajectory.rollout_reward import EMITTED, RETURN, rollout_reward
from agentlightning.types import JSON, Mode, Reward

PAGE = 64
"""Rollouts whose rewards are written at once."""
LARGEST = 10
"""Changes that a report keeps."""


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
    def answer(self) -> str:
        """The text of the last reply; empty without one."""
        last: Any = self.replies[-1] if self.replies else None
        content: Any = cast(Any, last).get("content") if type(last) is dict else None
        return content if isinstance(content, str) else ""

    @property
    def rewards(self) -> dict[str, float]:
        """The rewards of the rollout by name. Of one name the last counts."""
        return {reward.name: reward.value for reward in _own(self.records)}


RewardFunction: TypeAlias = Callable[[RecordedRollout], "float | Awaitable[float | None] | None"]
"""Returns the new reward; None leaves the rollout as it is."""


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """The reward of a rollout before and after."""

    size: float
    rollout_id: str
    before: float | None
    after: float | None


@dataclass(slots=True)
class Rescored:
    """What a new reward function changes."""

    rollouts: int = 0
    """Succeeded rollouts that the function scored, or left as they are."""
    other: int = 0
    """Rollouts that did not succeed, or are in progress. They keep their reward."""
    changed: int = 0
    appended: int = 0
    """Rewards that were recorded, or would be."""
    before: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """Sum and number of the rewards before."""
    after: list[float] = field(default_factory=lambda: [0.0, 0.0])
    largest: list[Change] = field(default_factory=list[Change])
    """The largest changes, the largest first."""

    def add(self, rollout_id: str, before: float | None, after: float | None) -> None:
        """Count a rollout."""
        self.rollouts += 1
        for sums, value in ((self.before, before), (self.after, after)):
            if value is not None:
                sums[0] += value
                sums[1] += 1
        if before != after:
            self.changed += 1
            change = Change(abs((after or 0.0) - (before or 0.0)), rollout_id, before, after)
            self.largest = heapq.nlargest(LARGEST, [*self.largest, change], key=lambda change: (change.size, change.rollout_id))


async def rescore(
    store: LightningStore,
    function: RewardFunction,
    *,
    source: str,
    name: str | None = None,
    weights: Mapping[str, float] | None = None,
    mode: Mode | None = None,
    step: int | None = None,
    write: bool = True,
    report: Callable[[int], None] = lambda count: None,
) -> Rescored:
    """Score the succeeded rollouts of a store with a function, and append each reward that differs.

    `name`: of the new rewards; None: the name that the rollout's reward has, so that the new one replaces it. `source`: who scored.
    `weights`: of the named rewards, as `reward_weights` in a config. Without `write`, only the report is made.

    Raises `RewardError` if the function fails; rewards of earlier pages stay.
    """
    rescored, cursor = Rescored(), 0
    while True:
        states, cursor = await store.list(after=cursor, limit=PAGE, mode=mode, step=step)
        if not states:
            return rescored
        rewards: list[Reward] = []
        for state in states:
            winner = state.winner
            if winner is None or winner.status != "succeeded":
                rescored.other += 1
                continue
            recorded = RecordedRollout(state, await store.records(winner.id))
            new = await _new_rewards(recorded, function, source, name)
            own = _own(recorded.records)
            rescored.add(state.rollout.id, _counted(own, weights), _counted([*own, *new], weights))
            rewards += new
        rescored.appended += len(rewards)
        if write and rewards:
            await store.record(rewards)
        report(rescored.rollouts + rescored.other)


async def _new_rewards(recorded: RecordedRollout, function: RewardFunction, source: str, name: str | None) -> list[Reward]:
    """Return the rewards to append: one under each name whose value changes."""
    try:
        result = function(recorded)
        value = await result if inspect.isawaitable(result) else result
        number = None if value is None else checked_reward(value)
    except Exception as error:
        raise RewardError(f"{source} failed for rollout {recorded.id}: {type(error).__name__}: {error}. Fix it and score again.") from error
    if number is None:
        return []
    earlier = recorded.rewards
    names = [name] if name is not None else [known_name for known_name in (RETURN, EMITTED) if known_name in earlier] or [EMITTED]
    attempt_id = recorded.records.attempt.id
    changed = [label for label in names if earlier.get(label) != number]
    return [Reward(attempt_id=attempt_id, value=number, name=label, source=source) for label in changed]


def _own(records: AttemptRecords) -> list[Reward]:
    """The rewards of the attempt itself."""
    return [reward for reward in records.rewards if reward.span_id is None and reward.call_id is None]


def _counted(rewards: Sequence[Reward], weights: Mapping[str, float] | None) -> float | None:
    """The rollout's reward; None: not scored, or its rewards contradict each other."""
    try:
        return rollout_reward(rewards, status="succeeded", weights=weights)[0]
    except RewardError:
        return None
