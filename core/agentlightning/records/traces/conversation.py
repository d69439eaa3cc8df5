"""What every format of traces is read into: conversations of model calls, in OpenAI's form. Anything else is named, never skipped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from agentlightning.types import JSON

Message: TypeAlias = dict[str, Any]


class Unreadable(Exception):
    """Why a part of a file is no model call that can be imported."""


@dataclass(frozen=True, slots=True)
class Unread:
    """A part of a file that was not imported."""

    where: str
    """File and line, with the id of the record."""
    reason: str


@dataclass(frozen=True, slots=True)
class ImportedCall:
    """One model call."""

    messages: list[Message]
    """Of the request."""
    reply: Message
    tools: list[JSON]
    where: str
    started: float = 0.0
    """For the order in its trace."""


@dataclass(frozen=True, slots=True)
class ImportedTrace:
    """The model calls of one run of an agent, in order."""

    id: str
    """In its source."""
    calls: list[ImportedCall]
    where: str
    reward: float | None = None
    """None: the source has no score."""
    input: JSON = None
    """Of the whole run, if the source has it."""


def message_of(value: Any) -> Message:
    """Return a message in OpenAI's form from one of the forms in use: OpenAI's, LangChain's (serialized), and GenAI's with parts."""
    if not isinstance(value, Mapping):
        raise Unreadable(f"a message is a {type(value).__name__}, not an object with a role")
    fields = cast("Mapping[str, Any]", value)
    if "kwargs" in fields and "id" in fields:  # LangChain's serialized constructor
        return _of_langchain(cast("Mapping[str, Any]", fields["kwargs"]))
    if "type" in fields and "role" not in fields:
        return _of_langchain({**cast("Mapping[str, Any]", fields.get("data", fields)), "type": fields["type"]})
    if "parts" in fields:
        return _of_parts(fields)
    role = fields.get("role")
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise Unreadable(f"a message has the role {role!r}")
    message: Message = {"role": role, "content": _text(fields.get("content"))}
    if role == "tool":
        message["tool_call_id"] = str(fields.get("tool_call_id") or "")
    if fields.get("tool_calls"):
        message["tool_calls"] = _tool_calls(fields["tool_calls"])
    return message


def parsed(value: Any) -> Any:
    """Return JSON that a source wrote as text; other text as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _of_langchain(kwargs: Mapping[str, Any]) -> Message:
    roles = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "AIMessageChunk": "assistant"}
    role = roles.get(str(kwargs.get("type")))
    if role is None:
        raise Unreadable(f"a message has the type {kwargs.get('type')!r}")
    message: Message = {"role": role, "content": _text(kwargs.get("content"))}
    if role == "tool":
        message["tool_call_id"] = str(kwargs.get("tool_call_id") or "")
    if kwargs.get("tool_calls"):
        message["tool_calls"] = _tool_calls(kwargs["tool_calls"])
    return message


def _of_parts(fields: Mapping[str, Any]) -> Message:
    """OpenTelemetry's convention for `gen_ai.input.messages`."""
    texts, calls, results = list[str](), list[Message](), list[Message]()
    for part in cast("list[Mapping[str, Any]]", fields["parts"]):
        kind = part.get("type")
        if kind == "text":
            texts.append(str(part.get("content") or ""))
        elif kind == "tool_call":
            calls.append(_tool_call(part))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            results.append({"role": "tool", "content": _as_text(result), "tool_call_id": str(part.get("id") or "")})
        elif kind != "reasoning":
            raise Unreadable(f"a message has a part of the type {kind!r}, and only text and tool calls are read")
    if results:
        if len(results) > 1:
            raise Unreadable("one message has several tool results")
        return results[0]
    message: Message = {"role": str(fields.get("role")), "content": "".join(texts)}
    return message | ({"tool_calls": calls} if calls else {})


def _tool_calls(calls: Any) -> list[Message]:
    if not isinstance(calls, list):
        raise Unreadable(f"the tool calls of a message are a {type(calls).__name__}, not a list")
    return [_tool_call(call) for call in cast("list[Any]", calls)]


def _tool_call(call: Any) -> Message:
    if not isinstance(call, Mapping):
        raise Unreadable(f"a tool call is a {type(call).__name__}")
    fields = cast("Mapping[str, Any]", call)
    function = cast("Mapping[str, Any]", fields.get("function") or fields)
    name, arguments = function.get("name"), function.get("arguments", function.get("args", {}))
    if not isinstance(name, str):
        raise Unreadable("a tool call has no name")
    return {"id": str(fields.get("id") or ""), "type": "function", "function": {"name": name, "arguments": _as_text(arguments)}}


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(content: Any) -> str:
    """The text of a message's content: text, or a list of text parts."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = list[str]()
    for part in cast("list[Any]", content) if isinstance(content, list) else [content]:
        fields = cast("Mapping[str, Any]", part if isinstance(part, Mapping) else {})
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(fields.get("text"), str):
            texts.append(fields["text"])
        elif fields.get("type") not in ("tool_use", "thinking", "reasoning"):  # LangChain repeats tool calls here
            kind = fields.get("type") or "unknown"
            raise Unreadable(f"a message has content of the type {kind!r}, and only text is read")
    return "".join(texts)
