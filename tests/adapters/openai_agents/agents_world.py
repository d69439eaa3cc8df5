"""What the tests of the adapter for the OpenAI Agents SDK share: a store, the real gateway, and rollouts opened by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from agentlightning import recording
from agentlightning.gateway import Gateway
from agentlightning.memory import MemoryStore
from agentlightning.model import Rollout, Sampling, Span, Task, Trajectory
from agentlightning.recording import Recorder
from agentlightning.rl.trajectory import trajectory
from agentlightning.store import AttemptRecords


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
            with recording.use(recorder):
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
        """The `llm` spans, after checking that each names a call of its own, every call is named, and nothing was amiss."""
        records = await self.records(recorder)
        spans = await self.spans(recorder, "llm")
        assert [(call.outcome, call.detail) for call in records.calls] == [("completed", None)] * requests
        assert sorted(span.call_id or "" for span in spans) == sorted(call.id for call in records.calls)
        assert {span.attempt_id for span in spans} == {recorder.attempt.id}
        assert problems(records.spans) == []
        return spans

    async def trajectory(self, recorder: Recorder, agents: Sequence[str] | None = None) -> Trajectory:
        """What the learner sees, after checking that requests = transitions + named remainder. Call it after the rollout."""
        state, records = await self.store.read(recorder.rollout.id)
        made = trajectory(state, records, agents=agents)
        assert sum(made.calls.values()) == len(records[-1].calls)
        assert made.calls.get("completed", 0) == len({each.call_id for each in made.transitions})
        assert all(len(each.response_ids) and len(each.prompt_ids) for each in made.transitions)
        return made

    async def settled(self, recorder: Recorder, calls: int) -> AttemptRecords:
        """The records when so many requests have ended."""
        while len((await self.records(recorder)).calls) < calls:
            await asyncio.sleep(0.01)
        return await self.records(recorder)


def problems(spans: Sequence[Span]) -> list[str]:
    """What the adapter complains of."""
    return [span.name for span in spans if span.attributes.get("source") == "openai_agents"]


def tree(spans: Sequence[Span]) -> dict[str, list[str]]:
    """Names of the spans below each span; `` stands for the top."""
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in sorted(spans, key=lambda span: span.started):
        below.setdefault(names[span.parent_id] if span.parent_id else "", []).append(span.name)
    return below


def named(spans: Sequence[Span], name: str) -> Span:
    return next(span for span in spans if span.name == name)


class Prompt:
    """A prompt, read back."""

    def __init__(self, text: str) -> None:
        turns = [turn.partition("\n")[::2] for turn in text.split("<|im_start|>")[1:]]
        self.turns = [(role, said.partition("<|im_end|>")[0]) for role, said in turns[:-1]]
        self.system = next((said for role, said in self.turns if role == "system"), "")
        self.role, self.last = self.turns[-1]
        self.user = next((said for role, said in reversed(self.turns) if role == "user"), "")
        self.tools = re.findall(r"^(\w+)\(", self.system.partition("Tools:\n")[2], re.MULTILINE)


def reply(text: str, sampling: Sampling) -> Any:
    """Calls the first offered tool with 3 where the user asked, then answers."""
    prompt = Prompt(text)
    return f"CALL {prompt.tools[0]}(3)" if prompt.tools and prompt.role == "user" else f"the answer of: {prompt.last}"
