"""Conversations of unmistakable texts, to render and to look at: the material of every probe."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.rendering.template import TOOL, ChatTemplate

USER = {"role": "user", "content": "aglquestion"}
REPLY, THOUGHT, RESULT = "aglreply", "aglthought", "aglresult"
NAMES = ("agl_tool_a", "agl_tool_b")
VALUES = {"agl_key_a": "aglvalue1", "agl_key_b": "aglvalue2"}
TOOLS: list[dict[str, Any]] = [TOOL, {**TOOL, "function": {**TOOL["function"], "name": NAMES[1]}}]
TAG = re.compile(r"<[^<>\n]+>|\[\|[^\[\]\n]+\|\]|\[/?[A-Z_]+\]")
CUT_TAG = re.compile(r"(<[^<>\s]*|\[[A-Z_/|]*)\Z")


def call(number: int = 0, arguments: Any = None) -> dict[str, Any]:
    """A marked call of the tool with this number."""
    values = VALUES if arguments is None else arguments
    return {
        "id": f"call_agl_{number}",
        "type": "function",
        "function": {"name": NAMES[number], "arguments": json.dumps(values)},
    }


def result(number: int = 0) -> dict[str, Any]:
    """The result of that call."""
    return {"role": "tool", "tool_call_id": f"call_agl_{number}", "name": NAMES[number], "content": RESULT}


def asks(*calls: dict[str, Any], content: str = "", thought: str = "") -> dict[str, Any]:
    """An assistant message with these calls; with none, a marked one."""
    message = {"role": "assistant", "content": content, "tool_calls": list(calls or [call()])}
    return {**message, "reasoning_content": thought} if thought else message


def replies(thought: str = "") -> dict[str, Any]:
    """An assistant message with a marked text."""
    message = {"role": "assistant", "content": REPLY}
    return {**message, "reasoning_content": thought} if thought else message


def rendered(template: ChatTemplate, messages: Sequence[Any], tools: Sequence[Any] = (), *, reply: bool = True) -> str | None:
    """The text of a conversation. None: the template refuses it."""
    try:
        return template.text(messages, tools, reply=reply)
    except Refused:
        return None


def header(template: ChatTemplate, tools: Sequence[Any]) -> str:
    """The text that asks for a reply, at the end of a prompt."""
    prompt, history = template.text([USER], tools), rendered(template, [USER], tools, reply=False)
    return prompt[len(history) :] if history is not None and prompt.startswith(history) else ""


def shared(one: str, other: str) -> str:
    """The common beginning of two texts."""
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


def common_prefix(one: str, other: str) -> int:
    """Length of the common beginning, back to the start of a tag that it cuts."""
    size = len(shared(one, other))
    cut = CUT_TAG.search(one, max(0, size - 40), size) if size < min(len(one), len(other)) else None
    return size if cut is None else cut.start()
