"""What the tests of the forward mode share: a plain OpenAI-style server that knows nothing of token ids."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

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
