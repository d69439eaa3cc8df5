"""Reads an upstream's answers for the record, and removes fields that the agent did not request.

Each API has its own reader. A reply has token ids only if every piece of it came with them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from agentlightning.types import FinishReason

Fields = dict[str, Any]
_fields = msgspec.json.Decoder(dict[str, Any])
FINISHED: dict[Any, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "function_call": "tool_calls"}


@dataclass(slots=True)
class Choice:
    """One reply so far."""

    prompt_ids: list[int] | None = None
    ids: list[int] | None = None
    logprobs: list[float] | None = None
    """As returned by the upstream."""
    content: str = ""
    reasoning: str = ""
    calls: dict[int, Fields] = field(default_factory=dict[int, Fields])
    finish: FinishReason | None = None
    broken: bool = False
    """True if text came without its token ids."""

    def add(self, delta: Fields) -> None:
        """Add a message or a part of one."""
        self.content += delta.get("content") or ""
        self.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or ""
        for place, call in enumerate(cast("Iterable[Fields]", delta.get("tool_calls") or ())):
            fields = self.calls.setdefault(call.get("index", place), {"id": "", "name": "", "arguments": ""})
            function: Fields = call.get("function") or {}
            fields["id"] = call.get("id") or fields["id"]
            fields["name"] += function.get("name") or ""
            fields["arguments"] += function.get("arguments") or ""

    def add_ids(self, ids: list[int] | None, text: str | None) -> None:
        """Add the ids of a part with this text."""
        if ids is not None:
            self.ids = [*(self.ids or ()), *ids]
        elif text:
            self.broken = True

    def add_logprobs(self, logprobs: Iterable[Any]) -> None:
        """Add log-probabilities. None becomes NaN, because the upstream did not measure it."""
        self.logprobs = [*(self.logprobs or ()), *(float("nan") if logprob is None else float(logprob) for logprob in logprobs)]

    def message(self) -> Fields:
        """Return the message in OpenAI's format."""
        message: Fields = {"role": "assistant", "content": self.content or (None if self.calls else "")}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                for _, call in sorted(self.calls.items())
            ]
        return message


class Reader:
    """Reads the answer to one chat completions or completions request."""

    def __init__(self, call_id: str, path: str, count: int, *, shows_ids: bool, shows_logprobs: bool) -> None:
        self.choices: dict[int, Choice] = {}
        self.counted: int | None = None
        """Tokens of all replies, as counted by the upstream."""
        self._call_id, self._chat, self._count = call_id, path.endswith("/chat/completions"), count
        self._shows_ids, self._shows_logprobs = shows_ids, shows_logprobs
        self._prompt_ids: list[int] | None = None

    @property
    def done(self) -> bool:
        """Return True if every reply has ended."""
        return len(self.choices) >= self._count and all(choice.finish is not None for choice in self.choices.values())

    def take(self, answer: Fields) -> Fields:
        """Read a body or an event. Return the agent's part of it."""
        if answer.get("prompt_token_ids") is not None:
            self._prompt_ids = answer["prompt_token_ids"]
        if answer.get("usage"):
            self.counted = answer["usage"].get("completion_tokens")
        for part in cast("list[Fields]", answer.get("choices") or []):
            self._take_choice(part)
        if not self._shows_ids:
            answer.pop("prompt_token_ids", None)
        answer["system_fingerprint"] = self._call_id
        return answer

    def _take_choice(self, part: Fields) -> None:
        choice = self.choices.setdefault(part.get("index", len(self.choices)), Choice())
        message: Fields = part.get("message") or part.get("delta") or {} if self._chat else {"content": part.get("text")}
        choice.add(message)
        choice.add_ids(part.get("token_ids"), message.get("content"))
        choice.prompt_ids = part.get("prompt_token_ids") or choice.prompt_ids or self._prompt_ids
        logprobs: Fields = part.get("logprobs") or {}
        if self._chat and logprobs.get("content"):
            choice.add_logprobs(token.get("logprob") for token in logprobs["content"])
        elif not self._chat and logprobs.get("token_logprobs"):
            choice.add_logprobs(logprobs["token_logprobs"])
        if part.get("finish_reason"):
            choice.finish = FINISHED.get(part["finish_reason"], "error")
        if not self._shows_ids:
            part.pop("token_ids", None)
            part.pop("prompt_token_ids", None)
        if not self._shows_logprobs and "logprobs" in part:
            part["logprobs"] = None


class ResponseReader:
    """Reads the answer to one responses request. This API has no token ids."""

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}
        self.counted: int | None = None

    @property
    def done(self) -> bool:
        """Return True if the reply has ended."""
        return bool(self.choices)

    def take(self, answer: Fields) -> Fields:
        """Read a body or an event. Return the agent's part of it."""
        event = answer.get("type")
        response: Any = answer if answer.get("object") == "response" else answer.get("response")
        if isinstance(response, dict) and event in (None, "response.completed", "response.incomplete", "response.failed"):
            self._take(cast(Fields, response))
        return answer

    def _take(self, response: Fields) -> None:
        choice = self.choices[0] = Choice()
        for place, item in enumerate(cast("list[Fields]", response.get("output") or [])):
            if item.get("type") == "message":
                parts = cast("list[Fields]", item.get("content") or [])
                choice.content += "".join(part.get("text") or "" for part in parts if part.get("type") == "output_text")
            elif item.get("type") == "function_call":
                choice.calls[place] = {"id": item.get("call_id"), "name": item.get("name"), "arguments": item.get("arguments") or ""}
        details: Fields = response.get("incomplete_details") or {}
        if response.get("status") in (None, "completed"):
            choice.finish = "tool_calls" if choice.calls else "stop"
        else:
            choice.finish = "length" if details.get("reason") == "max_output_tokens" else "error"


async def events(parts: AsyncIterator[bytes]) -> AsyncIterator[tuple[bytes, Any]]:
    """Yield the server-sent events of a byte stream: the raw event with its blank line, and its data as JSON (None if it is not JSON)."""
    lines: list[bytes] = []
    rest = b""
    async for part in parts:
        *complete, rest = (rest + part).split(b"\n")
        for line in complete:
            line = line.removesuffix(b"\r")
            if line:
                lines.append(line)
            elif lines:
                yield _event(lines)
                lines = []
    if rest:
        lines.append(rest)
    if lines:
        yield _event(lines)


def _event(lines: list[bytes]) -> tuple[bytes, Any]:
    data = b"\n".join(line.removeprefix(b"data:").removeprefix(b" ") for line in lines if line.startswith(b"data:"))
    try:
        value: Any = msgspec.json.decode(data) if data else None
    except msgspec.DecodeError:
        value = None
    return b"\n".join(lines) + b"\n\n", value


def event_name(raw: bytes) -> str | None:
    """Return the name of an event, or None."""
    names = [line for line in raw.split(b"\n") if line.startswith(b"event:")]
    return names[0].removeprefix(b"event:").strip().decode(errors="replace") if names else None


def json_object(data: bytes) -> Fields | None:
    """Return the data as a JSON object, or None."""
    try:
        return _fields.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
