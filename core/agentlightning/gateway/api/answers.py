"""Parts of the answers in every form: JSON, server-sent events, token counts, log-probabilities, and ASGI messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Send

from agentlightning.capture.recorder import CALL_HEADER
from agentlightning.gateway.rendering.replies import Reply
from agentlightning.types import FloatArray

encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"
"""The end of a stream of chat completions or completions."""


def json_response(value: object, status: int = 200) -> Response:
    """An answer for Starlette."""
    return Response(encode(value), status, media_type="application/json")


def event(value: Any, name: str | None = None) -> bytes:
    """A server-sent event, with a name in the forms that name events."""
    data = b"data: " + encode(value) + b"\n\n"
    return data if name is None else b"event: " + name.encode() + b"\n" + data


def finish_reason(reply: Reply, message: dict[str, Any]) -> str:
    """`stop`, `length` or `tool_calls`."""
    return "tool_calls" if message.get("tool_calls") and reply.finish == "stop" else reply.finish or "stop"


def sampled(replies: Sequence[Reply]) -> int:
    """Tokens of all choices."""
    return sum(len(reply.ids) for reply in replies)


def token_logprobs(reply: Reply, start: int, end: int, *, every: bool = False) -> list[dict[str, Any]] | None:
    """Of the visible tokens from `start` to `end`, in OpenAI's form; None: the engine has none. `every` adds the end mark, so that they are
    aligned with the token ids."""
    scores: FloatArray | None = reply.logprobs
    if scores is None:
        return None
    content: list[dict[str, Any]] = []
    for i in range(start, end) if every else reply.shown(start, end):
        token = reply.rendering.decode([reply.ids[i]])
        data = None if "\ufffd" in token else list(token.encode())
        content.append({"token": token, "logprob": float(scores[i]), "bytes": data, "top_logprobs": []})
    return content


# --- the bytes of an answer, as ASGI has them ----------------------------------------------------------------------------------------


async def client_gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def start(status: int, content_type: bytes, call_id: str | None, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type)]
    if call_id is not None:
        headers.append((CALL_HEADER.lower().encode(), call_id.encode("latin-1", "replace")))
    headers.append((b"cache-control", b"no-cache") if length is None else (b"content-length", str(length).encode()))
    return {"type": "http.response.start", "status": status, "headers": headers}


def part(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


async def send_json(send: Send, status: int, body: bytes, call_id: str | None = None, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole answer."""
    opening = start(status, b"application/json", call_id, len(body))
    await send({**opening, "headers": [*opening["headers"], *headers]})
    await send(part(body, more=False))
