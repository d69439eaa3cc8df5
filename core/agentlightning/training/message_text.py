"""A recorded message as a person reads it."""

from __future__ import annotations

import json
from typing import Any, cast


def message_text(message: Any, *, content: bool = True) -> str:
    """A message as a person reads it: its reasoning and its text (with `content`), then its tool calls."""
    if not isinstance(message, dict):
        return "" if message is None or not content else str(message)
    fields = cast("dict[str, Any]", message)
    lines = [f"thinking: {fields['reasoning_content']}"] if content and fields.get("reasoning_content") else []
    lines += [_content(fields["content"])] if content and fields.get("content") else []
    for tool_call in cast("list[Any]", fields.get("tool_calls") or []):
        function = function_of(tool_call)
        lines.append(f"→ {function.get('name')}({function.get('arguments', '')})")
    return "\n".join(lines)


def _content(content: Any) -> str:
    """Text as it is, and parts of other kinds by their size: an image is long, and nobody reads its bytes."""
    if not isinstance(content, list):
        return str(content)
    return "\n".join(_part(part) for part in cast("list[Any]", content))


def _part(part: Any) -> str:
    fields = cast("dict[str, Any]", part) if isinstance(part, dict) else {"text": str(part)}
    text: Any = fields.get("text")
    return text if isinstance(text, str) else f"[{fields.get('type')}, {len(json.dumps(fields)):,} characters]"


def function_of(tool: Any) -> dict[str, Any]:
    """The function of a tool or of a tool call: its name, and its schema or arguments."""
    fields = cast("dict[str, Any]", tool) if isinstance(tool, dict) else {}
    function: Any = fields.get("function", fields)
    return cast("dict[str, Any]", function) if isinstance(function, dict) else {}
