"""Converts LangChain objects to plain JSON values for span attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.outputs import LLMResult
from langgraph.errors import GraphBubbleUp

from agentlightning.capture import to_json
from agentlightning.capture.to_json import failure, mapping
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


def error_attributes(error: BaseException) -> dict[str, JSON]:
    """Return what the span of a failed run keeps."""
    # An interrupt or a command to the parent graph is LangGraph's control flow, not a failure.
    return {"steered": type(error).__name__} if isinstance(error, GraphBubbleUp) else {"error": failure(error)}


def tool_name(tool: Any) -> JSON:
    """Return the name of a tool in a request."""
    description = mapping(tool)
    return plain(mapping(description.get("function") or description).get("name"))


def answer_attributes(response: LLMResult) -> dict[str, JSON]:
    """Return what the span of a model call keeps of its answer."""
    first = next((generation for prompt in response.generations for generation in prompt), None)
    message = getattr(first, "message", None)
    if first is None or not isinstance(message, BaseMessage):
        return {"output": first.text if first is not None else None}
    metadata = cast("Mapping[str, Any]", message.response_metadata)  # pyright: ignore[reportUnknownMemberType]
    attributes: dict[str, JSON] = {"output": plain(message)}
    finish = metadata.get("finish_reason") or (first.generation_info or {}).get("finish_reason")
    usage = getattr(message, "usage_metadata", None)
    if finish is not None:
        attributes["finish_reason"] = plain(finish)
    if usage:
        attributes["usage"] = plain(usage)
    return attributes
