"""A store, the real gateway and a scripted engine, for tests of adapters. Needs `agentlightning[serve]`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from os import PathLike

from agentlightning.capture.recorder import Recorder, use
from agentlightning.config.parts import build_step_rewards
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.contracts.store import AttemptRecords, LightningStore
from agentlightning.gateway import Gateway
from agentlightning.rl.trajectory.build import trajectory
from agentlightning.stores.common import open_store
from agentlightning.testing.engine import Script, ScriptedEngine
from agentlightning.types import Rollout, Sampling, Span, Task, Trajectory


@asynccontextmanager
async def open_world(
    tokenizer: str | PathLike[str], script: Script, *, delay: float = 0.0, policies: PolicyChoice | None = None
) -> AsyncGenerator[World]:
    """Open a world in which `script` is the model. `tokenizer` is a folder of `agentlightning.testing.tokenizer.make_tokenizer`, and
    `delay` the seconds before each piece of a reply. `policies` all reply from the script, and the records name them."""
    store = open_store("memory:")
    engine = ScriptedEngine(tokenizer, script, chunk=16, delay=delay, context_length=16384)
    gateway = Gateway(store, engine, policies=policies or PolicyChoice())
    await gateway.start()
    try:
        yield World(store, gateway)
    finally:
        await gateway.stop()
        await store.close()


class World:
    """A store, a gateway, and rollouts that a test opens itself."""

    def __init__(self, store: LightningStore, gateway: Gateway) -> None:
        self.store, self.gateway = store, gateway

    @asynccontextmanager
    async def rollout(self, number: int = 0) -> AsyncGenerator[Recorder]:
        """Open a rollout that is current for the block, and succeeds at its end."""
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
        """Return all that the attempt wrote so far."""
        await recorder.flush()
        return await self.store.records(recorder.attempt.id)

    async def spans(self, recorder: Recorder, kind: str | None = None) -> list[Span]:
        """Return the spans of a kind, in order of their start."""
        spans = [span for span in (await self.records(recorder)).spans if kind is None or span.kind == kind]
        return sorted(spans, key=lambda span: span.started)

    async def joined(self, recorder: Recorder, requests: int) -> list[Span]:
        """Return the `llm` spans. Checks that each names a call of its own, that no call is left, that every parent exists, and that the
        adapter has no complaints."""
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
        """Return the trajectory that the learner sees. Call it after the rollout. `facts` is the `step_rewards` of the configuration.

        Checks that every request became transitions or stands in a named remainder, with the exact tokens.
        """
        state, records = await self.store.read(recorder.rollout.id)
        learned = trajectory(state, records, agents=agents, step_rewards=build_step_rewards(facts))
        assert sum(learned.calls.values()) == len(records[-1].calls)
        assert learned.calls.get("completed", 0) == len({transition.call_id for transition in learned.transitions})
        sampled = {completion.id: completion for completion in records[-1].completions}
        for transition in learned.transitions:
            completion = sampled[transition.completion_id]
            assert transition.response_ids.tolist() == completion.response_ids.tolist() != []
            assert transition.prompt_ids.tolist() == completion.prompt_ids.tolist() != []
        return learned

    async def settled(self, recorder: Recorder, calls: int) -> AttemptRecords:
        """Return the records when so many requests have ended."""
        while len((await self.records(recorder)).calls) < calls:  # noqa: ASYNC110 (a store tells nobody of records)
            await asyncio.sleep(0.01)
        return await self.records(recorder)


def problems(spans: Iterable[Span]) -> list[str]:
    """Return the complaints of an adapter: notes that name it as their source."""
    return [span.name for span in spans if span.kind == "note" and "source" in span.attributes]
