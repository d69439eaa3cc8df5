"""`/v1/chat/completions`: OpenAI's chat form. Its request is the canonical one, and its messages are those of the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentlightning.gateway.api.answers import DONE, encode, event, finish_reason, sampled, token_logprobs
from agentlightning.gateway.api.protocol import About, Asked
from agentlightning.gateway.api.schema import ChatRequest, Refused, parse_request
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply


class ChatForm:
    """See `Form`."""

    path = "/v1/chat/completions"

    def parse(self, body: bytes, state: AttemptState) -> Asked:
        """See `Form.parse`."""
        request = parse_request(body)
        unmet = tuple(name for name in ("reasoning_effort", "verbosity") if getattr(request, name) is not None)
        return Asked(request, lambda about: ChatAnswer(about, request), unmet=unmet)

    def error(self, refusal: Refused) -> bytes:
        """See `Form.error`."""
        return encode(refusal.body)


class ChatAnswer:
    """See `Answer`."""

    def __init__(self, about: About, request: ChatRequest) -> None:
        self._about = about
        self._with_logprobs, self._with_ids = bool(request.logprobs), bool(request.return_token_ids)
        self._with_usage = request.stream_options is not None and bool(request.stream_options.include_usage)

    def body(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.body`."""
        body = self._base("chat.completion")
        choices: list[dict[str, Any]] = []
        for index, (reply, message) in enumerate(zip(replies, messages, strict=True)):
            choice: dict[str, Any] = {
                "index": index,
                "message": {**message, "refusal": None},
                "finish_reason": finish_reason(reply, message),
                "logprobs": self._logprobs(reply, 0, len(reply.ids)),
            }
            if self._with_ids:
                choice["token_ids"] = reply.ids
            choices.append(choice)
        body["choices"], body["usage"] = choices, _usage(replies)
        if self._with_ids:
            body["prompt_token_ids"] = replies[0].prompt_ids.tolist()
        return encode(body)

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`."""
        more = {"prompt_token_ids": replies[0].prompt_ids.tolist()} if self._with_ids else {}
        opening = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(
            self._chunk([{"index": i, "delta": opening, "logprobs": None, "finish_reason": None}], **(more if i == 0 else {}))
            for i in range(len(replies))
        )

    def piece(self, index: int, reply: Reply, piece: Piece) -> bytes:
        """See `Answer.piece`."""
        if not piece.text and not self._with_ids and not self._with_logprobs:
            return b""
        delta = {"content": piece.text} if piece.text else {}
        scores = self._logprobs(reply, piece.start, piece.end)
        choice: dict[str, Any] = {"index": index, "delta": delta, "logprobs": scores, "finish_reason": None}
        if self._with_ids:
            choice["token_ids"] = reply.ids[piece.start : piece.end]
        return self._chunk([choice])

    def last(self, replies: Sequence[Reply], messages: Sequence[dict[str, Any]]) -> bytes:
        """See `Answer.last`."""
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
            events.append(self._chunk([], usage=_usage(replies)))
        return b"".join(events) + DONE

    def error(self, refusal: Refused) -> bytes:
        """See `Answer.error`."""
        return event(refusal.body)

    def _base(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self._about.call_id}",
            "object": kind,
            "created": int(self._about.created),
            "model": self._about.model,
            "system_fingerprint": self._about.call_id,
        }

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        if self._with_usage:
            more.setdefault("usage", None)
        return event({**self._base("chat.completion.chunk"), "choices": choices, **more})

    def _logprobs(self, reply: Reply, start: int, end: int) -> dict[str, Any] | None:
        content = token_logprobs(reply, start, end, every=self._with_ids) if self._with_logprobs else None
        return None if content is None else {"content": content, "refusal": None}


def _usage(replies: Sequence[Reply]) -> dict[str, int]:
    prompt, completion = len(replies[0].prompt_ids), sampled(replies)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
