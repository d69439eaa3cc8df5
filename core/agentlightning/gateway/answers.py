"""What leaves the gateway: bodies and events in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from agentlightning.gateway.replies import Piece, Reply
from agentlightning.model import FloatArray

encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


def finish_reason(reply: Reply, message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") and reply.finish == "stop" else reply.finish or "stop"


def usage(replies: Sequence[Reply]) -> dict[str, int]:
    prompt, completion = len(replies[0].prompt_ids), sum(len(reply.ids) for reply in replies)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def logprobs(reply: Reply, start: int, end: int) -> dict[str, Any] | None:
    """Of the visible tokens from `start` to `end`; None where the engine could not tell."""
    scores: FloatArray | None = reply.logprobs
    if scores is None:
        return None
    content: list[dict[str, Any]] = []
    for i in reply.shown(start, end):
        token = reply.rendering.decode([reply.ids[i]])
        data = None if "\ufffd" in token else list(token.encode())
        content.append({"token": token, "logprob": float(scores[i]), "bytes": data, "top_logprobs": []})
    return {"content": content, "refusal": None}


class Answer:
    """Makes the body, or the events, of one call."""

    def __init__(self, call_id: str, model: str, created: int, *, with_logprobs: bool, with_ids: bool, with_usage: bool) -> None:
        self._call_id, self._model, self._created = call_id, model, created
        self._with_logprobs, self._with_ids, self._with_usage = with_logprobs, with_ids, with_usage

    def _base(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._call_id}",
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": self._call_id,
        }

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """The whole answer."""
        body = self._base("chat.completion")
        choices: list[dict[str, Any]] = []
        for index, (reply, message) in enumerate(zip(replies, messages, strict=True)):
            choice: dict[str, Any] = {
                "index": index,
                "message": {**message, "refusal": None},
                "finish_reason": finish_reason(reply, message),
                "logprobs": logprobs(reply, 0, len(reply.ids)) if self._with_logprobs else None,
            }
            if self._with_ids:
                choice["token_ids"] = reply.ids
            choices.append(choice)
        body["choices"], body["usage"] = choices, usage(replies)
        if self._with_ids:
            body["prompt_token_ids"] = replies[0].prompt_ids.tolist()
        return encode(body)

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._with_usage:
            more.setdefault("usage", None)
        return event({**self._base("chat.completion.chunk"), "choices": choices, **more})

    def first(self, replies: Sequence[Reply]) -> bytes:
        """The events that open each choice."""
        more = {"prompt_token_ids": replies[0].prompt_ids.tolist()} if self._with_ids else {}
        opening = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(
            self._chunk([{"index": i, "delta": opening, "logprobs": None, "finish_reason": None}], **(more if i == 0 else {}))
            for i in range(len(replies))
        )

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """The event of one piece; nothing where the agent would see nothing."""
        if not piece.text and not self._with_ids and not self._with_logprobs:
            return b""
        delta = {"content": piece.text} if piece.text else {}
        scores = logprobs(reply, piece.start, piece.end) if self._with_logprobs else None
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": None}
        if self._with_ids:
            choice["token_ids"] = reply.ids[piece.start : piece.end]
        return self._chunk([choice])

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """Tool calls, reasons, usage, and the end."""
        events: list[bytes] = []
        for index, (reply, message) in enumerate(zip(replies, messages, strict=True)):
            delta: dict[str, Any] = {}
            if message.get("tool_calls"):
                delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]
            if message.get("reasoning_content"):
                delta["reasoning_content"] = message["reasoning_content"]
            if delta:
                events.append(self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]))
            reason = finish_reason(reply, message)
            events.append(self._chunk([{"index": index, "delta": {}, "logprobs": None, "finish_reason": reason}]))
        if self._with_usage:
            events.append(self._chunk([], usage=usage(replies)))
        return b"".join(events) + DONE
