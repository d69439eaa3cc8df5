"""Objects of a framework as plain JSON values, for the attributes of spans.

`plain` never raises and never returns an object of a framework: what has no JSON form becomes its `repr`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

from agentlightning.model import JSON

TEXT = 65_536
"""Characters kept of one string; what is left out is counted in the text."""
DEPTH = 12
"""Levels of nesting kept."""

Special: TypeAlias = Callable[[Any], Any]
"""A framework's own view of its objects: another value to read in place of this one, or the value itself."""


def plain(value: Any, *, special: Special | None = None, depth: int = DEPTH) -> JSON:
    """The value as JSON can hold it."""
    try:
        return _plain(value, special, depth)
    except Exception as error:  # a user's object may raise from anything that is asked of it
        return f"<{type(value).__name__}: {type(error).__name__} while it was read>"


def _plain(value: Any, special: Special | None, depth: int) -> JSON:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if len(value) <= TEXT else f"{value[:TEXT]}… ({len(value) - TEXT} more characters)"
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if depth == 0:
        return _text(value)
    if special is not None:
        value = special(value)
    fields: Any = getattr(cast("Any", type(value)), "model_fields", None)  # of a pydantic model; core has no pydantic
    if isinstance(value, Mapping):
        named = {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
    elif isinstance(value, list | tuple | set | frozenset):
        return [plain(item, special=special, depth=depth - 1) for item in cast("Iterable[Any]", value)]
    elif isinstance(fields, Mapping):
        named = {name: getattr(value, name) for name in cast("Mapping[str, Any]", fields)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif value is None or isinstance(value, str | bool | int | float):  # what a special case made of it
        return _plain(value, None, depth)
    else:
        return _text(value)
    return {name: plain(item, special=special, depth=depth - 1) for name, item in named.items()}


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
