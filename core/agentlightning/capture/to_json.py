"""Objects of a framework as plain JSON values, for the attributes of spans.

`plain` never raises and never returns an object of a framework. An object without a JSON form becomes its `repr`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

from agentlightning.types import JSON

TEXT = 65_536
"""Characters kept of one string. The text counts the rest."""
DEPTH = 12
"""Levels of nesting kept."""
OBJECTS = 10_000
"""Lists, mappings and objects kept of one value."""

Special: TypeAlias = Callable[[Any], Any]
"""A framework's own view of its objects: another value in place of this one, or the value itself."""


def plain(value: Any, *, special: Special | None = None) -> JSON:
    """The value in JSON types."""
    return _Reading(special).plain(value, DEPTH)


class _Reading:
    """Reads one value. It counts objects, because objects that refer to one another have no end."""

    def __init__(self, special: Special | None) -> None:
        self._special, self._left = special, OBJECTS

    def plain(self, value: Any, depth: int) -> JSON:
        try:
            return self._plain(value, depth)
        except Exception as error:  # a user's object may raise anywhere
            return f"<{type(value).__name__}: {type(error).__name__} while it was read>"

    def _plain(self, value: Any, depth: int) -> JSON:
        if value is None or isinstance(value, str | bool | int | float):
            return _scalar(value)
        if self._special is not None:
            value = self._special(value)
        fields: Any = getattr(cast("Any", type(value)), "model_fields", None)  # of a pydantic model; core has no pydantic
        record = dataclasses.is_dataclass(value) and not isinstance(value, type)
        if record or isinstance(fields, Mapping) or isinstance(value, Mapping | list | tuple | set | frozenset):
            # not even its `repr`, which may have no end either
            if depth == 0 or self._left == 0:
                why = f"deeper than {DEPTH} levels" if depth == 0 else f"after {OBJECTS} lists and objects"
                return f"<{type(cast('Any', value)).__name__}: left out, {why}>"
            self._left -= 1
        if isinstance(value, Mapping):
            named = {str(key): item for key, item in cast("Mapping[Any, Any]", value).items()}
        elif isinstance(value, list | tuple | set | frozenset):
            return [self.plain(item, depth - 1) for item in cast("Iterable[Any]", value)]
        elif isinstance(fields, Mapping):
            named = {name: getattr(value, name) for name in cast("Mapping[str, Any]", fields)}
        elif record:
            named = {field.name: getattr(value, field.name) for field in dataclasses.fields(cast("Any", value))}
        elif value is None or isinstance(value, str | bool | int | float):  # of a special case
            return _scalar(value)
        else:
            return _text(value)
        return {name: self.plain(item, depth - 1) for name, item in named.items()}


def _scalar(value: str | float | None) -> JSON:
    if isinstance(value, str):
        return value if len(value) <= TEXT else f"{value[:TEXT]}… ({len(value) - TEXT} more characters)"
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    return value


def _text(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 1024 else f"{text[:1024]}…"


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def failure(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error)
    return f"{type(error).__name__}: {text[:4096]}" if text else type(error).__name__
