"""The messages of recorded calls.

A conversation repeats its history. A call therefore records its new messages, and quotes the rest from an earlier call of its attempt. A
message that a conversation repeats is stored once, however the agent edits, trims, or forks its history. `messages_of` and `tools_of` put
the whole lists together again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from agentlightning.contracts.store import AttemptRecords
from agentlightning.errors import NotFound
from agentlightning.types import JSON, Call, Completion

Message: TypeAlias = dict[str, Any]
"""In OpenAI's form: `role` (system, user, assistant, tool, or `prompt` for text to continue), `content`, `tool_calls`, `tool_call_id`."""


def messages_of(records: AttemptRecords, call_id: str) -> list[Message] | None:
    """Return all messages that a call sent, oldest first, or None if they are not recorded. Raises `NotFound` for an unknown call."""
    return RecordedMessages(records).of(call_id)


def tools_of(records: AttemptRecords, call_id: str) -> list[JSON] | None:
    """Return the tools of a call, with their schemas, or None if it had none or they are not recorded. Raises `NotFound` for an unknown
    call."""
    return RecordedMessages(records).tools(call_id)


def new_messages(call: Call) -> list[Message] | None:
    """Return the messages of a call that no earlier call has, or None if they are not recorded."""
    return None if call.messages is None else [part for part in call.messages if isinstance(part, dict)]


class RecordedMessages:
    """The messages and tools of an attempt's calls. Each list is put together once."""

    def __init__(self, records: AttemptRecords) -> None:
        self._attempt = records.attempt.id
        self._calls = {call.id: call for call in records.calls}
        self._replies: dict[str, list[Completion]] = {}
        for completion in sorted(records.completions, key=lambda completion: completion.choice):
            self._replies.setdefault(completion.call_id, []).append(completion)
        self._messages: dict[str, list[Message] | None] = {}

    def of(self, call_id: str) -> list[Message] | None:
        """See `messages_of`."""
        self._check(call_id)
        chain = list[Call]()
        base: str | None = call_id
        while base in self._calls and base not in self._messages:
            self._messages[base] = None  # also where calls quote one another, which no gateway writes
            chain.append(self._calls[base])
            base = self._calls[base].after
        for call in reversed(chain):
            self._messages[call.id] = joined(call.messages, self._conversation(call.after))
        messages = self._messages[call_id]
        return None if messages is None else list(messages)

    def tools(self, call_id: str) -> list[JSON] | None:
        """See `tools_of`."""
        self._check(call_id)
        passed, at = set[str](), self._calls.get(call_id)
        while at is not None and at.tool_schemas is None and at.id not in passed:
            passed.add(at.id)
            at = self._calls.get(at.tools_from or "")
        return None if at is None else at.tool_schemas

    def _check(self, call_id: str) -> None:
        if call_id not in self._calls:
            raise NotFound(f"Attempt {self._attempt} has no call {call_id!r}. Name a call of its records.")

    def _conversation(self, call_id: str | None) -> list[Message] | None:
        messages = self._messages.get(call_id or "")
        return None if messages is None else [*messages, *(sent_again(reply.message) for reply in self._replies.get(call_id or "", ()))]


def sent_again(reply: JSON) -> Message:
    """Return a reply as a later request repeats it: content as text, without reasoning."""
    fields = cast("dict[str, Any]", reply) if isinstance(reply, dict) else {"role": "assistant"}
    return {name: value for name, value in fields.items() if name != "reasoning_content"} | {"content": fields.get("content") or ""}


def joined(parts: JSON, conversation: Sequence[Message] | None) -> list[Message] | None:
    """Return the messages of `Call.messages`. `conversation` is that of `Call.after`. None if either is missing."""
    if not isinstance(parts, list):
        return None
    messages = list[Message]()
    for part in cast("list[Any]", parts):
        if isinstance(part, dict):
            messages.append(cast(Message, part))
        elif conversation is None:
            return None
        else:
            messages += conversation[part[0] : part[1]]
    return messages


def quoted(messages: Sequence[Message], conversation: Sequence[Message]) -> list[JSON]:
    """Return `Call.messages`: these messages, with `[start, end]` in place of those that the conversation of `Call.after` has."""
    parts = list[JSON]()
    places: Mapping[Hashable, list[int]] | None = None
    end = 0  # of the latest quote
    for message in messages:
        place = end if end < len(conversation) and conversation[end] == message else None
        if place is None and end < len(conversation):
            places = _places(conversation) if places is None else places
            place = _place(message, conversation, places, end)
        if place is None:
            parts.append(message)
            continue
        if parts and isinstance(parts[-1], list) and place == end:
            parts[-1][1] = place + 1
        else:
            parts.append([place, place + 1])
        end = place + 1
    return parts


def message_key(message: Message) -> Hashable:
    """Return a key that equal messages share."""
    content, calls = message.get("content"), message.get("tool_calls")
    return str(message.get("role")), content if isinstance(content, str) else repr(content), repr(calls) if calls else None


def _places(conversation: Sequence[Message]) -> Mapping[Hashable, list[int]]:
    places = dict[Hashable, list[int]]()
    for place, message in enumerate(conversation):
        places.setdefault(message_key(message), []).append(place)
    return places


def _place(message: Message, conversation: Sequence[Message], places: Mapping[Hashable, list[int]], start: int) -> int | None:
    """Return the first place of an equal message from `start` on."""
    candidates = places.get(message_key(message), [])
    next_one = bisect_left(candidates, start)
    if next_one == len(candidates) or conversation[candidates[next_one]] != message:
        return None
    return candidates[next_one]
