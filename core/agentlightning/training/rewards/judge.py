"""A judge: a model that scores rollouts by a rubric, or ranks those of a group.

A rollout that the judge cannot score has no reward, which differs from 0. What was asked once is not asked again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from agentlightning.config.rewards import JudgeSettings
from agentlightning.errors import RewardError
from agentlightning.training.rewards.judge_cache import JudgeCache, request_hash
from agentlightning.training.rewards.judge_endpoint import JudgeEndpoint
from agentlightning.training.rewards.judge_prompt import SCORE_SCHEMA, Messages, labels, rank_messages, rank_schema, score_messages, work_of
from agentlightning.training.rewards.judge_reply import read_ranks, read_score
from agentlightning.training.rewards.recorded_rollout import Judgement, RecordedRollout
from agentlightning.types import JSON

T = TypeVar("T")
Row = dict[str, JSON]
"""A judgement as the cache keeps it."""


class Judge:
    """Scores finished rollouts with a model."""

    name = "judge"

    def __init__(self, settings: JudgeSettings, cache: JudgeCache, *, seed: int = 0) -> None:
        """`seed`: of the order in which a relative judge sees the rollouts of a group. Raises `ConfigError` for a missing key or rubric."""
        self._settings, self._rubric, self._cache, self._seed = settings, settings.rubric_text(), cache, seed
        self._endpoint = JudgeEndpoint(settings, settings.key())
        self.source = f"judge:{settings.model}"
        self._asking: dict[str, asyncio.Task[Row]] = {}
        """Requests in flight, by their hash."""
        self._counts = Counter[str]()

    async def score(self, group: Sequence[RecordedRollout]) -> list[Judgement]:
        """Score rollouts one by one. A relative judge ranks those of a training group.

        Raises `JudgeError` if the endpoint does not answer.
        """
        if self._settings.relative and group and group[0].state.rollout.mode == "train":
            return await self._rank(group)
        return await together([self._grade(rollout) for rollout in group])

    def counts(self) -> dict[str, float]:
        counts, self._counts = self._counts, Counter[str]()
        return {f"judge.{name}": float(count) for name, count in sorted(counts.items())}

    async def close(self) -> None:
        await self._endpoint.close()

    async def _grade(self, rollout: RecordedRollout) -> Judgement:
        low, high = self._settings.scale
        try:
            work = work_of(rollout, self._settings.sees)
            messages = score_messages(self._rubric, rollout.task, work, self._settings.scale)
            row = await self._judged(messages, SCORE_SCHEMA, partial(read_score, low=low, high=high))
        except RewardError as error:
            return self._unscored(str(error))
        return Judgement((float(cast(float, row["score"])) - low) / (high - low), str(row["reason"]))

    async def _rank(self, group: Sequence[RecordedRollout]) -> list[Judgement]:
        """Rank the rollouts of a group. Equal works are shown once, so they tie."""
        works: dict[int, str] = {}
        judgements: dict[int, Judgement] = {}
        for place, rollout in enumerate(group):
            try:
                works[place] = work_of(rollout, self._settings.sees)
            except RewardError as error:
                judgements[place] = self._unscored(str(error))
        if len(works) == 1:
            judgements |= {
                place: self._unscored("A relative judge compares rollouts, and this one is alone in its group.") for place in works
            }
        elif works:
            judgements |= await self._compare(group[0], works)
        return [judgements[place] for place in range(len(group))]

    async def _compare(self, first: RecordedRollout, works: dict[int, str]) -> dict[int, Judgement]:
        distinct = shuffled(list(dict.fromkeys(works.values())), f"{self._seed}/{first.state.rollout.group}/{first.state.rollout.task.id}")
        reason, ranks = "all works are equal", {distinct[0]: 1.0}
        if len(distinct) > 1:
            names = labels(len(distinct))
            try:
                messages = rank_messages(self._rubric, first.task, distinct)
                row = await self._judged(messages, rank_schema(names), partial(read_ranks, labels=names))
            except RewardError as error:
                return {place: self._unscored(str(error)) for place in works}
            by_name = cast("dict[str, float]", row["ranks"])
            reason, ranks = str(row["reason"]), {work: by_name[name] for name, work in zip(names, distinct, strict=True)}
        rewards = rank_rewards([ranks[work] for work in works.values()])
        return {place: Judgement(reward, reason) for place, reward in zip(works, rewards, strict=True)}

    async def _judged(self, messages: Messages, schema: JSON, read: Callable[[str], Row]) -> Row:
        """Return the judgement of a request: from the cache, from a request in flight, or from the endpoint."""
        request = request_hash(self._settings.base_url, self._settings.model, messages)
        cached = self._cache.get(request)
        if cached is not None:
            self._counts["cached"] += 1
            return cached
        if request in self._asking:
            self._counts["cached"] += 1
            return await asyncio.shield(self._asking[request])
        self._counts["asked"] += 1
        task = self._asking[request] = asyncio.create_task(self._ask(request, messages, schema, read))
        try:
            return await task
        finally:
            del self._asking[request]

    async def _ask(self, request: str, messages: Messages, schema: JSON, read: Callable[[str], Row]) -> Row:
        row = await self._endpoint.ask(messages, schema, read)
        self._cache.keep(request, row)
        return row

    def _unscored(self, reason: str) -> Judgement:
        self._counts["unscored"] += 1
        return Judgement(None, reason)


def rank_rewards(ranks: Sequence[float]) -> list[float]:
    """Return rewards from 1 (the lowest rank, which is the best) to 0. Ties share the mean of their places, so the mean of all is 1/2."""
    values = np.asarray(ranks, dtype=np.float64)
    better = (values[None, :] < values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1) - 1
    return (1 - (better + equal / 2) / (len(values) - 1)).tolist()


def shuffled(items: list[str], seed: str) -> list[str]:
    """Return the items in an order that follows from the seed, and not from their own."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return [items[place] for place in np.random.default_rng(number).permutation(len(items))]


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results in order. The first error cancels the rest."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*cast("list[Awaitable[T]]", tasks), return_exceptions=True)
