"""Scores stored rollouts again with another reward function. Rewards are appended, never edited: of one name the later counts."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agentlightning.contracts.store import LightningStore
from agentlightning.errors import JudgeError, RewardError
from agentlightning.rl.trajectory.rollout_reward import EMITTED, RETURN, rollout_reward
from agentlightning.training.rewards.agreement import Labelled, label_names, label_of
from agentlightning.training.rewards.judge import together
from agentlightning.training.rewards.recorded_rollout import RecordedRollout, RewardFunction, attempt_rewards, call_reward_function
from agentlightning.types import Mode, Reward

PAGE = 64
"""Rollouts whose rewards are written at once."""
LARGEST = 10
"""Changes that a report keeps."""


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
    labelled: list[Labelled] = field(default_factory=list[Labelled])
    """Each scored rollout beside its label, if labels were named."""
    label_names: set[str] = field(default_factory=set[str])
    """The labels that scored rollouts have, if labels were named."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescoring:
    """How rollouts are scored again."""

    function: RewardFunction
    source: str
    """Who scored, in the records."""
    name: str | None = None
    """Of the new rewards; None: the name that the rollout's reward has, so that the new one replaces it."""
    own_name: str | None = None
    """The name under which the function scores in a run; None: a function that names none."""
    weights: Mapping[str, float] | None = None
    """Of the named rewards, as `reward_weights` in a config."""
    labels: str | None = None
    """Names the labels to compare with, as in `label_of`."""


async def rescore(
    store: LightningStore,
    how: Rescoring,
    *,
    mode: Mode | None = None,
    step: int | None = None,
    write: bool = True,
    report: Callable[[int], None] = lambda count: None,
) -> Rescored:
    """Score the succeeded rollouts of a store again, and append each reward that differs.

    Without `write`, only the report is made. The rollouts of a page are scored at once. Raises `RewardError` if the function fails; rewards
    of earlier pages stay.
    """
    rescored, cursor = Rescored(), 0
    while True:
        states, cursor = await store.list(after=cursor, limit=PAGE, mode=mode, step=step)
        if not states:
            return rescored
        rewards: list[Reward] = []
        winners = [(state, winner) for state in states if (winner := state.winner) is not None and winner.status == "succeeded"]
        rescored.other += len(states) - len(winners)
        page = [RecordedRollout(state, await store.records(winner.id)) for state, winner in winners]
        scores = await together([_score(recorded, how.function, how.source) for recorded in page])
        for recorded, score in zip(page, scores, strict=True):
            names = [how.name] if how.name is not None else _names(recorded, how.own_name)
            new = _new_rewards(recorded, score, how.source, names)
            own = attempt_rewards(recorded.records)
            rescored.add(recorded.id, _counted(own, how.weights), _counted([*own, *new], how.weights))
            if how.labels is not None:
                rescored.labelled.append(Labelled(recorded.state.rollout.task.id, score, label_of(recorded, how.labels)))
                rescored.label_names |= label_names(recorded)
            rewards += new
        rescored.appended += len(rewards)
        if write and rewards:
            await store.record(rewards)
        report(rescored.rollouts + rescored.other)


async def _score(recorded: RecordedRollout, function: RewardFunction, source: str) -> float | None:
    try:
        return await call_reward_function(function, recorded)
    except JudgeError:
        raise
    except Exception as error:
        raise RewardError(f"{source} failed for rollout {recorded.id}: {type(error).__name__}: {error}. Fix it and score again.") from error


def _names(recorded: RecordedRollout, own_name: str | None) -> list[str]:
    """The names that the rollout's reward has; `reward` without one."""
    usual = own_name or EMITTED
    return [name for name in dict.fromkeys((RETURN, EMITTED, usual)) if name in recorded.rewards] or [usual]


def _new_rewards(recorded: RecordedRollout, score: float | None, source: str, names: Sequence[str]) -> list[Reward]:
    """Return the rewards to append: one under each name whose value changes."""
    if score is None:
        return []
    earlier, attempt_id = recorded.rewards, recorded.records.attempt.id
    return [Reward(attempt_id=attempt_id, value=score, name=name, source=source) for name in names if earlier.get(name) != score]


def _counted(rewards: Sequence[Reward], weights: Mapping[str, float] | None) -> float | None:
    """The rollout's reward; None: not scored, or its rewards contradict each other."""
    try:
        return rollout_reward(rewards, status="succeeded", weights=weights)[0]
    except RewardError:
        return None
