"""How a request finds the conversation that it continues.

A conversation is the chain of hashes of its canonical messages: role, text, tool calls with parsed arguments, tool results by the call
that they answer. Ids of tool calls count only by their order, so a framework may rename them. A reply that the agent edited, even by a
space, is another conversation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from agentlightning.types import JSON, Call, Completion

_json = json.JSONEncoder(sort_keys=True).encode
Message = Mapping[str, Any]
"""In OpenAI's form, content as text."""


def head_hash(policy: str, tools: Sequence[JSON] | None, format: Any = None) -> str:
    """Hash of the terms of a conversation: policy, tools, and the reply format (`ChatRequest.format`)."""
    terms = [policy, list(tools or ()), *([] if format is None else [msgspec.to_builtins(format)])]
    return _digest(_json(terms))


@dataclass(frozen=True, slots=True)
class Chain:
    """The hash of a conversation up to and with each of its messages."""

    hashes: tuple[str, ...] = ()
    """(messages,)"""
    calls: tuple[str, ...] = ()
    """The ids of its tool calls, in order."""

    @classmethod
    def of(cls, messages: Sequence[Message], earlier: History | None) -> Chain:
        """The chain of these messages."""
        if earlier is None:
            return cls().extended(messages)
        before, chain = earlier.messages[0], earlier.chains[0]
        pairs = enumerate(zip(messages, before, strict=False))
        same = next((i for i, (message, other) in pairs if message != other), min(len(messages), len(before)))
        calls = sum(len(message.get("tool_calls") or ()) for message in before[:same])
        return cls(chain.hashes[:same], chain.calls[:calls]).extended(messages[same:])

    def extended(self, messages: Iterable[Message]) -> Chain:
        """The chain with more messages."""
        hashes, calls = list(self.hashes), _Calls(self.calls)
        for message in messages:
            hashes.append(_digest((hashes[-1] if hashes else "") + canonical(message, calls)))
        return Chain(tuple(hashes), tuple(calls.ids))


@dataclass(frozen=True, slots=True)
class History:
    """The messages before the replies of one request. A request for text completions has a history for each prompt."""

    head: str
    """See `head_hash`."""
    messages: tuple[list[dict[str, Any]], ...]
    chains: tuple[Chain, ...]
    """Aligned with `messages`."""
    policy: str = "main"
    """The policy that answers."""

    @classmethod
    def of(cls, head: str, *messages: list[dict[str, Any]], earlier: History | None = None, policy: str = "main") -> History:
        """Hash the messages of one request. It takes the hashes of messages that begin an `earlier` one too."""
        return cls(head, messages, tuple(Chain.of(history, earlier) for history in messages), policy)

    @property
    def request_hash(self) -> str:
        """`Call.request_hash`: of the canonical request. Anybody with the messages and tools can compute it."""
        return f"{self.head}.{'.'.join(chain.hashes[-1] for chain in self.chains)}"

    def conversation(self, index: int, reply: Message) -> str:
        """`Completion.conversation`: of one history with a reply to it."""
        return f"{self.head}.{self.chains[index].extended([reply]).hashes[-1]}"


@dataclass(frozen=True, slots=True)
class Match:
    """The recorded reply that a request continues, or the reason why it continues none."""

    context: str
    """`bridged`, or a reason of `Call.context`."""
    reply: Completion | None = None
    end: int = 0
    """Messages of the request up to and with that reply."""


class _Calls:
    """Tool calls of one conversation, numbered in order."""

    def __init__(self, ids: Iterable[str] = ()) -> None:
        self.ids = list(ids)
        self.numbers = {id: number for number, id in enumerate(self.ids)}

    def add(self, id: str) -> int:
        self.numbers[id] = len(self.ids)
        self.ids.append(id)
        return self.numbers[id]


def canonical(message: Message, calls: _Calls | None = None) -> str:
    """The message as text, the same for all forms that mean the same."""
    calls = calls or _Calls()
    role = "system" if message["role"] == "developer" else message["role"]
    asked: list[JSON] = []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        asked.append([calls.add(str(call.get("id"))), function["name"], _arguments(function.get("arguments"))])
    answers = calls.numbers.get(str(message.get("tool_call_id")), message.get("tool_call_id"))
    return _json([role, text_of(message.get("content")), asked, answers])


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
    """The recorded conversations of one attempt. The store's records are enough to rebuild it."""

    def __init__(self) -> None:
        self._replies: dict[str, Completion] = {}
        """By `Completion.conversation`."""
        self._chains: dict[str, str] = {}
        """The policy of each reply, by the hash of its conversation without the head."""
        self._positions: dict[str, int | None] = {}
        """By the hash of a reply alone: the number of messages before it, None after a restart."""
        self._requests: set[str] = set()
        self._latest: History | None = None

    def read(self, head: str, *messages: list[dict[str, Any]], policy: str = "main") -> History:
        """The history of a request. Only messages that the latest one did not have are hashed."""
        self._latest = History.of(head, *messages, earlier=self._latest, policy=policy)
        return self._latest

    def add(self, call: Call, completions: Iterable[Completion], before: int | None = None) -> None:
        """Add an answered call. `before`: the number of messages in its request."""
        self._requests.add(call.request_hash.rpartition(".")[2])
        for completion in completions:
            if len(completion.response_ids) and completion.message is not None:
                self._replies[completion.conversation] = completion
                self._chains[completion.conversation.rpartition(".")[2]] = completion.policy
                self._positions[_digest(canonical(completion.message))] = before

    def find(self, history: History) -> Match:
        """Find the reply that a request continues.

        Only the last assistant message can match: a bridge takes no assistant message that was not sampled.
        """
        [messages], [hashes] = history.messages, [chain.hashes for chain in history.chains]
        last = next((i for i in range(len(messages) - 1, -1, -1) if messages[i]["role"] == "assistant"), None)
        if last is None or not self._chains:
            return Match("first")
        reply = self._replies.get(f"{history.head}.{hashes[last]}")
        if reply is not None:
            return Match("bridged", reply, last + 1) if last + 1 < len(messages) else Match("repeated")
        if hashes[last] in self._chains:
            return Match("tools changed" if self._chains[hashes[last]] == history.policy else "policy changed")
        return Match(self._cause(messages, hashes))

    def with_reasoning(self, history: History) -> list[Message]:
        """The messages, with the reasoning of recorded replies that the agent dropped."""
        [messages], [hashes] = history.messages, [chain.hashes for chain in history.chains]
        restored: list[Message] = []
        for message, digest in zip(messages, hashes, strict=True):
            reply = self._replies.get(f"{history.head}.{digest}") if message["role"] == "assistant" else None
            sampled: dict[str, Any] = reply.message if reply is not None and reply.message is not None else {}
            reasoning = None if message.get("reasoning_content") else sampled.get("reasoning_content")
            restored.append({**message, "reasoning_content": reasoning} if reasoning else message)
        return restored

    def _cause(self, messages: Sequence[Message], hashes: Sequence[str]) -> str:
        for i in range(len(messages) - 1, -1, -1):
            if messages[i]["role"] != "assistant":
                continue
            reply = _digest(canonical(messages[i]))
            if reply in self._positions:
                before = self._positions[reply]
                return "trimmed" if before is None or i < before else "edited"
            if i and hashes[i - 1] in self._requests:
                return "edited"
        return "first"
