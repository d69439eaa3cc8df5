"""What the tests of the LangChain adapter share: a store, the real gateway, and rollouts opened by hand."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from langchain_openai import ChatOpenAI

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
        """The `llm` spans, after checking that each names a call of its own and every call is named."""
        records = await self.records(recorder)
        spans = await self.spans(recorder, "llm")
        assert [call.outcome for call in records.calls] == ["completed"] * requests
        assert sorted(span.call_id or "" for span in spans) == sorted(call.id for call in records.calls)
        assert {span.attempt_id for span in spans} == {recorder.attempt.id}
        assert not [span for span in records.spans if span.kind == "note"]
        return spans

    async def trajectory(self, recorder: Recorder, agents: Sequence[str] | None = None) -> Trajectory:
        """What the learner sees, after checking that requests = transitions + named remainder. Call it after the rollout."""
        state, records = await self.store.read(recorder.rollout.id)
        made = trajectory(state, records, agents=agents)
        assert sum(made.calls.values()) == len(records[-1].calls)
        assert made.calls.get("completed", 0) == len({each.call_id for each in made.transitions})
        return made


def reply(prompt: str, sampling: Sampling) -> str:
    """Calls the first offered tool once, then answers."""
    if prompt.endswith("("):  # made to call a tool
        return "3"
    asked = prompt.rsplit("<|im_start|>user\n", 1)[-1]
    if "Tools:\n" in prompt and "CALL" not in asked:
        return f"CALL {prompt.split('Tools:' + chr(10), 1)[1].split('(', 1)[0]}(3)"
    return "the answer is 3"


def chat(recorder: Recorder, **settings: Any) -> ChatOpenAI:
    """A model as a user builds it from `agl.LLM`."""
    llm = recorder.llm
    return ChatOpenAI(**{"model": llm.model, "base_url": llm.base_url, "api_key": llm.api_key, "max_retries": 0, **settings})


def question(number: int = 0) -> Any:
    return {"messages": [("user", f"question {number}")]}


def names(spans: Collection[Span]) -> list[str | None]:
    return sorted(span.agent or "" for span in spans)


@asynccontextmanager
async def serve(app: Any) -> AsyncIterator[str]:
    """Run an ASGI app in a thread of its own; gives its address."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 5)
