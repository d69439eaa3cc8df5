"""Converts LangChain objects to plain JSON values for span attributes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult

from agentlightning.capture import to_json
from agentlightning.types import JSON


def plain(value: Any) -> JSON:
    """Convert a value to JSON. A message becomes role, content, and tool calls."""
    return to_json.plain(value, special=_message)


def _message(value: Any) -> Any:
    if not isinstance(value, BaseMessage):
        return value
    fields: dict[str, Any] = {"role": value.type, "content": cast("Any", value).content}
    calls = getattr(value, "tool_calls", None)
    if calls:
        fields["tool_calls"] = calls
    if isinstance(value, ToolMessage):
        fields["tool_call_id"] = value.tool_call_id
    return fields


def tool_call_ids(response: LLMResult) -> Iterator[str]:
    """Yield the ids of the tool calls in an answer."""
    for generation in (generation for prompt in response.generations for generation in prompt):
        message = getattr(generation, "message", None)
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            if call["id"] is not None:
                yield call["id"]
