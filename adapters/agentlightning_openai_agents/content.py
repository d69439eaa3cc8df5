"""Converts the SDK's span data to our names and attributes. Pure functions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from agents.tracing import (
    AgentSpanData,
    CustomSpanData,
    FunctionSpanData,
    GenerationSpanData,
    GuardrailSpanData,
    HandoffSpanData,
    MCPListToolsSpanData,
    ResponseSpanData,
    SpanData,
    SpanError,
    TaskSpanData,
    TurnSpanData,
)

from agentlightning.capture.to_json import mapping, plain
from agentlightning.types import JSON, SpanKind
from agentlightning_openai_agents.runs import ToolCall

SAMPLING = (
    "temperature", "top_p", "max_tokens", "max_completion_tokens", "max_output_tokens", "stop", "seed", "n", "presence_penalty",
    "frequency_penalty", "reasoning", "reasoning_effort", "tool_choice", "parallel_tool_calls", "stream",
)  # fmt: skip
"""Settings of a model call that its span keeps, as the agent requested them. The completion has the settings actually used."""


def kind(data: SpanData) -> SpanKind | None:
    """Return the kind of a recorded span, or None for plumbing.

    A guardrail is recorded as a tool: it runs code, and may run agents. A handoff is a note, because it takes no time.
    """
    if isinstance(data, TaskSpanData | TurnSpanData):
        return None
    if isinstance(data, AgentSpanData):
        return "agent"
    if isinstance(data, GenerationSpanData | ResponseSpanData):
        return "llm"
    return "tool" if isinstance(data, FunctionSpanData | GuardrailSpanData) else "note"


def name(data: SpanData) -> str:
    """Return the span's initial name. Names of handoffs and model calls are complete only at the end."""
    if isinstance(data, GenerationSpanData):
        return data.model or "model"
    if isinstance(data, HandoffSpanData):
        return f"handoff from {data.from_agent} to {data.to_agent}"
    if isinstance(data, MCPListToolsSpanData):
        return f"tools of the MCP server {data.server}"
    return str(getattr(data, "name", None) or data.type)


def told(data: SpanData, *, failed: bool) -> dict[str, JSON]:
    """Return the final attributes of a span that is not a model call. A successful tool has an output, even if empty, unless content is
    hidden from tracing."""
    if isinstance(data, FunctionSpanData) and data.output in (None, []) and data.input is not None and not failed:
        return {**told(data, failed=True), "output": plain(data.output)}
    details: dict[str, Any] = {}
    if isinstance(data, AgentSpanData):
        details = {"tools": data.tools, "handoffs": data.handoffs, "output_type": data.output_type}
    elif isinstance(data, FunctionSpanData):
        details = {"input": _parsed(data.input), "output": data.output, "mcp": data.mcp_data}
    elif isinstance(data, GuardrailSpanData):
        return {"guardrail": True, "triggered": data.triggered}
    elif isinstance(data, HandoffSpanData):
        details = {"from": data.from_agent, "to": data.to_agent}
    elif isinstance(data, MCPListToolsSpanData):
        details = {"output": data.result}
    elif isinstance(data, CustomSpanData):
        details = {"data": data.data}
    return {key: plain(value) for key, value in details.items() if value is not None and value != []}


def asked(body: Mapping[str, Any]) -> dict[str, JSON]:
    """Return sampling settings and tools of a model call's request."""
    attributes: dict[str, JSON] = {"sampling": {key: plain(body[key]) for key in SAMPLING if body.get(key) is not None}}
    if tools := cast("Sequence[Any]", body.get("tools") or ()):
        attributes["tools"] = [_tool_name(mapping(tool)) for tool in tools]
    return attributes


def answer(data: SpanData) -> dict[str, JSON]:
    """Return attributes of a model call's answer."""
    attributes: dict[str, JSON] = {}
    usage = getattr(data, "usage", None)
    if usage:
        attributes["usage"] = plain(usage)
    output = _output(data)
    if output is not None:
        attributes["output"] = plain(output)
    if isinstance(data, ResponseSpanData) and data.response is not None and data.response.status is not None:
        attributes["status"] = data.response.status
    return attributes


def answered_by(data: SpanData) -> str | None:
    """Return the call id of an answer, if it has one. The gateway derives response ids from it."""
    response = data.response if isinstance(data, ResponseSpanData) else None
    return response.id.removeprefix("resp_") if response is not None else None


def withheld(data: SpanData) -> bool:
    """Return True if the content of a model call is hidden from tracing: it was answered, but its span has no answer."""
    usage = mapping(getattr(data, "usage", None))
    return bool(usage.get("requests")) and _output(data) is None


def tool_calls(data: SpanData) -> list[ToolCall]:
    """Return the tool calls in a reply, in either format."""
    return [call for item in _output(data) or () for call in _calls(plain(item))]


def error(error_data: SpanError | None) -> dict[str, JSON]:
    """Return the reason of a failure as text."""
    if error_data is None:
        return {}
    data = mapping(error_data["data"])
    detail = data.get("error") or (json.dumps(plain(data)) if data else None)
    return {"error": f"{error_data['message']}: {detail}" if detail else error_data["message"]}


def _output(data: SpanData) -> Sequence[Any] | None:
    if isinstance(data, ResponseSpanData):
        return data.response.output if data.response is not None else None
    return data.output if isinstance(data, GenerationSpanData) else None


def _calls(item: Any) -> Iterator[ToolCall]:
    """Return a function call, or the calls of a chat message or of a response converted from one."""
    item_data = mapping(item)
    if item_data.get("type") == "function_call":
        yield ToolCall(str(item_data.get("call_id")), str(item_data.get("name")), str(item_data.get("arguments")))
    for inner in cast("Sequence[Any]", item_data.get("output") or ()) if item_data.get("object") == "response" else ():
        yield from _calls(inner)
    for tool_call in cast("Sequence[Any]", item_data.get("tool_calls") or ()):
        function = mapping(mapping(tool_call).get("function"))
        yield ToolCall(str(mapping(tool_call).get("id")), str(function.get("name")), str(function.get("arguments")))


def _parsed(arguments: str | None) -> Any:
    if arguments is None:
        return None
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _tool_name(tool: Mapping[str, Any]) -> JSON:
    description = mapping(tool.get("function") or tool)
    return plain(description.get("name") or description.get("type"))
