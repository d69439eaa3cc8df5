"""How a request finds the conversation that it continues.

A conversation is the chain of hashes of its canonical messages: role, text, tool calls with parsed arguments, tool results by the call
that they answer. Ids of tool calls count only by their order, so a framework may rename them. A reply that the agent edited, even by a
space, is another conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec

from agentlightning.types import JSON, Call, Completion

Message = Mapping[str, Any]
"""In OpenAI's form, content as text."""


def head_hash(policy: str, tools: Sequence[JSON] | None, format: Any = None) -> str:
    """Hash of what a conversation is held with. `format`: what `ChatRequest.format` says of the reply."""
    held = [policy, list(tools or ()), *([] if format is None else [msgspec.to_builtins(format)])]
    return _digest(json.dumps(held, sort_keys=True))


def chain(messages: Iterable[Message]) -> list[str]:
    """(messages,) hash of the conversation up to and with each message."""
    hashes: list[str] = []
    last, calls = "", _Calls()
    for message in messages:
        last = _digest(last + canonical(message, calls))
        hashes.append(last)
    return hashes


def request_hash(head: str, hashes: Sequence[str]) -> str:
    """`Call.request_hash`: of the canonical request, from `head_hash` and `chain`; who knows messages and tools can compute it too."""
    return f"{head}.{hashes[-1] if hashes else ''}"


class _Calls:
    """Tool calls of one conversation, numbered in order."""

    def __init__(self) -> None:
        self.count = 0
        self.numbers: dict[str, int] = {}

    def add(self, id: str) -> int:
        self.numbers[id] = self.count
        self.count += 1
        return self.count - 1


def canonical(message: Message, calls: _Calls | None = None) -> str:
    """The message as text, the same for all forms that mean the same."""
    calls = calls or _Calls()
    role = "system" if message["role"] == "developer" else message["role"]
    asked: list[JSON] = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        asked.append([calls.add(str(call.get("id"))), function["name"], _arguments(function.get("arguments"))])
    answers = calls.numbers.get(str(message.get("tool_call_id")), message.get("tool_call_id"))
    return json.dumps([role, text_of(message.get("content")), asked, answers], sort_keys=True)


def text_of(content: Any) -> str:
    """Content as one text: of a string, of text parts, of nothing."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in cast("list[dict[str, Any]]", content))
    return content or ""


def _arguments(arguments: Any) -> JSON:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Conversations:
    """The conversations of one attempt. Whatever it knows stands in the store's records too."""

    def __init__(self) -> None:
        self._replies: dict[str, Completion] = {}
        """By the hash of the chain and the head that it was held with."""
        self._chains: set[str] = set()
        self._said: dict[str, int | None] = {}
        """Replies by themselves, with how many messages stood before them where that is known."""
        self._asked: set[str] = set()

    def add(self, call: Call, completions: Iterable[Completion], before: int | None = None) -> None:
        """Take in an answered call; `before`: the messages of its request."""
        self._asked.add(call.request_hash.rpartition(".")[2])
        for completion in completions:
            if len(completion.response_ids) and completion.message is not None:
                self._replies[completion.conversation] = completion
                self._chains.add(completion.conversation.rpartition(".")[2])
                self._said[_digest(canonical(completion.message))] = before

    def find(self, head: str, messages: Sequence[Message], hashes: Sequence[str]) -> tuple[Completion | None, int, str]:
        """The reply that this request continues, the messages up to and with it, and the context: `bridged`, or why there is none.

        Only the last assistant message can match: a bridge takes no assistant message that was not sampled.
        """
        last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i]["role"] == "assistant"), None)
        if last is None or not self._chains:
            return None, 0, "first"
        found = self._replies.get(f"{head}.{hashes[last]}")
        if found is not None:
            return (found, last + 1, "bridged") if last + 1 < len(messages) else (None, 0, "no bridge")
        if hashes[last] in self._chains:
            return None, 0, "tools changed"
        return None, 0, self._cause(messages, hashes)

    def _cause(self, messages: Sequence[Message], hashes: Sequence[str]) -> str:
        for i in range(len(messages) - 1, -1, -1):
            if messages[i]["role"] != "assistant":
                continue
            own = _digest(canonical(messages[i]))
            if own in self._said:
                before = self._said[own]
                return "trimmed" if before is None or i < before else "edited"
            if i and hashes[i - 1] in self._asked:
                return "edited"
        return "first"
