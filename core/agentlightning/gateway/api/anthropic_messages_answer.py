"""`/v1/messages`: Anthropic's form, written: a message, or its events in Anthropic's order.

Blocks have numbers in their order. Each ends before the next begins: thinking if the agent asks for it, then text, then tool calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from agentlightning.gateway.api.answers import encode, event, finish_reason, sampled
from agentlightning.gateway.api.protocol import About
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.api.tool_arguments import marked_input
from agentlightning.gateway.rendering.replies import Piece, Reply

PREFIX = "msg_"
"""Of the id of a message; the id of its call follows."""
ERRORS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error"}
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def error_body(refusal: Refused) -> dict[str, Any]:
    """An error in Anthropic's form."""
    kind = ERRORS.get(refusal.status, "api_error" if refusal.status >= 500 else "invalid_request_error")
    details = {"details": {"error_code": refusal.code}} if (refusal.code or "").startswith("thread_") else {}  # clients recover by it
    return {"type": "error", "error": {"type": kind, "message": str(refusal), **details}}


class MessagesAnswer:
    """See `Answer`. There is one choice."""

    def __init__(self, about: About, stops: Sequence[str], shows_thinking: bool) -> None:
        self._about, self._stops, self._shows_thinking = about, stops, shows_thinking
        self._next = 0
        self._text_open = False

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.body`."""
        [reply], [message] = replies, messages
        content: list[dict[str, Any]] = []
        if self._shows_thinking and message.get("reasoning_content"):
            content.append({"type": "thinking", "thinking": message["reasoning_content"], "signature": ""})
        if message.get("content"):
            content.append({"type": "text", "text": message["content"]})
        content += [{**_tool_use(call), "input": _input(call)} for call in message.get("tool_calls") or ()]
        usage = {"input_tokens": len(reply.prompt_ids), "output_tokens": sampled(replies)}
        return encode({**self._message(content), **self._ended(reply, message), "usage": usage})

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`."""
        usage = {"input_tokens": len(replies[0].prompt_ids), "output_tokens": 0}
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=message)

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """See `Answer.piece`."""
        if not piece.text:
            return b""
        opening = b"" if self._text_open else self._open_text(reply)
        return opening + _event("content_block_delta", index=self._next, delta={"type": "text_delta", "text": piece.text})

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.last`."""
        [reply], [message] = replies, messages
        events = self._close() if self._text_open else self._thinking(message.get("reasoning_content"))
        for call in message.get("tool_calls") or ():
            events += _event("content_block_start", index=self._next, content_block={**_tool_use(call), "input": {}})
            delta = {"type": "input_json_delta", "partial_json": json.dumps(_input(call), ensure_ascii=False)}
            events += _event("content_block_delta", index=self._next, delta=delta) + self._close()
        events += _event("message_delta", delta=self._ended(reply, message), usage={"output_tokens": sampled(replies)})
        return events + _event("message_stop")

    def error(self, refusal: Refused) -> bytes:
        """See `Answer.error`."""
        return event(error_body(refusal), "error")

    def _message(self, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": PREFIX + self._about.call_id,
            "type": "message",
            "role": "assistant",
            "model": self._about.model,
            "content": content,
        }

    def _ended(self, reply: Reply, message: dict[str, Any]) -> dict[str, Any]:
        reason = REASONS[finish_reason(reply, message)]
        stopped_by = reply.stopped_by if reply.stopped_by in self._stops and reason == "end_turn" else None
        return {"stop_reason": "stop_sequence" if stopped_by else reason, "stop_sequence": stopped_by}

    def _open_text(self, reply: Reply) -> bytes:
        """The begin of the text block, after the thinking."""
        thought = self._thinking(reply.parsed("open").reasoning) if self._shows_thinking else b""
        self._text_open = True
        return thought + _event("content_block_start", index=self._next, content_block={"type": "text", "text": ""})

    def _thinking(self, text: str | None) -> bytes:
        if not text or not self._shows_thinking:
            return b""
        block = {"type": "thinking", "thinking": "", "signature": ""}
        opening = _event("content_block_start", index=self._next, content_block=block)
        return opening + _event("content_block_delta", index=self._next, delta={"type": "thinking_delta", "thinking": text}) + self._close()

    def _close(self) -> bytes:
        """The end of the open block."""
        self._text_open = False
        index, self._next = self._next, self._next + 1
        return _event("content_block_stop", index=index)


def _event(type: str, **fields: Any) -> bytes:
    return event({"type": type, **fields}, type)


def _tool_use(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}


def _input(call: dict[str, Any]) -> dict[str, Any]:
    return marked_input(call["function"]["arguments"])
