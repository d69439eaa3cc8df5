"""Writes imported traces into a store as demonstrations, in the tokens that a model would use for them.

Nothing was sampled, so each completion is marked as demonstrated and has no log-probabilities. The gateway renders and records every call,
as it does for the demonstrations of a run. A reply that this model would read back otherwise is refused by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, cast

import httpx

from agentlightning.contracts.engine import Chunk, Engine, EngineInfo
from agentlightning.contracts.model import ModelFiles
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import EngineError, NotFound
from agentlightning.gateway.server import gateway_app
from agentlightning.records.traces.conversation import ImportedCall, ImportedTrace, Message, Unread
from agentlightning.types import JSON, Attempt, IntArray, Policy, Reward, Rollout, Sampling, Span, Task

WORKER = "agl store import-traces"
LEASE = 600.0
"""Seconds for one trace."""
CONTEXT = 2**31 - 1
"""Tokens of a conversation: the trainer says what is too long for it."""


@dataclass(slots=True)
class Imported:
    """What was written."""

    rollouts: int = 0
    calls: int = 0
    present: int = 0
    """Traces that an earlier import wrote."""
    scored: int = 0
    """Those of them that had no reward until now."""
    unscored: int = 0
    """Traces without a reward."""
    unread: list[Unread] = field(default_factory=list[Unread])


def task_of(trace: ImportedTrace) -> Task:
    """Return the task of a trace: the input of the run, or the messages of its first call."""
    return Task(trace.id, cast(JSON, {"messages": trace.calls[0].messages}) if trace.input is None else trace.input)


async def write_demonstrations(
    traces: Sequence[ImportedTrace], store: LightningStore, model: ModelFiles, *, reward: float | None = None
) -> Imported:
    """Write traces as training rollouts that succeeded. `reward`: of those that have none. Repeated, it adds only what is missing."""
    writer = _Writer(store, model, reward)
    for trace in traces:
        await writer.write(trace)
    return writer.imported


class _Writer:
    def __init__(self, store: LightningStore, model: ModelFiles, reward: float | None) -> None:
        self._store, self._model, self._reward = store, model, reward
        self._reply: Message = {}
        """Answers the call that is being written."""
        app = gateway_app(store, _NoEngine(model), demonstrate=lambda task, messages, tools: self._reply)
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1", timeout=LEASE)
        self.imported = Imported()

    async def write(self, trace: ImportedTrace) -> None:
        text = json.dumps([trace.id, self._model.path, [[call.messages, call.reply, call.tools] for call in trace.calls]], sort_keys=True)
        rollout = Rollout(
            id=hashlib.sha256(text.encode()).hexdigest()[:32], task=task_of(trace), mode="train", sampling=Sampling(), max_attempts=1
        )
        value = self._reward if trace.reward is None else trace.reward
        if await self._is_present(rollout.id, value):
            return
        attempt = await self._store.begin(rollout, WORKER, lease=LEASE)
        written = await self._calls(trace.calls, attempt)
        if not written:
            await self._store.finish(attempt.id, "failed", error="no call could be imported")
            await self._store.delete([rollout.id])
            return
        note = f"Imported from {trace.where}. The replies were tokenised with the renderer of {self._model.name!r}; nothing was sampled."
        rewards = [] if value is None else [Reward(attempt_id=attempt.id, value=value, source="import")]
        await self._store.record([Span(attempt_id=attempt.id, kind="note", name=note), *rewards])
        await self._store.finish(attempt.id, "succeeded")
        self.imported.rollouts += 1
        self.imported.calls += written
        self.imported.unscored += value is None

    async def _is_present(self, id: str, value: float | None) -> bool:
        """Return whether an earlier import wrote a trace to its end. It gets its reward if it had none. What an interrupted import left is
        removed."""
        try:
            state, attempts = await self._store.read(id)
        except NotFound:
            return False
        if state.status != "succeeded" or state.winner is None:
            await self._store.cancel([id])
            await self._store.delete([id])
            return False
        scored = any(records.rewards for records in attempts)
        if not scored and value is not None:
            await self._store.record([Reward(attempt_id=state.winner.id, value=value, source="import")])
        self.imported.present += 1
        self.imported.scored += not scored and value is not None
        self.imported.unscored += not scored and value is None
        return True

    async def _calls(self, calls: Sequence[ImportedCall], attempt: Attempt) -> int:
        """Write the calls of a trace, and return how many could be."""
        written = 0
        for call in calls:
            self._reply = call.reply
            body = {"model": self._model.name, "messages": call.messages, **({"tools": call.tools} if call.tools else {})}
            response = await self._client.post("/v1/chat/completions", json=body, headers={"authorization": f"Bearer {attempt.key}"})
            if response.status_code != 200:
                self.imported.unread.append(Unread(call.where, response.json()["error"]["message"]))
                continue
            written += 1
        return written


class _NoEngine(Engine):
    """Has a model's tokenizer and samples nothing."""

    def __init__(self, model: ModelFiles) -> None:
        self.info = EngineInfo(model.name, model.path, CONTEXT)
        self.policy = Policy(version=-1, base=model.name, uri=f"file:{model.path}")

    def generate(self, prompt_ids: IntArray, sampling: Sampling, *, rollout: str | None = None) -> AsyncIterator[Chunk]:
        self._refuse()

    async def load(self, policy: Policy) -> dict[str, float]:
        self._refuse()

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...

    def _refuse(self) -> NoReturn:
        raise EngineError("An import samples nothing. Give every call its reply.")
