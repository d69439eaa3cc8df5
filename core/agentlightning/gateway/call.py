"""One call, whoever answers it: whose it is, the answer, the record.

Every request of a known attempt ends as one `Call` in the store, with a `Completion` for each choice that was sampled, before the last
byte of its answer leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.store import LightningStore
from agentlightning.errors import ContextOverflow
from agentlightning.gateway.api.answers import client_gone, part, read_body, send_json
from agentlightning.gateway.api.schema import ChatRequest, Refused
from agentlightning.gateway.auth import AttemptState, Callers, remember
from agentlightning.gateway.sampling import overridden
from agentlightning.types import Call, CallStatus, Completion

log = logging.getLogger("agentlightning.gateway")


class Gone(Exception):
    """The client went away."""


class Service:
    """What the endpoints of one gateway share."""

    def __init__(self, store: LightningStore, engine: Engine, callers: Callers, models: Collection[str] = ()) -> None:
        self.store, self.engine, self.callers, self.models = store, engine, callers, tuple(models)
        self._said: set[str] = set()

    def warn_once(self, about: str, text: str, *values: object) -> None:
        """Log a warning unless there was one about this."""
        if about not in self._said:
            self._said.add(about)
            log.warning(f"{text} (said once)", *values)

    def warn_overridden(self, state: AttemptState, request: ChatRequest) -> None:
        """Say which settings the agent asks for and does not get."""
        names = overridden(state.rollout, request)
        if names:
            text = "the agent asks for %s; in a rollout the sampling is the run's, so these are overridden"
            self.warn_once("sampling", text, ", ".join(names))


class Endpoint:
    """One path as an ASGI app. `error` writes the body of an answer that is an error."""

    def __init__(
        self, service: Service, error: Callable[[Refused], bytes], exchange: Callable[[AttemptState, Headers, bytes, float], Exchange]
    ) -> None:
        self._service, self._error, self._exchange = service, error, exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.time()
        body = await read_body(receive)
        if body is None:
            return  # gone before it had asked anything
        headers = Headers(scope=scope)
        try:
            state, production = await self._service.callers.find(headers, body)
        except Refused as refusal:
            await send_json(send, refusal.status, self._error(refusal))
            return
        exchange = self._exchange(state, headers, body, started)
        gone = asyncio.ensure_future(client_gone(receive))
        state.active += 1
        try:
            await exchange.run(send, gone)
        finally:
            state.active -= 1
            gone.cancel()
            if production:
                status = {"completed": "succeeded", "cancelled": "cancelled"}.get(exchange.status, "failed")
                await self._service.store.finish(state.attempt.id, status, error=exchange.detail)  # pyright: ignore[reportArgumentType]


class Exchange(ABC):
    """One request and its answer."""

    def __init__(self, service: Service, state: AttemptState, headers: Headers, body: bytes, started: float) -> None:
        self.status: CallStatus = "error"
        self.detail: str | None = None
        self._store = service.store
        self._state, self._body, self._started = state, body, started
        self._seen, self._index = state.open(headers.get(CALL_HEADER), body)
        retries = headers.get("x-stainless-retry-count", "0")
        self._is_retry = retries.isdecimal() and int(retries) > 0
        self._stream_error: Callable[[Refused], bytes] | None = None  # once the first byte of a stream has left
        self._writing: asyncio.Task[None] | None = None
        self._context: str | None = None
        self._request_hash, self._head = "", ""
        self._histories: list[list[dict[str, Any]]] = []  # what stands before the reply, for each prompt

    @abstractmethod
    async def _answer(self, send: Send, gone: asyncio.Future[None]) -> None:
        """Answer in full. Raises what `run` records."""

    @abstractmethod
    def _error(self, refusal: Refused) -> bytes:
        """The body of an answer that is an error."""

    @abstractmethod
    def _completions(self, status: CallStatus) -> list[Completion]:
        """What was sampled, as it is recorded."""

    def _input(self) -> dict[str, Any] | None:
        """`Call.input`."""
        return None

    async def run(self, send: Send, gone: asyncio.Future[None]) -> None:
        """Answer, or record why not."""
        try:
            await self._answer(send, gone)
        except Refused as refusal:
            await self._fail(send, refusal.call_status, refusal)
        except ContextOverflow as error:
            await self._fail(send, "refused", Refused(str(error), param="messages", code="context_length_exceeded"))
        except Gone:
            await self._record("cancelled", "the client went away")
        except asyncio.CancelledError:
            await self._record("cancelled", "the gateway was stopped")
            raise
        except Exception as error:
            log.error("call %s of attempt %s failed", self._seen.id, self._state.attempt.id, exc_info=error)
            text = f"{type(error).__name__}: {error}"
            await self._fail(send, "error", Refused(text, status=500, type="server_error"))

    async def _deliver(self, gone: asyncio.Future[None]) -> None:
        """Record the answer, which is about to leave."""
        if gone.done():
            raise Gone
        await self._record("completed", None)
        if gone.done():  # while it was recorded: a retry will supersede it
            self._seen.delivered = False

    async def _fail(self, send: Send, status: CallStatus, refusal: Refused) -> None:
        """Record a request that gets an error for an answer, and send it: as a status, or as an event where the answer had begun."""
        try:
            await self._record(status, str(refusal))
        except Exception as error:
            log.error("call %s of attempt %s could not be recorded", self._seen.id, self._state.attempt.id, exc_info=error)
            refusal = Refused(f"the store could not record this call: {error}", status=500, type="server_error")
            self._seen.delivered = False
        if self._stream_error is not None:
            await send(part(self._stream_error(refusal), more=False))
        else:
            await send_json(send, refusal.status, self._error(refusal), self._seen.id, refusal.headers)

    async def _record(self, status: CallStatus, detail: str | None) -> None:
        """Write the call and its completions, once: what was cancelled while it was being written stands as it was begun."""
        if status in ("cancelled", "error"):  # at once: a retry may come while it is being written
            self._seen.delivered = False
        if self._writing is None:
            self.status, self.detail = status, detail
            self._writing = asyncio.create_task(self._write(status, detail))
        try:
            # shielded: a server that stops must not leave a call half recorded
            await asyncio.shield(self._writing)
        except Exception:
            self._writing = None
            raise

    async def _write(self, status: CallStatus, detail: str | None) -> None:
        superseded = self._state.retried(self._seen) if self._is_retry else None
        completions = self._completions(status)
        call = Call(
            id=self._seen.id,
            attempt_id=self._state.attempt.id,
            index=self._index,
            status=status,
            detail=detail,
            choices=len(completions),
            supersedes=None if superseded is None else superseded.id,
            request_hash=self._request_hash,
            context=self._context,
            input=self._input() if status == "completed" else None,
            started=self._started,
            ended=time.time(),
        )
        await self._store.record([*completions, call])
        if superseded is not None:
            superseded.superseded = True
        remember(self._state, self._seen, call, completions, len(self._histories[0]) if self._histories else 0)
