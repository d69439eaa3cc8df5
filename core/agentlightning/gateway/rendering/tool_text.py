"""Prompt text for tools and reply formats, for models whose template has none: a section after the system message, and calls of one line.

`read_reply` reads back the same calls that `write_calls` writes. Only names of offered tools are calls; any other line is text.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, cast

from agentlightning.gateway.api.schema import ResponseFormat

HEADING = "Tools:"
TOOL = "{name}({parameters}): {description}"
USAGE = "To use a tool, reply with one line: CALL tool(argument)"
OWN_USAGE = "To use a tool, reply with a call in this form, with the arguments as its schema says:"
SEVERAL = "The argument of a tool with several parameters is a JSON object."
CALL = "CALL"
# The brackets matter: without the closing one, SmolLM2-135M goes on to write the result itself (greedy reward of the demo 0.34, with
# brackets 0.66).
JSON_REPLY = "Reply with one JSON object and nothing else."

End: TypeAlias = Literal["whole", "cut", "open"]
"""The end of a text: its own, a cut, or none yet."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call of the model."""

    name: str
    arguments: str
    """JSON, or the raw text of a forced call without a valid argument."""


class Shown(Protocol):
    """A format that can show a call."""

    def example(self) -> str: ...


class TextCalls:
    """The text protocol as a format of calls. See `CallFormat`."""

    def prefill(self, tool: str | None) -> str:
        """The text that makes a reply a call of this tool; None: of any tool."""
        return call_prefix(tool)

    def example(self) -> str:
        """A call, to show the model."""
        return f"{CALL} tool(argument)"

    def read(self, text: str, tools: Sequence[Mapping[str, Any]], *, prefix: str, end: End) -> tuple[str, tuple[ToolCall, ...]]:
        """Content and tool calls of a reply, or of its beginning."""
        return read_reply(text, tools, prefix=prefix, end=end)


def describe_tools(tools: Sequence[Mapping[str, Any]], format: Shown | None = None) -> str:
    """The section of the system message. `tools` are in OpenAI's form, and `format` is that of the calls."""
    if format is not None and not isinstance(format, TextCalls):
        shown = "\n".join(json.dumps(_function(tool), ensure_ascii=False) for tool in tools)
        return f"{HEADING}\n{shown}\n{OWN_USAGE}\n{format.example()}"
    lines = [HEADING]
    for tool in map(_function, tools):
        description = str(tool.get("description") or "").strip().split("\n")[0]
        line = TOOL.format(name=tool["name"], parameters=", ".join(_parameters(tool)), description=description)
        lines.append(line if description else line.removesuffix(": "))
    lines.append(USAGE)
    if any(len(_parameters(tool)) > 1 for tool in map(_function, tools)):
        lines.append(SEVERAL)
    return "\n".join(lines)


def write_calls(content: str, calls: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
    """An assistant message with tool calls (OpenAI's form), in the model's own text form."""
    plain = {tool["name"]: _plain(tool) for tool in map(_function, tools or ())}
    lines = [content] if content else []
    for call in map(_function, calls):
        argument = _write_argument(call.get("arguments"), plain.get(call["name"]))
        lines.append(f"{CALL} {call['name']}({argument})")
    return "\n".join(lines)


def call_prefix(name: str | None) -> str:
    """The start of a reply that must call this tool. With None the model writes the name."""
    return f"{CALL} " if name is None else f"{CALL} {name}("


def read_reply(
    text: str, tools: Sequence[Mapping[str, Any]] | None, *, prefix: str = "", end: End = "whole"
) -> tuple[str, tuple[ToolCall, ...]]:
    """Content and tool calls of a reply. `prefix` (of `call_prefix`) was part of the prompt.

    The last line of a `cut` reply is text, unless its call is forced. The content of an `open` reply omits a last line that may become a
    call, so that the content only ever grows.
    """
    if not tools:
        return text, ()
    offered = {tool["name"]: tool for tool in map(_function, tools)}
    lines = (prefix + text).split("\n")
    kept: list[str] = []
    calls: list[ToolCall] = []
    for number, line in enumerate(lines):
        forced = bool(prefix) and number == 0
        last = number == len(lines) - 1
        if last and end == "open" and (forced or _may_become_call(line)):
            break
        call = None if last and end == "cut" and not forced else _read_call(line, offered, forced=forced)
        if call is None:
            kept.append(line)
        else:
            calls.append(call)
    content = "\n".join(kept)
    return (content.rstrip("\n") if calls or end == "open" else content), tuple(calls)


def has_arguments(name: str | None, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a tool of this name has a parameter that it requires."""
    return any(_required(tool) for tool in map(_function, tools) if tool["name"] == name)


def takes_object(name: str | None, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the argument of a call in text is an object: the tool of this name requires parameters, and not one text alone."""
    return any(_required(tool) and len(_parameters(tool)) > 1 for tool in map(_function, tools) if tool["name"] == name)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    return isinstance(_load(text), dict)


def json_text(value: Any) -> str:
    """JSON with its own characters, or escaped if one of them is half a character, which UTF-8 cannot encode."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def describe_format(format: ResponseFormat) -> str:
    """The section of the system message that asks for replies of this format."""
    schema = None if format.json_schema is None else format.json_schema.schema
    if not schema:
        return JSON_REPLY
    return f"{JSON_REPLY} It must fit this JSON schema: {json.dumps(schema, ensure_ascii=False, separators=(',', ':'))}"


def ask_for_format(messages: Sequence[dict[str, Any]], format: ResponseFormat | None) -> list[dict[str, Any]]:
    """The messages with the reply format at the end of the system message, the same in every turn."""
    if format is None:
        return list(messages)
    text, first = describe_format(format), messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{text}" if first["content"] else text}, *messages[1:]]


def _may_become_call(line: str) -> bool:
    line = line.lstrip(" ")
    return f"{CALL} ".startswith(line) or line.startswith(f"{CALL} ")


def _read_call(line: str, offered: Mapping[str, Mapping[str, Any]], *, forced: bool) -> ToolCall | None:
    word, _, rest = line.strip().partition(" ")
    name, bracket, argument = rest.strip().partition("(")
    tool = offered.get(name.rstrip())
    if word != CALL or tool is None or not bracket or not (argument.endswith(")") or forced):
        return None
    name, argument = name.rstrip(), argument.removesuffix(")").strip()
    parameters, plain = _parameters(tool), _plain(tool)
    value = _load(argument)
    if isinstance(value, dict) and (plain is None or plain in value):
        return ToolCall(name, json_text(value))
    if plain is not None and argument:
        return ToolCall(name, json_text({plain: argument}))
    if not argument and not _required(tool) and plain is None:
        return ToolCall(name, "{}")
    if len(parameters) == 1 and plain is None and value is not None:
        return ToolCall(name, json_text({parameters[0]: value}))
    values = _call_arguments(argument, parameters)
    if values:
        return ToolCall(name, json_text(values))
    return ToolCall(name, argument) if forced else None


def _call_arguments(argument: str, parameters: Sequence[str]) -> dict[str, Any] | None:
    """The arguments of a call as in code, `12, b=7`. None: they are no literals, or do not fit the parameters."""
    try:
        call = ast.parse(f"f({argument})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or len(call.args) > len(parameters):
        return None
    names = [*parameters[: len(call.args)], *(keyword.arg for keyword in call.keywords)]
    if len(set(names)) < len(names) or not set(names) <= set(parameters):
        return None
    try:
        values = [ast.literal_eval(node) for node in (*call.args, *(keyword.value for keyword in call.keywords))]
        json.dumps(values)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return None
    return dict(zip(cast("list[str]", names), values, strict=True))


def _write_argument(arguments: Any, plain: str | None) -> str:
    value = _load(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        return str(arguments or "").replace("\n", " ")
    fields = cast("dict[str, Any]", value)
    if not fields:
        return ""
    text = fields.get(plain) if plain is not None and len(fields) == 1 else None
    if isinstance(text, str) and text and text == text.strip() and "\n" not in text and not isinstance(_load(text), dict):
        return text
    return json_text(fields)


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _function(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return item.get("function") or item


def _parameters(tool: Mapping[str, Any]) -> list[str]:
    schema: Mapping[str, Any] = tool.get("parameters") or {}
    return list(schema.get("properties") or {})


def _required(tool: Mapping[str, Any]) -> bool:
    """Whether the tool has a parameter that must be there."""
    schema: Mapping[str, Any] = tool.get("parameters") or {}
    return bool(schema.get("required"))


def _plain(tool: Mapping[str, Any]) -> str | None:
    """The parameter that takes the argument as plain text: the only one, and a string."""
    names = _parameters(tool)
    if len(names) != 1:
        return None
    schema: Any = tool["parameters"]["properties"][names[0]]
    return names[0] if not isinstance(schema, dict) or cast("dict[str, Any]", schema).get("type", "string") == "string" else None
