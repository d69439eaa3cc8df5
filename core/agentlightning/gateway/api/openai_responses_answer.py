"""`/v1/responses`: OpenAI's Responses form, written: a response with its items, or its events in OpenAI's order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agentlightning.gateway.api.answers import encode, event, sampled, token_logprobs
from agentlightning.gateway.api.openai_responses_tools import Offered, call_item
from agentlightning.gateway.api.protocol import About
from agentlightning.gateway.api.schema import ChatRequest, Refused
from agentlightning.gateway.rendering.replies import Piece, Reply

PREFIX = "resp_"
"""Of the id of a response; the id of its call follows."""


class ResponsesAnswer:
    """See `Answer`. A reply becomes at most one reasoning item, at most one message, then its function calls."""

    def __init__(self, about: About, request: ChatRequest, offered: Mapping[str, Offered], echo: dict[str, Any]) -> None:
        self._about, self._offered, self._echo = about, offered, echo
        self._with_logprobs, self._with_ids = bool(request.logprobs), bool(request.return_token_ids)
        self._events = 0
        self._output: list[dict[str, Any]] = []  # completed items of the stream
        self._text: str | None = None  # of the open message
        self._started = 0  # tokens whose log-probabilities were streamed
        self._replies: Sequence[Reply] = ()

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.body`."""
        return encode(self._response(replies[0], self._items(replies[0], messages[0])))

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`."""
        self._replies = replies
        opened = self._response(replies[0], [], "in_progress")
        return self._event("response.created", response=opened) + self._event("response.in_progress", response=opened)

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """See `Answer.piece`."""
        if not piece.text:
            return b""
        opening = b""
        if self._text is None:
            reasoning = reply.parsed("open").reasoning
            opening = (self._reasoning(reply, reasoning) if reasoning else b"") + self._open_message(reply)
        return opening + self._delta(reply, piece.text, piece.end)

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.last`."""
        reply, message = replies[0], messages[0]
        parts: list[bytes] = []
        for item in self._items(reply, message):
            if item["type"] == "message":
                text = str(message["content"] or "")
                if self._text is None:
                    parts.append(self._open_message(reply))
                rest = text[len(self._text or "") :]
                parts += [self._delta(reply, rest, len(reply.ids))] if rest else []
                parts.append(self._close_message(item))
            elif item["type"] == "reasoning":
                streamed = any(earlier["type"] == "reasoning" for earlier in self._output)
                parts += [] if streamed or self._text is not None else [self._reasoning(reply, message["reasoning_content"])]
            else:
                parts.append(self._call(item))
        response = self._response(reply, self._output)
        return b"".join([*parts, self._event(f"response.{response['status']}", response=response)])

    def error(self, refusal: Refused) -> bytes:
        """See `Answer.error`."""
        failed = self._response(self._replies[0], self._output, "failed")
        failed["error"] = {"code": refusal.code or "server_error", "message": str(refusal)}
        told = self._event("error", code=refusal.code or refusal.type, message=str(refusal), param=refusal.param)
        return told + self._event("response.failed", response=failed)

    # --- items -----------------------------------------------------------------------------------------------------------------------

    def _items(self, reply: Reply, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The reply as items."""
        items: list[dict[str, Any]] = []
        if message.get("reasoning_content"):
            items.append(self._reasoning_item(reply, [{"type": "reasoning_text", "text": message["reasoning_content"]}]))
        calls: list[dict[str, Any]] = message.get("tool_calls") or []
        if message["content"] or not calls:
            scores = token_logprobs(reply, 0, len(reply.ids)) if self._with_logprobs else None
            part = {"type": "output_text", "text": message["content"] or "", "annotations": [], "logprobs": scores or []}
            items.append(self._message_item(reply, [part], "completed" if reply.finish == "stop" else "incomplete"))
        items += [call_item(call, self._offered, f"fc_{reply.id}_{i}") for i, call in enumerate(calls)]
        return items

    def _message_item(self, reply: Reply, content: list[dict[str, Any]], status: str) -> dict[str, Any]:
        return {"id": f"msg_{reply.id}", "type": "message", "role": "assistant", "status": status, "content": content}

    def _reasoning_item(self, reply: Reply, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": f"rs_{reply.id}", "type": "reasoning", "summary": [], "content": content}

    def _response(self, reply: Reply, output: list[dict[str, Any]], status: str | None = None) -> dict[str, Any]:
        """The response with these items. `status`: of one that has not ended, or failed."""
        cut = reply.finish == "length" and status is None
        asked, created = self._echo, int(self._about.created)
        response = {
            "id": PREFIX + self._about.call_id,
            "object": "response",
            "created_at": created,
            "status": status or ("incomplete" if cut else "completed"),
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "metadata": asked.get("metadata") or {},
            "model": self._about.model,
            "output": list(output),
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": asked.get("previous_response_id"),
            "reasoning": {"effort": None, "summary": None},
            "store": asked.get("store") is not False,
            "temperature": reply.sampling.temperature,
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": asked.get("tools") or [],
            "top_p": reply.sampling.top_p,
            "truncation": "disabled",
            "usage": None if status is not None else _usage(reply),
            "system_fingerprint": self._about.call_id,
        }
        if self._with_ids and status is None:
            response |= {"prompt_token_ids": reply.prompt_ids.tolist(), "token_ids": reply.ids}
        return response

    # --- events ----------------------------------------------------------------------------------------------------------------------

    def _event(self, type: str, **fields: Any) -> bytes:
        data = event({"type": type, "sequence_number": self._events, **fields}, type)
        self._events += 1
        return data

    def _item_event(self, type: str, id: str, **fields: Any) -> bytes:
        """An event inside the open item."""
        return self._event(f"response.{type}", item_id=id, output_index=len(self._output), **fields)

    def _added(self, item: dict[str, Any]) -> bytes:
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    def _done(self, item: dict[str, Any]) -> bytes:
        data = self._event("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        return data

    def _open_message(self, reply: Reply) -> bytes:
        self._text = ""
        item = self._message_item(reply, [], "in_progress")
        part: dict[str, Any] = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return self._added(item) + self._item_event("content_part.added", item["id"], content_index=0, part=part)

    def _delta(self, reply: Reply, text: str, end: int) -> bytes:
        self._text = (self._text or "") + text
        scores = token_logprobs(reply, self._started, end) if self._with_logprobs else None
        self._started = end
        return self._item_event("output_text.delta", f"msg_{reply.id}", content_index=0, delta=text, logprobs=scores or [])

    def _close_message(self, item: dict[str, Any]) -> bytes:
        [part] = item["content"]
        done = self._item_event("output_text.done", item["id"], content_index=0, text=part["text"], logprobs=part["logprobs"])
        return done + self._item_event("content_part.done", item["id"], content_index=0, part=part) + self._done(item)

    def _reasoning(self, reply: Reply, text: str) -> bytes:
        part = {"type": "reasoning_text", "text": text}
        item = self._reasoning_item(reply, [part])
        id = item["id"]
        return b"".join(
            [
                self._added({**item, "content": []}),
                self._item_event("content_part.added", id, content_index=0, part={**part, "text": ""}),
                self._item_event("reasoning_text.delta", id, content_index=0, delta=text),
                self._item_event("reasoning_text.done", id, content_index=0, text=text),
                self._item_event("content_part.done", id, content_index=0, part=part),
                self._done(item),
            ]
        )

    def _call(self, item: dict[str, Any]) -> bytes:
        if item["type"] == "custom_tool_call":
            return b"".join(
                [
                    self._added({**item, "input": ""}),
                    self._item_event("custom_tool_call_input.delta", item["id"], delta=item["input"]),
                    self._item_event("custom_tool_call_input.done", item["id"], input=item["input"]),
                    self._done(item),
                ]
            )
        id, arguments = item["id"], item["arguments"]
        return b"".join(
            [
                self._added({**item, "status": "in_progress", "arguments": ""}),
                self._item_event("function_call_arguments.delta", id, delta=arguments),
                self._item_event("function_call_arguments.done", id, name=item["name"], arguments=arguments),
                self._done(item),
            ]
        )


def _usage(reply: Reply) -> dict[str, Any]:
    prompt, response = len(reply.prompt_ids), sampled([reply])
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": response,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + response,
    }
