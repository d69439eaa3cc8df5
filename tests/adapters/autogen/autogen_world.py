"""What the tests of the AutoGen adapter share: a store, the real gateway, rollouts opened by hand, and a model that follows a plan."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient

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
        rollout = Rollout(task=Task(str(number), number), mode="train", sampling=Sampling(max_tokens=200), max_attempts=1)
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
        """The `llm` spans, after checking that each names a call of its own, every call is named, and every parent is there."""
        records = await self.records(recorder)
        spans = await self.spans(recorder, "llm")
        assert not [span for span in records.spans if span.kind == "note"]
        assert [call.outcome for call in records.calls] == ["completed"] * requests
        assert sorted(span.call_id or "" for span in spans) == sorted(call.id for call in records.calls)
        assert {span.attempt_id for span in records.spans} == {recorder.attempt.id}
        ids = {span.id for span in records.spans}
        assert {span.parent_id for span in records.spans} - ids <= {None}
        return spans

    async def trajectory(self, recorder: Recorder, agents: Sequence[str] | None = None) -> Trajectory:
        """What the learner sees, after checking that requests = transitions + named remainder. Call it after the rollout."""
        state, records = await self.store.read(recorder.rollout.id)
        made = trajectory(state, records, agents=agents)
        assert sum(made.calls.values()) == len(records[-1].calls)
        assert made.calls.get("completed", 0) == len({each.call_id for each in made.transitions})
        sampled = {each.id: each for each in records[-1].completions}
        for each in made.transitions:
            assert each.rewards == ()
            assert each.response_ids.tolist() == sampled[each.completion_id].response_ids.tolist() != []
        return made


def planned(prompt: str, sampling: Sampling) -> str:
    """The system message of an agent says what it replies, turn by turn: `plan: first | second`. The last stands for all after it.
    What a selector of speakers asks is answered with the role that follows the one that spoke last."""
    if "Only return the role" in prompt:
        history = prompt.split("Only return the role.", 1)[1]
        return "critic" if "writer: " in history.rpartition("critic: ")[2] else "writer"
    plan = re.search(r"plan: (.*)", prompt)
    if plan is None:
        return "summary"
    steps = plan[1].removesuffix("<|im_end|>").split(" | ")
    return steps[min(prompt.count("<|im_start|>assistant") - 1, len(steps) - 1)]


def chat(recorder: Recorder, **settings: Any) -> OpenAIChatCompletionClient:
    """A model client as a user builds it from `agl.LLM`."""
    llm = recorder.llm
    info: Any = {"vision": False, "function_calling": True, "json_output": False, "family": "unknown", "structured_output": False}
    given = {"model": llm.model, "base_url": llm.base_url, "api_key": llm.api_key, "max_retries": 0, "model_info": info}
    return OpenAIChatCompletionClient(**{**given, **settings})


def asked(text: str = "question") -> list[Any]:
    return [UserMessage(content=text, source="user")]


def tree(spans: Iterable[Span]) -> dict[str, list[str]]:
    """Names of the spans below each span; `` stands for the top."""
    spans = sorted(spans, key=lambda span: span.started)
    names = {span.id: span.name for span in spans}
    below: dict[str, list[str]] = {}
    for span in spans:
        below.setdefault(names[span.parent_id] if span.parent_id else "", []).append(span.name)
    return below


def named(spans: Iterable[Span], name: str) -> Span:
    return next(span for span in spans if span.name == name)
