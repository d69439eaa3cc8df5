"""One call: whose it is, match, render, generate, record, reply.

Every request of a known attempt ends as one `Call` in the store, with a `Completion` for each choice that was sampled, before the last
byte of its answer leaves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from agentlightning.engine import Engine
from agentlightning.errors import ContextOverflow
from agentlightning.gateway import answers
from agentlightning.gateway.attribution import AttemptState, Callers, check_open, remember
from agentlightning.gateway.conversation import chain, head_hash, request_hash
from agentlightning.gateway.rendering import Rendering
from agentlightning.gateway.replies import Piece, Reply
from agentlightning.gateway.sampling import choose_sampling, overridden
from agentlightning.gateway.schema import ChatRequest, Refused, forced_tool, parse_request, unknown_model
from agentlightning.model import Call, Completion, IntArray, Outcome, ints
from agentlightning.recording import CALL_HEADER
from agentlightning.store import LightningStore

log = logging.getLogger("agentlightning.gateway")


class Gone(Exception):
    """The client went away."""


class ChatEndpoint:
    """`/v1/chat/completions` as an ASGI app."""

    def __init__(self, store: LightningStore, engine: Engine, callers: Callers, rendering: Callable[[], Awaitable[Rendering]]) -> None:
        self.store, self.engine, self.rendering = store, engine, rendering
        self._callers = callers
        self._warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.time()
        body = await _read(receive)
        if body is None:
            return  # gone before it had asked anything
        headers = Headers(scope=scope)
        try:
            state, production = await self._callers.find(headers, body)
        except Refused as refusal:
            await send_json(send, refusal.status, answers.encode(refusal.body))
            return
        exchange = Exchange(self, state, headers, body, started)
        gone = asyncio.ensure_future(_gone(receive))
        state.active += 1
        try:
            await exchange.run(send, gone)
        finally:
            state.active -= 1
            gone.cancel()
            if production:
                status = {"completed": "succeeded", "cancelled": "cancelled"}.get(exchange.outcome, "failed")
                await self.store.finish(state.attempt.id, status, error=exchange.detail)  # pyright: ignore[reportArgumentType]

    def warn(self, names: Sequence[str]) -> None:
        """Say once that the agent's sampling is overridden."""
        if names and not self._warned:
            self._warned = True
            log.warning(
                "the agent asks for %s; in a rollout the sampling is the run's, so these are overridden (said once)", ", ".join(names)
            )


class Exchange:
    """One request and its answer."""

    def __init__(self, endpoint: ChatEndpoint, state: AttemptState, headers: Headers, body: bytes, started: float) -> None:
        self.outcome: Outcome = "error"
        self.detail: str | None = None
        self._endpoint, self._store, self._engine = endpoint, endpoint.store, endpoint.engine
        self._state, self._body, self._started = state, body, started
        self._seen, self._index = state.open(headers.get(CALL_HEADER), body)
        retries = headers.get("x-stainless-retry-count", "0")
        self._is_retry = retries.isdecimal() and int(retries) > 0
        self._sending = False
        self._writing: asyncio.Task[None] | None = None
        self._context: str | None = None
        self._continues: str | None = None
        self._request_hash, self._head = "", ""
        self._messages: list[dict[str, Any]] = []
        self._replies: list[Reply] = []
        self._rendering: Rendering | None = None

    async def run(self, send: Send, gone: asyncio.Future[None]) -> None:
        """Answer, or record why not."""
        try:
            request = parse_request(self._body)
            await self._prepare(request)
            reply = self._stream if request.stream else self._plain
            await reply(request, send, gone)
        except Refused as refusal:
            await self._fail(send, "refused", refusal)
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

    async def _prepare(self, request: ChatRequest) -> None:
        """From the request to prompts: everything that can be refused is refused here."""
        endpoint, rollout, info = self._endpoint, self._state.rollout, self._engine.info
        self._messages, tools = request.history(), request.offered()
        self._head, hashes = head_hash(rollout.policy, tools), chain(self._messages)
        self._request_hash = self._seen.request_hash = request_hash(self._head, hashes)
        check_open(self._state.attempt)
        if request.model not in (info.model, rollout.policy):
            raise unknown_model(request.model, info.model, rollout.policy)
        self._rendering = rendering = await endpoint.rendering()
        if tools and not rendering.calls_tools:
            raise Refused(f"tools cannot be offered: the renderer {rendering.name!r} of this model reads no tool calls", param="tools")
        forced = forced_tool(request)
        prefix = "" if forced is None else rendering.prefill(forced)
        prompt = self._prompt(rendering, tools, hashes)
        prompt = ints([*prompt.tolist(), *rendering.encode(prefix)]) if prefix else prompt
        if len(prompt) >= info.context_length:
            raise Refused(
                f"the context of model {info.model!r} is {info.context_length} tokens, and the prompt has {len(prompt)}; shorten the "
                "messages",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        endpoint.warn(overridden(rollout, request))
        self._replies = [
            Reply(
                rendering, prompt, choose_sampling(rollout, request, rendering.stop_ids, self._index, choice), tools, prefix,
                request.parallel_tool_calls is False,
            )
            for choice in range(request.n or 1)
        ]  # fmt: skip

    def _prompt(self, rendering: Rendering, tools: Sequence[Any], hashes: Sequence[str]) -> IntArray:
        """Bridged from the reply that this request continues, or rendered afresh."""
        earlier, matched, self._context = self._state.conversations.find(self._head, self._messages, hashes)
        if earlier is not None:
            prompt = rendering.bridge(earlier, self._messages[matched:], tools)
            if prompt is not None:
                self._continues = earlier.id
                return prompt
            self._context = "no bridge"
        return rendering.prompt(self._messages, tools)

    async def _plain(self, request: ChatRequest, send: Send, gone: asyncio.Future[None]) -> None:
        async with aclosing(self._generate(gone)) as pieces:
            async for _ in pieces:
                pass
        messages = await self._complete(gone)
        body = self._answer(request).body(self._replies, messages)
        self._sending = True
        await send_json(send, 200, body, self._seen.id)

    async def _stream(self, request: ChatRequest, send: Send, gone: asyncio.Future[None]) -> None:
        answer = self._answer(request)
        async with aclosing(self._generate(gone)) as pieces:
            async for index, piece in pieces:
                if not self._sending:
                    self._sending = True
                    await send(_start(200, b"text/event-stream", self._seen.id))
                    await send(_part(answer.first(self._replies)))
                data = answer.piece(index, self._replies[index], piece)
                if data:
                    await send(_part(data))
        messages = await self._complete(gone)
        await send(_part(answer.last(self._replies, messages), more=False))

    def _answer(self, request: ChatRequest) -> answers.Answer:
        return answers.Answer(
            self._seen.id,
            self._engine.info.model,
            int(self._started),
            with_logprobs=bool(request.logprobs),
            with_ids=bool(request.return_token_ids),
            with_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        )

    async def _generate(self, gone: asyncio.Future[None]) -> AsyncGenerator[tuple[int, Piece]]:
        """All choices at once; raises `Gone`, or what the engine raised. Ends with nothing under way."""
        queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

        async def run(index: int, reply: Reply) -> None:
            try:
                async with aclosing(reply.run(self._engine)) as pieces:
                    async for piece in pieces:
                        queue.put_nowait((index, piece))
                if reply.finish is None:
                    raise RuntimeError(f"engine {self._engine.info.model!r} ended a reply without a reason")
                queue.put_nowait(None)
            except Exception as error:
                queue.put_nowait(error)

        def left(_: asyncio.Future[None]) -> None:
            queue.put_nowait(Gone())

        gone.add_done_callback(left)
        tasks = [asyncio.create_task(run(i, reply)) for i, reply in enumerate(self._replies)]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    running -= 1
                else:
                    yield item
        finally:
            gone.remove_done_callback(left)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _complete(self, gone: asyncio.Future[None]) -> list[dict[str, Any]]:
        """Record the answer, which is about to leave; the messages of its choices."""
        if gone.done():
            raise Gone
        messages = [reply.message() for reply in self._replies]
        await self._record("completed", None, messages)
        if gone.done():  # while it was recorded: a retry will supersede it
            self._seen.delivered = False
        return messages

    async def _fail(self, send: Send, outcome: Outcome, refusal: Refused) -> None:
        """Record a request that gets an error for an answer, and send it: as a status, or as an event where the answer had begun."""
        try:
            await self._record(outcome, str(refusal))
        except Exception as error:
            log.error("call %s of attempt %s could not be recorded", self._seen.id, self._state.attempt.id, exc_info=error)
            refusal = Refused(f"the store could not record this call: {error}", status=500, type="server_error")
            self._seen.delivered = False
        body = answers.encode(refusal.body)
        if self._sending:
            await send(_part(b"data: " + body + b"\n\n", more=False))
        else:
            await send_json(send, refusal.status, body, self._seen.id)

    async def _record(self, outcome: Outcome, detail: str | None, messages: Sequence[dict[str, Any]] | None = None) -> None:
        """Write the call and its completions, once: what was cancelled while it was being written stands as it was begun."""
        if outcome in ("cancelled", "error"):  # at once: a retry may come while it is being written
            self._seen.delivered = False
        if self._writing is None:
            self.outcome, self.detail = outcome, detail
            self._writing = asyncio.create_task(self._write(outcome, detail, messages))
        try:
            # shielded: a server that stops must not leave a call half recorded
            await asyncio.shield(self._writing)
        except Exception:
            self._writing = None
            raise

    async def _write(self, outcome: Outcome, detail: str | None, messages: Sequence[dict[str, Any]] | None) -> None:
        superseded = self._state.retried(self._seen) if self._is_retry else None
        completions = self._completions(outcome, messages or [reply.message() for reply in self._replies])
        call = Call(
            id=self._seen.id,
            attempt_id=self._state.attempt.id,
            index=self._index,
            outcome=outcome,
            detail=detail,
            choices=len(completions),
            supersedes=None if superseded is None else superseded.id,
            request_hash=self._request_hash,
            context=self._context,
            started=self._started,
            ended=time.time(),
        )
        await self._store.record([*completions, call])
        if superseded is not None:
            superseded.superseded = True
        remember(self._state, self._seen, call, completions, len(self._messages))

    def _completions(self, outcome: Outcome, messages: Sequence[dict[str, Any]]) -> list[Completion]:
        rendering = self._rendering
        if rendering is None or outcome == "refused":
            return []
        completions: list[Completion] = []
        for choice, (reply, message) in enumerate(zip(self._replies, messages, strict=True)):
            finish = "tool_calls" if reply.finish == "stop" and message.get("tool_calls") else reply.finish
            if finish is None:
                finish = "cancelled" if outcome == "cancelled" else "error"
            completions.append(
                Completion(
                    id=reply.id,
                    call_id=self._seen.id,
                    attempt_id=self._state.attempt.id,
                    choice=choice,
                    policy=self._state.rollout.policy,
                    prompt_ids=reply.prompt_ids,
                    response_ids=ints(reply.ids),
                    logprobs=reply.logprobs,
                    versions=reply.versions,
                    sampling=reply.sampling,
                    finish_reason=finish,
                    renderer=rendering.name,
                    tokenizer=rendering.hash,
                    continues=self._continues,
                    conversation=f"{self._head}.{chain([*self._messages, message])[-1]}",
                    message=message,
                )
            )
        return completions


async def _read(receive: Receive) -> bytes | None:
    """The body, or None when the client went away before its end."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, content_type: bytes, call_id: str | None, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type)]
    if call_id is not None:
        headers.append((CALL_HEADER.lower().encode(), call_id.encode("latin-1", "replace")))
    headers.append((b"cache-control", b"no-cache") if length is None else (b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


def _part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def send_json(send: Send, status: int, body: bytes, call_id: str | None = None) -> None:
    """Send a whole answer."""
    await send(_start(status, b"application/json", call_id, len(body)))
    await send(_part(body, more=False))
