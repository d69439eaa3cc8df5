"""The messages of a model call as a person reads them: what the call sent, and its reply."""

from __future__ import annotations

from typing import Any, cast

from rich.text import Text

from agentlightning.cli.view import short
from agentlightning.stores.messages import RecordedMessages
from agentlightning.training.message_text import function_of, message_text
from agentlightning.types import Call

TEXT_LIMIT = 2000
"""Characters of one text that are shown."""


def sent_text(call: Call, recorded: RecordedMessages) -> list[Text]:
    """The tools that a call offered, and its messages. Those of an earlier call are counted only."""
    lines = [Text(f"tools {_tool_names(call, recorded)}", style="blue")] if recorded.tools(call.id) else []
    if call.messages is None:
        return [*lines, Text("its messages are not recorded", style="dim")]
    parts = cast("list[Any]", call.messages)
    return [*lines, *(_message(cast("dict[str, Any]", part)) if isinstance(part, dict) else _quote(call, part) for part in parts)]


def _tool_names(call: Call, recorded: RecordedMessages) -> str:
    names = [str(function_of(tool).get("name", tool)) for tool in recorded.tools(call.id) or ()]
    return ", ".join(names) + ("" if call.tools else " (tool_choice hides them from the model)")


def _quote(call: Call, part: Any) -> Text:
    start, end = part
    first = "" if start == 0 else f", from message {start + 1}"
    count = "all messages" if end is None else f"{end - start} message{'s' * (end - start > 1)}"
    return Text(f"… {count} of call {short(call.after or '')}{first}", style="dim")


def _message(message: dict[str, Any]) -> Text:
    return Text.assemble((f"{message.get('role')} ", "bold"), clip(message_text(message)))


def clip(text: str) -> str:
    """The start of a text, and how much is left out."""
    return text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} … ({len(text) - TEXT_LIMIT:,} more characters)"
