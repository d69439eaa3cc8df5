"""Framework objects as plain JSON values, for the attributes of spans.

`plain` never raises and never returns an object of a framework: what has no JSON form becomes its `repr`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from langchain_core.messages import BaseMessage, ToolMessage
from pydantic import BaseModel

from agentlightning.model import JSON

TEXT = 65_536
"""Characters kept of one string; what is left out is counted in the text."""
DEPTH = 12
"""Levels of nesting kept."""


def plain(value: Any, depth: int = DEPTH) -> JSON:
    """The value as JSON can hold it."""
    try:
        return _plain(value, depth)
    except Exception as error:  # a user's object may raise from anything that is asked of it
        return f"<{type(value).__name__}: {type(error).__name__} while it was read>"


def _plain(value: Any, depth: int) -> JSON:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if len(value) <= TEXT else f"{value[:TEXT]}… ({len(value) - TEXT} more characters)"
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if depth == 0:
        return _text(value)
    if isinstance(value, BaseMessage):
        return _message(value, depth)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth - 1) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, depth - 1) for item in cast("Iterable[Any]", value)]
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name), depth - 1) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth - 1) for field in dataclasses.fields(value)}
    return _text(value)


def _message(message: BaseMessage, depth: int) -> JSON:
    fields: dict[str, JSON] = {"role": message.type, "content": plain(cast("Any", message).content, depth - 1)}
    calls = getattr(message, "tool_calls", None)
    if calls:
        fields["tool_calls"] = plain(calls, depth - 1)
    if isinstance(message, ToolMessage):
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 1024 else f"{text[:1024]}…"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is a mapping, else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def failure(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error)
    return f"{type(error).__name__}: {text[:4096]}" if text else type(error).__name__
