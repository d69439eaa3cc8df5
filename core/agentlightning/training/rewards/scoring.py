"""Scores the ended rollouts of a run, group by group, before their trajectories are read.

Each reward is recorded under the scorer's name, with a note of the reason. A rollout that cannot be scored gets a note alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from agentlightning.config.parts import named
from agentlightning.config.rewards import RewardTable
from agentlightning.config.schema import Config
from agentlightning.contracts.store import LightningStore, StoredRollout
from agentlightning.errors import ConfigError, RewardError
from agentlightning.registry.registry import load_object
from agentlightning.rl.trajectory.rollout_reward import RETURN
from agentlightning.training.rewards.function_reward import FunctionReward
from agentlightning.training.rewards.judge import Judge
from agentlightning.training.rewards.judge_cache import FILE, JudgeCache
from agentlightning.training.rewards.recorded_rollout import Judgement, RecordedRollout, RewardFunction, Scorer
from agentlightning.types import Record, Reward, Span


class Scoring:
    """Scores rollouts of a store with the `reward` of a config."""

    def __init__(self, store: LightningStore, scorer: Scorer, weights: Mapping[str, float]) -> None:
        """`weights`: `reward_weights` of the config."""
        self._store, self._scorer, self._weights = store, scorer, weights

    async def score(self, group: Sequence[StoredRollout]) -> dict[str, str]:
        """Score the succeeded rollouts of a group. Return the reason why a rollout has no reward, by its id.

        Raises `RewardError` for rollouts that their agent has rewarded under the same name.
        """
        rollouts = [
            RecordedRollout(state, records)
            for state, attempts in group
            for records in attempts
            if state.winner is not None and state.winner.status == "succeeded" and records.attempt.id == state.winner.id
        ]
        for rollout in rollouts:
            self._check(rollout)
        judgements = await self._scorer.score(rollouts)
        written: list[Record] = []
        for rollout, judgement in zip(rollouts, judgements, strict=True):
            written += self._records(rollout, judgement)
        if written:
            await self._store.record(written)
        return {rollout.id: judgement.reason for rollout, judgement in zip(rollouts, judgements, strict=True) if judgement.value is None}

    def counts(self) -> dict[str, float]:
        """Return the scorer's metrics since the last call."""
        return self._scorer.counts()

    def _check(self, rollout: RecordedRollout) -> None:
        """Raise `RewardError` if the new reward would contradict the agent's own, or would not count beside it."""
        own, name = rollout.rewards, self._scorer.name
        if name in own:
            raise RewardError(
                f"Rollout {rollout.id} has a reward {name!r} already, and {self._scorer.source} gives one of the same name. Emit the "
                "agent's reward under another name, or remove reward from the config."
            )
        if RETURN in own and name not in self._weights:
            raise RewardError(
                f"The agent returned {own[RETURN]:g} for rollout {rollout.id}, so the reward of {self._scorer.source} would not count. "
                f"Return None, or weigh both: reward_weights = {{ {RETURN} = 1.0, {name} = 1.0 }}."
            )

    def _records(self, rollout: RecordedRollout, judgement: Judgement) -> list[Record]:
        attempt, source, name = rollout.records.attempt.id, self._scorer.source, self._scorer.name
        told = judgement.reason if judgement.value is not None else f"not scored: {judgement.reason}"
        note = [Span(attempt_id=attempt, kind="note", name=f"{source}: {told}", attributes={"scorer": source})] if told else []
        reward = [] if judgement.value is None else [Reward(attempt_id=attempt, value=judgement.value, name=name, source=source)]
        return [*reward, *note]


def check_scorer(config: Config, group_size: int = 1, *, searches: bool = False) -> None:
    """Raise `ConfigError` if the `reward` of a config cannot score its rollouts. `group_size`: rollouts of a task in a training step.
    `searches`: the algorithm compares groups with different prompts."""
    if isinstance(config.scorer, str):
        load_function(config.scorer)
    elif config.scorer is not None:
        judge = config.scorer.judge
        judge.rubric_text()
        judge.key()
        if judge.relative:
            _check_relative(config, group_size, searches=searches)


@asynccontextmanager
async def open_scoring(config: Config, store: LightningStore, folder: Path) -> AsyncGenerator[Scoring | None]:
    """Open the scorer of a config; None: the agent or its program gives the rewards. `folder`: of the run, for the judge's cache."""
    if config.scorer is None:
        yield None
    elif isinstance(config.scorer, RewardTable):
        judge = Judge(config.scorer.judge, JudgeCache(folder / FILE), seed=config.seed)
        try:
            yield Scoring(store, judge, config.reward_weights)
        finally:
            await judge.close()
    else:
        yield Scoring(store, FunctionReward(load_function(config.scorer), config.scorer), config.reward_weights)


def load_function(reference: str) -> RewardFunction:
    """Return the reward function of a `module:function`. Raises `ConfigError` if it is none."""
    function = load_object(reference)
    if not callable(function):
        raise ConfigError(f"reward is {reference!r}, which is {function!r:.80}. Name a function of a recorded rollout.")
    return cast(RewardFunction, function)


def _check_relative(config: Config, group_size: int, *, searches: bool) -> None:
    """A relative judge compares training rollouts, and the mean of its rewards is the same in every group."""
    problem = None
    if config.replay is not None:
        problem = "but a replay's training rollouts keep the rewards of their store"
    elif searches:
        problem = f"but algorithm {config.algorithm['name']!r} compares the rewards of different prompts"
    elif group_size < 2:
        problem = f"but algorithm.group_size is {group_size}"
    elif config.sampler == "curriculum":
        problem = 'but sampler = "curriculum" compares the rewards of different tasks'
    elif named(config.collection.filter) == "'difficulty'":
        problem = 'but collection.filter = "difficulty" compares the rewards of different tasks'
    if problem is not None:
        raise ConfigError(
            f"reward.judge.relative is true, {problem}. The judge ranks the rollouts of a group against each other; remove one of them."
        )
