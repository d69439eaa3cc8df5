"""What the tests of the forward mode share: a plain OpenAI-style server that knows nothing of token ids."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from threading import Thread
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from agentlightning.gateway import Gateway
from agentlightning.stores.common import open_store
from agentlightning_upstream.engine import Upstream, UpstreamSettings
from gateway_house import House

Answer = Callable[[dict[str, Any]], Response | None]


class PlainServer:
    """Answers chat completions with `reply`, and `strict` refuses extensions of OpenAI's protocol. `answer` may answer instead.

    What it was sent stands in `bodies` and `headers`.
    """

    EXTENSIONS = frozenset({"return_token_ids", "top_k", "min_p", "repetition_penalty"})

    def __init__(self, reply: str = "hello", *, strict: bool = False, delay: float = 0.0, answer: Answer | None = None) -> None:
        self.reply, self.strict, self.delay, self.answer = reply, strict, delay, answer
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = 0
        """Streams that were closed before their end."""
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/responses", self.responses, methods=["POST"]),
            ]
        )

    async def chat(self, request: Request) -> Response:
        body = await self._taken(request)
        special = self.answer(body) if self.answer is not None else None
        if special is not None:
            return special
        unknown = sorted(self.EXTENSIONS & set(body)) if self.strict else []
        if unknown:
            error = {
                "message": f"Unrecognized request argument: {unknown[0]}",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
            return JSONResponse({"error": error}, 400)
        base = {"id": "chatcmpl-theirs", "created": 1, "model": body["model"], "system_fingerprint": "fp_theirs"}
        if body.get("stream"):
            return StreamingResponse(
                self._chunks(base, bool((body.get("stream_options") or {}).get("include_usage"))), media_type="text/event-stream"
            )
        message = {"role": "assistant", "content": self.reply, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        return JSONResponse({**base, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def _chunks(self, base: dict[str, Any], usage: bool) -> Any:
        base = {**base, "object": "chat.completion.chunk"}
        finished = False
        try:
            deltas = [{"role": "assistant", "content": ""}, *({"content": letter} for letter in self.reply)]
            for delta in deltas:
                await asyncio.sleep(self.delay)
                yield _data({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
            yield ": a comment\n\n"
            yield _data({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            if usage:
                yield _data({**base, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}})
            finished = True
            yield "data: [DONE]\n\n"
        finally:
            self.gone += not finished

    async def responses(self, request: Request) -> Response:
        body = await self._taken(request)
        special = self.answer(body) if self.answer is not None else None
        if special is not None:
            return special
        item = {
            "id": "msg_1", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": self.reply, "annotations": []}],
        }  # fmt: skip
        done = {
            "id": "resp_1", "object": "response", "created_at": 1, "model": body["model"], "status": "completed", "output": [item],
            "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        }  # fmt: skip
        if not body.get("stream"):
            return JSONResponse(done)
        begun = {"type": "response.created", "sequence_number": 0, "response": {**done, "status": "in_progress", "output": []}}
        delta = {
            "type": "response.output_text.delta", "sequence_number": 1, "item_id": "msg_1", "output_index": 0, "content_index": 0,
            "delta": self.reply, "logprobs": [],
        }  # fmt: skip
        events = [begun, delta, {"type": "response.completed", "sequence_number": 2, "response": done}]
        return StreamingResponse((f"event: {each['type']}\n{_data(each)}" for each in events), media_type="text/event-stream")

    async def _taken(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        return body


def _data(value: Any) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


KEY = "sk-upstream-secret"


class Forwarding(House):
    """A gateway that forwards."""

    def __init__(self, upstream: Upstream, stack: AsyncExitStack, **options: Any) -> None:
        self.store, self._stack = open_store("memory:"), stack
        self.gateway = Gateway(self.store, upstream, **options)


@pytest.fixture
async def forward(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    """`forward(server or url, ...)`: a started gateway in front of it; stopped after the test."""
    monkeypatch.setenv("UPSTREAM_KEY", KEY)
    async with AsyncExitStack() as stack:

        async def make(
            server: PlainServer | str, *, model: str = "theirs", key_env: str | None = "UPSTREAM_KEY", **options: Any
        ) -> Forwarding:
            url = server if isinstance(server, str) else await _served(server, stack)
            made = Forwarding(Upstream(UpstreamSettings(url=url, key_env=key_env), model), stack, **options)
            await made.gateway.start()
            stack.push_async_callback(made.gateway.stop)
            return made

        yield make


async def _served(server: PlainServer, stack: AsyncExitStack) -> str:
    listener = socket.create_server(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(server.app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])), daemon=True)
    thread.start()

    async def stop() -> None:
        running.should_exit = True
        await asyncio.to_thread(thread.join)
        listener.close()

    stack.push_async_callback(stop)
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
