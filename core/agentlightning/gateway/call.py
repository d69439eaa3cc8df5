"""One call from its first byte to its last: find its attempt, answer it, record it.

Every request of a known attempt ends as one `Call` in the store, with a `Completion` for each sampled choice, before the last byte of its
answer leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from agentlightning.contracts.engine import Engine
from agentlightning.contracts.policies import PolicyChoice
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ConfigError, ContextOverflow
from agentlightning.gateway.api.answers import client_gone, part, send_json, start
from agentlightning.gateway.api.body import MAX_BODY, read_body
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import AttemptState, Callers, Incoming, Seen
from agentlightning.gateway.record import Draft, Recording
from agentlightning.gateway.sampling import overridden
from agentlightning.telemetry.logs import set_log_ids
from agentlightning.types import AttemptStatus, CallStatus

log = logging.getLogger("agentlightning.gateway")
ENDS: Mapping[CallStatus, AttemptStatus] = {"completed": "succeeded", "cancelled": "cancelled", "refused": "failed", "error": "failed"}
"""How the attempt of a production call ends."""
TELLING = 1.0
"""Seconds to tell a client that its call was cancelled."""
ONE_POLICY = PolicyChoice()
MAX_TOPICS = 500
"""Warnings of one gateway, at most, because agents choose the names in them."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The beginning of a streamed answer."""

    data: bytes
    error: Callable[[Refused], bytes]
    """The event that ends this stream with an error."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The last bytes of an answer, or all of them where nothing was streamed. They leave when the call is in the store."""

    data: bytes
    failure: str | None = None
    """The error that the answer itself is: the call is recorded as `error` with it."""
    content_type: bytes = b"application/json"
    """Of an answer that was not streamed."""


Step: TypeAlias = Draft | Opening | bytes | Ending
"""A step of an answer: a fuller record, or bytes for the client. Bytes come after an `Opening`; an `Ending` comes last."""


class Answerer(Protocol):
    """Answers the requests to one path."""

    def answer(self, incoming: Incoming) -> AsyncGenerator[Step]:
        """Answer in full, step by step. Raises `Refused`, or any other error. Closing it aborts."""
        ...

    def error(self, refusal: Refused) -> bytes:
        """The body of an answer that is an error."""
        ...


class Forwarder(Engine):
    """Base of an engine that answers whole requests, so that no token id goes to it."""

    @abstractmethod
    def answerers(self, service: Service) -> Mapping[str, Answerer]:
        """By path. The gateway serves these instead of its own."""

    async def disconnect(self) -> None:
        """Close the connections. The gateway calls it in its own loop when it stops."""


class Service:
    """The parts that the endpoints of one gateway share."""

    def __init__(
        self,
        store: LightningStore,
        engine: Engine,
        callers: Callers,
        models: Collection[str] = (),
        max_body: int = MAX_BODY,
        policies: PolicyChoice = ONE_POLICY,
    ) -> None:
        self.store, self.engine, self.callers, self.max_body, self.policies = store, engine, callers, max_body, policies
        self.models = tuple(models)
        self._topics: set[str] = set()

    def policy(self, own: str, model: str, agent: str | None) -> str:
        """The name of the policy that answers a request. `own`: that of its rollout, for a run with one policy. Raises `Refused`."""
        if not self.policies.names:
            return own
        try:
            policy = self.policies.choose(model, agent)
        except ConfigError as error:
            raise Refused(str(error), param="model", code="policy_conflict") from error
        if model not in self.policies.names and self.policies.of_agent(agent) is None:
            caller = "A call whose request names no agent" if agent is None else f"Agent {agent!r}"
            self.warn_once(f"policy:{agent}", "%s belongs to no policy, so %r answers, the first one.", caller, policy)
        return policy

    def warn_once(self, topic: str, text: str, *values: object) -> None:
        """Log the first warning of a topic."""
        if self._is_new(topic):
            log.warning(f"{text} (This warning appears once.)", *values)

    def warn_overridden(self, state: AttemptState, fields: Mapping[str, Any]) -> None:
        """Name the agent's settings that the run overrides, each once. `fields`: the raw body."""
        names = [name for name in overridden(state.rollout, fields) if self._is_new(f"sampling:{name}")]
        if names:
            log.warning("Ignoring the agent's %s. The run's sampling settings apply. (This warning appears once.)", ", ".join(names))

    def warn_ignored(self, fields: Mapping[str, str]) -> None:
        """Name the fields that an answer ignores, each once. `fields`: the reason, by name."""
        for field, reason in fields.items():
            name = field if field.isprintable() else repr(field)
            self.warn_once(f"ignored:{field}", "Ignoring the agent's %s. %s", name[:100], reason)

    def _is_new(self, topic: str) -> bool:
        if topic in self._topics or len(self._topics) >= MAX_TOPICS:
            return False
        self._topics.add(topic)
        return True


class Gone(Exception):
    """Nobody waits for the answer: the client went away, or the attempt ended."""


class Endpoint:
    """One path as an ASGI app."""

    def __init__(self, service: Service, answerer: Answerer) -> None:
        self._service, self._answerer = service, answerer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, began, headers = time.time(), time.monotonic(), Headers(scope=scope)
        try:
            state = await self._service.callers.attempt(headers)
        except Refused as refusal:
            await send_json(send, refusal.status, self._answerer.error(refusal))
            return
        try:
            body = await read_body(receive, headers, self._service.max_body)
        except Refused as refusal:
            body = refusal
        if body is None:
            return  # gone before the end of its request
        production = state is None
        if state is None:
            state = await self._service.callers.begin(b"" if isinstance(body, Refused) else body)
        incoming = state.open(headers, body, started)
        set_log_ids(rollout_id=state.rollout.id, attempt_id=state.attempt.id, call_id=incoming.seen.id)
        recording = Recording(self._service.store, incoming)
        task, gone = asyncio.current_task(), asyncio.create_task(client_gone(receive))
        assert task is not None
        state.running[task] = gone
        try:
            await exchange(self._answerer, incoming, recording, send, gone)
        finally:
            del state.running[task]
            gone.cancel()
            log.info(
                "Call %s after %.3f s%s", recording.status, time.monotonic() - began, f": {recording.detail}" if recording.detail else "."
            )
            if production:
                await self._service.store.finish(state.attempt.id, ENDS[recording.status], error=recording.detail)


async def exchange(answerer: Answerer, incoming: Incoming, recording: Recording, send: Send, gone: asyncio.Future[None]) -> None:
    """Answer a request and record it, or record why not."""
    draft, stream_error, ending, seen = Draft(), None, Ending(b""), incoming.seen
    try:
        if incoming.unread is not None:
            raise incoming.unread
        async with _until(gone), aclosing(answerer.answer(incoming)) as steps:
            async for step in steps:
                if isinstance(step, Draft):
                    draft = step
                elif isinstance(step, Ending):
                    ending = step
                elif isinstance(step, Opening):
                    stream_error = step.error
                    await send(start(200, b"text/event-stream", seen.id))
                    await send(part(step.data))
                else:
                    await send(part(step))
        if gone.done():
            raise Gone
        await recording.write(draft, "completed" if ending.failure is None else "error", ending.failure)
        if gone.done():  # while the store wrote: a retry will supersede it
            seen.delivered = False
        if stream_error is None:
            await send(start(200, ending.content_type, seen.id, len(ending.data)))
        await send(part(ending.data, more=False))
    except Gone:
        if not gone.cancelled():
            await recording.write(draft, "cancelled", "the client went away")
            return
        refusal = Refused("The attempt ended before this call, so the call was cancelled.", status=401, code="invalid_api_key")
        await recording.write(draft, "cancelled", "the attempt ended before the call")
        with suppress(TimeoutError):  # the client may read nothing
            async with asyncio.timeout(TELLING):
                await _tell(send, answerer, seen, refusal, stream_error)
    except asyncio.CancelledError:
        await recording.write(draft, "cancelled", "the gateway was stopped")
        raise
    except Exception as error:
        refusal = await _recorded(recording, draft, incoming, _refusal(error, incoming))
        await _tell(send, answerer, seen, refusal, stream_error)


async def _tell(send: Send, answerer: Answerer, seen: Seen, refusal: Refused, stream_error: Callable[[Refused], bytes] | None) -> None:
    """End an answer with an error. `stream_error`: of a stream that has begun."""
    if stream_error is not None:
        await send(part(stream_error(refusal), more=False))
    else:
        await send_json(send, refusal.status, answerer.error(refusal), seen.id, refusal.headers)


@asynccontextmanager
async def _until(gone: asyncio.Future[None]) -> AsyncGenerator[None]:
    """Stop the block when the client goes away or the attempt ends, and raise `Gone`."""
    limit = asyncio.timeout(None)

    def stop(_: asyncio.Future[None]) -> None:
        with suppress(RuntimeError):  # the block has ended
            limit.reschedule(0.0)

    gone.add_done_callback(stop)
    try:
        async with limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise Gone from None
        raise
    finally:
        gone.remove_done_callback(stop)


def _refusal(error: Exception, incoming: Incoming) -> Refused:
    """The error as the client gets it."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, ContextOverflow):
        return Refused(str(error), param="messages", code="context_length_exceeded")
    log.error("Call %s of attempt %s failed.", incoming.seen.id, incoming.state.attempt.id, exc_info=error)
    return Refused(f"{type(error).__name__}: {error}", status=500, type="server_error")


async def _recorded(recording: Recording, draft: Draft, incoming: Incoming, refusal: Refused) -> Refused:
    """Record a call that failed. Returns the error for the client: this one, or that of the store."""
    try:
        await recording.write(draft, refusal.call_status, str(refusal))
    except Exception as error:
        log.error("Call %s of attempt %s is not in the store.", incoming.seen.id, incoming.state.attempt.id, exc_info=error)
        incoming.seen.delivered = False
        return Refused(f"The store did not record this call: {error}", status=500, type="server_error")
    return refusal
