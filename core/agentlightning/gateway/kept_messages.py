"""The conversations of an attempt's recorded calls. A further call quotes them, so that its record holds only new messages and tools."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice

from agentlightning.stores.messages import Message, joined, message_key, new_messages, quoted, sent_again
from agentlightning.types import JSON, Call, Completion

COMPARED_TOOLS = 16
"""The latest different lists of tools that a request's list is compared with."""


class KeptMessages:
    """Of one attempt. The store's records are enough to rebuild it."""

    def __init__(self) -> None:
        self._conversations: dict[str, list[Message]] = {}
        """By call: its messages, then its replies by choice."""
        self._by_end: dict[str, str] = {}
        """The call whose conversation, perhaps without its reply, has this hash (`Chain.hashes`)."""
        self._by_message: dict[Hashable, str] = {}
        """The latest call that recorded a message, by `message_key`."""
        self._tools: dict[str, list[JSON]] = {}
        """By call: the tools that it recorded."""

    def add(self, call: Call, completions: Sequence[Completion]) -> None:
        """Add a recorded call."""
        if call.tool_schemas is not None:
            self._tools[call.id] = call.tool_schemas
        messages = joined(call.messages, self._conversations.get(call.after or ""))
        if messages is None:
            return
        replies = [sent_again(completion.message) for completion in sorted(completions, key=lambda completion: completion.choice)]
        self._conversations[call.id] = [*messages, *replies]
        hashes = [call.request_hash, *(completion.conversation for completion in completions)]
        self._by_end |= {conversation.rpartition(".")[2]: call.id for conversation in hashes if conversation}
        self._by_message |= {message_key(message): call.id for message in [*(new_messages(call) or ()), *replies]}

    def conversation(self, call_id: str) -> list[Message]:
        """The messages of a call, then its replies."""
        return self._conversations.get(call_id, [])

    def tools(self, call: Call) -> list[JSON]:
        """The tools of a call."""
        return self._tools.get(call.tools_from or call.id, [])

    def quote(self, messages: Sequence[Message], hashes: Sequence[str]) -> tuple[str | None, list[JSON]]:
        """(`Call.after`, `Call.messages`) of a request. `hashes`: of the conversation up to and with each message, where they exist."""
        best: tuple[str | None, list[JSON]] = None, list(messages)
        for call_id in self._candidates(messages, hashes):
            parts = quoted(messages, self._conversations[call_id])
            if _new(parts) < _new(best[1]):
                best = call_id, parts
        return best

    def quote_tools(self, tools: list[JSON]) -> tuple[str | None, list[JSON] | None]:
        """(`Call.tools_from`, `Call.tool_schemas`) of a request."""
        if not tools:
            return None, None
        for call_id, earlier in islice(reversed(self._tools.items()), COMPARED_TOOLS):
            if earlier == tools:
                return call_id, None
        return None, tools

    def _candidates(self, messages: Sequence[Message], hashes: Sequence[str]) -> list[str]:
        """The calls that probably have most of these messages."""
        end = next((end for end in range(len(hashes), 0, -1) if hashes[end - 1] in self._by_end), 0)
        candidates = [self._by_end[hashes[end - 1]]] if end else []
        if not end or any(message.get("role") == "assistant" for message in messages[end:]):  # the agent changed its history
            keys = (message_key(message) for message in reversed(messages))
            candidates += [self._by_message[key] for key in keys if key in self._by_message][:1]
        return list(dict.fromkeys(candidates))


def _new(parts: Sequence[JSON]) -> int:
    return sum(isinstance(part, dict) for part in parts)
