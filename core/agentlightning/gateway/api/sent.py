"""The messages and tools of a request, for its record. They are in the canonical form, as far as the form of the request can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from agentlightning.gateway.api.body import convert, read_fields
from agentlightning.gateway.api.protocol import Asked, Form
from agentlightning.gateway.api.schema import Refused
from agentlightning.gateway.auth import AttemptState

Fields = dict[str, Any]
INSTRUCTIONS, MESSAGES = ("instructions", "system"), ("messages", "input", "prompt")
"""The fields of all forms that hold messages."""


@dataclass(frozen=True, slots=True)
class Sent:
    """See `Call.messages`, `Call.tool_schemas`, and `Call.thread_start`."""

    messages: list[Fields]
    tools: list[Fields]
    thread_start: int | None = None

    @classmethod
    def of(cls, asked: Asked, messages: list[Fields]) -> Sent:
        """Of a request that was read. `messages`: `ChatRequest.history` of it."""
        if asked.prompts:
            messages = [{"role": "prompt", "content": prompt if isinstance(prompt, str) else None} for prompt in asked.prompts]
        return cls(messages, asked.request.sent_or_plain_tools(), asked.thread_start)


def sent_anyway(form: Form[Any], body: bytes, state: AttemptState) -> Sent | None:
    """Of a request that is refused. None: the body is no JSON object."""
    try:
        fields = read_fields(body)
    except Refused:
        return None
    return sent_elsewhere(form, fields, state)


def sent_elsewhere(form: Form[Any], fields: Fields, state: AttemptState) -> Sent:
    """Of a request that another server answers, or nobody."""
    try:
        asked = form.read(convert(fields, form.body), fields, state)
        sent = Sent.of(asked, asked.request.history())
    except (Refused, RecursionError):
        return Sent(_raw_messages(fields), _dicts(fields.get("tools")))
    raw = _dicts(fields.get("messages"))
    if len(raw) == len(sent.messages):  # the canonical form has text only
        return Sent([other if _has_media(other) else message for message, other in zip(sent.messages, raw, strict=True)], sent.tools)
    return Sent(sent.messages, sent.tools)


def _has_media(message: Fields) -> bool:
    return any(part.get("type") not in ("text", "refusal") for part in _dicts(message.get("content")))


def _raw_messages(fields: Fields) -> list[Fields]:
    """The messages as they were sent, in the form of the request."""
    messages = [{"role": "system", "content": fields[name]} for name in INSTRUCTIONS if fields.get(name) is not None]
    for name in MESSAGES:
        role, value = "prompt" if name == "prompt" else "user", fields.get(name)
        items: Sequence[Any] = cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
        messages += [cast(Fields, item) if isinstance(item, dict) else {"role": role, "content": item} for item in items]
    return messages


def _dicts(value: object) -> list[Fields]:
    return [cast(Fields, item) for item in cast("list[Any]", value) if isinstance(item, dict)] if isinstance(value, list) else []
