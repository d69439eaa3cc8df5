"""The tools of a Responses request. The model sees functions alone: those of a namespace under a longer name, and custom tools (whose
input is free text) with one parameter. The answer has the calls in the request's own terms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from agentlightning.gateway.api.schema import Function, Refused, Tool, ToolCall, ToolFunction

SEPARATOR = "__"
"""Between a namespace and a name, in the name that the model sees."""
INPUT = "input"
"""The one parameter of a custom tool."""


class ResponseTool(msgspec.Struct):
    """A tool in this form: the fields of a chat completion's `function` are at the top."""

    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    tools: list[ResponseTool] | None = None
    """Of a namespace."""
    format: dict[str, Any] | None = None
    """Of a custom tool: `{"type": "text"}`, or a grammar of its input."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool as the request names it."""

    name: str
    namespace: str | None = None
    custom: bool = False


def read_tools(tools: Sequence[ResponseTool]) -> tuple[list[Tool], dict[str, Offered]]:
    """(the tools that the model sees, the request's tools by the names that the model sees). Raises `Refused` for hosted tools."""
    functions, offered = list[Tool](), dict[str, Offered]()
    for tool in tools:
        members = tool.tools or () if tool.type == "namespace" else (tool,)
        namespace = tool if tool.type == "namespace" else None
        for member in members:
            name = qualified(member.name, namespace.name if namespace is not None else None)
            functions.append(Tool(function=_function(member, name, namespace)))
            offered[name] = Offered(member.name, namespace.name if namespace is not None else None, member.type == "custom")
    return functions, offered


def qualified(name: str, namespace: str | None) -> str:
    """The name of a tool that the model sees."""
    return name if not namespace else f"{namespace}{SEPARATOR}{name}"


def has_grammar(tools: Sequence[ResponseTool]) -> bool:
    """Whether a custom tool has a grammar, which nothing here enforces."""
    return any((tool.format or {}).get("type") == "grammar" or has_grammar(tool.tools or ()) for tool in tools)


def read_call(name: str, call_id: str, *, namespace: str | None, arguments: str, input: str | None) -> ToolCall:
    """A call in the history. `input`: of a custom tool."""
    return ToolCall(Function(qualified(name, namespace), arguments if input is None else json.dumps({INPUT: input})), call_id)


def call_item(call: Mapping[str, Any], offered: Mapping[str, Offered], id: str) -> dict[str, Any]:
    """A call of a reply as an output item."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    tool = offered.get(name, Offered(name))
    item: dict[str, Any] = {"id": id, "type": "function_call", "status": "completed", "call_id": call["id"], "name": tool.name}
    if tool.custom:
        item |= {"type": "custom_tool_call", "input": _input(arguments)}
        del item["status"]  # this type has none
    else:
        item["arguments"] = arguments
    return item if tool.namespace is None else {**item, "namespace": tool.namespace}


def _function(tool: ResponseTool, name: str, namespace: ResponseTool | None) -> ToolFunction:
    about = "\n".join(text for text in (namespace.description if namespace is not None else None, tool.description) if text) or None
    match tool.type:
        case "function":
            return ToolFunction(name, about, tool.parameters, tool.strict)
        case "custom":
            format, schema = tool.format or {}, {"type": "string"}
            if format.get("type") == "grammar":
                schema["description"] = f"Follows this {format.get('syntax')} grammar:\n{format.get('definition')}"
            return ToolFunction(name, about, {"type": "object", "properties": {INPUT: schema}, "required": [INPUT]})
        case _:
            raise Refused(
                f"tools has the type {tool.type!r}, but this gateway hosts no tools. Offer a function instead, or switch the tool off.",
                param="tools",
            )


def _input(arguments: str) -> str:
    """The free text in the arguments of a custom tool. A model that calls it in another way has written the input itself."""
    try:
        value: Any = json.loads(arguments)
    except ValueError:
        return arguments
    text = cast("dict[str, Any]", value).get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments
