"""Arguments of a tool call that are not a JSON object, in a form that clients read as an invalid call.

A model may write any text as arguments. Clients expect an object. Some crash on other JSON (`5`), or take `null` for no arguments. So
answers mark such text, and a request that brings it back loses the mark. Unmarked text is the same on both sides, so a history matches its
record.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

MARK = "not a JSON object: "
"""Before other JSON, in OpenAI's forms. No beginning of it is JSON, because clients also read beginnings."""
INVALID_JSON = "INVALID_JSON"
"""In Anthropic's form, whose inputs are objects: the only key of an input. Its value is the text."""


def marked_arguments(sampled: str) -> str:
    """The arguments of a call for a client of OpenAI's forms."""
    value = _load(sampled)
    return sampled if isinstance(value, dict) or (value is NO_JSON and not sampled.startswith(MARK)) else MARK + sampled


def marked_calls(calls: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same for tool calls in the form of chat completions."""
    return [{**call, "function": {**call["function"], "arguments": marked_arguments(call["function"]["arguments"])}} for call in calls]


def unmarked_arguments(sent: str) -> str:
    """The arguments that the model wrote, of a call in a client's history."""
    return sent.removeprefix(MARK)


def marked_input(sampled: str) -> dict[str, Any]:
    """The arguments of a call as an object, for a client of Anthropic's form."""
    value = _load(sampled)
    input = cast("dict[str, Any]", value) if isinstance(value, dict) else None
    return {INVALID_JSON: sampled} if input is None or unmarked_input(input) is not None else input


def unmarked_input(input: dict[str, Any]) -> str | None:
    """The arguments that the model wrote, if an input is marked."""
    text = input.get(INVALID_JSON)
    return text if len(input) == 1 and isinstance(text, str) else None


NO_JSON = object()
"""Instead of a value, which may be None."""


def _load(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return NO_JSON
