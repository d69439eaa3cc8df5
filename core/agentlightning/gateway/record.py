"""The record of one call: a `Call`, and a `Completion` for each sampled reply, written once and together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.contracts.store import LightningStore
from agentlightning.gateway.api.sent import Sent
from agentlightning.gateway.auth import AttemptState, Incoming
from agentlightning.gateway.conversation import History
from agentlightning.gateway.generation import Generation
from agentlightning.gateway.rendering.demonstration import DemonstratingEngine
from agentlightning.types import Call, CallStatus, Completion, ints


def _no_completions(status: CallStatus) -> list[Completion]:
    return []


@dataclass(frozen=True, slots=True)
class Draft:
    """The record of a call as far as its answer has come. Each step of an answer makes a fuller one."""

    history: History | None = None
    sent: Sent | None = None
    tools: int = 0
    context: str | None = None
    completions: Callable[[CallStatus], list[Completion]] = _no_completions
    """The replies so far, for a call that ends with this status."""


class Recording:
    """Writes the record of one call."""

    def __init__(self, store: LightningStore, incoming: Incoming) -> None:
        self.status: CallStatus = "error"
        self.detail: str | None = None
        self._store, self._incoming = store, incoming
        self._task: asyncio.Task[None] | None = None

    async def write(self, draft: Draft, status: CallStatus, detail: str | None = None) -> None:
        """Write the call and its completions. A second call waits for the first and changes nothing, unless the first failed."""
        if status in ("cancelled", "error"):  # at once: a retry may come while the store writes
            self._incoming.seen.delivered = False
        if self._task is None:
            self.status, self.detail = status, detail
            self._task = asyncio.create_task(self._write(draft, status, detail))
        try:
            # shielded: a server that stops must not leave a call half recorded
            await asyncio.shield(self._task)
        except Exception:
            self._task = None
            raise

    async def _write(self, draft: Draft, status: CallStatus, detail: str | None) -> None:
        incoming, history = self._incoming, draft.history
        state, seen = incoming.state, incoming.seen
        seen.request_hash = "" if history is None else history.request_hash
        superseded = state.retried(seen) if incoming.is_retry else None
        completions = [] if status == "refused" else draft.completions(status)
        call = Call(
            id=seen.id,
            attempt_id=state.attempt.id,
            index=incoming.index,
            status=status,
            detail=detail,
            choices=len(completions),
            supersedes=None if superseded is None else superseded.id,
            request_hash=seen.request_hash,
            context=draft.context,
            tools=draft.tools,
            **_sent_fields(draft, status, state),
            started=incoming.started,
            ended=time.time(),
        )
        await self._store.record([*completions, call])
        if superseded is not None:
            superseded.superseded = True
        seen.delivered = seen.delivered and status in ("completed", "refused")
        state.add(call, completions, 0 if history is None else len(history.messages[0]))


def _sent_fields(draft: Draft, status: CallStatus, state: AttemptState) -> dict[str, Any]:
    """The fields of the call that hold its messages and tools."""
    if draft.sent is None:
        return {}
    sent, history = draft.sent, draft.history
    hashes = history.chains[0].hashes if history is not None and len(history.chains) == 1 else ()
    after, messages = state.messages.quote(sent.messages, hashes)
    tools_from, schemas = state.messages.quote_tools(sent.tools)
    start = sent.thread_start if status == "completed" else None
    return {"after": after, "messages": messages, "tools_from": tools_from, "tool_schemas": schemas, "thread_start": start}


def sampled_completions(
    incoming: Incoming, generation: Generation, status: CallStatus, messages: Sequence[dict[str, Any]] | None = None
) -> list[Completion]:
    """The replies of an engine as they are recorded. `messages`: what they say, where it was read already."""
    completions: list[Completion] = []
    for choice, reply in enumerate(generation.replies):
        message = reply.message() if messages is None else messages[choice]
        finish = "tool_calls" if reply.finish == "stop" and message.get("tool_calls") else reply.finish
        place = generation.prompt_of(choice)
        continues = generation.prompts[place].continues
        completions.append(
            Completion(
                id=reply.id,
                call_id=incoming.seen.id,
                attempt_id=incoming.state.attempt.id,
                choice=choice,
                policy=generation.policy,
                prompt_ids=reply.prompt_ids,
                response_ids=ints(reply.ids),
                logprobs=reply.logprobs,
                versions=reply.versions,
                sampling=reply.sampling,
                finish_reason=finish or ("cancelled" if status == "cancelled" else "error"),
                renderer=generation.rendering.name,
                tokenizer=generation.rendering.hash,
                continues=None if continues is None else continues.id,
                conversation=generation.history.conversation(place, message),
                message=message,
                problem=reply.problem,
                demonstrated=isinstance(generation.engine, DemonstratingEngine),
            )
        )
    return completions
