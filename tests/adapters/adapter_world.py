"""What the tests of the adapters share: a store, the real gateway, and rollouts opened by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.tables import build_step_rewards
from agentlightning.contracts.store import AttemptRecords
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.memory import MemoryStore
from agentlightning.types import Rollout, Sampling, Span, Task, Trajectory


class World:
    def __init__(self, store: MemoryStore, gateway: Gateway) -> None:
        self.store, self.gateway = store, gateway

    @asynccontextmanager
    async def rollout(self, number: int = 0) -> AsyncIterator[Recorder]:
        """A rollout that is current for the block, and succeeds at its end."""
        rollout = Rollout(task=Task(str(number), number), mode="train", sampling=Sampling(max_tokens=400), max_attempts=1)
        attempt = await self.store.begin(rollout, "test", lease=60)
        recorder = Recorder(self.store, rollout, attempt, self.gateway.llm(attempt))
        try:
            with use(recorder):
                yield recorder
        finally:
            await recorder.close()
            await self.store.finish(attempt.id, "succeeded")

    async def records(self, recorder: Recorder) -> AttemptRecords:
        await recorder.flush()
        return await self.store.records(recorder.attempt.id)

    async def spans(self, recorder: Recorder, kind: str | None = None) -> list[Span]:
        """In order of their start."""
        spans = [span for span in (await self.records(recorder)).spans if kind is None or span.kind == kind]
        return sorted(spans, key=lambda span: span.started)

    async def joined(self, recorder: Recorder, requests: int) -> list[Span]:
        """The `llm` spans, after checking that each names a call of its own, every call is named, every parent is there, and that the
        adapter complains of nothing."""
        records = await self.records(recorder)
        spans = await self.spans(recorder, "llm")
        assert problems(records.spans) == []
        assert [(call.status, call.detail) for call in records.calls] == [("completed", None)] * requests
        assert sorted(span.call_id or "" for span in spans) == sorted(call.id for call in records.calls)
        assert {span.attempt_id for span in records.spans} == {recorder.attempt.id}
        ids = {span.id for span in records.spans}
        assert {span.parent_id for span in records.spans} - ids <= {None}
        return spans

    async def trajectory(self, recorder: Recorder, agents: Sequence[str] | None = None, **facts: float) -> Trajectory:
        """What the learner sees, after checking that requests = transitions + named remainder, with the exact tokens. Call it after the
        rollout. `facts`: the configuration's `step_rewards`."""
        state, records = await self.store.read(recorder.rollout.id)
        made = trajectory(state, records, agents=agents, step_rewards=build_step_rewards(facts))
        assert sum(made.calls.values()) == len(records[-1].calls)
        assert made.calls.get("completed", 0) == len({each.call_id for each in made.transitions})
        sampled = {each.id: each for each in records[-1].completions}
        for each in made.transitions:
            assert each.response_ids.tolist() == sampled[each.completion_id].response_ids.tolist() != []
            assert each.prompt_ids.tolist() == sampled[each.completion_id].prompt_ids.tolist() != []
        return made

    async def settled(self, recorder: Recorder, calls: int) -> AttemptRecords:
        """The records when so many requests have ended."""
        while len((await self.records(recorder)).calls) < calls:
            await asyncio.sleep(0.01)
        return await self.records(recorder)


def problems(spans: Iterable[Span]) -> list[str]:
    """What an adapter complains of; its notes name it as their source."""
    return [span.name for span in spans if span.kind == "note" and "source" in span.attributes]


def tree(spans: Iterable[Span]) -> dict[str, list[str]]:
    """Names of the spans below each span; `` stands for the top."""
    spans = sorted(spans, key=lambda span: span.started)
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in spans:
        below.setdefault(names[span.parent_id] if span.parent_id else "", []).append(span.name)
    return below


def earned(made: Trajectory) -> list[list[tuple[str, float]]]:
    """Names and values of the rewards of each transition."""
    return [[(reward.name, reward.value) for reward in each.rewards] for each in made.transitions]


def named(spans: Iterable[Span], name: str) -> Span:
    return next(span for span in spans if span.name == name)
