"""`/v1/chat/completions`: OpenAI's chat form. Its request is the canonical one, and its messages are those of the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agentlightning.gateway.api.answers import finish_reason, token_logprobs
from agentlightning.gateway.api.choices import ChoicesAnswer
from agentlightning.gateway.api.parameters import CHAT
from agentlightning.gateway.api.protocol import Asked, Form
from agentlightning.gateway.api.schema import ChatRequest
from agentlightning.gateway.api.tool_arguments import marked_calls
from agentlightning.gateway.auth import AttemptState
from agentlightning.gateway.rendering.replies import Piece, Reply

NAMES = {"messages.name": "Chat templates have roles only. Write the name into the text."}
"""Of messages that are no results of tools."""


class ChatForm(Form[ChatRequest]):
    """See `Form`."""

    path = "/v1/chat/completions"
    body = ChatRequest
    parameters = CHAT

    def read(self, request: ChatRequest, fields: dict[str, Any], state: AttemptState) -> Asked:
        """See `Form.read`."""
        request.sent_tools = fields.get("tools")
        is_named = any(message.name is not None and message.role not in ("tool", "function") for message in request.messages)
        return Asked(request, lambda about: ChatAnswer(about, request), ignored=NAMES if is_named else {})


class ChatAnswer(ChoicesAnswer):
    """See `Answer`."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self, replies: Sequence[Reply]) -> bytes:
        """See `Answer.first`."""
        opening = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._chunk([_delta(i, opening)], **(self._prompt(replies) if i == 0 else {})) for i in range(len(replies)))

    def _complete(self, index: int, reply: Reply, message: dict[str, Any]) -> dict[str, Any]:
        return {
            "index": index,
            "message": {**message, **_calls(message), "refusal": None},
            "finish_reason": finish_reason(reply, message),
            "logprobs": self._logprobs(reply, 0, len(reply.ids)),
            **({"token_ids": reply.ids} if self._with_ids else {}),
        }

    def _piece(self, index: int, reply: Reply, piece: Piece) -> dict[str, Any]:
        ids = {"token_ids": reply.ids[piece.start : piece.end]} if self._with_ids else {}
        delta = {"content": piece.text} if piece.text else {}
        return {**_delta(index, delta), "logprobs": self._logprobs(reply, piece.start, piece.end), **ids}

    def _endings(self, index: int, reply: Reply, message: dict[str, Any]) -> list[dict[str, Any]]:
        delta: dict[str, Any] = {}
        if message.get("tool_calls"):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(marked_calls(message["tool_calls"]))]
        if message.get("reasoning_content"):
            delta["reasoning_content"] = message["reasoning_content"]
        return [*([_delta(index, delta)] if delta else []), _delta(index, {}, finish_reason(reply, message))]

    def _prompt(self, replies: Sequence[Reply]) -> dict[str, Any]:
        return {"prompt_token_ids": replies[0].prompt_ids.tolist()} if self._with_ids else {}

    def _logprobs(self, reply: Reply, start: int, end: int) -> dict[str, Any] | None:
        content = token_logprobs(reply, start, end, every=self._with_ids) if self._with_logprobs else None
        return None if content is None else {"content": content, "refusal": None}


def _calls(message: dict[str, Any]) -> dict[str, Any]:
    return {"tool_calls": marked_calls(message["tool_calls"])} if message.get("tool_calls") else {}


def _delta(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
