"""Plain content of older schemas as that of the next. See `serialization.UPGRADES`."""

from __future__ import annotations

from typing import Any, cast

Fields = dict[str, Any]


def upgrade_2(content: Any) -> Any:
    """Schema 3 has the messages of every call. Schema 2 had `Call.input`, of calls that later requests could refer to."""
    if isinstance(content, list):
        return [upgrade_2(item) for item in cast("list[Any]", content)]
    fields = cast(Fields, content)
    if not isinstance(content, dict):
        return content
    if fields.get("type") == "AttemptRecords":
        return {**fields, "calls": [_call(call) for call in fields["calls"]]}
    return _call(fields) if fields.get("type") == "Call" else fields


def _call(fields: Fields) -> Fields:
    kept: Fields | None = fields.get("input")
    rest = {name: value for name, value in fields.items() if name != "input"}
    if kept is None:
        return rest
    after, tools = kept["after"], kept.get("tools")
    quote = [] if after is None else [[0, None]]  # everything that was kept of it, and its reply
    return {
        **rest,
        "after": after,
        "messages": [*quote, *kept["messages"]],
        "tools_from": after if tools is None else None,
        "tool_schemas": tools or None,
        "thread_start": 0,
    }
